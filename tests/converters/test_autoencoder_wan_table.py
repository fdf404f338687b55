"""Tables of Wan's autoencoder fit the published model, and are undone exactly."""

import math

import numpy as np
import pytest

from flowsde.models.autoencoder_wan.model import AutoencoderWanConfig
from flowsde.models.common.paths import parameters
from flowsde.models.family import abstract
from flowsde_converters.autoencoder_wan import FAMILY
from flowsde_converters.tables import convert, unconvert

MOMENTS = {"latents_mean": [0.0, 1.0], "latents_std": [1.0, 2.0]}
SMALL = AutoencoderWanConfig(
    latents=2, widths=(2, 4, 4), blocks=1, temporal=(False, True), mean=(0.0, 1.0), std=(1.0, 2.0)
)


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    shapes = parameters(abstract(FAMILY, SMALL))
    return {path: rng.normal(size=a.shape).astype(np.float32) for path, a in shapes.items()}


@pytest.mark.slow
def test_the_published_checkpoint_fits():
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    with torch.device("meta"):
        theirs = diffusers.AutoencoderKLWan()
    tensors = {key: np.broadcast_to(np.int8(0), a.shape) for key, a in theirs.state_dict().items()}
    found = FAMILY.recognise(tensors, dict(theirs.config))
    assert found.config == AutoencoderWanConfig() == FAMILY.recognise(tensors, None).config
    model = parameters(abstract(FAMILY, found.config))
    assert len(tensors) == 194 and found.table.problems(tensors, model) == []
    assert sum(math.prod(a.shape) for a in model.values()) == pytest.approx(126.9e6, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["diffusers", "original"])
def test_a_round_trip_is_bit_exact(params, layout):
    tensors = unconvert(FAMILY.table(SMALL, layout), params)
    found = FAMILY.recognise(tensors, MOMENTS)
    assert (found.config, found.layout) == (SMALL, layout)
    made = convert(found.table, tensors, params)
    assert made.keys() == params.keys()
    for path, array in params.items():
        np.testing.assert_array_equal(made[path], array, strict=True)


@pytest.mark.slow
def test_the_original_layout_is_what_diffusers_takes_it_for():
    """At the published depths, which its conversion counts on."""
    single = pytest.importorskip("diffusers.loaders.single_file_utils")
    torch = pytest.importorskip("torch")
    config = AutoencoderWanConfig(
        latents=2, widths=(2, 4, 8, 8), temporal=(False, True, True), mean=(0, 0), std=(1, 1)
    )
    rng = np.random.default_rng(0)
    shapes = parameters(abstract(FAMILY, config))
    params = {path: rng.normal(size=a.shape).astype(np.float32) for path, a in shapes.items()}
    original = unconvert(FAMILY.table(config, "original"), params)
    wanted = single.convert_wan_vae_to_diffusers(
        {key: torch.from_numpy(np.ascontiguousarray(a)) for key, a in original.items()}
    )
    ours = unconvert(FAMILY.table(config, "diffusers"), params)
    assert ours.keys() == wanted.keys()
    for key, tensor in wanted.items():
        np.testing.assert_array_equal(ours[key], tensor.numpy())


@pytest.mark.slow
def test_what_shapes_leave_open_or_is_not_supported_is_an_error(params):
    tensors = unconvert(FAMILY.table(SMALL, "diffusers"), params)
    for json, says in (
        (None, "must have latents_mean, 2 finite numbers.* got None"),
        (MOMENTS | {"latents_std": [1.0]}, r"must have latents_std, 2 .* got \[1.0\]"),
        (MOMENTS | {"latents_std": [1.0, "2"]}, "latents_std"),
        (MOMENTS | {"latents_std": [1.0, -2.0]}, "std must be positive"),
        (MOMENTS | {"is_residual": True}, "is_residual in config.json must be False, got True"),
        (MOMENTS | {"patch_size": 2}, "patch_size in config.json must be None, got 2"),
    ):
        with pytest.raises(ValueError, match=says):
            FAMILY.recognise(tensors, json)
    del tensors["encoder.down_blocks.1.resample.1.weight"]
    with pytest.raises(ValueError, match="as many blocks each, got 5 of encoder.down_blocks."):
        FAMILY.recognise(tensors, MOMENTS)
    with pytest.raises(ValueError, match="one of diffusers, original, got 'comfy'"):
        FAMILY.table(SMALL, "comfy")
    image = {"encoder.conv_in.weight": np.zeros((2, 3, 3, 3))}
    assert FAMILY.recognise(image, None) is None
