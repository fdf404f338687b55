"""OUT is whole, whenever a process dies, and what is not ours is left alone."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import killed_convert
import killed_replace
import pytest
import toy
from safetensors.numpy import save_file
from test_convert import converted, expected, left

import flowsde as fs
from flowsde import _own, _replace
from flowsde.models.common.paths import parameters
from flowsde_converters import convert
from flowsde_converters.back import prepare_back, run_back


@pytest.mark.slow
def test_killed_at_any_call(tmp_path):
    """At every rename, flush and removal: a reader finds the old or the new, never less; the next
    writer comes through and leaves nothing of the dead one's."""
    script = Path(killed_replace.__file__)
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", script, tmp_path],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    kills = [json.loads(line) for line in ran.stdout.splitlines()]
    assert len(kills) > 60
    through = [i for i, (_, status, *_) in enumerate(kills) if status == 0]
    assert len(through) == 4 and through[-1] == len(kills) - 1
    for there, status, read, later, names in kills:
        assert status in (0, 9) and (later, names) == ("next", ["out"])
        assert read in ("new", "old" if there else None)
    for begin, end in itertools.pairwise([-1, *through]):
        # First the old, from some call on the new.
        reads = [read for _, _, read, *_ in kills[begin + 1 : end + 1]]
        changes = sum(a != b for a, b in itertools.pairwise(reads))
        assert reads[-1] == "new" and changes == 1


@pytest.mark.slow
def test_process_ids_may_repeat(source, tmp_path, monkeypatch):
    """As in a container, where every process is the first."""
    script = Path(killed_convert.__file__)
    ran = subprocess.run(
        [sys.executable, script, source, tmp_path / "out"], capture_output=True, text=True
    )
    assert ran.returncode == -9, ran.stderr
    monkeypatch.setattr(os, "getpid", lambda: 1)
    assert left(tmp_path) == {".out.flowsde"}
    converted(source, tmp_path / "out")
    assert left(tmp_path) == {"out"}


def test_one_conversion_at_a_time(source, tmp_path):
    out = tmp_path / "out"
    with _own.locked(out, _own.beside(out)):
        with pytest.raises(ValueError, match=r"another flowsde process is writing to .*/out"):
            converted(source, out)
        # Another name is another lock.
        converted(source, tmp_path / "twin")
    assert not out.exists()
    converted(source, out)


def test_readers_find_what_was_killed_between_the_renames(source, tmp_path):
    out = tmp_path / "out"
    wanted = converted(source, out)
    for read in (
        lambda: parameters(fs.load(out)),
        lambda: run_back(out, prepare_back(out), tmp_path / "back.safetensors", overwrite=True),
        lambda: convert.check_out(source, out, overwrite=True),
    ):
        hidden = _own.claim(out, _own.beside(out))
        out.rename(hidden / "old")
        (hidden / "tmp" / "new").mkdir()
        if read.__code__.co_names[0] == "convert":
            _replace.settle(out)
        read()
        assert {p.name for p in tmp_path.iterdir()} - {"back.safetensors"} == {
            "model.safetensors", "out",
        }  # fmt: skip
    assert parameters(fs.load(out)).keys() == wanted.keys()


@pytest.mark.slow
def test_a_link_stays_and_what_it_leads_to_is_replaced(source, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    out = tmp_path / "out"
    out.symlink_to(disk / "model")
    converted(source, out)
    job = convert.prepare(source, dtype="bfloat16")
    for _ in range(2):
        convert.run(job, out, overwrite=True)
        assert out.is_symlink() and [p.name for p in disk.iterdir()] == ["model"]
        assert parameters(fs.load(out))["head.bias"].dtype == toy.BF16
    assert left(tmp_path) == {"out", "disk"}
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(ValueError, match="loop is a link that leads to itself"):
        convert.run(job, tmp_path / "loop")


@pytest.mark.slow_but_one
@pytest.mark.parametrize("name", ["letter.txt", "params/letter.txt", "tokenizer/mine/a", "link"])
def test_files_of_the_user_are_not_overwritten(source, tmp_path, name):
    out = tmp_path / "out"
    converted(source, out)
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    if name == "link":
        (out / name).symlink_to(tmp_path)
    else:
        (out / name).write_text("dear")
    with pytest.raises(ValueError, match=rf"OUT .* holds {name}, which no conversion wrote, and"):
        convert.run(convert.prepare(source), out, overwrite=True)
    assert os.path.lexists(out / name)
    assert parameters(fs.load(out)).keys() == expected(toy.tensors()).keys()


@pytest.mark.parametrize("there", ["a folder", "a file", "a link"])
def test_a_hidden_folder_of_the_user_is_left(source, tmp_path, there):
    hidden = tmp_path / ".out.flowsde"
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "letter.txt").write_text("dear")
    if there == "a link":
        hidden.symlink_to(mine)
    elif there == "a file":
        hidden.write_text("dear")
    else:
        shutil.copytree(mine, hidden)
    with pytest.raises(ValueError, match=r"\.out\.flowsde was not made by flowsde"):
        converted(source, tmp_path / "out")
    assert "dear" in (hidden if there == "a file" else hidden / "letter.txt").read_text()
    assert (mine / "letter.txt").exists() and not (tmp_path / "out").exists()


def test_a_failure_leaves_no_folders(source, tmp_path):
    tensors = toy.tensors()
    tensors["head.bias"][0] = float("nan")
    save_file(tensors, source)
    with pytest.raises(ValueError, match="NaN"):
        converted(source, tmp_path / "a" / "b" / "out")
    assert not left(tmp_path)


@pytest.mark.slow
def test_two_at_once_that_come_and_go(tmp_path):
    """What one removes, another may be about to use: each either writes or is refused."""
    write = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
        "from killed_replace import put\n"
        "done = 0\n"
        "while done < 20:\n"
        "    try:\n"
        "        put(Path(sys.argv[1]), 'x', True); done += 1\n"
        "    except ValueError as error:\n"
        "        assert 'another flowsde process' in str(error), error\n"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", write, tmp_path / "out", Path(killed_replace.__file__).parent],
            stderr=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
