"""A search whose model splits its tokens over devices, and what is said of one that does not."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from problems import batch, reward
from safetensors.numpy import save_file
from tiny import PROMPTS, converted

import flowsde as fs
from flowsde.models.common.paths import parameters
from flowsde.models.family import abstract
from flowsde.models.wan.model import WanConfig
from flowsde_converters import wan
from flowsde_converters.tables import unconvert

KEY = jax.random.key(6)
LINEAR = fs.interpolants.linear()
TEXT, IDS = 20, [4, 9]
SHAPE = (2, 6, 6, 4)  # of 18 tokens, which four devices do not share evenly
PURE = {"heads": None, "mlp": None, "vocab": None}
MESHES = {
    "prompt x token": ((2, 2), ("prompt", "token"), None),
    "token": ((4,), ("token",), None),
    "token x model": ((2, 2), ("token", "model"), {}),
    "model": ((2,), ("model",), {"token": "model", **PURE}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A converted Wan with random weights."""
    folder = tmp_path_factory.mktemp("wan")
    config = WanConfig(channels=4, heads=2, head=12, depth=2, mlp=48, text=TEXT)
    rng = np.random.default_rng(7)
    shapes = parameters(abstract(wan.FAMILY, config))
    params = {k: 0.3 * rng.normal(size=p.shape).astype(p.dtype) for k, p in shapes.items()}
    tensors = unconvert(wan.table(config, "original"), params)
    tensors = {key: np.ascontiguousarray(a) for key, a in tensors.items()}
    save_file(tensors, folder / "wan.safetensors")
    (folder / "config.json").write_text(json.dumps({"num_heads": config.heads}))
    return converted(folder / "wan.safetensors", folder / "out")


def options(name):
    sizes, names, rules = MESHES[name]
    devices, kinds = jax.devices()[: np.prod(sizes)], (AxisType.Auto,) * len(sizes)
    mesh = jax.make_mesh(sizes, names, kinds, devices=devices)
    return {"mesh": mesh, "rules": None if rules is None else fs.ShardingRules(**rules)}


def brightness(pictures, cond):
    return jnp.mean(pictures, axis=tuple(range(1, pictures.ndim)))


def go(folder, search, loaded, run, how=fs.run):
    """Of two prompts; how the model is loaded, and run."""
    flow = fs.Flow.from_nnx(fs.load(folder, **loaded), SHAPE)
    text = np.random.default_rng(1).normal(size=(2, 5, TEXT)).astype(np.float32)
    return how(KEY, flow, search, brightness, cond=text, prompt_ids=IDS, **run)


def same(split, alone):
    np.testing.assert_array_equal(split.nfe, alone.nfe)
    for name in ("x0", "reward"):
        made, wanted = (np.asarray(getattr(result, name)) for result in (split, alone))
        assert np.abs(made - wanted).max() <= 1e-5 * np.abs(wanted).max(), name


def svdd(kernel):
    """Of which every step is decided by a reward."""
    return fs.search.svdd(nfe=6, kernel=kernel, grid=fs.grids.uniform(3), chains=1, finish="mean")


@pytest.mark.slow
def test_a_search_finds_what_it_does_on_one_device(folder):
    search = svdd(fs.kernels.ddim(LINEAR, 1.0))
    alone = go(folder, search, {}, {})
    for name in ("prompt x token", "token x model", "model"):
        same(go(folder, search, options(name), options(name)), alone)


@pytest.mark.slow
def test_a_batch_finds_it_too(folder):
    search = svdd(fs.kernels.ddim(LINEAR, 1.0))
    on = options("prompt x token")
    found = dict(go(folder, search, on, on | {"batch_size": 1}, how=fs.batch))
    alone = go(folder, search, {}, {})
    for at, i in enumerate(IDS):
        same(found[i], jax.tree.map(lambda a, at=at: a[at], alone._replace(info=None, state=None)))


@pytest.mark.slow
def test_a_search_goes_on_with_its_tokens_split_and_on_one_device_again(folder, tmp_path):
    """Saved after the first round without a mesh, and after the second on one."""
    search = svdd(fs.kernels.ddim(LINEAR, 1.0))
    alone, on = go(folder, search, {}, {}), options("prompt x token")
    for loaded in ({}, on):
        resume = None if loaded is not on else fs.restore_search(tmp_path, search)
        given = loaded | {"resume": resume}
        fs.save_search(tmp_path, search, next(go(folder, search, loaded, given, how=fs.iterate)))
    same(go(folder, search, {}, {"resume": fs.restore_search(tmp_path, search)}), alone)


@pytest.mark.slow
def test_gradients_of_a_reward_go_through(folder):
    """For a guided kernel, which differentiates the model."""
    kernel = fs.kernels.ddim(LINEAR, 1.0)
    search = svdd(fs.kernels.reward_gradient(kernel, temperature=0.1))
    alone = go(folder, search, {}, {})
    assert np.abs(np.asarray(alone.x0 - go(folder, svdd(kernel), {}, {}).x0)).max() > 1e-3
    same(go(folder, search, options("token"), options("token")), alone)


@pytest.mark.slow
def test_a_pipeline_as_it_is_loaded(folders):
    """FLUX of 17 words and 24 tokens of an image, decoded and scored."""
    search = svdd(fs.kernels.ddim(LINEAR, 1.0))
    found = []
    for on in ({}, options("prompt x token")):
        pipeline = fs.load(folders["dev"] / "out", **on)
        cond, flow = jax.device_get(pipeline.encode(PROMPTS, length=17)), pipeline.flow(16, 24)
        found.append(fs.run(KEY, flow, search, brightness, cond=cond, prompt_ids=[0, 1], **on))
    same(found[1], found[0])


@pytest.mark.slow
def test_a_model_that_splits_none_is_refused(folder):
    """One of another kind, and one that was not told: devices would all do the same."""
    search = fs.search.bon(nfe=4, kernel=fs.kernels.ode_euler(LINEAR), grid=fs.grids.uniform(2))
    said = "rules split tokens over mesh axis '{}' of 2 devices, but model {} splits none over it"
    data = fs.analytic.mixture([0.5, 0.5], [[1.0, 1.0], [-1.0, -1.0]], 0.1)
    ids, cond = batch(2, seed=2)
    with pytest.raises(ValueError, match=said.format("token", ".*")):
        on = options("prompt x token")
        fs.run(KEY, data.flow(), search, reward, cond=cond, prompt_ids=ids, **on)
    with pytest.raises(ValueError, match=said.format("model", "Wan")):
        go(folder, search, {}, options("model"))
