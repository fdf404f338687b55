"""A tiny SiT with its autoencoder: guidance, decoding, and what does not fit."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from outside import torch
from PIL import Image

import flowsde as fs
from flowsde.cli import main as cli
from flowsde.models.sit.model import SiT, guided_velocity
from flowsde.models.sit.pipeline import SiTPipeline


@pytest.fixture(scope="module")
def pipeline(others):
    return SiTPipeline(others["sit"], others["vae"])


@pytest.mark.slow
def test_guidance_is_on_three_channels_and_costs_two(pipeline, others):
    flow, plain = pipeline.flow(3.0), fs.load(others["sit"])
    assert (flow.evaluations, pipeline.flow(1.0).evaluations) == (2, 1)
    x = jax.random.normal(jax.random.key(0), (2, *flow.shape))
    t, labels = jnp.asarray([0.3, 0.8]), pipeline.encode([0, 2])
    velocity = jax.jit(lambda flow, labels: flow.velocity_fn(flow.params, x, t, labels))
    wanted = np.asarray(velocity(plain, labels))
    none = np.asarray(velocity(plain, np.full(2, tiny.SIT.classes, np.int32)))
    found = velocity(flow, labels)
    assert np.abs(wanted - none).max() > 0.01
    np.testing.assert_allclose(found[..., :3], (none + 3 * (wanted - none))[..., :3], atol=1e-4)
    # Of values up to 8, from batches of other sizes.
    np.testing.assert_allclose(found[..., 3], wanted[..., 3], rtol=1e-5, atol=1e-5)
    unguided = velocity(pipeline.flow(1.0), labels)
    np.testing.assert_allclose(unguided, wanted, atol=1e-5)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A model trained without dropping labels: its last label is a class."""
    folder = tmp_path_factory.mktemp("labelled")
    return tiny.sit_model(folder, dataclasses.replace(tiny.SIT, unlabelled=False))


@pytest.mark.slow
def test_without_a_label_for_none_all_classes_are_read_and_none_guides(labelled, others):
    pipeline = SiTPipeline(labelled, others["vae"])
    assert pipeline.config.classes == 3
    assert pipeline.encode([0, 2]).tolist() == [0, 2]
    with pytest.raises(ValueError, match="label must be from 0 to 2, got 3"):
        pipeline.encode([3])
    flow, plain = pipeline.flow(), fs.load(labelled)
    assert flow.evaluations == 1
    x = jax.random.normal(jax.random.key(0), (1, *flow.shape))
    t, labels = jnp.asarray([0.3]), pipeline.encode([2])
    velocity = jax.jit(lambda flow: flow.velocity_fn(flow.params, x, t, labels))
    np.testing.assert_array_equal(velocity(flow), velocity(plain))
    with pytest.raises(ValueError, match="guidance must be 1 for a model without a label for none"):
        pipeline.flow(4.0)
    model = SiT(pipeline.config, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="needs a label for none, and this model has 3 classes"):
        guided_velocity(model, x, t, labels, 4.0)


@pytest.mark.slow
def test_the_command_guides_only_with_a_label_for_none(labelled, others, tmp_path, capsys):
    words = ["sample", "--model", str(labelled), "--vae", str(others["vae"]), "--label", "2"]
    words += ["--method", "ode", "--steps", "1", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        cli.main([*words, "--guidance", "4"])
    assert "--guidance must be 1 for a model without a label" in capsys.readouterr().err
    cli.main(words)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (result["settings"]["guidance"], result["nfe"]) == (1.0, 1)


@pytest.mark.slow
def test_images_are_those_of_diffusers_autoencoder(pipeline, others):
    x = jax.random.normal(jax.random.key(1), (2, 4, 4, 4))
    with torch.no_grad():
        latents = torch.from_numpy(tiny.rows_first(x)) / 0.18215
        wanted = others["vae of diffusers"].decode(latents).sample.numpy()
    decode = pipeline.flow().decode
    images = jax.jit(lambda decode, x: decode(x))(decode, x)
    assert images.shape == (2, pipeline.side, pipeline.side, 3) == (2, 8, 8, 3)
    np.testing.assert_allclose(tiny.rows_first(images), wanted, atol=1e-3)


@pytest.mark.slow
def test_what_does_not_fit_is_named(pipeline, others, folders):
    with pytest.raises(ValueError, match="label must be from 0 to 2, got 3"):
        pipeline.encode([0, 3])
    with pytest.raises(ValueError, match="guidance must be .* got -1"):
        pipeline.flow(-1.0)
    flux_vae = folders["schnell"] / "out" / "vae"
    with pytest.raises(ValueError, match="latents of 16 channels, expected 4"):
        SiTPipeline(others["sit"], flux_vae)
    with pytest.raises(ValueError, match="holds a model of clip, expected one of autoencoder_kl"):
        SiTPipeline(others["sit"], others["clip"])


@pytest.mark.slow
def test_three_labels_on_two_devices(labelled, others, tmp_path):
    """By the command; read so, the table of labels is split along its features."""
    words = ["sample", "--model", str(labelled), "--vae", str(others["vae"]), "--label", "2"]
    words += ["--method", "ode", "--steps", "2", "--out"]
    cli.main([*words, str(tmp_path / "one")])
    cli.main([*words, str(tmp_path / "two"), "--mesh", "model=2"])
    one, two = (np.asarray(Image.open(tmp_path / n / "image.png"), int) for n in ("one", "two"))
    assert one.std() > 1 and np.abs(one - two).max() <= 1
    mesh = jax.make_mesh((2,), ("model",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    labels = [fs.load(labelled, *on).params["labels"].get_value() for on in ([], [mesh])]
    assert labels[1].addressable_shards[0].data.shape == (3, tiny.SIT.width // 2)
    np.testing.assert_array_equal(*labels)
