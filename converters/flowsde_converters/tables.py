"""Tables from the keys of a PyTorch checkpoint to the parameters of a Flax model.

A table has a row for each parameter: the key (or keys) it comes from, its dotted path in the
model, and how it is laid out. In a key `{i}` stands for the number of a block, `{i+4}` for that of
the fourth after it, `{2i+1}` for one of every second; the blocks are stacked on the leading axis of
the parameter. Several keys are joined on their first axis, PyTorch's outputs, before they are laid
out anew; of one key several rows may each take a part. Both ways of use come from the same row:

    apply   tensors -> join -> relayouts -> stack over {i} -> parameter
    invert  parameter -> each {i} -> relayouts undone -> split -> tensors

`problems` compares a table with what a checkpoint holds and a model wants, by shapes alone, and
returns all that is wrong; a conversion starts only from an empty list.
"""

import collections
import dataclasses
import math
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import numpy as np

from flowsde._text import listed, shown
from flowsde.models.converted.copying import put
from flowsde_converters.depth import is_of_blocks, of_block
from flowsde_converters.ignored import Ignored, is_ignored
from flowsde_converters.ignored import problems as values_wrong
from flowsde_converters.relayout import LINEAR, SWAPPED_LINEAR, Relayout, SwapHalves


class HasShape(Protocol):
    """Anything with a shape and a dtype."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype: ...


Shape = tuple[int, ...]


def nbytes(like: HasShape) -> int:
    """Bytes of a shape and dtype."""
    return math.prod(like.shape) * like.dtype.itemsize


Model = Mapping[str, HasShape]
"""Parameters of a model by dotted path."""
Checkpoint = Mapping[str, HasShape]
"""Tensors of a checkpoint by key."""
Change = Callable[[np.ndarray], np.ndarray]
"""From a block's joined tensor to another one, float32."""
Changes = Mapping[int, Change]
"""By the number of a block."""
_UNCHANGED: Changes = types.MappingProxyType({})


@dataclasses.dataclass(frozen=True)
class Row:
    """Where one parameter comes from.

    Attributes:
      source: key in the checkpoint, with `{i}` for the number of a block; several are joined.
      target: dotted path in the model.
      relayouts: how the (joined) tensor is laid out, in order.
      sizes: rows of each of several keys on the first axis; equal parts by default.
      part: (k, n) for the k-th of n equal parts of one key's first axis; other rows take the rest.
    """

    source: str | tuple[str, ...]
    target: str
    relayouts: tuple[Relayout, ...] = ()
    sizes: tuple[int, ...] | None = None
    part: tuple[int, int] | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        """The keys as a tuple."""
        return (self.source,) if isinstance(self.source, str) else self.source

    @property
    def stacked(self) -> bool:
        """Whether blocks are stacked on the leading axis."""
        return any(is_of_blocks(key) for key in self.sources)

    def keys(self, model: Model) -> Iterator[tuple[str, ...]]:
        """The keys of each block in turn."""
        if not self.stacked:
            yield self.sources
            return
        for i in range(model[self.target].shape[0]):
            yield tuple(of_block(key, i) for key in self.sources)

    def apply(
        self,
        tensors: list[np.ndarray],
        joined: np.ndarray | None = None,
        change: Change | None = None,
    ) -> np.ndarray:
        """One block's array, joined in `joined` if there is one; ValueError where the shapes do not
        allow it."""
        rows = [a.shape[0] if a.ndim else 0 for a in tensors]
        if len(tensors) > 1 and tuple(rows) != self.split(sum(rows)):
            raise ValueError(f"first axes {rows}, expected {list(self.split(sum(rows)))}")
        array = tensors[0] if len(tensors) == 1 else np.concatenate(tensors, out=joined)
        if change is not None:
            array = change(array)
        return self.lay_out(array if self.part is None else _part(array, *self.part))

    def lay_out(self, array: np.ndarray) -> np.ndarray:
        """A joined tensor, or the part of it that is taken, laid out anew."""
        for one in self.relayouts:
            array = one.apply(array)
        return array

    def undo(self, array: np.ndarray) -> np.ndarray:
        """The joined tensor of one block's array, or the part of it that was taken."""
        for one in reversed(self.relayouts):
            array = one.invert(array)
        return array

    def invert(self, array: np.ndarray) -> list[np.ndarray]:
        """The tensors of one block's array; of a key of which it has a part, that part."""
        array = self.undo(array)
        if len(self.sources) == 1:
            return [array]
        return np.split(array, np.cumsum(self.split(array.shape[0]))[:-1])

    def split(self, total: int) -> tuple[int, ...]:
        """Rows of each key's tensor, of so many joined."""
        return self.sizes or (total // len(self.sources),) * len(self.sources)


def _part(a: np.ndarray, k: int, n: int) -> np.ndarray:
    rows = a.shape[0] if a.ndim else 0
    if rows % n:
        raise ValueError(f"a first axis of {rows}, expected {n} equal parts")
    return a[k * rows // n : (k + 1) * rows // n]


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


def norm(key: str, target: str) -> tuple[Row, Row]:
    """Scale and bias of a norm, its key without ".weight" and ".bias"."""
    return Row(f"{key}.weight", f"{target}.scale"), Row(f"{key}.bias", f"{target}.bias")


def _with(keys: Keys, end: str) -> Keys:
    return keys + end if isinstance(keys, str) else tuple(key + end for key in keys)


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of a family in one layout of its keys.

    Attributes:
      rows: one for each parameter of the model.
      ignored: keys that a checkpoint may hold and no row uses, and why.
    """

    rows: tuple[Row, ...]
    ignored: tuple[Ignored, ...] = ()

    def problems(self, checkpoint: Checkpoint, model: Model) -> list[str]:
        """All that keeps this table from turning `checkpoint` into `model`, in words."""
        return [
            *_targets(self.rows, model),
            *_keys(self, checkpoint, model),
            *_shapes(self.rows, checkpoint, model),
        ]


def _targets(rows: tuple[Row, ...], model: Model) -> Iterator[str]:
    counted = collections.Counter(row.target for row in rows)
    for path in sorted(model.keys() - counted.keys()):
        yield f"no row sets the parameter {path}"
    for path in sorted(counted.keys() - model.keys()):
        yield f"a row sets {path}, which the model does not have"
    for path, times in counted.items():
        if times > 1:
            yield f"{times} rows set the parameter {path}"


def _keys(table: Table, checkpoint: Checkpoint, model: Model) -> Iterator[str]:
    wanted: dict[str, list[tuple[int, int] | None]] = {}
    for row in table.rows:
        for keys in row.keys(model) if row.target in model else ():
            for key in keys:
                wanted.setdefault(key, []).append(row.part)
    for key in sorted(wanted.keys() - checkpoint.keys()):
        yield f"missing key {shown(key)}"
    for key in sorted(checkpoint.keys() - wanted.keys()):
        if not is_ignored(key, table.ignored):
            yield f"unexpected key {shown(key)}"
    for key, parts in wanted.items():
        named = [part for part in parts if part is not None]
        if not named or len(named) < len(parts):
            if len(parts) > 1:
                yield f"{len(parts)} rows use the key {shown(key)}"
        elif sorted(named) != [(k, len(named)) for k in range(len(named))]:
            yield f"rows use the parts {named} of the key {shown(key)}, expected each part once"


def _shapes(rows: tuple[Row, ...], checkpoint: Checkpoint, model: Model) -> Iterator[str]:
    for row in rows:
        if row.target not in model:
            continue
        whole = tuple(model[row.target].shape)
        shape = whole[1:] if row.stacked else whole
        for keys in row.keys(model):
            if any(key not in checkpoint for key in keys):
                continue
            found = [tuple(checkpoint[key].shape) for key in keys]
            wrong = _wrong_shape(row, found, shape)
            if wrong:
                yield f"{' + '.join(keys)} {found} does not make {row.target} {shape}: {wrong}"


def _wrong_shape(row: Row, found: list[Shape], shape: Shape) -> str | None:
    # Arrays of one stored byte: only a join takes memory.
    try:
        made = row.apply([np.broadcast_to(np.int8(0), s) for s in found]).shape
    except ValueError as error:
        return str(error)
    return None if made == shape else f"it gives {made}"


def blocks(
    row: Row,
    model: Model,
    read: Callable[[str], np.ndarray],
    empty: Callable[..., np.ndarray] = np.empty,
    changes: Changes = _UNCHANGED,
) -> Iterator[np.ndarray]:
    """The parts of a row's parameter that are stacked, or all of it, in arrays of `empty`."""
    like, joined = model[row.target], None
    for i, keys in enumerate(row.keys(model)):
        block = empty(like.shape[1:] if row.stacked else like.shape, like.dtype)
        tensors = _alike([read(key) for key in keys], _joint(like.dtype, changes.get(i)))
        if len(tensors) > 1:
            joined = _room(tensors, joined)
        put(block, row.apply(tensors, joined, changes.get(i)))
        yield block


def _joint(dtype: np.dtype, change: Change | None) -> np.dtype:
    """In which tensors of several dtypes are joined: what is changed is not rounded before."""
    return dtype if change is None else np.dtype(np.float32)


def _alike(tensors: list[np.ndarray], dtype: np.dtype) -> list[np.ndarray]:
    """Tensors that can be joined: of one dtype, that of the parameter if they had several."""
    if len({a.dtype for a in tensors}) == 1:
        return tensors
    # NumPy knows no common dtype of bfloat16 and float16. Overflow is found in the result.
    with np.errstate(over="ignore", invalid="ignore"):
        return [a.astype(dtype) for a in tensors]


def _room(tensors: list[np.ndarray], before: np.ndarray | None) -> np.ndarray:
    """Where tensors can be joined: where those before them were, if it is alike."""
    shape = (sum(a.shape[0] for a in tensors), *tensors[0].shape[1:])
    dtype = tensors[0].dtype
    alike = before is not None and (before.shape, before.dtype) == (shape, dtype)
    return before if alike and before is not None else np.empty(shape, dtype)


def fill(
    row: Row, model: Model, read: Callable[[str], np.ndarray], changes: Changes = _UNCHANGED
) -> np.ndarray:
    """The parameter of a row, of the model's dtype, from tensors that `read` gives by key."""
    like = model[row.target]
    array = np.empty(like.shape, like.dtype)
    blocks = array if row.stacked else [array]
    for i, (block, keys) in enumerate(zip(blocks, row.keys(model), strict=True)):
        tensors = _alike([read(key) for key in keys], _joint(like.dtype, changes.get(i)))
        put(block, row.apply(tensors, change=changes.get(i)))
    return array


def check_ignored(table: Table, checkpoint: Checkpoint, read: Callable[[str], np.ndarray]) -> None:
    """ValueError listing the ignored keys whose values are not what they are ignored for."""
    wrong = list(values_wrong(table.ignored, checkpoint, read))
    if wrong:
        raise ValueError(listed(wrong, "the checkpoint has values that would be lost"))


def convert(
    table: Table, checkpoint: Mapping[str, np.ndarray], model: Model
) -> dict[str, np.ndarray]:
    """Parameters by dotted path from a checkpoint in memory.

    Raises:
      ValueError: listing everything that does not fit.
    """
    problems = table.problems(checkpoint, model)
    if problems:
        raise ValueError(listed(problems, "the checkpoint does not fit the model"))
    check_ignored(table, checkpoint, checkpoint.__getitem__)
    return {row.target: fill(row, model, checkpoint.__getitem__) for row in table.rows}


def unconvert(table: Table, params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The checkpoint that `convert` makes `params` from, without the ignored keys."""
    checkpoint: dict[str, np.ndarray] = {}
    for rows in sharing(table.rows):
        checkpoint.update(undone(rows, [np.asarray(params[row.target]) for row in rows]))
    return checkpoint


def sharing(rows: tuple[Row, ...]) -> list[tuple[Row, ...]]:
    """Rows by their keys: alone, or with those of the other parts of its key in their order."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(row.sources, []).append(row)
    return [tuple(sorted(group, key=lambda row: row.part or (0, 1))) for group in found.values()]


def undone(rows: tuple[Row, ...], arrays: list[np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Keys and tensors, block by block, of rows that share them and of the rows' parameters."""
    first = rows[0]
    for i, keys in enumerate(first.keys({first.target: arrays[0]})):
        tensors = [
            row.invert(array[i] if row.stacked else array)
            for row, array in zip(rows, arrays, strict=True)
        ]
        if first.part is None:
            yield from zip(keys, tensors[0], strict=True)
        else:
            yield keys[0], np.concatenate([part for (part,) in tensors])
