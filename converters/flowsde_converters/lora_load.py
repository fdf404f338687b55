"""Adapters merged into a converted model as it is loaded.

A converted model knows which keys its parameters came from, so that a block can be laid out as they
were, merged, and laid out again: the values are those of ``flowsde convert --lora``, without a
second folder of weights. What conversion rounded to another dtype was rounded before.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from flowsde._checks import check_path
from flowsde._text import listed
from flowsde.models import registry
from flowsde.models.converted.arrays import Parameter
from flowsde.models.converted.copying import put
from flowsde.models.converted.load import Merge
from flowsde.models.converted.opened import Opened, open_model
from flowsde.models.converted.store import CONFIG, PIPELINE, is_pipeline, read_config
from flowsde_converters.detect import Plan, family_named
from flowsde_converters.family import Found
from flowsde_converters.files import Checkpoint
from flowsde_converters.lora import check_values, with_loras
from flowsde_converters.lora_file import LoraFile, of_other_parts, open_loras
from flowsde_converters.safetensors_file import Tensor
from flowsde_converters.tables import Change, Row, sharing, undone


def merges(
    folder: Path, lora: str | Path | Mapping[str, float], verify: bool = True
) -> dict[Path, dict[str, Merge]]:
    """What adapters make of parameters, by the folder of a model and the path in it.

    Args:
      folder: of a converted model, or of a pipeline of several.
      lora: a file of adapters, or the scales of several by their paths.
      verify: whether to compare small files with their hashes.

    Raises:
      TypeError: `lora` is neither a path nor a mapping from paths to numbers.
      ValueError: listing everything that does not fit, or is not finite.
      FileNotFoundError: a file, or a converted model, is not there.
    """
    loras = _opened(lora)
    if not is_pipeline(folder):
        return {folder: _of_model(open_model(folder, registry.families(), verify), loras)}
    models = read_config(folder, PIPELINE, verify)["models"]
    problems = list(of_other_parts(loras, models))
    found = {}
    for name in models:
        if any(name in file.parts for file, _ in loras):
            opened = open_model(folder / name, registry.families(), verify)
            try:
                found[folder / name] = _of_model(opened, loras, name)
            except ValueError as error:
                problems += [f"{name}: {line}" for line in str(error).splitlines()]
    if problems:
        raise ValueError(listed(problems, f"the adapters do not fit the pipeline {folder}"))
    return found


def _opened(lora: str | Path | Mapping[str, float]) -> list[tuple[LoraFile, float]]:
    """Files of adapters, in order, and the scale of each."""
    scaled = []
    for name, scale in (lora if isinstance(lora, Mapping) else {lora: 1.0}).items():
        path = check_path("lora", name)
        if isinstance(scale, bool) or not isinstance(scale, int | float):
            raise TypeError(f"the scale of {path} must be a number, got {type(scale).__name__}")
        if not math.isfinite(scale):
            raise ValueError(f"the scale of {path} must be finite, got {scale}")
        scaled.append((path, float(scale)))
    return open_loras(scaled)


def _of_model(
    opened: Opened, loras: Sequence[tuple[LoraFile, float]], part: str | None = None
) -> dict[str, Merge]:
    """By path; `part` is what the model is in its pipeline."""
    family, held = family_named(opened.family.name), opened.parameters()
    try:
        table = family.table(opened.config, opened.about["layout"])
    except ValueError as error:
        raise ValueError(f"{opened.folder / CONFIG}: layout: {error}") from None
    shapes = dict(_shapes(table.rows, held))
    checkpoint = Checkpoint(shapes, (opened.folder / CONFIG,), None, (), {})
    found = Found(opened.config, opened.about["layout"], table)
    plan = with_loras(Plan(checkpoint, family, found, held, tuple(shapes)), loras, part)
    check_values(plan.loras)
    rows = {row.target: row for row in table.rows}
    return {path: partial(_merged, rows[path], blocks) for path, blocks in plan.changes.items()}


def _shapes(rows: tuple[Row, ...], held: Mapping[str, Parameter]) -> Iterator[tuple[str, Tensor]]:
    """Of the keys that parameters came from."""
    for group in sharing(rows):
        # Arrays of one stored byte.
        like = [np.broadcast_to(np.int8(0), held[row.target].shape) for row in group]
        for key, tensor in undone(group, like):
            yield key, Tensor(tensor.shape, held[group[0].target].dtype)


def _merged(
    row: Row, changes: Mapping[int, Change], array: np.ndarray, dtype: np.dtype
) -> np.ndarray:
    """A parameter with the changes of its blocks, each made in float32 and rounded once."""
    merged = np.empty(array.shape, dtype)
    for i, block in enumerate(array if row.stacked else [array]):
        changed = row.lay_out(changes[i](row.undo(block))) if i in changes else block
        put(merged[i] if row.stacked else merged, changed)
    return merged
