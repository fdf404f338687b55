"""`flowsde batch --shared`: processes that share a folder, two of which are killed."""

import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import stand_in

from flowsde import _own, shapes
from flowsde.cli import batch
from flowsde.cli import main as cli
from flowsde.cli.claims import Claims
from flowsde.cli.errors import NoJudge
from flowsde.shapes.captions import COLOURS, KINDS, Group, caption, parse, tokenize

SEARCH = "--reward rss --steps 2 --nfe 4 --method bon --batch-size 6".split()


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A flow and a reward that compile fast."""
    stand_in.use(monkeypatch.setattr)


def listed(path: Path, many: int) -> list[str]:
    """So many prompts, and the start of the command."""
    groups = [Group(n, c, k) for n in range(1, 6) for c in range(len(COLOURS)) for k in range(3)]
    assert len(KINDS) == 3
    pairs = [(a,) for a in groups] + [(a, b) for a in groups for b in groups if a[1:] != b[1:]]
    path.write_text("\n".join(caption(pair) for pair in pairs[:many]))
    return ["batch", "--prompts-file", str(path), *SEARCH]


def found(out: Path) -> dict[str, dict]:
    """Results by the name of their folder, without what a process or a batch changes."""
    every = {}
    for path in sorted(out.glob("*/result.json")):
        own = json.loads(path.read_text())
        for name in ("seconds", "evaluations", "verifier_calls"):
            del own[name]
        every[path.parent.name] = own | {"image": (path.parent / "image.png").read_bytes()}
    return every


def same(one: dict[str, dict], other: dict[str, dict]) -> None:
    """Rewards may differ in the last digit: batches of other prompts round otherwise."""
    assert one.keys() == other.keys()
    for name, own in one.items():
        np.testing.assert_allclose(own.pop("reward"), other[name].pop("reward"), rtol=1e-5)
        own.pop("image"), other[name].pop("image")
        assert own == other[name]


@pytest.mark.slow
def test_one_process_alone_finds_what_it_finds_without(tmp_path, capsys):
    command = listed(tmp_path / "prompts.txt", 5)
    cli.main([*command, "--out", str(tmp_path / "one")])
    shared = [*command, "--shared", "--out", str(tmp_path / "shared")]
    cli.main(shared)
    same(found(tmp_path / "one"), found(tmp_path / "shared"))
    one, other = (
        json.loads((tmp_path / name / "batch.json").read_text()) for name in ("one", "shared")
    )
    assert other["finished"] == one["finished"] == 5 and other["nfe"] == one["nfe"]
    assert [run["prompts"] for run in other["runs"]] == [5] and "worker" in other["runs"][0]
    # Nothing of ours is left, and the same command again has nothing to do.
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert {path.name for path in (tmp_path / "shared").iterdir()} == names
    capsys.readouterr()
    cli.main(shared)
    assert "is already complete" in capsys.readouterr().out


@pytest.mark.slow
def test_a_prompt_that_fails_is_said_once(tmp_path, capsys, monkeypatch):
    command = [*listed(tmp_path / "prompts.txt", 3), "--shared", "--out", str(tmp_path / "out")]
    second = (tmp_path / "prompts.txt").read_text().splitlines()[1]
    hopeless = jnp.asarray(tokenize(parse(second)))

    def reward(images, cond):
        good = -jnp.mean(jnp.square(images), axis=(1, 2, 3))
        return jnp.where((cond == hopeless[None]).all(axis=1), jnp.nan, good)

    monkeypatch.setattr(shapes, "load_reward", lambda *_: reward)
    with pytest.raises(SystemExit) as stop:
        cli.main(command)
    assert stop.value.code == 1
    assert f"prompt 2 of 3, '{second}'" in capsys.readouterr().err
    values = json.loads((tmp_path / "out" / "batch.json").read_text())
    assert values["finished"] == 2
    assert [(one["number"], one["prompt"]) for one in values["failed"]] == [(2, second)]
    # It is tried again by who comes later, with a reward that knows what to say.
    monkeypatch.undo()
    stand_in.use(monkeypatch.setattr)
    cli.main(command)
    values = json.loads((tmp_path / "out" / "batch.json").read_text())
    assert (values["finished"], values["failed"]) == (3, [])


@pytest.mark.slow
def test_another_command_is_refused_while_processes_share_the_folder(tmp_path, capsys):
    command = [*listed(tmp_path / "prompts.txt", 3), "--shared", "--out", str(tmp_path / "out")]
    (tmp_path / "out").mkdir()
    with _own.shared(tmp_path / "out") as hidden, closing(Claims(hidden)) as other:
        with other.alone():
            other.check_same({"--method": "bon", "--seed": 1})
        with pytest.raises(SystemExit):
            cli.main(command)
        said = capsys.readouterr().err
        assert "processes that share" in said and "were given another --seed" in said
        assert not list((tmp_path / "out").glob("*/result.json"))
        # One that would have it alone hears how to join them.
        with pytest.raises(SystemExit):
            cli.main([word for word in command if word != "--shared"])
        assert "--shared joins those that share it" in capsys.readouterr().err
    # With nobody left, it is the first.
    cli.main(command)
    assert len(found(tmp_path / "out")) == 3


@pytest.mark.slow_but_one
@pytest.mark.parametrize("option", ["--overwrite", "--seconds 60", "--total-nfe 99"])
def test_what_is_of_one_process_is_refused(option, tmp_path, capsys):
    command = listed(tmp_path / "prompts.txt", 3)
    with pytest.raises(SystemExit):
        cli.main([*command, "--shared", *option.split(), "--out", str(tmp_path / "out")])
    assert f"{option.split()[0]} has no effect with --shared" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_bar_moves_while_others_work(tmp_path, monkeypatch):
    """A process that waits for what another has taken."""
    command = [*listed(tmp_path / "prompts.txt", 3), "--out", str(tmp_path / "out")]
    names = [line.replace(" ", "-") for line in (tmp_path / "prompts.txt").read_text().split("\n")]
    told, left = [], [names[0], names[1]]
    (tmp_path / "out").mkdir()
    with _own.shared(tmp_path / "out") as hidden, closing(Claims(hidden)) as other:
        other.take(left, lambda name: False, 2)

        def wait(seconds):
            # The other one gives up a prompt each time that this one looks.
            told.append(shown.n)
            other.fail(left.pop(0), "lost")

        class Bar(batch.progress.tqdm):
            def __init__(self, **options):
                super().__init__(**options)
                nonlocal shown
                shown = self

        shown = None
        monkeypatch.setattr(batch.progress, "tqdm", Bar)
        monkeypatch.setattr(batch.batch_shared.time, "sleep", wait)
        with pytest.raises(SystemExit):
            cli.main([*command, "--shared"])
    assert told == [1, 2] and shown.n == 3


@pytest.mark.slow
def test_a_complete_folder_is_shown_without_its_judge(tmp_path, capsys, monkeypatch):
    command = [*listed(tmp_path / "prompts.txt", 2), "--out", str(tmp_path / "out")]

    def nobody(*_):
        raise NoJudge("--reward http://x#m: no answer")

    with monkeypatch.context() as patch:
        patch.setattr(batch, "source_of", nobody)
        with pytest.raises(SystemExit):
            cli.main(command)
        assert "--reward http://x#m: no answer" in capsys.readouterr().err
    cli.main(command)
    totals = capsys.readouterr().out[-200:].splitlines()[-2:]
    monkeypatch.setattr(batch, "source_of", nobody)
    cli.main(command)
    said = capsys.readouterr().out
    assert "is already complete; its other settings were not compared, for --reward http" in said
    assert said.splitlines()[-2:] == totals
    # Not of another seed, nor anew.
    for more in (["--seed", "1"], ["--overwrite"]):
        with pytest.raises(SystemExit):
            cli.main([*command, *more])
        assert "no answer" in capsys.readouterr().err


@pytest.mark.slow
def test_two_of_four_processes_are_killed(tmp_path):
    """None of 200 prompts is lost or done by two of those that are left."""
    command = listed(tmp_path / "prompts.txt", 200)
    cli.main([*command, "--out", str(tmp_path / "one")])
    out, deaths = tmp_path / "out", np.random.default_rng(7).integers(1, 30, size=2)
    script = str(Path(stand_in.__file__))
    shared = [*command, "--shared", "--out", str(out)]
    processes = [
        subprocess.Popen(
            [sys.executable, script, str(saves), *shared],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for saves in (*deaths, 10**9, 10**9)
    ]  # fmt: skip
    said = [process.communicate(timeout=600) for process in processes]
    codes = [process.returncode for process in processes]
    assert codes == [-9, -9, 0, 0], said
    values = json.loads((out / "batch.json").read_text())
    assert values["finished"] == 200 and values["failed"] == []
    # Each entry is a process's; the dead ones' may lag behind what they had finished.
    assert len({run["worker"] for run in values["runs"]}) == len(values["runs"])
    assert 200 - sum(deaths) <= sum(run["prompts"] for run in values["runs"]) <= 200
    same(found(tmp_path / "one"), found(out))
    assert not (out / ".flowsde").exists()
