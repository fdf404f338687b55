"""PyTorch's own files (.pt, .pth, .ckpt, .bin), through `torch.load(weights_only=True)` alone.

They are pickles: PyTorch's restricted unpickler builds tensors and containers and refuses the rest.
The one class allowed besides is `argparse.Namespace`, a bare holder of values that training scripts
leave beside their weights. Files are mapped where their format allows it.
"""

import argparse
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from flowsde_converters.safetensors_file import Tensor

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
_WRAPPERS = ("ema", "state_dict", "model")
"""Entries that hold the weights of a training checkpoint, the best first."""
_MAPPED_AT_ONCE = 2**28


class TorchFile:
    """The tensors of a file by key.

    Attributes:
      note: what was taken of a file that holds more than weights, or None.

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
        self._open()
        self.tensors: Mapping[str, Tensor] = {
            key: Tensor(tuple(t.shape), self._dtype(key, t)) for key, t in self._state.items()
        }

    def read(self, key: str) -> np.ndarray:
        """A tensor, not to be written to."""
        if self._mapped and self._read > _MAPPED_AT_ONCE:
            # Pages of a map count as memory until it is closed.
            self._open()
        tensor = self.tensors[key]
        self._read += tensor.nbytes
        bits = self._state[key].detach().reshape(-1).view(self._torch.uint8)
        return bits.numpy().view(tensor.dtype).reshape(tensor.shape)

    def _open(self) -> None:
        self._state: dict[str, Any] = {}
        try:
            with self._torch.serialization.safe_globals([argparse.Namespace]):
                held = self._torch.load(
                    self._path, map_location="cpu", weights_only=True, mmap=self._mapped
                )
        except pickle.UnpicklingError as error:
            said = str(error).strip().splitlines() or ["it is no pickle"]
            raise ValueError(
                f"{self._path}: not read, it is broken or holds more than tensors: {said[0]}"
            ) from None
        except (RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
            said = str(error).strip().splitlines() or [type(error).__name__]
            raise ValueError(
                f"{self._path}: truncated, broken or no PyTorch file: {said[0]}"
            ) from None
        self._state, self.note = self._weights(held)
        self._read = 0

    def _weights(self, held: Any) -> tuple[dict[str, Any], str | None]:
        """Tensors by key, out of what they are wrapped in."""
        note = None
        for name in _WRAPPERS:
            if isinstance(held, Mapping) and isinstance(held.get(name), Mapping):
                note = f"{name!r} of {', '.join(map(str, held))}"
                held = held[name]
                break
        if not isinstance(held, Mapping):
            raise ValueError(
                f"{self._path}: holds a {type(held).__name__}, expected tensors by key"
            )
        for key, value in held.items():
            if not isinstance(key, str) or not isinstance(value, self._torch.Tensor):
                raise ValueError(
                    f"{self._path}: {key!r} is a {type(value).__name__}, expected tensors by key"
                )
        return dict(held), note

    def _dtype(self, key: str, tensor: Any) -> np.dtype:
        name = str(tensor.dtype).removeprefix("torch.")
        plain = tensor.layout is self._torch.strided and not tensor.is_quantized
        if plain and tensor.device.type == "cpu":
            for module in (np, ml_dtypes):
                if hasattr(module, name.replace("bool", "bool_")):
                    return np.dtype(getattr(module, name.replace("bool", "bool_")))
        raise ValueError(f"{self._path}: {key} is {name}, {tensor.layout}, expected plain numbers")
