"""What `flowsde batch` says of all prompts: batch.json, sheet.png, and the end of its output."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowsde import _schema, _text
from flowsde._files import read_json
from flowsde.cli import batch_part, batch_shared, heldout
from flowsde.cli.batch_folder import Folder
from flowsde.cli.claims import Claims
from flowsde.cli.prompts import of_file
from flowsde.cli.sheet import cells_of, try_sheet
from flowsde.runner.result import COUNTERS
from flowsde.shapes.verdict import is_right

_COUNT = _schema.whole(0, 2**63 - 1)
_TOTALS = _schema.fields(
    {"success": _schema.maybe(_schema.number)},
    prompts=_schema.items(_schema.text), method=_schema.text, seed=_COUNT, finished=_COUNT,
    exact=_schema.maybe(_schema.number), reached=_schema.maybe(_COUNT), nfe=_COUNT,
    occupancy=_schema.maybe(_schema.number),
    runs=_schema.items(_schema.fields(seconds=_schema.number)),
)  # fmt: skip
"""What `show` reads of a batch.json."""


class Failures:
    """Prompts that failed, of what they are of, and why, by their place in the list."""

    def __init__(self, abouts: Sequence[dict[str, Any]]):
        self._abouts, self.reasons = abouts, dict[int, str]()

    def joined(self, folder: Folder, claims: Claims) -> list[dict[str, Any]]:
        """Take in what other processes have done; their entries of batch.json. In `alone`."""
        others, reasons = batch_shared.joined(folder, claims)
        self.reasons |= reasons
        return others

    def show(self) -> None:
        """Print them on stderr, if there are any."""
        if self.reasons:
            many = len(self.reasons)
            title = f"flowsde batch: {many} prompt{'s' * (many > 1)} failed"
            print(_text.listed(self.lines(), title), file=sys.stderr)

    def lines(self) -> list[str]:
        """One a prompt."""
        return [
            f"prompt {i + 1} of {len(self._abouts)}, "
            + (f"id {_text.shown(self._abouts[i]['id'])}, " if "id" in self._abouts[i] else "")
            + f"'{_text.shown(self._abouts[i]['prompt'])}': {why}"
            for i, why in sorted(self.reasons.items())
        ]

    def values(self) -> list[dict[str, Any]]:
        """For batch.json."""
        return [
            {"number": i + 1, **_of(self._abouts[i], "prompt", "id"), "reason": why}
            for i, why in sorted(self.reasons.items())
        ]


def _of(about: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: about[name] for name in names if name in about}


def contents(
    folder: Folder,
    runs: list[dict[str, Any]],
    failed: Failures,
    total_nfe: int | None,
    target: float | None,
) -> dict[str, Any]:
    """Contents of batch.json."""
    every = [one for one in folder.values if one is not None]
    read = _schema.maybe(_schema.number)
    rewards = [r for r in (read(one["reward"], "reward") for one in every) if r is not None]
    verdicts = [one["heldout"] for one in every if "heldout" in one]
    shares = {"exact": [one["exact"] for one in verdicts]}
    if any("task" in one for one in verdicts):
        shares["success"] = [is_right(one) for one in verdicts]
    computed, charged = (sum(run[name] for run in runs) for name in ("evaluations", "nfe"))
    first = folder.abouts[0]
    return {
        **{name: first[name] for name in ("version", "method", "seed", "preset", "settings")},
        "prompts": [one["prompt"] for one in folder.abouts],
        "total_nfe": total_nfe,
        "part": folder.part,
        **({"ids": folder.ids} if folder.ids else {}),
        "finished": len(every),
        "reached": None if target is None else sum(bool(r >= np.float32(target)) for r in rewards),
        **{name: float(np.mean(of)) if of else None for name, of in shares.items()},
        "reward": sum(rewards) / len(rewards) if rewards else None,
        **heldout.means(every),
        **{name: sum(one[name] for one in every) for name in COUNTERS},
        **_part_calls(every),
        **_weighted_samples(folder.values),
        "occupancy": charged / computed if computed else None,
        "failed": failed.values(),
        "runs": runs,
    }


def _part_calls(every: list[dict[str, Any]]) -> dict[str, Any]:
    """Of all results, where they have them."""
    found = [one["part_calls"] for one in every if "part_calls" in one]
    return {"part_calls": {n: sum(one[n] for one in found) for n in found[0]}} if found else {}


def _weighted_samples(values: Sequence[dict[str, Any] | None]) -> dict[str, Any]:
    """log Z and effective sample size of every prompt, in their order; null of an unfinished."""
    found = [one and one.get("weighted_sample") for one in values]
    if not any(found):
        return {}
    each = [one and {name: one[name] for name in ("log_z", "ess")} for one in found]
    return {"weighted_samples": each}


def show(values: dict[str, Any], out: Path, rewards: heldout.Heldout) -> None:
    """Print the totals."""
    judged = "" if values["exact"] is None else f", {values['exact']:.0%} exact matches"
    if "success" in values:
        judged += f", {values['success']:.0%} what the task asks for"
    print(f"prompts {values['finished']}{judged}")
    if values["reached"] is not None:
        print(f"reached target: {values['reached']}")
    for line in rewards.said(values):
        print(line)
    spent = f"{values['nfe']} NFE in {sum(run['seconds'] for run in values['runs']):.1f} s"
    share = values["occupancy"]
    full = "" if share is None else f", {share:.0%} of rows charged"
    print(f"spent   {spent}{full}\nfolder  {_text.shown(out, 4096)}", flush=True)


def looked_at(command: Any, why: str) -> bool:
    """Show the totals of a folder that is complete although a judge does not answer.

    Without it its version is not known, so that settings cannot be compared; it is said.

    Args:
      command: `flowsde.cli.batch.Batch`.
      why: the judge does not answer.

    Returns:
      Whether the folder is complete, of the same prompts, method and seed.
    """
    path = command.out / "batch.json"
    try:
        values = _TOTALS(read_json(path), str(path))
        every = [prompt for _, prompt in of_file(command.prompts_file, str.strip)]
        asked = batch_part.of(command.part, every)
    except (FileNotFoundError, ValueError):
        return False
    same = (values["prompts"], values["method"], values["seed"])
    if same != (asked, command.method, command.seed) or values["finished"] != len(asked):
        return False
    print(
        f"flowsde batch: {_text.shown(command.out, 4096)} is already complete; its other settings "
        f"were not compared, for {_text.shown(why, 500)}",
        flush=True,
    )
    show(values, command.out, heldout.Heldout())
    return True


def sheet(path: Path, folder: Folder) -> None:
    """Draw the pictures that there are."""
    finished = [(i, one) for i, one in enumerate(folder.values) if one is not None]
    cells = [cell for i, one in finished for cell in cells_of(i, one, folder.folders[i])]
    if cells:
        try_sheet("flowsde batch", path, cells)
