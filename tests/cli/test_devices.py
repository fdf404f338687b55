"""`--mesh`: the same pictures, by several devices."""

import json

import jax
import numpy as np
import pytest
import stand_in
from flax import nnx

import flowsde as fs
from flowsde.cli import devices
from flowsde.cli import main as cli
from flowsde.cli.batch_folder import Folder
from flowsde.models.converted import load as converted

PROMPTS = ["two red circles", "one blue square", "one cyan circle"]
SMALL = ["--method", "svdd", "--nfe", "24", "--steps", "4"]


def results(out):
    return {path.parent.name: json.loads(path.read_text()) for path in out.rglob("result.json")}


def assert_same(out, other):
    (found, wanted), alone = map(results, (out, other)), len(results(out)) == 1
    if alone:
        found, wanted = ({"": one} for each in (found, wanted) for one in each.values())
    assert found and found.keys() == wanted.keys()
    for name, one in found.items():
        assert one["nfe"] == wanted[name]["nfe"]
        assert one["settings"] == wanted[name]["settings"], "a mesh is no part of a result"
        np.testing.assert_allclose(one["reward"], wanted[name]["reward"], rtol=1e-4, atol=1e-4)


@pytest.fixture
def small(monkeypatch):
    """A flow and a reward that compile fast."""
    stand_in.use(monkeypatch.setattr)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS))
    return str(path)


@pytest.mark.slow
def test_a_list_on_four_devices(small, file, tmp_path):
    words = ["batch", "--prompts-file", file, *SMALL, "--batch-size", "3"]
    cli.main([*words, "--out", str(tmp_path / "one")])
    cli.main([*words, "--out", str(tmp_path / "four"), "--mesh", "prompt=4"])
    assert_same(tmp_path / "four", tmp_path / "one")
    (run,) = json.loads((tmp_path / "four" / "batch.json").read_text())["runs"]
    assert run["batch_size"] == 12, "three of each device"


@pytest.mark.slow
def test_a_prompt_on_two_devices(small, tmp_path):
    words = ["sample", PROMPTS[0], *SMALL, "--save-trajectory"]
    cli.main([*words, "--out", str(tmp_path / "one")])
    cli.main([*words, "--out", str(tmp_path / "two"), "--mesh", "particle=2"])
    assert_same(tmp_path / "two", tmp_path / "one")
    with (
        np.load(tmp_path / "one/trajectory.npz") as a,
        np.load(tmp_path / "two/trajectory.npz") as b,
    ):
        np.testing.assert_array_equal(a["ancestors"], b["ancestors"])


@pytest.mark.slow
def test_a_sample_is_interrupted_and_goes_on_with_other_devices(small, tmp_path, monkeypatch):
    """Again and again: of two devices, of one, of three, each after a round more."""
    words = ["sample", PROMPTS[0], *SMALL, "--keep", "2", "--save-trajectory", "--out"]
    cli.main([*words, str(tmp_path / "one")])
    parts, iterate = [*words, str(tmp_path / "parts")], fs.iterate
    for mesh in (["--mesh", "particle=2"], []):
        with monkeypatch.context() as patch:
            patch.setattr(fs, "iterate", lambda *a, **b: stopping(iterate(*a, **b)))
            with pytest.raises(SystemExit) as stop:
                cli.main([*parts, *mesh])
        assert stop.value.code == 130 and not results(tmp_path / "parts")
    cli.main([*parts, "--mesh", "particle=3"])
    assert_same(tmp_path / "parts", tmp_path / "one")
    found, wanted = (np.load(tmp_path / out / "trajectory.npz") for out in ("parts", "one"))
    with found, wanted:
        np.testing.assert_array_equal(found["ancestors"], wanted["ancestors"])


def stopping(rounds):
    """Of which the second interrupts."""
    yield next(rounds)
    raise KeyboardInterrupt


def ending_once(end):
    """`Folder.end` that interrupts when a second prompt ends."""
    ended = []

    def once(*given, **named):
        if ended:
            raise KeyboardInterrupt
        ended.append(end(*given, **named))

    return once


@pytest.mark.slow
@pytest.mark.parametrize("total", [[], ["--total-nfe", "144", "--target-reward", "10"]])
def test_a_list_is_interrupted_and_goes_on_with_other_devices(
    small, total, file, tmp_path, monkeypatch, capsys
):
    words = ["batch", "--prompts-file", file, *SMALL, "--batch-size", "3", *total, "--out"]
    cli.main([*words, str(tmp_path / "one")])
    for n, mesh in enumerate((["--mesh", "prompt=2"], [])):
        with monkeypatch.context() as patch:
            patch.setattr(Folder, "end", ending_once(Folder.end))
            with pytest.raises(SystemExit) as stop:
                cli.main([*words, str(tmp_path / "parts"), *mesh])
        assert stop.value.code == 130 and len(results(tmp_path / "parts")) == n + 1
    cli.main([*words, str(tmp_path / "parts"), "--mesh", "prompt=3"])
    assert_same(tmp_path / "parts", tmp_path / "one")
    assert "repeated" not in capsys.readouterr().err, "attempts that were there are read"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "more"),
    [
        ("prompt=2,model=2", []),
        ("prompt=2,model=2", ["--fully-sharded"]),
        ("prompt=2,token=2", ["--fully-sharded"]),
    ],
    ids=["tensor", "fully sharded", "tokens too"],
)
def test_the_weights_of_a_model_are_split(folders, others, mesh, more, file, tmp_path, monkeypatch):
    """And read so: no device ever holds all."""
    read = []

    def noting(*args, **options):
        read.append(module := load_module(*args, **options))
        return module

    load_module = converted.load_module
    monkeypatch.setattr(converted, "load_module", noting)
    words = ["batch", "--prompts-file", file, "--model", str(folders["schnell"] / "out")]
    words += ["--size", "16", "--method", "bon", "--nfe", "8", "--steps", "2", "--reward", "clip"]
    words += ["--reward-model", str(others["clip"]), "--batch-size", "2"]
    cli.main([*words, "--out", str(tmp_path / "one")])
    read.clear()
    cli.main([*words, "--out", str(tmp_path / "four"), "--mesh", mesh, *more])
    assert_same(tmp_path / "four", tmp_path / "one")
    ways = 4 if more else 2
    leaves = [leaf for module in read for leaf in jax.tree.leaves(nnx.state(module))]
    held = [leaf.addressable_shards[0].data.nbytes / leaf.nbytes for leaf in leaves]
    assert min(held) == 1 / ways


WRONG = {
    "--mesh: expected prompt=N, particle=N, token=N or model=N, or several joined by": [
        "--mesh", "four",
    ],
    "or several joined by commas, got 'prompt=0'": ["--mesh", "prompt=0"],
    "joined by commas, got 'model=2,model=2'": ["--mesh", "model=2,model=2"],
    "--mesh: prompt=64 has 64 devices, and this process 4": ["--mesh", "prompt=64"],
    "--fully-sharded: it has no effect without --mesh": ["--fully-sharded"],
    "--fully-sharded: --mesh model=2 has no other axis than of weights, expected prompt, par": [
        "--mesh", "model=2", "--fully-sharded",
    ],
    "--mesh: token has no effect without --model, got token=2": ["--mesh", "token=2"],
}  # fmt: skip


@pytest.mark.parametrize("message", WRONG)
def test_wrong_values(small, message, file, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["batch", "--prompts-file", file, *SMALL, "--out", str(tmp_path), *WRONG[message]])
    said = " ".join(capsys.readouterr().err.split())
    assert end.value.code == 2 and message in said
    assert not results(tmp_path)


def test_a_sample_is_of_one_prompt(tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.main(["sample", PROMPTS[0], "--out", str(tmp_path), "--mesh", "prompt=2"])
    said = " ".join(capsys.readouterr().err.split())
    assert "--mesh: a prompt is searched alone here: expected particle=2, got prompt=2" in said


def test_devices_that_are_not_used_are_said(monkeypatch):
    none, some = devices.Devices(), devices.Devices(mesh="prompt=2")
    assert devices.idle(none, "prompt") == [], "those of a CPU are one machine's"
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    said = "1 of 4 devices is used: --mesh prompt=4 shares the work among all"
    assert devices.idle(none, "prompt") == [said] and devices.idle(some, "prompt") == []
