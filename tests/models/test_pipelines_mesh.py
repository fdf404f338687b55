"""Tiny pipelines on a mesh, from Python and by the command: what is found is as on one device."""

import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import AxisType

import flowsde as fs
from flowsde.cli import main as cli

KEY = jax.random.key(6)
LINEAR = fs.interpolants.linear()
PROMPTS = [*tiny.PROMPTS, "three cats"]
SIZES = {"wan": (16, 24, 3), "sd3": (16, 24), "zimage": (12, 20)}
OPTIONS = {
    "wan": ["--size", "24x16", "--frames", "3"],
    "sd3": ["--size", "24x16", "--text-tokens", "20"],
    "zimage": ["--size", "20x12", "--text-tokens", "64"],
}
LENGTH = {"wan": {}, "sd3": {"length": 20}, "zimage": {"length": 64}}


@pytest.fixture(scope="module", params=SIZES)
def made(request, tmp_path_factory):
    """The name of a family, and the folder of its converted pipeline."""
    folder = tmp_path_factory.mktemp(request.param)
    more = {"turbo": False} if request.param == "zimage" else {}
    getattr(tiny, f"{request.param}_pipeline")(folder, **more)
    return request.param, tiny.converted(folder / "source", folder / "out")


def mesh_of(**sizes):
    kinds, devices = (AxisType.Auto,) * len(sizes), jax.devices()[: np.prod([*sizes.values()])]
    return jax.make_mesh((*sizes.values(),), (*sizes,), kinds, devices=devices)


def brightness(pictures, cond):
    return jnp.mean(pictures, axis=tuple(range(1, pictures.ndim)))


MESHES = [
    ({"prompt": 2, "model": 2}, None),
    ({"prompt": 2, "token": 2}, fs.ShardingRules(embed="prompt")),
]


@pytest.mark.slow
def test_a_batch(made):
    """Of three prompts, two rows a device."""
    name, folder = made
    search = fs.search.svdd(
        nfe=10, kernel=fs.kernels.ddim(LINEAR, 1.0), grid=fs.grids.uniform(3), finish="mean"
    )

    def go(mesh=None, rules=None):
        on = {} if mesh is None else {"mesh": mesh, "rules": rules}
        pipeline = fs.load(folder, **on)
        cond = jax.device_get(pipeline.encode(PROMPTS, **LENGTH[name]))
        conds = [jax.tree.map(lambda a, i=i: a[i], cond) for i in range(len(PROMPTS))]
        flow = pipeline.flow(*SIZES[name])
        return dict(fs.batch(KEY, flow, search, brightness, cond=conds, batch_size=2, **on))

    wanted = go()
    for sizes, rules in MESHES:
        found = go(mesh_of(**sizes), rules)
        assert found.keys() == wanted.keys()
        for i, one in found.items():
            assert one.nfe == wanted[i].nfe
            scale = np.abs(wanted[i].x0).max()
            np.testing.assert_allclose(one.x0, wanted[i].x0, atol=1e-4 * scale)
            np.testing.assert_allclose(one.reward, wanted[i].reward, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_command(made, tmp_path):
    name, folder = made
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    (tmp_path / f"bright_of_{name}.py").write_text(
        "import numpy as np\n"
        "def score(images, prompts):\n"
        "    return np.asarray([float(image.mean()) for image in images], np.float32)\n"
    )
    words = ["batch", "--prompts-file", str(tmp_path / "prompts.txt"), "--model", str(folder)]
    words += [*OPTIONS[name], "--method", "bon", "--nfe", "8", "--steps", "2", "--batch-size", "2"]
    words += ["--guidance", "3", "--reward", f"bright_of_{name}:score"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        patch.syspath_prepend(tmp_path)
        importlib.invalidate_caches()
        for out, more in (("one", []), ("many", ["--mesh", "prompt=2,model=2"])):
            cli.main([*words, "--out", str(tmp_path / out), *more])
    files = sorted((tmp_path / "one").rglob("result.json"))
    assert len(files) == len(PROMPTS)
    for file in files:
        wanted = json.loads(file.read_text())
        found = json.loads((tmp_path / "many" / file.relative_to(tmp_path / "one")).read_text())
        assert (found["nfe"], found["settings"]) == (wanted["nfe"], wanted["settings"])
        np.testing.assert_allclose(found["reward"], wanted["reward"], rtol=1e-3, atol=1e-4)
