"""OWLv2 against the class and the processor of `transformers`, in float32."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch_parity import apply, error

from flowsde.models.clip.model import CLIPTextConfig, CLIPVisionConfig
from flowsde.models.common.layers import Numerics
from flowsde.models.common.paths import parameters, with_parameters
from flowsde.models.family import abstract
from flowsde.models.owlv2.boxes import corners
from flowsde.models.owlv2.model import Detections, Owlv2Config
from flowsde.models.owlv2.rewards import Counting, square_pixels
from flowsde_converters import owlv2
from flowsde_converters.tables import convert, unconvert

GOLDEN = Path(__file__).parents[1] / "data" / "owlv2.npz"
HEADS = {"num_attention_heads": 2}
BESIDE = {"text_config": HEADS, "vision_config": HEADS}


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as held:
        return dict(held)


@pytest.fixture(scope="module")
def weights(golden):
    return {k.removeprefix("weights/"): a for k, a in golden.items() if k.startswith("weights/")}


@pytest.fixture(scope="module")
def found(weights):
    return owlv2.FAMILY.recognise(weights, BESIDE)


@pytest.fixture(scope="module")
def model(weights, found):
    made = abstract(owlv2.FAMILY, found.config, Numerics())
    return with_parameters(made, convert(found.table, weights, parameters(made)))


def everything(model, pixels, tokens, weight_logits, weight_boxes):
    """Features, queries and detections, and the gradient of their weighted sum by the pixels."""
    queries = model.queries(tokens).reshape(2, 3, -1)

    def weighted(x):
        seen = model(x, queries)
        return jnp.sum(seen.logits * weight_logits) + jnp.sum(seen.boxes * weight_boxes)

    slope = jax.grad(weighted)(pixels)
    return model.detector.features(pixels), queries, model(pixels, queries), slope


@pytest.mark.slow
def test_towers_heads_and_gradients(golden, model):
    pixels = golden["pixels"].transpose(0, 2, 3, 1)
    names = ("tokens", "weight_logits", "weight_boxes")
    features, queries, seen, slope = apply(model, everything, pixels, *(golden[k] for k in names))
    # The last text is padding alone, which the class masks.
    real = np.ones((2, 3), bool)
    real[1, 2] = False
    assert error(np.asarray(queries)[real], golden["text"][real]) < 2e-5
    assert error(features, golden["features"].reshape(2, 16, 16)) < 2e-5
    for i, queried in enumerate(real):
        logits = np.asarray(seen.logits)[i][:, queried]
        assert error(logits, golden["logits"][i][:, queried]) < 1e-4
    assert error(seen.boxes, golden["boxes"]) < 2e-5
    assert error(seen.objectness, golden["objectness"]) < 2e-5
    assert error(slope, golden["gradient"].transpose(0, 2, 3, 1)) < 1e-3


@pytest.mark.slow
def test_boxes_as_the_public_processing_finds_them(golden):
    """Those above the threshold, of which nothing is suppressed here, and how many of a class."""
    seen = Detections(*(jnp.asarray(golden[k]) for k in ("logits", "boxes", "objectness")))
    is_class = jnp.asarray([[True, True, True], [True, True, False]])
    counting = Counting(threshold=0.6, overlap=0.999)
    numbers = jax.jit(counting.found)(seen, is_class)
    for i, (height, width) in enumerate(golden["sizes"]):
        labels = golden[f"found/{i}/labels"]
        np.testing.assert_array_equal(numbers[i], np.bincount(labels, minlength=3))
        best = golden["logits"][i].max(axis=-1)
        above = best > np.log(0.6 / 0.4)
        boxes = np.asarray(corners(seen.boxes[i]))[above] * max(height, width)
        np.testing.assert_allclose(boxes, golden[f"found/{i}/boxes"], rtol=1e-5, atol=1e-4)
        scores = np.asarray(jax.nn.sigmoid(best[above]))
        np.testing.assert_allclose(scores, golden[f"found/{i}/scores"], rtol=1e-5)
    assert numbers.sum() == 9


pixels = jax.jit(square_pixels, static_argnums=(1, 2))


@pytest.mark.parametrize("name", ["smaller", "larger", "alike"])
def test_pixels(golden, name):
    """To 24 from 60 x 43, from 15 x 20 and from its own size, padded by gray and by black."""
    images = golden[f"picture/{name}"][None].astype(np.float32) / 127.5 - 1.0
    for kind, gray in (("gray", 0.5), ("black", 0.0)):
        ours = pixels(images, 24, gray)[0]
        assert error(ours, golden[f"{kind}/{name}"].transpose(1, 2, 0)) < 2e-5


@pytest.mark.slow
def test_weights_come_back_with_the_same_bits(weights, found, model):
    back = unconvert(found.table, {k: np.asarray(a) for k, a in parameters(model).items()})
    assert weights.keys() - back.keys() == {"owlv2.visual_projection.weight", "owlv2.logit_scale"}
    for key, tensor in back.items():
        np.testing.assert_array_equal(tensor, weights[key], strict=True)


def test_what_cannot_be_is_named(weights):
    with pytest.raises(ValueError, match="12 features are not those of heads of 64: expected num_"):
        owlv2.FAMILY.recognise(weights, None)
    with pytest.raises(ValueError, match="layout must be transformers, got 'scenic'"):
        owlv2.FAMILY.table(Owlv2Config(), "scenic")
    with pytest.raises(ValueError, match="must have a projection and the image tower none, got No"):
        Owlv2Config(text=CLIPTextConfig())
    without = {k: a for k, a in weights.items() if not k.startswith("class_head")}
    assert owlv2.FAMILY.recognise(without, BESIDE) is None


LARGE = Owlv2Config(
    text=CLIPTextConfig(positions=16, projection=768),
    vision=CLIPVisionConfig(image=1008),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ours", "keys", "count"),
    [(Owlv2Config(), 418, 154_966_792), (LARGE, 610, 437_610_760)],
    ids=["base-patch16", "large-patch14"],
)
def test_full_size(ours, keys, count):
    """By keys and shapes of the public class; its own count, which the facts have as well."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    towers = {
        name: {
            "hidden_size": tower.width, "intermediate_size": tower.mlp,
            "num_hidden_layers": tower.depth, "num_attention_heads": tower.heads,
        }
        for name, tower in (("text_config", ours.text), ("vision_config", ours.vision))
    }  # fmt: skip
    towers["vision_config"] |= {"image_size": ours.vision.image, "patch_size": ours.vision.patch}
    config = transformers.Owlv2Config(**towers, projection_dim=ours.text.projection)
    with torch.device("meta"):
        held = transformers.Owlv2ForObjectDetection(config).state_dict()
    checkpoint = {
        key: np.broadcast_to(np.float32(0), tuple(tensor.shape)) for key, tensor in held.items()
    }
    assert len(held) == keys and sum(a.size for a in checkpoint.values()) == count
    found = owlv2.FAMILY.recognise(checkpoint, None)
    assert found.config == ours
    assert found.table.problems(checkpoint, parameters(abstract(owlv2.FAMILY, ours))) == []
