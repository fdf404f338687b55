"""Weights in float16 are run in float32, as the public classes run them there."""

import jax.numpy as jnp
import numpy as np
import pytest
from outside import diffusers, torch, transformers
from torch_parity import apply, error, randomised

from flowsde.models import registry
from flowsde.models.common.layers import Numerics
from flowsde.models.common.patches import grid_ids
from flowsde.models.common.paths import parameters
from flowsde.models.converted.load import load_module
from flowsde.models.converted.opened import open_model
from flowsde.models.family import abstract
from flowsde.models.sit.model import SiTConfig
from flowsde_converters import convert, sit
from flowsde_converters.tables import unconvert


def write(state, path):
    from safetensors.torch import save_file

    save_file(state, path)


def t5():
    return transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=48, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2,
            feed_forward_proj="gated-gelu",
        )
    )  # fmt: skip


def clip():
    tower = {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 24,
    }  # fmt: skip
    text = {"vocab_size": 50, "max_position_embeddings": 12, "bos_token_id": 1, "eos_token_id": 40}
    vision = {"image_size": 16, "patch_size": 8}
    return transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config=tower | text, vision_config=tower | vision, projection_dim=12
        )
    )


def flux():
    return diffusers.FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=20, pooled_projection_dim=24,
        guidance_embeds=False, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip


def autoencoder():
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4,
        scaling_factor=0.18215,
    )  # fmt: skip


def sequential():
    """The published head's class has its layers in a sequence of this name."""
    widths, module = (12, 8, 6, 5, 4, 1), torch.nn.Module()
    parts = [torch.nn.Identity() for _ in range(8)]
    for i, place in enumerate((0, 2, 4, 6, 7)):
        parts[place] = torch.nn.Linear(widths[i], widths[i + 1])
    module.layers = torch.nn.Sequential(*parts)
    return module


def converted(module, folder):
    """A module's weights rounded to float16, in a folder of ours and in the module."""
    module = module.half()
    if hasattr(module, "save_pretrained"):
        module.save_pretrained(folder / "in")
    else:
        (folder / "in").mkdir()
        write(module.state_dict(), folder / "in" / "model.safetensors")
    convert.run(convert.prepare(folder / "in"), folder / "out")
    return folder / "out", module.float().requires_grad_(False)


def ran(folder, call, *args):
    model = load_module(open_model(folder, registry.families()))
    dtypes = [parameter.dtype for parameter in parameters(model).values()]
    assert dtypes.count(jnp.float16) == len(dtypes)
    return apply(model, call, *args)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def rows_first(a):
    return torch.from_numpy(a.transpose(0, 3, 1, 2).copy())


IDS = np.asarray([[5, 6, 7, 40], [9, 40, 0, 0]], np.int32)
FLUX = {
    "image": normal(2, 6, 16),
    "ids": grid_ids(4, 6),
    "t": np.asarray([0.4, 1.0], np.float32),
    "text": normal(2, 3, 20, seed=1),
    "pooled": normal(2, 24, seed=2),
}


def flux_tokens(module):
    ids = torch.from_numpy(FLUX["ids"].astype(np.float32))
    image, text, pooled, t = (
        torch.from_numpy(FLUX[name]) for name in ("image", "text", "pooled", "t")
    )
    return module(image, text, pooled, t, img_ids=ids, txt_ids=torch.zeros(3, 3)).sample


@pytest.mark.slow
def test_t5_past_the_largest_value_of_float16(tmp_path):
    """As in the published XXL, whose float16 copies give NaN where nothing is clipped."""
    module = randomised(t5())
    layer = module.encoder.block[0].layer[1]
    with torch.no_grad():
        for name, factor in (("wi_0", 100), ("wi_1", 300), ("wo", 30)):
            getattr(layer.DenseReluDense, name).weight.mul_(factor)
    folder, module = converted(module, tmp_path)
    ids = torch.from_numpy(IDS.astype(np.int64))
    states = module(ids, output_hidden_states=True)
    assert states.hidden_states[1].abs().max() > 65504
    ours = ran(folder, lambda model, ids: model(ids), IDS)
    assert ours.dtype == jnp.float32
    assert error(ours, states.last_hidden_state) < 2e-5


@pytest.mark.slow
def test_flux_past_the_largest_value_of_float16(tmp_path):
    module = randomised(flux())
    block = module.transformer_blocks[0]
    with torch.no_grad():
        for layer, factor in (
            (block.norm1_context.linear, 20), (block.ff_context.net[0].proj, 50),
            (block.ff_context.net[2], 500),
        ):  # fmt: skip
            layer.weight.mul_(factor)
    folder, module = converted(module, tmp_path)
    seen = []
    block.register_forward_hook(lambda module, given, made: seen.append(made[0].abs().max()))
    wanted = flux_tokens(module)
    assert seen[0] > 65504
    ours = ran(folder, lambda model, given: model.tokens(**given), FLUX)
    assert error(ours, wanted) < 1e-4


@pytest.mark.slow
def test_clip(tmp_path):
    folder, module = converted(randomised(clip()), tmp_path)
    pixels = normal(2, 16, 16, 3)
    texts = module.get_text_features(torch.from_numpy(IDS.astype(np.int64))).pooler_output
    images = module.get_image_features(rows_first(pixels)).pooler_output
    ours = ran(folder, lambda m, *a: (m.text_features(a[0]), m.vision(a[1]).embedding), IDS, pixels)
    assert {a.dtype for a in ours} == {jnp.dtype(jnp.float32)}
    assert max(error(a, b) for a, b in zip(ours, (texts, images), strict=True)) < 2e-5


@pytest.mark.slow
def test_autoencoder(tmp_path):
    folder, module = converted(randomised(autoencoder()), tmp_path)
    latents, images = normal(1, 4, 6, 4), normal(1, 8, 12, 3, seed=1)
    moments = module.encode(rows_first(images)).latent_dist.mean * 0.18215
    decoded = module.decode(rows_first(latents) / 0.18215).sample
    ours = ran(folder, lambda m, z, x: (m.encode(x), m.decode(z)), latents, images)
    wanted = [a.permute(0, 2, 3, 1) for a in (moments, decoded)]
    assert max(error(a, b) for a, b in zip(ours, wanted, strict=True)) < 1e-4


@pytest.mark.slow
def test_aesthetic_head(tmp_path):
    folder, module = converted(randomised(sequential()), tmp_path)
    embeddings = normal(3, 12)
    ours = ran(folder, lambda model, x: model(x), embeddings)
    assert error(ours, module.layers(torch.from_numpy(embeddings))[:, 0]) < 2e-5


@pytest.mark.slow
def test_sit(tmp_path):
    """Beside the same weights in float32, which it is run in elsewhere."""
    config = SiTConfig(width=384, depth=1, heads=6, size=4)
    rng = np.random.default_rng(3)
    shapes = parameters(abstract(sit.FAMILY, config))
    params = {path: 0.1 * rng.normal(size=p.shape) for path, p in shapes.items()}
    tensors = unconvert(sit.table(config, "original"), params)
    (tmp_path / "in").mkdir()
    write(
        {key: torch.from_numpy(a.astype(np.float16)).contiguous() for key, a in tensors.items()},
        tmp_path / "in" / "model.safetensors",
    )
    job = convert.prepare(tmp_path / "in", settings={"prediction": "velocity"})
    convert.run(job, tmp_path / "out")
    x, t, labels = normal(2, 4, 4, 4), np.asarray([0.2, 0.9], np.float32), np.asarray([3, 1000])
    call = lambda model, *args: model(*args)  # noqa: E731
    ours = ran(tmp_path / "out", call, x, t, labels)
    exact = load_module(open_model(tmp_path / "out", registry.families()), dtype=jnp.float32)
    assert error(ours, np.asarray(apply(exact, call, x, t, labels))) < 2e-5


def test_activations_in_float16_are_refused():
    for dtype in (jnp.float16, "float8_e4m3fn", jnp.int8):
        with pytest.raises(ValueError, match="must be float32 or bfloat16, got (float|int)"):
            Numerics(dtype=dtype)
    assert Numerics.of_weights(jnp.float16) == Numerics(jnp.float32, jnp.float16)
    assert Numerics.of_weights("bfloat16") == Numerics("bfloat16", "bfloat16")
