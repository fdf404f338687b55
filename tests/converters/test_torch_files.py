"""PyTorch's own files give the same bits, or are refused; nothing but tensors is unpickled."""

import argparse
import collections
import datetime
import decimal
import fractions
import os
import pathlib
import pickle
import sys
import types

import ml_dtypes
import numpy as np
import pytest
from outside import torch

from flowsde_converters import pickles
from flowsde_converters.files import open_checkpoint

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


HALF = np.arange(12, dtype=np.float32).reshape(3, 4)


def legal():
    """Tensors that are views of others, and the values that they have."""
    both = torch.from_numpy(HALF.copy())
    numbers = [torch.complex(both[0], both[1]) for _ in range(2)]
    return {
        "column": both[:, 0],
        "every other": both.reshape(-1)[::2],
        "one of a column": both[:1, 0],
        "one, far": both.reshape(-1)[::12],
        "block": both[1:, 1:3],
        "transposed": both.T,
        "repeated": torch.ones(1).expand(5),
        "repeated rows": both[0].expand(3, 4),
        "negated": numbers[0].conj().imag,
        "conjugated": numbers[1].conj(),
        "shared": both,
        "shared again": both,
        "none": torch.ones(0, 3),
        "none of a column": both[:0, 0],
        "none, far": torch.ones(3, 4)[:, 4:],
        "half": both.to(torch.bfloat16)[:, 1],
        "flags": both[:, 1] > 2,
    }


@pytest.mark.parametrize("legacy", [False, True])
def test_views_of_other_tensors_have_the_values_that_pytorch_gives(tmp_path, legacy):
    state = legal()
    assert state["negated"].is_neg() and state["conjugated"].is_conj()
    torch.save(state, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    found = open_checkpoint(tmp_path / "a.pt")
    assert found.tensors.keys() == state.keys()
    for key, tensor in state.items():
        wide = tensor.dtype == torch.bfloat16
        wanted = (tensor.float() if wide else tensor).resolve_conj().resolve_neg().numpy()
        read = found.read(key)
        np.testing.assert_array_equal(read.astype(np.float32) if wide else read, wanted)
        assert (read.shape, read.dtype) == (tuple(tensor.shape), found.tensors[key].dtype)


BESIDE = {
    "a NumPy number": lambda: np.float64(2.3),
    "NumPy's state": lambda: np.random.RandomState(0).get_state(),
    "an array": lambda: np.arange(3),
    "a path": lambda: pathlib.Path("a/b"),
    "counts": lambda: collections.defaultdict(int),
    "lists": lambda: collections.defaultdict(list),
    "a date": lambda: datetime.datetime(2020, 1, 2),
    "names": lambda: types.SimpleNamespace(a=1),
    "arguments": lambda: argparse.Namespace(depth=3),
    "a version": lambda: torch.torch_version.TorchVersion("2.0"),
}


@pytest.mark.parametrize("name", BESIDE)
@pytest.mark.parametrize("legacy", [False, True])
def test_values_beside_the_weights_are_left(tmp_path, name, legacy):
    state = {"ema": {"a": torch.from_numpy(F32)}, name: BESIDE[name]()}
    torch.save(state, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    found = open_checkpoint(tmp_path / "a.pt")
    assert found.beside == ("ema", name)
    np.testing.assert_array_equal(found.read("ema.a"), F32, strict=True)


def test_weights_may_lie_in_a_defaultdict_and_beside_numbers(tmp_path):
    state = collections.defaultdict(list, {"a": torch.from_numpy(F32), "epoch": 3})
    torch.save(state, tmp_path / "a.pt")
    found = open_checkpoint(tmp_path / "a.pt")
    assert found.tensors.keys() == {"a"}
    assert found.notes == ("a.pt: leaves epoch: no tensors",)


def test_no_code_but_pytorchs_stands_behind_an_allowed_class():
    for stand_in, name in pickles.allowed():
        own = issubclass(stand_in, pickles.Unread) if isinstance(stand_in, type) else stand_in()
        assert own is True or own == {}, name


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (lambda: decimal.Decimal("1.5"), "decimal.Decimal"),
        (lambda: fractions.Fraction(1, 2), "fractions.Fraction"),
        (lambda: torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
    ],
    ids=["decimal", "fraction", "module"],
)
def test_other_classes_are_refused_by_name(tmp_path, value, name):
    torch.save({"ema": {"a": torch.ones(1)}, "x": value()}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="holds more than tensors: a ") as error:
        open_checkpoint(tmp_path / "a.pt")
    assert f" a {name}, " in str(error.value) and "expected the weights alone" in str(error.value)
    assert "safe_globals" not in str(error.value)


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


@pytest.mark.parametrize("name", ["a.PT", "pytorch_model.BIN", "model-00001-of-00001.fp16.bin"])
def test_torch_files_under_other_names(tmp_path, name):
    torch.save({"a": torch.from_numpy(F32)}, tmp_path / name)
    for path in (tmp_path, tmp_path / name):
        np.testing.assert_array_equal(open_checkpoint(path).read("a"), F32, strict=True)


@pytest.mark.parametrize("kept", [0, 3, 200, 600, 900])
def test_truncated_torch_files_are_refused(tmp_path, kept):
    path = tmp_path / "a.pt"
    torch.save({"a": torch.from_numpy(F32)}, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"a\.pt: (truncated|not read, it is broken)"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("held", "words"),
    [
        (lambda: [torch.ones(1)], "holds a list"),
        (lambda: {"a": 3}, "'a' is a int"),
        (lambda: {3: torch.ones(1)}, "3 is a"),
    ],
    ids=["list", "number", "key"],
)
def test_torch_files_hold_tensors_by_key(tmp_path, held, words):
    torch.save(held(), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=words):
        open_checkpoint(tmp_path / "a.pt")


def test_without_torch_the_error_says_so(tmp_path, monkeypatch):
    (tmp_path / "a.pt").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"a\.pt: reading it takes torch"):
        open_checkpoint(tmp_path / "a.pt")
