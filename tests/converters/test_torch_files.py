"""PyTorch's own files give the same bits, or are refused; nothing but tensors is unpickled."""

import argparse
import os
import pickle
import sys

import ml_dtypes
import numpy as np
import pytest

from flowsde_converters.files import open_checkpoint

torch = pytest.importorskip("torch")

F32 = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.mark.parametrize("legacy", [False, True])
def test_torch_files_give_the_same_bits(tmp_path, legacy):
    state = {
        "a": torch.from_numpy(F32),
        "t": torch.from_numpy(F32).T,
        "scalar": torch.tensor(3.0),
        "half": torch.arange(5).to(torch.bfloat16),
        "flag": torch.tensor([True, False]),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    path = tmp_path / "a.pt"
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    found = open_checkpoint(path)
    assert found.notes == ()
    np.testing.assert_array_equal(found.read("a"), F32, strict=True)
    np.testing.assert_array_equal(found.read("t"), F32.T, strict=True)
    np.testing.assert_array_equal(found.read("scalar"), np.float32(3), strict=True)
    half = np.arange(5).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(found.read("half"), half, strict=True)
    np.testing.assert_array_equal(found.read("flag"), np.array([True, False]), strict=True)
    assert found.tensors["parameter"].dtype == np.float32


def test_the_average_of_a_training_checkpoint_is_taken(tmp_path):
    weights = {name: {"a": torch.full((2,), value)} for value, name in enumerate(("model", "ema"))}
    args = argparse.Namespace(depth=3)
    torch.save({**weights, "opt": {"state": {0: torch.ones(1)}}, "args": args}, tmp_path / "a.pt")
    found = open_checkpoint(tmp_path / "a.pt")
    assert found.tensors.keys() == {"a"} and found.read("a")[0] == 1
    assert found.notes == ("a.pt: 'ema' of model, ema, opt, args",)


def test_maps_are_let_go(tmp_path, monkeypatch):
    """A file that is read in full is mapped again and again, and reads the same."""
    from flowsde_converters import torch_file

    monkeypatch.setattr(torch_file, "_MAPPED_AT_ONCE", 10)
    torch.save({str(i): torch.full((4,), i) for i in range(5)}, tmp_path / "a.pt")
    found = open_checkpoint(tmp_path / "a.pt")
    arrays = [found.read(str(i)) for i in range(5)]
    for i, array in enumerate(arrays):
        np.testing.assert_array_equal(array, np.full(4, i), strict=True)


class Harmful:
    """Makes a file when it is unpickled."""

    def __reduce__(self):
        return (os.mkdir, ("harmed",))


@pytest.mark.parametrize("name", ["a.pt", "a.bin", "a.ckpt", "a.pth"])
def test_nothing_but_tensors_is_unpickled(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with open(name, "wb") as file:
        pickle.dump({"a": Harmful()}, file, protocol=2)
    with pytest.raises(ValueError, match="holds more than tensors"):
        open_checkpoint(tmp_path / name)
    torch.save({"a": Harmful()}, name)
    with pytest.raises(ValueError, match="holds more than tensors"):
        open_checkpoint(tmp_path / name)
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("kept", [0, 3, 200, 600, 900])
def test_truncated_torch_files_are_refused(tmp_path, kept):
    path = tmp_path / "a.pt"
    torch.save({"a": torch.from_numpy(F32)}, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"a\.pt: (truncated|not read, it is broken)"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("held", "words"),
    [([torch.ones(1)], "holds a list"), ({"a": 3}, "'a' is a int"), ({3: torch.ones(1)}, "3 is a")],
)
def test_torch_files_hold_tensors_by_key(tmp_path, held, words):
    torch.save(held, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=words):
        open_checkpoint(tmp_path / "a.pt")


def test_without_torch_the_error_says_so(tmp_path, monkeypatch):
    (tmp_path / "a.pt").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"a\.pt: reading it takes torch"):
        open_checkpoint(tmp_path / "a.pt")
