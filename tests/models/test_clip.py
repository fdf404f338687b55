"""CLIP against the public classes of `transformers`, and its own rules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from outside import torch, transformers
from torch_parity import apply, error, gradient_error, port, randomised

from flowsde.models.clip.model import CLIP, CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from flowsde.models.common.layers import Numerics, logical_axes
from flowsde_converters import clip

TEXT = {
    "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 20, "projection_dim": 24,
    "bos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48,
    "image_size": 24, "patch_size": 8, "projection_dim": 24,
}  # fmt: skip
EOS = 40


def tokens(n, length, seed=0):
    """Rows of random tokens, some above `EOS`, each with `EOS` once and padding after it."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(2, 50, (n, length))
    ids[ids == EOS] += 1
    for row in ids:
        end = rng.integers(1, length)
        row[end], row[end + 1 :] = EOS, 0
    return ids.astype(np.int32)


def images(n, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 24, 24, 3)).astype(np.float32)


def call(model, *args):
    return model(*args)


def as_torch(a):
    return torch.tensor(a.transpose(0, 3, 1, 2) if a.ndim == 4 else a.astype(np.int64))


def text_pair(projected=True, **changes):
    config = transformers.CLIPTextConfig(**TEXT | changes)
    kind = "CLIPTextModelWithProjection" if projected else "CLIPTextModel"
    module = randomised(getattr(transformers, kind)(config))
    return module, *port(clip.TEXT, module, config.to_dict())


def vision_pair(projected=True, **changes):
    config = transformers.CLIPVisionConfig(**VISION | changes)
    kind = "CLIPVisionModelWithProjection" if projected else "CLIPVisionModel"
    module = randomised(getattr(transformers, kind)(config))
    return module, *port(clip.VISION, module, config.to_dict())


@pytest.fixture(scope="module")
def text():
    return text_pair(eos_token_id=EOS)


@pytest.fixture(scope="module")
def vision():
    return vision_pair()


def assert_text(pair, ids, mask=None):
    module, model, _ = pair
    ours = apply(model, call, ids, mask)
    padding = None if mask is None else torch.tensor(mask)
    theirs = module(as_torch(ids), attention_mask=padding, output_hidden_states=True)
    assert error(ours.last, theirs.last_hidden_state) < 2e-5
    assert error(ours.penultimate, theirs.hidden_states[-2]) < 2e-5
    if model.projection is None:
        assert ours.embedding is None
        assert error(ours.pooled, theirs.pooler_output) < 2e-5
    else:
        assert error(ours.embedding, theirs.text_embeds) < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize(("n", "length"), [(3, 20), (1, 6)])
def test_text_is_pooled_at_its_end(text, n, length):
    assert_text(text, tokens(n, length))


@pytest.mark.slow
def test_text_pooled_at_its_highest_token_with_gelu_and_no_projection():
    pair = text_pair(projected=False, eos_token_id=2, hidden_act="gelu", layer_norm_eps=1e-3)
    assert pair[2].config.eos is None
    ids = tokens(3, 9)
    assert (ids.argmax(1) != (ids == EOS).argmax(1)).any()
    assert_text(pair, ids)


@pytest.mark.slow
def test_masked_tokens_are_not_looked_at(text):
    ids, mask = tokens(3, 9), np.ones((3, 9), np.int64)
    mask[0, 2], mask[1, 5:] = 0, 0
    assert_text(text, ids, mask)


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 3])
def test_images(vision, n):
    module, model, _ = vision
    ours = apply(model, call, images(n))
    theirs = module(as_torch(images(n)), output_hidden_states=True)
    assert error(ours.embedding, theirs.image_embeds) < 2e-5
    assert error(ours.last, theirs.last_hidden_state) < 2e-5
    assert error(ours.penultimate, theirs.hidden_states[-2]) < 2e-5


@pytest.mark.slow
def test_images_with_gelu_and_no_projection():
    module, model, _ = vision_pair(projected=False, hidden_act="gelu", patch_size=12)
    ours = apply(model, call, images(2))
    assert ours.embedding is None
    assert error(ours.pooled, module(as_torch(images(2))).pooler_output) < 2e-5


@pytest.mark.slow
def test_both_towers_and_their_scale():
    config = transformers.CLIPConfig(
        text_config=TEXT | {"eos_token_id": EOS}, vision_config=VISION, projection_dim=24
    )
    module = randomised(transformers.CLIPModel(config))
    model, _ = port(clip.FAMILY, module, config.to_dict())
    ids, x = tokens(3, 12), images(2)

    def logits(model, ids, x):
        a, b = model.vision(x).embedding, model.text_features(ids)
        a, b = (y / jnp.linalg.norm(y, axis=-1, keepdims=True) for y in (a, b))
        return jnp.exp(model.logit_scale) * a @ b.T

    theirs = module(as_torch(ids), as_torch(x)).logits_per_image
    assert error(apply(model, logits, ids, x), theirs) < 1e-4


@pytest.mark.slow
def test_gradients_of_the_parameters(text):
    weights = np.random.default_rng(1).normal(size=24).astype(np.float32)
    module, model, found = text
    ids = tokens(3, 12)
    scalar = (module(as_torch(ids)).text_embeds.square() @ torch.tensor(weights)).sum()
    loss = lambda model: (model(ids).embedding ** 2 @ weights).sum()  # noqa: E731
    assert gradient_error(model, found, module, loss, scalar) < 1e-3


@pytest.mark.slow
def test_gradient_of_the_image(vision):
    module, model, _ = vision
    x = images(2)
    theirs = as_torch(x).requires_grad_()
    module(theirs).image_embeds.square().sum().backward()
    scalar = lambda model, x: (model(x).embedding ** 2).sum()  # noqa: E731
    ours = apply(model, jax.grad(scalar, argnums=1), x)
    assert error(ours.transpose(0, 3, 1, 2), theirs.grad) < 1e-3


@pytest.mark.slow
def test_activations_and_weights_have_their_own_dtypes(text):
    module, exact, _ = text
    model, _ = port(
        clip.TEXT,
        module,
        module.config.to_dict(),
        Numerics(dtype=jnp.bfloat16, param_dtype=jnp.float32),
    )
    ids = tokens(3, 9)
    ours = apply(model, call, ids)
    assert {a.dtype for a in ours} == {jnp.dtype(jnp.bfloat16)}
    assert {p.dtype for p in jax.tree.leaves(nnx.state(model))} == {jnp.dtype(jnp.float32)}
    wanted = apply(exact, call, ids)
    assert 1e-4 < error(ours.embedding.astype(jnp.float32), np.asarray(wanted.embedding)) < 3e-2


def test_parameters_name_their_axes(text):
    axes = logical_axes(text[1])
    assert axes.tokens.get_value() == ("vocab", "embed")
    assert axes.blocks.query.kernel.get_value() == ("layer", "embed", "heads")
    assert axes.blocks.norm1.scale.get_value() == ("layer", "embed")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: CLIPTextConfig(width=30, heads=4), "heads must divide width, got 4 and 30"),
        (lambda: CLIPVisionConfig(activation="relu"), "gelu, gelu_tanh, got 'relu'"),
        (lambda: CLIPVisionConfig(image=225), "patch must divide image, got 14 and 225"),
        (lambda: CLIPConfig(text=CLIPTextConfig(projection=512)), "one size, got 512 and 768"),
    ],
)
def test_settings_that_cannot_be_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.slow
def test_inputs_that_do_not_fit_are_named(text, vision):
    with pytest.raises(ValueError, match="at most 20 places, got 21"):
        text[1](jnp.zeros((1, 21), jnp.int32))
    with pytest.raises(ValueError, match=r"\[n, 24, 24, 3\], got \[1, 3, 24, 24\]"):
        vision[1](jnp.zeros((1, 3, 24, 24)))


@pytest.mark.slow
def test_a_new_model_runs():
    small = {"width": 8, "depth": 1, "heads": 2, "mlp": 8, "projection": 4}
    config = CLIPConfig(
        text=CLIPTextConfig(vocab=9, positions=5, **small),
        vision=CLIPVisionConfig(image=4, patch=2, **small),
    )

    @jax.jit
    def features():
        model = CLIP(config, Numerics(), rngs=nnx.Rngs(0))
        return model.vision(jnp.ones((1, 4, 4, 3))).embedding

    assert jnp.isfinite(features()).all() and (features() != 0).all()
