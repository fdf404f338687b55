"""PyTorch's own files (.pt, .pth, .ckpt, .bin), through `torch.load(weights_only=True)` alone.

They are pickles: PyTorch's restricted unpickler builds tensors and containers and refuses the rest;
see `flowsde_converters.pickles` for what is let pass, unread. Files are mapped where their format
allows it.
"""

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from flowsde._text import names, shown
from flowsde_converters import nested, pickles
from flowsde_converters.safetensors_file import Tensor

_MAPPED_AT_ONCE = 2**28
_EXPANDED, _AT_LEAST = 16, 2**28
"""Bytes of all tensors: times those of the file, or so many; of one number a tensor can be made
of any size."""


class TorchFile:
    """The tensors of a file by dotted key.

    Attributes:
      tensors: shapes and dtypes; of an entry of a training run's file, "ema.blocks.0.bias".
      owners: the entry that each is of, "" for those at the top.
      beside: names of what there is at the top, if those are entries.
      unnamed: entries with tensors that have no names.
      note: what was left of a file that holds more than tensors, or None.

    Raises:
      ImportError: there is no torch.
      ValueError: naming the file and what is wrong with it.
    """

    def __init__(self, path: Path):
        try:
            import torch
        except ImportError:
            raise ImportError(
                f"{path}: reading it takes torch, expected it installed, or a .safetensors file"
            ) from None
        self._path, self._torch = path, torch
        # Only its zip format can be mapped.
        self._mapped = zipfile.is_zipfile(path)
        try:
            pickles.check_size(path)
            held = self._open()
            self.tensors: Mapping[str, Tensor] = {
                key: Tensor(tuple(t.shape), self._dtype(key, t)) for key, t in self._state.items()
            }
            self._check_size()
        except ValueError as error:
            raise ValueError(f"{path}: {shown(error, 600)}") from None
        top = [shown(key) for key in held if isinstance(key, str)]
        whole = "" in self.owners.values()
        self.beside = () if whole else tuple(top)
        left = [
            shown(key) if isinstance(key, str) else type(key).__name__
            for key, value in held.items()
            if not self._is_tensor(value) and not isinstance(value, Mapping)
        ]
        self.note = f"leaves {names(left)}: no tensors" if whole and left else None

    def read(self, key: str) -> np.ndarray:
        """A tensor, not to be written to."""
        if self._mapped and self._read > _MAPPED_AT_ONCE:
            # Pages of a map count as memory until it is closed.
            self._open()
        tensor = self.tensors[key]
        self._read += tensor.nbytes
        # Views of other tensors, conjugated or negated ones, and repeated values become plain.
        flat = self._state[key].detach().resolve_conj().resolve_neg().reshape(-1)
        if flat.stride() != (1,):
            flat = flat.clone(memory_format=self._torch.contiguous_format)
        return flat.view(self._torch.uint8).numpy().view(tensor.dtype).reshape(tensor.shape)

    def _open(self) -> Mapping[Any, Any]:
        held = self._load()
        if not isinstance(held, Mapping):
            raise ValueError(f"holds a {type(held).__name__}, expected tensors by key")
        found = nested.flatten(held, self._is_tensor)
        if held and not found.tensors:
            key, value = next(iter(held.items()))
            # The text of tuples in tuples can be longer than memory.
            named = repr(key) if isinstance(key, str | int) else f"a {type(key).__name__}"
            raise ValueError(f"{shown(named)} is a {type(value).__name__}, expected tensors by key")
        self._state, self.owners, self._read = found.tensors, found.owners, 0
        self.unnamed = tuple(found.unnamed)
        return held

    def _load(self) -> Any:
        try:
            with (
                self._torch.serialization.safe_globals(pickles.allowed()),
                warnings.catch_warnings(action="ignore"),
            ):
                return self._torch.load(
                    self._path, map_location="cpu", weights_only=True, mmap=self._mapped
                )
        except pickle.UnpicklingError as error:
            raise ValueError(_unpickling(str(error))) from None
        except OSError:
            raise
        except Exception as error:  # whatever a broken file leads the reader into
            said = str(error).strip().splitlines() or [type(error).__name__]
            raise ValueError(f"truncated, broken or no PyTorch file: {said[0]}") from None

    def _is_tensor(self, value: Any) -> bool:
        return isinstance(value, self._torch.Tensor)

    def _dtype(self, key: str, tensor: Any) -> np.dtype:
        name = str(tensor.dtype).removeprefix("torch.")
        plain = tensor.layout is self._torch.strided and not tensor.is_quantized
        if plain and tensor.device.type == "cpu":
            for module in (np, ml_dtypes):
                if hasattr(module, name.replace("bool", "bool_")):
                    return np.dtype(getattr(module, name.replace("bool", "bool_")))
        raise ValueError(f"{shown(key)} is {name}, {tensor.layout}, expected plain numbers")

    def _check_size(self) -> None:
        size = self._path.stat().st_size
        most = max(_AT_LEAST, _EXPANDED * size)
        whole = sum(tensor.nbytes for tensor in self.tensors.values())
        if whole > most:
            raise ValueError(
                f"tensors of {whole} bytes in a file of {size}, which repeats its values; expected "
                f"at most {most}"
            )


def _unpickling(said: str) -> str:
    """Of PyTorch's page of advice, the class that it is about."""
    kind = pickles.refused(said)
    if kind is None:
        first = said.strip().splitlines() or ["it is no pickle"]
        return f"not read, it is broken or holds more than tensors: {first[0]}"
    return (
        f"not read, it holds more than tensors: a {kind}, and reading that could run code of the "
        "file's; expected the weights alone. Where you trust the file, make one of them: "
        "torch.save(torch.load(FILE, weights_only=False)[ENTRY], NEW)"
    )
