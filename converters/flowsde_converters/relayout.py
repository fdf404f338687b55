"""Ways to lay out a PyTorch tensor as a Flax array; each can be undone exactly.

Values are carried and never changed, so `invert` gives back the same bits. They take and
give NumPy arrays, views where NumPy can.
"""

import dataclasses
from typing import Protocol

import numpy as np


class Relayout(Protocol):
    """One array to one array, and back."""

    def apply(self, a: np.ndarray) -> np.ndarray:
        """From PyTorch's layout towards Flax's; ValueError where the shape does not allow it."""
        ...

    def invert(self, a: np.ndarray) -> np.ndarray:
        """The other way."""
        ...


@dataclasses.dataclass(frozen=True)
class Permute:
    """The axes in another order."""

    axes: tuple[int, ...]

    def apply(self, a: np.ndarray) -> np.ndarray:
        return np.transpose(a, self.axes)

    def invert(self, a: np.ndarray) -> np.ndarray:
        return np.transpose(a, np.argsort(self.axes))


@dataclasses.dataclass(frozen=True)
class Reshape:
    """Shape `source` of PyTorch's array to `target`."""

    source: tuple[int, ...]
    target: tuple[int, ...]

    def apply(self, a: np.ndarray) -> np.ndarray:
        if a.shape != self.source:
            raise ValueError(f"shape {a.shape}, expected {self.source}")
        return a.reshape(self.target)

    def invert(self, a: np.ndarray) -> np.ndarray:
        return a.reshape(self.source)


@dataclasses.dataclass(frozen=True)
class SwapHalves:
    """The second half of the first axis, then the first: (scale, shift) for (shift, scale)."""

    def apply(self, a: np.ndarray) -> np.ndarray:
        first, second = np.split(a, 2)
        return np.concatenate([second, first])

    def invert(self, a: np.ndarray) -> np.ndarray:
        return self.apply(a)


LINEAR = (Permute((1, 0)),)
"""Weight [out, in] of a linear layer to a kernel [in, out]."""

CONV = (Permute((2, 3, 1, 0)),)
"""Weight [out, in, h, w] of a convolution to a kernel [h, w, in, out]."""

SWAPPED_LINEAR = (SwapHalves(), *LINEAR)
"""As `LINEAR`, the halves of its outputs exchanged."""
