"""Rows that come in pairs."""

from flowsde_converters.moves import LINEAR, SWAPPED_LINEAR, SwapHalves
from flowsde_converters.tables import Row

Keys = str | tuple[str, ...]


def linear(
    keys: Keys, target: str, *, swapped: bool = False, sizes: tuple[int, ...] | None = None
) -> tuple[Row, Row]:
    """Weight and bias of a linear layer, or of several joined to one.

    Args:
      keys: without ".weight" and ".bias".
      target: path of the layer in the model.
      swapped: whether the halves of its outputs change places.
      sizes: outputs of each of several; equal parts by default.
    """
    weights, biases = _with(keys, ".weight"), _with(keys, ".bias")
    return (
        Row(weights, f"{target}.kernel", SWAPPED_LINEAR if swapped else LINEAR, sizes),
        Row(biases, f"{target}.bias", (SwapHalves(),) if swapped else (), sizes),
    )


def _with(keys: Keys, end: str) -> Keys:
    return keys + end if isinstance(keys, str) else tuple(key + end for key in keys)
