"""The embedded flow and its reward on a mesh: weights are split, and what is found is the same."""

import json
from functools import cache

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, PartitionSpec

import flowsde as fs
from flowsde import shapes
from flowsde.cli import main as cli
from flowsde.runner.arguments import prepare
from flowsde.shapes import weights

PROMPTS = ("one red circle", "two blue squares")
KERNEL, GRID = fs.kernels.ddim(fs.interpolants.vp()), fs.grids.uniform(2)


@cache
def model(guidance=1.0):
    return shapes.load_flow(guidance=guidance), shapes.load_reward()


def given(guidance=1.0):
    flow, reward = model(guidance)
    cond = np.stack([shapes.encode(prompt) for prompt in PROMPTS])
    search = fs.search.svdd(nfe=8 * flow.evaluations, kernel=KERNEL, grid=GRID)
    return {"flow": flow, "search": search, "reward": reward, "cond": cond,
            "prompt_ids": range(2)}  # fmt: skip


def mesh_of(**sizes):
    n = int(np.prod(list(sizes.values())))
    kinds = (AxisType.Auto,) * len(sizes)
    return jax.make_mesh((*sizes.values(),), (*sizes,), kinds, devices=jax.devices()[:n])


MESHES = {
    "two": ({"model": 2}, None),
    "four": ({"model": 4}, None),
    "fully sharded": ({"prompt": 2, "model": 2}, fs.ShardingRules(embed="prompt")),
    "over prompts": ({"prompt": 2}, fs.ShardingRules(embed="prompt")),
}


def test_weights_are_those_of_the_file_with_names():
    """Unpacked, what was saved; so a file may be read by whoever knows no names."""
    flow, reward = model()
    for name, params in (("shapes", flow.params), ("scorer", reward.args[0])):
        written, _ = weights.load(weights.packaged(name), name)
        assert jax.tree.all(jax.tree.map(np.array_equal, nnx.to_pure_dict(params), written))
        axes = {leaf.get_metadata().get("axes") for _, leaf in nnx.to_flat_state(params)}
        assert len(axes) > 4


@pytest.mark.parametrize(
    ("mesh", "ways", "words"),
    [
        ("two", 2, (None, "model")),
        ("four", 4, (None, "model")),
        ("fully sharded", 4, (None, ("prompt", "model"))),
        ("over prompts", 2, (None, "prompt")),
    ],
)
def test_each_device_holds_its_part(mesh, ways, words):
    """Of the matrices, all but a few of the flow's values; of the scorer, what reads out."""
    sizes, rules = MESHES[mesh]
    job = prepare(jax.random.key(0), mesh=mesh_of(**sizes), rules=rules, **given())
    leaves = [leaf.get_value() for _, leaf in nnx.to_flat_state(job.flow.params)]
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
    # The convolutions, and those next to them that have one named axis, are in fewer parts.
    assert held < 1.4 / ways * sum(leaf.nbytes for leaf in leaves)
    blocks = job.flow.params["blocks"]
    for name in ("qkv", "out", "up", "down", "modulation"):
        kernel = blocks[name]["kernel"].get_value()
        assert kernel.addressable_shards[0].data.nbytes * ways == kernel.nbytes, name
    # Nineteen words: along their features.
    assert job.flow.params["words"]["embedding"].get_value().sharding.spec == PartitionSpec(*words)
    read = jax.tree.leaves(job.model.reward, is_leaf=lambda a: isinstance(a, nnx.State))
    scorer = next(one for one in read if isinstance(one, nnx.State))
    kernel = scorer["read1" if "model" in sizes else "detect"]["kernel"].get_value()
    assert kernel.addressable_shards[0].data.nbytes < kernel.nbytes


@cache
def alone(guidance):
    return fs.run(jax.random.key(0), **given(guidance))


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_what_is_found_is_that_of_one_device(mesh):
    sizes, rules = MESHES[mesh]
    guidance = 2.0 if mesh == "two" else 1.0
    on = {"mesh": mesh_of(**sizes), "rules": rules}
    result, wanted = fs.run(jax.random.key(0), **given(guidance), **on), alone(guidance)
    np.testing.assert_allclose(result.image, wanted.image, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(result.reward, wanted.reward, rtol=1e-4, atol=1e-4)
    if mesh == "fully sharded":
        found = dict(fs.batch(jax.random.key(0), **given(guidance), **on, batch_size=2))
        for i, one in found.items():
            np.testing.assert_allclose(one.reward, wanted.reward[i], rtol=1e-4, atol=1e-4)


def asked(command, folder):
    """The prompts, as a command takes them."""
    if command == "sample":
        return PROMPTS
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    return ["--prompts-file", str(folder / "prompts.txt")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "more"),
    [
        ("sample", ["--mesh", "model=2"]),
        ("sample", ["--mesh", "particle=2,model=2", "--fully-sharded"]),
        ("batch", ["--mesh", "prompt=2,model=2"]),
    ],
)
def test_the_command(command, more, tmp_path):
    words = [command, *asked(command, tmp_path), "--nfe", "8", "--steps", "2", "--out"]
    for name, mesh in (("one", []), ("many", more)):
        cli.main([*words, str(tmp_path / name), *mesh])
    files = sorted((tmp_path / "many").rglob("result.json"))
    assert len(files) == len(PROMPTS)
    for file in files:
        found = json.loads(file.read_text())
        wanted = json.loads((tmp_path / "one" / file.relative_to(tmp_path / "many")).read_text())
        assert found["settings"] == wanted["settings"], "a mesh is no part of a result"
        np.testing.assert_allclose(found["reward"], wanted["reward"], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["sample", "batch"])
def test_devices_that_cannot_share_the_weights(command, tmp_path, capsys):
    words = [command, *asked(command, tmp_path), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as end:
        cli.main([*words, "--mesh", "model=3"])
    said = " ".join(capsys.readouterr().err.split())
    assert end.value.code in (1, 2)
    assert "--mesh: rules split axis '" in said and "over the 3 devices of mesh axis model" in said
    assert "ShardingRules" not in said
