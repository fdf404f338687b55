"""What docs/extending.md says is done to a copy of the package, and used."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import stand_in

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "extending.md").read_text()
BLOCKS = re.findall(r"^```(python|diff)\n# (\S+)\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


# Beside the page's: a kernel of no noise, of which no other file may have to know.
STILL = """\
import dataclasses

import jax.numpy as jnp

from flowsde.kernels.base import Kernel, check_interpolant


@dataclasses.dataclass(frozen=True)
class Still(Kernel):
    @property
    def stochastic(self):
        return False

    def moments(self, x, x0, x1, t, s):
        p = self.interpolant
        return p.alpha(s) * x0 + p.sigma(s) * x1, jnp.zeros_like(t)


def still(interpolant):
    return Still(check_interpolant(interpolant))
"""


def patched(text, diff):
    """Lines with + go behind the line before them, those with - away; each is there once."""
    lines, at = text.splitlines(), 0
    for line in diff.splitlines():
        mark, rest = line[0], line[1:]
        if mark == "+":
            lines.insert(at, rest)
            at += 1
            continue
        assert lines.count(rest) == 1, rest
        at = lines.index(rest) + 1
        if mark == "-":
            at -= 1
            del lines[at]
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A folder with the package after all that the page says."""
    folder = tmp_path_factory.mktemp("extended")
    shutil.copytree(
        ROOT / "flowsde", folder / "flowsde", ignore=shutil.ignore_patterns("__pycache__")
    )
    for kind, name, text in BLOCKS:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text if kind == "python" else patched(path.read_text(), text))
    (folder / "flowsde" / "kernels" / "still.py").write_text(STILL)
    with (folder / "flowsde" / "kernels" / "makers.py").open("a") as makers:
        makers.write("from flowsde.kernels.still import still\n")
    return folder


def command(extended, *words):
    """`flowsde` of the extended package, on a cheap model."""
    environment = os.environ | {"PYTHONPATH": str(extended)}
    found = subprocess.run(
        [sys.executable, stand_in.__file__, "99", *map(str, words)],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    return found.stdout


def python(extended, code):
    """Lines of Python with the extended package."""
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=extended, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr


def test_every_block_is_a_file_or_lines_of_one():
    assert len(BLOCKS) == len(re.findall("^```$", TEXT, re.MULTILINE)) == 7


@pytest.mark.slow
def test_help_has_the_options_of_the_makers(extended):
    said = " ".join(command(extended, "sample", "--help").replace("│", " ").split())
    assert "greedy" in said and "mixed" in said
    assert "greedy: candidates drawn at every step, of which the best is kept (default: 4)." in said
    assert "--share" in said


MOVED = ("--kernel", "mixed", "--share", "0.7", "--interpolant", "linear")


@pytest.mark.slow
def test_sample_and_batch(extended, tmp_path):
    words = ("--method", "greedy", "--children", "3", "--nfe", "20", "--steps", "4", *MOVED)
    out = tmp_path / "alone"
    command(extended, "sample", "two red circles", *words, "--out", out)
    result = json.loads((out / "result.json").read_text())
    # A step costs its children, and the last time is not evaluated.
    assert result["method"] == "greedy" and result["nfe"] == 3 * 4
    settings = result["settings"]
    assert (settings["children"], settings["share"], settings["kernel"]) == (3, 0.7, "mixed")
    (tmp_path / "prompts.txt").write_text("two red circles\none blue square\n")
    many = ("--prompts-file", tmp_path / "prompts.txt", "--out", tmp_path / "many")
    command(extended, "batch", *words, *many)
    packed = json.loads((tmp_path / "many" / "two-red-circles" / "result.json").read_text())
    assert packed["nfe"] == result["nfe"] and packed["reward"] == result["reward"]


@pytest.mark.slow
def test_a_deterministic_kernel_is_known_for_one(extended):
    """By what it says of itself: `ode` takes it, `sde` and the reward's gradient do not."""
    code = (
        "from flowsde.cli import presets\n"
        "from flowsde.cli.compare import rows\n"
        "def refused(method, **given):\n"
        "    try:\n"
        "        presets.resolve('recommended', method, {'kernel': 'still', **given})\n"
        "    except ValueError as error:\n"
        "        return str(error)\n"
        "found = presets.resolve('recommended', 'ode', {'kernel': 'still', 'steps': 4})\n"
        "assert presets.build('ode', found).kernel.stochastic is False\n"
        "assert rows.labels([rows.Row('ode', found)]) == ['ode']\n"
        "one_of = '--kernel must be euler_maruyama, ddim, cps, exact, correlated, glass, '\n"
        "assert refused('sde').startswith(one_of)\n"
        "assert 'no effect' in refused('rbf', gradient_temperature=1.0)\n"
        "assert refused('bon') is None\n"
    )
    python(extended, code)


@pytest.mark.slow
def test_compare(extended, tmp_path):
    command(
        extended, "compare", "--methods", "greedy", "bon", "--nfe", "40", "--prompts", "2",
        "--seeds", "1", "--out", tmp_path / "compared",
    )  # fmt: skip
    found = json.loads((tmp_path / "compared" / "compare.json").read_text())
    assert {row["method"] for row in found["rows"]} >= {"greedy", "bon"}


@pytest.mark.slow
def test_a_family_and_a_reward_are_found(extended):
    code = (
        "from flax import nnx; import jax.numpy as jnp; import numpy as np\n"
        "from flowsde.models import registry\n"
        "from flowsde.models.common.layers import Numerics\n"
        "from brightness import brightness\n"
        "family = registry.families()['tiny']\n"
        "config = family.config(width=2)\n"
        "model = family.build(config, Numerics(), rngs=nnx.Rngs(0))\n"
        "flow = family.flow(model, config)\n"
        "u = flow.velocity_fn(flow.params, jnp.zeros((3, 2)), jnp.ones(3), None)\n"
        "assert u.shape == (3, 2) and not u.any()\n"
        "assert brightness(np.ones((2, 4, 4, 3)), ['a', 'b']).tolist() == [1.0, 1.0]\n"
    )
    python(extended, code)


@pytest.mark.slow
def test_a_search_of_ones_own_keeps_the_protocol():
    """The page's search, from Python alone, held to the runner's contract."""
    import jax

    import flowsde as fs

    (source,) = [text for kind, name, text in BLOCKS if name == "flowsde/search/greedy.py"]
    names = {"__name__": "greedy"}
    exec(compile(source, "greedy.py", "exec", dont_inherit=True), names)
    flow = fs.analytic.mixture([0.5, 0.5], [[1.0, 1.0], [-1.0, -1.0]], 0.1).flow()
    kernel, grid = fs.kernels.ddim(fs.interpolants.vp()), fs.grids.uniform(5)
    search = names["greedy"](nfe=17, kernel=kernel, grid=grid, children=3)
    with pytest.raises(fs.search.BudgetTooSmall, match="at least 15, got 14"):
        names["greedy"](nfe=14, kernel=kernel, grid=grid, children=3)

    def reward(x, cond):
        return -((x - 0.8) ** 2).sum(-1)

    result = fs.run(jax.random.key(0), flow, search, reward)
    assert result.nfe == result.evaluations == result.verifier_calls == 15
    *_, last = fs.iterate(jax.random.key(0), flow, search, reward)
    assert last.nfe == result.nfe
    # Two programs: the same draws and decisions, values to float32's rounding.
    assert last.reward == pytest.approx(float(result.reward), abs=1e-5)
    # Each round's answer is the best of that round's children.
    for reward_, best in zip(last.info.reward, last.info.best_reward, strict=True):
        assert best == reward_.max()
