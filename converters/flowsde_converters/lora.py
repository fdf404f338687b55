"""Adapters merged into the weights of a model as it is converted, block by block.

A layer of an adapter has a name in one layout of the family's keys, not always that of the
checkpoint: where the one has q, k and v in one layer, the other may have three. Both layouts have a
row for the same parameter, whose joined tensor (before it is laid out anew) is what B A is added
to, in the rows of the layer. It is float32 until all adapters are in, and rounded once.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from flowsde._text import listed, shown
from flowsde_converters import eight_bits
from flowsde_converters.detect import DTYPES, Plan
from flowsde_converters.lora_file import Layer, LoraFile, Merged
from flowsde_converters.tables import Row

_AT_ONCE = 2**22
"""Values of B A that are in memory at once."""
_FLOATS = (*DTYPES.values(), *eight_bits.DTYPES)


class Place(NamedTuple):
    """Where a key of a layout lies: of which row, of which block, and its rows there."""

    row: Row
    block: int
    begin: int
    size: int


class Update(NamedTuple):
    """What is added to some rows of a joined tensor.

    Attributes:
      place: of these rows, in the adapter's layout.
      base: the row of the checkpoint's layout.
      file: with the tensors.
      up: key of B, or of what is added as it is.
      down: key of A, or None.
      factor: of the product.
    """

    place: Place
    base: Row
    file: LoraFile
    up: str
    down: str | None
    factor: float


def with_loras(
    plan: Plan, files: Sequence[tuple[LoraFile, float]], part: str | None = None
) -> Plan:
    """A plan with adapters merged in.

    Args:
      plan: of one model.
      files: of adapters, and the scale of each.
      part: what the model is in its pipeline; by default what fits best is taken of each file.

    Raises:
      ValueError: listing everything that does not fit, of all files.
    """
    every: dict[str, dict[int, list[Update]]] = {}
    loras, problems = [], []
    layouts = [_places(plan, layout) for layout in _layouts(plan)]
    for file, scale in files:
        own = _best(file, layouts) if part is None else part
        if own not in file.parts:
            continue
        places = min(layouts, key=lambda known: len(_unknown(file.parts[own], known)))
        updates, wrong = _updates(plan, file, own, places, scale)
        problems += [f"{file.name}: {line}" for line in wrong]
        for one in updates:
            every.setdefault(one.base.target, {}).setdefault(one.place.block, []).append(one)
        ranks = [file.checkpoint.tensors[one.down].shape[0] for one in updates if one.down]
        left = tuple(name for name in file.parts if name != own) if part is None else ()
        made = Merged(file, scale, len(file.parts[own]), max(ranks, default=0), left)
        loras.append(made)
    if problems:
        title = f"adapters do not fit {plan.family.name} ({plan.found.layout} keys)"
        raise ValueError(listed(problems, title))
    changes = {
        target: {i: partial(merge, updates) for i, updates in blocks.items()}
        for target, blocks in every.items()
    }
    return dataclasses.replace(plan, loras=tuple(loras), changes=changes)


def _layouts(plan: Plan) -> list[str]:
    return list(dict.fromkeys([plan.found.layout, *plan.family.layouts]))


def _places(plan: Plan, layout: str) -> dict[str, Place]:
    """Of every key of a layout, written with "." and with "_"."""
    own = layout == plan.found.layout
    table = plan.found.table if own else plan.family.table(plan.found.config, layout)
    totals = {row.target: _rows(plan, row) for row in plan.found.table.rows}
    found = {}
    for row in table.rows:
        sizes = row.split(totals[row.target])
        for block, keys in enumerate(row.keys(plan.model)):
            for i, key in enumerate(keys):
                place = Place(row, block, sum(sizes[:i]), sizes[i])
                found[key] = found[key.replace(".", "_")] = place
    return found


def _rows(plan: Plan, row: Row) -> int:
    """The first axis of a joined tensor of the checkpoint."""
    held = [plan.checkpoint.tensors[key].shape for key in next(row.keys(plan.model))]
    return sum(shape[0] if shape else 0 for shape in held)


def _key(layer: Layer, end: str) -> str:
    return f"{layer.name}{'_' if layer.flat else '.'}{end}"


def _unknown(layers: Sequence[Layer], places: Mapping[str, Place]) -> list[Layer]:
    return [one for one in layers if not {_key(one, "weight"), _key(one, "bias")} & places.keys()]


def _best(file: LoraFile, layouts: Sequence[Mapping[str, Place]]) -> str:
    """The part of a file that has most layers of a model."""
    known = {
        part: max(len(layers) - len(_unknown(layers, places)) for places in layouts)
        for part, layers in file.parts.items()
    }
    return max(known, key=lambda part: known[part])


def _updates(
    plan: Plan, file: LoraFile, part: str, places: Mapping[str, Place], scale: float
) -> tuple[list[Update], list[str]]:
    """Of all layers of a part, and what is wrong with them."""
    rows = {row.target: row for row in plan.found.table.rows}
    updates: list[Update] = []
    unknown = _unknown(file.parts[part], places)
    problems = [f"unknown key {shown(key)}" for layer in unknown for key in layer.keys.values()]
    for layer in file.parts[part]:
        if layer in unknown:
            continue
        for end, up, down in _pairs(layer):
            place = places.get(_key(layer, end))
            if place is None:
                continue
            base = rows[place.row.target]
            wrong = _misfit(plan, file, place, up, down, base)
            try:
                factor = scale * _factor(file, part, layer, up)
            except ValueError as error:
                wrong = str(error)
            if wrong is not None:
                problems.append(wrong)
                continue
            updates.append(Update(place, base, file, up, down, factor))
        problems += _incomplete(layer, places)
    return updates, problems


def _pairs(layer: Layer) -> Iterator[tuple[str, str, str | None]]:
    """What is added to a layer's weight and bias: (which, key of B, key of A)."""
    keys = layer.keys
    if "up" in keys and "down" in keys:
        yield "weight", keys["up"], keys["down"]
    if "diff" in keys:
        yield "weight", keys["diff"], None
    for role in ("up_bias", "diff_b"):
        if role in keys:
            yield "bias", keys[role], None


def _incomplete(layer: Layer, places: Mapping[str, Place]) -> Iterator[str]:
    held = layer.keys
    if len({"up", "down"} & held.keys()) == 1 or held.keys() <= {"alpha"}:
        there = shown(next(iter(held.values())))
        yield f"{there} stands without the other half, expected an A and a B for each layer"
    ends = {"weight": {"up", "diff"}, "bias": {"up_bias", "diff_b"}}
    for end, roles in ends.items():
        if roles & held.keys() and _key(layer, end) not in places:
            yield f"{shown(layer.name)} has no {end} in the model, to which something is added"


def _factor(file: LoraFile, part: str, layer: Layer, up: str) -> float:
    """What a product, or a bias of B, is multiplied by besides the file's scale."""
    keys = layer.keys
    if up not in (keys.get("up"), keys.get("up_bias")) or "down" not in keys:
        return 1.0
    return file.factor(part, layer, max(1, (*file.checkpoint.tensors[keys["down"]].shape, 1)[0]))


def _misfit(
    plan: Plan, file: LoraFile, place: Place, up: str, down: str | None, base: Row
) -> str | None:
    """What is wrong with the shapes and dtypes of an adapter, in words."""
    held = file.checkpoint.tensors
    if (place.row.part or base.part) is not None:
        return f"{shown(up)} is for a key of several parameters, into which none can be merged"
    inner = plan.checkpoint.tensors[next(iter(base.keys(plan.model)))[0]].shape[1:]
    wanted = (place.size, *inner)
    for key in (up, down):
        if key is not None and held[key].dtype not in _FLOATS:
            return f"{shown(key)} is {held[key].dtype}, expected {', '.join(DTYPES)}"
    if down is None:
        fits, found = held[up].shape == wanted, f"{held[up].shape}"
    else:
        b, a = held[up].shape, held[down].shape
        rank = b[1] if len(b) > 1 else 0
        fits = rank > 0 and (b, a) == ((wanted[0], rank, *(1 for _ in inner[1:])), (rank, *inner))
        found = f"{b} by {a}"
    return None if fits else f"{shown(up)} is {found}, expected what makes {wanted}"


def merge(updates: Sequence[Update], joined: np.ndarray) -> np.ndarray:
    """A joined tensor with updates added to it, in float32."""
    array = joined.astype(np.float32)
    rows = array.reshape(array.shape[0], -1)
    for one in updates:
        up, begin = _laid_out(one, array.shape[0])
        up = up.reshape(up.shape[0], -1)
        down = None if one.down is None else one.file.read(one.down)
        step = max(1, _AT_ONCE // rows.shape[1])
        for i in range(0, len(up), step):
            part = up[i : i + step]
            if down is not None:
                part = part @ down.reshape(down.shape[0], -1)
            rows[begin + i : begin + i + len(part)] += np.float32(one.factor) * part
    return array


def _laid_out(one: Update, total: int) -> tuple[np.ndarray, int]:
    """B as the checkpoint's layout has its rows, and the first of these."""
    up, row = one.file.read(one.up), one.place.row
    if row.relayouts == one.base.relayouts:
        return up, one.place.begin
    whole = np.zeros((total, *up.shape[1:]), np.float32)
    whole[one.place.begin : one.place.begin + one.place.size] = up
    # They are the same but for the order of rows.
    return one.base.undo(row.lay_out(whole)), 0


def check_values(loras: Sequence[Merged]) -> None:
    """ValueError listing the tensors of adapters whose values are not finite."""
    wrong = [
        f"{one.file.name}: {shown(key)} has values that are NaN or infinite"
        for one in loras
        for key in one.file.checkpoint.tensors
        if not np.isfinite(one.file.read(key)).all()
    ]
    if wrong:
        raise ValueError(listed(wrong, "adapters cannot be merged"))
