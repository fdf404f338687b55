"""What models take on devices, for docs/hardware.md: of `tpu_plan.json`, compiled and never run.

Nothing was compiled for four chips. Theirs is computed of the program for eight: as many candidates
a chip, so that a round takes as long and half as many prompts are searched; of weights that eight
chips share, counted in `memory.json`, each holds a quarter in place of an eighth.
"""

import json
from collections.abc import Iterable
from typing import Any

from _files import RESULTS

_GPUS = (24, 80)
_FREE = 0.9
"""Share of a GPU's memory that a process may take of it."""
_SAME_WEIGHTS = {"FLUX.1-schnell": "FLUX.1-dev"}
"""Models that `memory.json` has under another name, to a thousandth."""

Row = dict[str, Any]


def hardware() -> str:
    """A line for each model and size: memory of a device with all weights, and seconds."""
    found = json.loads((RESULTS / "tpu_plan.json").read_text())
    rows = [row for row in found["programs"] if row.get("nfe_per_second")]
    subjects = list(dict.fromkeys((row["model"], row["resolution"]) for row in rows))
    gpus = [f"on {gpu} GB" for gpu in _GPUS]
    heads = ["model", "pixels", "one device: GB", "with", *gpus, "v5e-8: GB a chip, layout"]
    heads += ["s an image", "≈ v5e-4", "s an image", "v6e-8: GB a chip, layout", "s an image"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for model, pixels in subjects:
        own = [row for row in rows if (row["model"], row["resolution"]) == (model, pixels)]
        searches = [
            row for row in found["rbf"] if (row["model"], row["resolution"]) == (model, pixels)
        ]
        whole = _whole(found["programs"], model, pixels)
        cells = [model, pixels, *_one_device(whole)]
        for chip in ("v5e", "v6e"):
            best, seconds = _of_chip(chip, own, searches)
            cells += [_memory(best), f"{seconds:.1f}" if seconds else "–"]
            if chip == "v5e":
                cells += [_memory_of_half(best), f"{2 * seconds:.1f}" if seconds else "–"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _whole(programs: Iterable[Row], model: str, pixels: Any) -> Row | None:
    """The program with all weights on each device, of the most particles a device."""
    own = [
        row
        for row in programs
        if (row["model"], row["resolution"], row["layout"]) == (model, pixels, "data")
    ]
    return max(own, key=lambda row: row["batch"] / row["chips"], default=None)


def _one_device(row: Row | None) -> list[str]:
    """Memory with all weights, the particles that are evaluated at once, and where it fits."""
    if row is None:
        return ["–"] * (2 + len(_GPUS))
    taken = row["peak_bytes"] / 1e9
    fits = ["yes" if taken < _FREE * gpu else "no" for gpu in _GPUS]
    each = row["batch"] // row["chips"]
    return [f"{taken:.1f}", f"{each} at once", *fits]


def _of_chip(
    chip: str, rows: Iterable[Row], searches: Iterable[Row]
) -> tuple[Row | None, float | None]:
    """The fastest program that fits, and seconds of an image of a search with it."""
    fitting = [row for row in rows if row["chip"] == chip and row["fits"]]
    if not fitting:
        return None, None
    best = max(fitting, key=lambda row: row["nfe_per_second"])
    seconds = [
        row["seconds_per_image"]
        for row in searches
        if (row["chip"], row["layout"], row["batch"]) == (chip, best["layout"], best["batch"])
    ]
    return best, min(seconds, default=None)


def _memory(row: Row | None) -> str:
    """Of each chip, and the layout."""
    return f"{row['peak_bytes'] / 1e9:.1f}, {row['layout']}" if row else "–"


def _memory_of_half(row: Row | None) -> str:
    """The same of each of half as many chips; of split tokens it does not follow."""
    if row is None or row["layout"] not in ("data", "fully sharded"):
        return "–"
    more = 0.0
    if row["layout"] == "fully sharded":
        models = json.loads((RESULTS / "memory.json").read_text())["rows"]
        name = _SAME_WEIGHTS.get(row["model"], row["model"])
        weights = next(model["transformer"] for model in models if model["model"] == name)
        more = weights / row["chips"]
    return _memory({**row, "peak_bytes": row["peak_bytes"] + more})
