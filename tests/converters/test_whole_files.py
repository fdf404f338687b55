"""Files that hold a whole pipeline, under the names that their programs give to its parts."""

import numpy as np
import pytest
import toy
from safetensors.numpy import save_file
from test_command import refused, say
from test_entries import assert_weights

from flowsde.models.autoencoder_kl.model import AutoencoderKLConfig
from flowsde.models.common.paths import parameters
from flowsde.models.family import abstract
from flowsde.models.flux.model import FluxConfig
from flowsde.models.t5.model import T5Config
from flowsde_converters import autoencoder_kl, flux, t5
from flowsde_converters.detect import plan
from flowsde_converters.files import open_checkpoint
from flowsde_converters.tables import unconvert

MODEL, OTHER = toy.tensors(), {key: a + 1 for key, a in toy.tensors(depth=2).items()}
PARTS = {
    "vae": "vae.",
    "first_stage_model": "first_stage_model.",
    "text_encoder_2": "text_encoder_2.",
    "text_encoders.t5xxl.transformer": "text_encoders.t5xxl.transformer.",
    "conditioner.embedders.0.transformer": "conditioner.embedders.0.transformer.",
}


def under(before, tensors):
    return {before + key: a for key, a in tensors.items()}


def opened(path, tensors):
    save_file(tensors, path)
    return open_checkpoint(path)


@pytest.mark.parametrize(
    ("before", "part"),
    [("", part) for part in PARTS]
    + [("model.diffusion_model.", "vae"), ("transformer._orig_mod.", "text_encoder_2")],
)
def test_the_model_is_taken_and_the_others_named(families, source, before, part):
    checkpoint = opened(source, under(before, MODEL) | under(PARTS[part], OTHER))
    found = plan(checkpoint)
    assert_weights(found, MODEL)
    assert found.checkpoint.notes[-1] == f"the model alone; --entry takes the others: {part}"
    assert_weights(plan(checkpoint, entry=part), OTHER)


def test_a_part_alone_is_what_is_meant(families, source):
    assert_weights(plan(opened(source, under("vae.", OTHER))), OTHER)
    two = under("vae.", OTHER) | under("text_encoder.", OTHER)
    with pytest.raises(ValueError, match="in text_encoder, vae; expected --entry to choose one"):
        plan(opened(source, two))


def test_a_part_is_not_taken_for_a_model_that_is_not_known(families, source):
    held = {"model.diffusion_model.x.weight": np.ones((2, 2), np.float32)} | under("vae.", OTHER)
    with pytest.raises(ValueError, match=r"no family known here; expected --entry .*: vae"):
        plan(opened(source, held))
    assert_weights(plan(opened(source, held), entry="vae"), OTHER)


def published(module, config, layout, seed):
    """A tiny checkpoint of a published family."""
    family = getattr(module, "ENCODER", None) or module.FAMILY
    rng = np.random.default_rng(seed)
    shapes = parameters(abstract(family, config))
    params = {path: rng.normal(size=p.shape).astype(np.float32) for path, p in shapes.items()}
    tensors = unconvert(family.table(config, layout), params)
    return {key: np.ascontiguousarray(a) for key, a in tensors.items()}


@pytest.mark.slow
@pytest.mark.parametrize("form", ["comfy", "diffusers"])
def test_flux_with_its_autoencoder_and_encoder_in_one_file(tmp_path, capsys, form):
    comfy = form == "comfy"
    model = published(
        flux,
        FluxConfig(channels=16, heads=1, axes=(16, 56, 56), double=1, single=1, mlp=8, text=4,
                   pooled=4, guidance=False),
        "original" if comfy else "diffusers", 0,
    )  # fmt: skip
    vae = published(
        autoencoder_kl,
        AutoencoderKLConfig(channels=3, latents=16, widths=(32, 32), blocks=1, groups=32,
                            quant=False, scale=0.3611, shift=0.1159),
        "original", 1,
    )  # fmt: skip
    encoder = published(
        t5, T5Config(vocab=8, width=4, depth=2, heads=1, head=4, mlp=8, buckets=4,
                     decoder_depth=0, tied_head=False),
        "transformers", 2,
    )  # fmt: skip
    names = ("model.diffusion_model", "vae", "text_encoders.t5xxl.transformer")
    names = names if comfy else ("transformer", "vae", "text_encoder_2")
    held = {}
    for name, part in zip(names, (model, vae, encoder), strict=True):
        held |= under(f"{name}.", part)
    path = tmp_path / "all.safetensors"
    save_file(held, path)
    out, _ = say(capsys, path, "--check")
    assert "found   flux, " in out
    assert f"the model alone; --entry takes the others: {', '.join(sorted(names[1:]))}\n" in out
    for name, family in zip(names[1:], ("autoencoder_kl", "t5_encoder"), strict=True):
        out, _ = say(capsys, path, "--check", "--entry", name)
        assert f"found   {family}, " in out


def test_ggufs_are_refused_with_what_to_do(tmp_path, capsys):
    path = tmp_path / "flux1-dev-Q4_K.gguf"
    path.write_bytes(b"GGUF")
    for source in (path, tmp_path, "city96/FLUX.1-dev-gguf/flux1-dev-Q4_K.gguf"):
        said = refused(capsys, source, "--check")
        assert "is a GGUF" in said and "expected the same model as .safetensors" in said
        assert said.count("\n") == 1
