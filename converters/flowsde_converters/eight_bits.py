"""Weights of 8 bits, and the scales that files keep beside them.

A weight is its 8-bit value (e4m3 or e5m2, widened exactly) times its scale, in float32. A file has
one scale a tensor or one a row of it, as `scale_weight` or `weight_scale` beside `weight`; scales
of inputs, which only arithmetic in 8 bits has a use for, are left. Blocks with a scale each, and
formats of fewer bits, are refused.
"""

import dataclasses
import re

import ml_dtypes
import numpy as np

from flowsde._text import names, shown
from flowsde_converters.bounded_json import parse
from flowsde_converters.files import Checkpoint

DTYPES = (np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float8_e5m2))
"""Read and never written; each dtype that is written holds them exactly."""
_MARK = "scaled_fp8"
"""A key that only says that there are scales."""
_FORMATS = ("float8_e4m3fn", "float8_e5m2")
_SCALE = re.compile(r"(^|[._])(scale|scales|scaled)([._]|$)|scale_inv$")


def with_scales(checkpoint: Checkpoint, used: tuple[str, ...]) -> tuple[Checkpoint, list[str]]:
    """A checkpoint whose 8-bit weights are read times their scales, and what is wrong with it.

    Args:
      checkpoint: of a model.
      used: keys of its parameters.
    """
    held, wanted = checkpoint.tensors, set(used)
    free = held.keys() - wanted
    # Copies of weights, which no parameter comes from, have scales too.
    eight = [key for key in held if held[key].dtype in DTYPES and key != _MARK]
    if wanted.isdisjoint(eight):
        return checkpoint, []
    scales = {key: scale for key in eight for scale in _scales(key) if scale in free}
    gone = {_MARK, *scales.values()}
    for key in eight:
        gone |= {beside(key, name) for name in ("scale_input", "input_scale", "comfy_quant")}
    rest = {key: tensor for key, tensor in held.items() if key not in gone & free}
    problems = [*_unsupported(eight, rest, wanted), *_of_other_formats(checkpoint, eight, free)]
    if scales:
        problems += [
            f"{shown(key)} is of 8 bits and has no scale beside it, as others have"
            for key in eight
            if key in wanted and key not in scales
        ]
        problems += _misfits(checkpoint, scales)
        kinds = sorted({scale.rpartition(".")[2] for scale in scales.values()})
        checkpoint = checkpoint.noting([f"weights of 8 bits times their {' and '.join(kinds)}"])
    return dataclasses.replace(checkpoint, tensors=rest, scales=scales), problems


def beside(key: str, name: str) -> str:
    """Another tensor of the layer that a weight is of."""
    return f"{key.rpartition('.')[0]}.{name}".lstrip(".")


def _scales(key: str) -> tuple[str, ...]:
    """What the scale of a weight may be called."""
    own = (beside(key, "scale_weight"),) if key.endswith("weight") else ()
    return (*own, f"{key}_scale")


def _unsupported(eight: list[str], rest: dict, used: set[str]) -> list[str]:
    scales = sorted(key for key in rest.keys() - used if _SCALE.search(key))
    if not scales:
        return []
    return [
        f"{shown(eight[0])} is of 8 bits with scales beside it ({names(scales, 3)}) that are not "
        "supported: expected weights of 16 bits, or of 8 with one scale_weight or weight_scale "
        "for each tensor or row"
    ]


def _of_other_formats(checkpoint: Checkpoint, eight: list[str], free: set[str]) -> list[str]:
    problems = []
    for key in eight:
        about = beside(key, "comfy_quant")
        if about not in free:
            continue
        try:
            said = parse(checkpoint.read(about).tobytes()).get("format")
        except (ValueError, AttributeError):
            said = None
        if said not in _FORMATS:
            expected = " or ".join(_FORMATS)
            problems.append(f"{shown(about)} says {shown(repr(said))}, expected {expected}")
    return problems


def _misfits(checkpoint: Checkpoint, scales: dict[str, str]) -> list[str]:
    """Scales of a wrong shape or dtype."""
    problems = []
    for key, name in scales.items():
        shape, scale = checkpoint.tensors[key].shape, checkpoint.tensors[name]
        rows = (*shape[:1], *(1 for _ in shape[1:]))
        if scale.shape not in ((), (1,), (1,) * len(shape), shape[:1], rows):
            problems.append(
                f"{shown(name)} has the shape {scale.shape}, expected one scale for all of "
                f"{shown(key)} {shape} or one for each of its rows"
            )
        if scale.dtype.kind not in "fV" or scale.dtype.itemsize < 2:
            problems.append(f"{shown(name)} is {scale.dtype}, expected floats of 16 bits or more")
    return problems
