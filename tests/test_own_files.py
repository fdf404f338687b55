"""Files that are whole or not there, the hidden folder and its lock, and what is read back."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from flowsde import _files, _own, _schema


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    _files.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        _files.write_json(path, {"a": object()})
    with pytest.raises(RuntimeError), _files.replacing(path) as temporary:
        temporary.write_text("{")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_data_is_flushed_before_the_rename_and_the_name_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    replace, flush = os.replace, _files.flush
    monkeypatch.setattr(_files, "flush", lambda path: (calls.append(path.is_dir()), flush(path)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("rename"), replace(a, b)))
    _files.write_json(tmp_path / "a.json", {})
    assert calls == [False, "rename", True]


def test_numbers_that_json_has_no_word_for_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    _files.write_json(path, {"up": math.inf, "rows": [{"down": -math.inf}, (math.nan, 1.5)]})
    strict = json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(word))
    read = _schema.fields(
        up=_schema.number,
        rows=lambda value, where: value,
    )(strict, "a.json")
    assert read["up"] == math.inf
    assert _schema.number(read["rows"][0]["down"], "") == -math.inf
    assert math.isnan(_schema.number(read["rows"][1][0], "")) and read["rows"][1][1] == 1.5


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"1" * 5_000])
def test_broken_json_names_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json cannot be read"):
        _files.read_json(path)


def test_broken_arrays_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    _files.write_arrays(path, {"a": np.arange(1000), "b": np.ones((3, 4), np.float32)})
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for kept in [*range(0, len(whole), 97)]:
        path.write_bytes(whole[:kept])
        with pytest.raises(ValueError, match=r"a\.npz cannot be read"):
            _files.read_arrays(path)
    for _ in range(100):
        torn = bytearray(whole)
        torn[rng.integers(len(torn))] ^= 1 << rng.integers(8)
        path.write_bytes(torn)
        try:
            _files.read_arrays(path)
        except ValueError as error:
            assert str(path) in str(error)
    with path.open("wb") as file:
        np.save(file, np.ones(3))
    with pytest.raises(ValueError, match="no NPZ file"):
        _files.read_arrays(path)


def test_a_folder_of_the_users_is_never_taken_or_removed(tmp_path: Path) -> None:
    (tmp_path / ".flowsde").mkdir()
    (tmp_path / ".flowsde" / "thesis").write_text("mine")
    with pytest.raises(ValueError, match="not made by flowsde"):
        _own.claim(tmp_path)
    _own.release(tmp_path)
    assert (tmp_path / ".flowsde" / "thesis").read_text() == "mine"
    with pytest.raises(ValueError, match="not made by flowsde"):
        _own.check_free(tmp_path)  # before any work


def test_release_takes_only_the_hidden_folder_and_follows_no_link(tmp_path: Path) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    other.mkdir()
    (other / "kept").write_text("mine")
    hidden = _own.claim(out)
    (hidden / "link").symlink_to(other)
    (hidden / "state").mkdir()
    (out / "image.png").write_text("")
    _own.release(out)
    assert [p.name for p in out.iterdir()] == ["image.png"]
    assert (other / "kept").exists()


def test_one_writer(tmp_path: Path) -> None:
    """Another process is refused while the lock is held, and not after it was killed."""
    hold = (
        "import sys, time; from pathlib import Path; from flowsde import _own\n"
        "with _own.locked(Path(sys.argv[1])) as hidden:\n"
        "    (hidden / 'tmp' / 'leftover').write_text('')\n"
        "    print('held', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with (
            pytest.raises(ValueError, match="another flowsde process is writing to"),
            _own.locked(tmp_path),
        ):
            pass
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    with _own.locked(tmp_path) as hidden:
        assert not list((hidden / "tmp").iterdir())
        # What is written to the folder is prepared there, where a dead process's is found.
        with _files.replacing(tmp_path / "a") as temporary:
            assert temporary.parent == hidden / "tmp"
        _own.release(tmp_path)
    with _own.locked(tmp_path):
        pass


def test_a_lock_that_cannot_be_made_is_not_waited_for(tmp_path: Path) -> None:
    hidden = _own.claim(tmp_path)
    (hidden / "lock").symlink_to(tmp_path / "nowhere" / "lock")
    with pytest.raises(ValueError, match="is a link to nothing"), _own.locked(tmp_path):
        pass
    assert not (tmp_path / "nowhere").exists()


def test_fields_are_named() -> None:
    read = _schema.fields(
        {"note": _schema.text},
        runs=_schema.items(_schema.fields(nfe=_schema.whole(1))),
        reward=_schema.maybe(_schema.number),
    )
    good = {"runs": [{"nfe": 3}], "reward": None, "later": object()}
    assert read(good, "x") == good
    for bad, said in [
        ([], "x must be an object"),
        ({"reward": 1}, "x lacks the field runs"),
        (good | {"runs": 3}, "x: runs must be a list"),
        (good | {"runs": [{"nfe": 0}]}, r"x: runs\[0\]: nfe must be an integer from 1"),
        (good | {"runs": [{"nfe": True}]}, r"x: runs\[0\]: nfe must be an integer"),
        (good | {"runs": [{"nfe": 2**40}]}, r"x: runs\[0\]: nfe must be an integer"),
        (good | {"reward": "1"}, "x: reward must be a number"),
        (good | {"reward": 10**400}, "x: reward must be a number"),
        (good | {"note": 1}, "x: note must be a text"),
        (good | {"note": ["\x1b[31m" * 1000]}, r"got \['\\x1b"),
    ]:
        with pytest.raises(ValueError, match=said) as caught:
            read(bad, "x")
        assert len(str(caught.value)) < 200 and "\x1b" not in str(caught.value)
