"""AutoencoderKL's tables fit the published models at full size, and are undone exactly."""

import dataclasses
import json
from inspect import signature

import numpy as np
import pytest
from outside import diffusers, torch

from flowsde.models.autoencoder_kl.model import AutoencoderKLConfig, sd_vae
from flowsde.models.common.paths import parameters
from flowsde.models.family import abstract
from flowsde_converters.autoencoder_kl import FAMILY, LAYOUTS
from flowsde_converters.tables import convert, unconvert

FLUX = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 16,
    "use_quant_conv": False, "use_post_quant_conv": False,
    "scaling_factor": 0.3611, "shift_factor": 0.1159,
}  # fmt: skip
SD = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4}
TINY = {
    "block_out_channels": (4, 8, 8), "layers_per_block": 1, "latent_channels": 16,
    "norm_num_groups": 2,
}  # fmt: skip


def public(settings):
    """Shapes of the class of `diffusers`, and its config.json."""
    levels = len(settings["block_out_channels"])
    with torch.device("meta"):
        module = diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            **settings,
        )
    shapes = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    return shapes, json.loads(json.dumps(dict(module.config)))


def built(config):
    return parameters(abstract(FAMILY, config))


def filled(shapes):
    rng = np.random.default_rng(0)
    return {key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}


def assert_same(back, wanted):
    assert back.keys() == wanted.keys()
    for key, tensor in wanted.items():
        np.testing.assert_array_equal(back[key], tensor, strict=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "config"), [(FLUX, AutoencoderKLConfig()), (SD, sd_vae())], ids=["FLUX", "SD"]
)
def test_full_size(settings, config):
    shapes, settings = public(settings)
    checkpoint = {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}
    found = FAMILY.recognise(checkpoint, settings)
    assert found.config == config and found.layout == "diffusers"
    model = built(config)
    assert found.table.problems(checkpoint, model) == []
    count = lambda shapes: sum(int(np.prod(shape)) for shape in shapes)  # noqa: E731
    assert count(p.shape for p in model.values()) == count(shapes.values())
    assert FAMILY.config(**json.loads(json.dumps(dataclasses.asdict(config)))) == config


def public_of_flux2(**settings):
    """As `public`, of the class that FLUX.2's are of."""
    with torch.device("meta"):
        module = diffusers.AutoencoderKLFlux2(**settings)
    shapes = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    return shapes, json.loads(json.dumps(dict(module.config)))


@pytest.mark.slow
def test_full_size_of_flux2():
    shapes, settings = public_of_flux2()
    assert len(shapes) == 251
    checkpoint = {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}
    wanted = AutoencoderKLConfig(latents=32, quant=True, scale=1.0, shift=0.0, normalised=True)
    for told in (settings, None):
        assert FAMILY.recognise(checkpoint, told).config == wanted
    found, model = FAMILY.recognise(checkpoint, settings), built(wanted)
    assert found.table.problems(checkpoint, model) == []
    assert sum(p.size for p in model.values()) == pytest.approx(84e6, rel=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_flux2s_come_back_in_each_layout(layout):
    config = AutoencoderKLConfig(
        latents=4, widths=(4, 8), blocks=1, groups=2, quant=True, scale=1.0, shift=0.0,
        normalised=True,
    )  # fmt: skip
    params = filled({path: p.shape for path, p in built(config).items()})
    checkpoint = unconvert(FAMILY.table(config, layout), params)
    # Where its own code has it.
    assert ("encoder.quant_conv.weight" in checkpoint) == (layout == "original")
    counted = {"bn.num_batches_tracked": np.int64(3)}
    found = FAMILY.recognise(checkpoint | counted, {"norm_num_groups": 2})
    assert (found.layout, found.config) == (layout, config)
    assert_same(convert(found.table, checkpoint | counted, built(config)), params)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"batch_norm_eps": 1e-5}, "batch_norm_eps in config.json must be 0.0001, got 1e-05"),
        ({"patch_size": [1, 1]}, r"patch_size in config.json must be \[2, 2\], got \[1, 1\]"),
        (
            {"decoder_block_out_channels": [96, 192]},
            r"decoder_block_out_channels .* those of the encoder, got \[96, 192\]",
        ),
    ],
)
def test_settings_of_flux2s_that_are_not_supported_are_named(change, says):
    shapes, settings = public_of_flux2(
        block_out_channels=(4, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1, norm_num_groups=2,
    )  # fmt: skip
    checkpoint = {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}
    with pytest.raises(ValueError, match=says):
        FAMILY.recognise(checkpoint, settings | change)


@pytest.mark.slow
@pytest.mark.parametrize("quant", [False, True])
def test_unconvert_gives_back_the_same_bits(quant):
    shapes, settings = public(TINY | {"use_quant_conv": quant, "use_post_quant_conv": quant})
    checkpoint = filled(shapes)
    found = FAMILY.recognise(checkpoint, settings)
    assert found.config.quant == quant
    back = unconvert(found.table, convert(found.table, checkpoint, built(found.config)))
    assert_same(back, checkpoint)


@pytest.fixture(scope="module")
def tiny():
    """A checkpoint of `diffusers`, its config.json, and our configuration and parameters."""
    shapes, settings = public(TINY)
    checkpoint = filled(shapes)
    found = FAMILY.recognise(checkpoint, settings)
    params = convert(found.table, checkpoint, built(found.config))
    return checkpoint, settings, found.config, params


@pytest.mark.slow
def test_original_layout_against_the_public_conversion(tiny):
    file_utils = pytest.importorskip("diffusers.loaders.single_file_utils")
    checkpoint, settings, config, params = tiny
    original = unconvert(FAMILY.table(config, "original"), params)
    assert original["decoder.mid.attn_1.q.weight"].shape == (8, 8, 1, 1)
    as_torch = {key: torch.tensor(tensor) for key, tensor in original.items()}
    public = file_utils.convert_ldm_vae_checkpoint(as_torch, settings)
    assert_same({key: tensor.numpy() for key, tensor in public.items()}, checkpoint)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_is_recognised_and_undone(tiny, layout):
    _, settings, config, params = tiny
    checkpoint = unconvert(FAMILY.table(config, layout), params)
    found = FAMILY.recognise(checkpoint, settings)
    assert found.layout == layout and found.config == config
    assert_same(convert(found.table, checkpoint, built(config)), params)


@pytest.mark.slow
def test_early_names_of_the_attention(tiny):
    _, _, config, params = tiny
    keys = unconvert(FAMILY.table(config, "diffusers-early"), params).keys()
    attention = "encoder.mid_block.attentions.0"
    for name in ("query", "key", "value", "proj_attn", "group_norm"):
        assert {f"{attention}.{name}.weight", f"{attention}.{name}.bias"} <= keys


@pytest.mark.slow
def test_scale_comes_from_config_json_or_is_fluxs(tiny):
    checkpoint, settings, config, _ = tiny
    with pytest.raises(ValueError, match="config.json with scaling_factor"):
        FAMILY.recognise(checkpoint, None)
    other = FAMILY.recognise(checkpoint, settings | {"scaling_factor": 1.53, "shift_factor": 0.1})
    assert (other.config.scale, other.config.shift) == (1.53, 0.1)
    with pytest.raises(ValueError, match="latents_mean and latents_std"):
        FAMILY.recognise(checkpoint, settings | {"latents_mean": [0.0] * 16})
    wide = dataclasses.replace(config, widths=(32,), groups=32)
    shapes = {path: np.zeros(p.shape, np.float32) for path, p in built(wide).items()}
    original = unconvert(FAMILY.table(wide, "original"), shapes)
    found = FAMILY.recognise(original, None)
    assert (found.config.scale, found.config.shift) == (0.3611, 0.1159)
    # Stable Diffusion 3's has the same keys and shapes.
    (note,) = found.notes
    assert "1.5305" in note and "0.0609" in note
    told = FAMILY.recognise(original, {"scaling_factor": 1.5305, "shift_factor": 0.0609})
    assert (told.config.scale, told.config.shift, told.notes) == (1.5305, 0.0609, ())


@pytest.mark.slow
@pytest.mark.parametrize(
    "change, says",
    [
        ({"act_fn": "relu"}, "act_fn in config.json must be silu, got 'relu'"),
        ({"scaling_factor": None}, "scaling_factor in config.json must be a finite number, got N"),
        ({"scaling_factor": 0}, "scaling_factor in config.json must be positive, got 0"),
        ({"scaling_factor": -0.5}, "scaling_factor in config.json must be positive, got -0.5"),
        ({"scaling_factor": float("nan")}, "must be a finite number, got nan"),
        ({"scaling_factor": True}, "must be a finite number, got True"),
        ({"shift_factor": "0.1"}, "shift_factor in config.json must be a finite number, got '0.1'"),
    ],
)
def test_settings_that_are_not_supported_are_named(tiny, change, says):
    checkpoint, settings, config, _ = tiny
    with pytest.raises(ValueError, match=says):
        FAMILY.recognise(checkpoint, settings | change)
    # Another name of the same function.
    assert FAMILY.recognise(checkpoint, settings | {"act_fn": "swish"}).config == config


def test_another_models_keys_are_not_taken(tiny):
    checkpoint, settings, *_ = tiny
    video = checkpoint | {"encoder.conv_in.weight": np.zeros((4, 3, 3, 3, 3))}
    assert FAMILY.recognise(video, settings) is None
    assert FAMILY.recognise({"encoder.conv_in.weight": np.zeros((4, 3, 3, 3))}, None) is None


def test_layouts_are_named(tiny):
    with pytest.raises(ValueError, match="diffusers-early, original, got 'ldm'"):
        FAMILY.table(tiny[2], "ldm")


def test_a_configuration_of_diffusers_without_a_scale_has_the_default_of_its_class(tiny):
    """As the published sd-vae-ft-ema, written before there was the setting."""
    checkpoint, settings, _, _ = tiny
    settings = {k: v for k, v in settings.items() if k not in ("scaling_factor", "shift_factor")}
    config = FAMILY.recognise(checkpoint, settings | {"_class_name": "AutoencoderKL"}).config
    default = signature(diffusers.AutoencoderKL).parameters["scaling_factor"].default
    assert (config.scale, config.shift) == (default, 0.0) == (0.18215, 0.0)
