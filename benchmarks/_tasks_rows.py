"""The rows of `tasks.py` and their file: written after every row, gone on with if it is there."""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

from _files import replace_file
from _tasks_settings import Setting

from flowsde.shapes.tasks import TASKS

Row = dict[str, Any]
_KEPT = ("chosen", "budget")
"""Results that are not derived anew from the rows."""


class Case(NamedTuple):
    """What a row measures."""

    task: str
    model: str
    setting: Setting
    nfe: int
    split: str
    prompts: int
    seeds: int
    skip: int = 0
    """Captions of the split before the first."""

    @property
    def captions(self) -> list[str]:
        """Of the prompts."""
        return TASKS[self.task].captions(self.split, self.skip + self.prompts)[self.skip :]

    @property
    def key(self) -> tuple[Any, ...]:
        """Identity of the row; more prompts or seeds take the place of fewer."""
        return self.task, self.model, self.setting.name, self.nfe, self.split

    @property
    def evaluations(self) -> int:
        """What it costs; on two cores one with a gradient takes as long as nine without."""
        return self.prompts * self.seeds * self.nfe * (9 if self.setting.guided else 1)


def key_of(row: Row) -> tuple[Any, ...]:
    """`Case.key` of a row."""
    return tuple(row[name] for name in ("task", "model", "setting", "nfe", "split"))


@dataclasses.dataclass
class Table:
    """All that has been measured.

    Attributes:
      path: of the file; None keeps nothing.
      weights: SHA-256 of the files of all networks, by model and "scorer".
      rows: by `key_of`.
      costs: of `_tasks_costs`.
      results: further entries of the file.
    """

    path: Path | None
    weights: dict[str, str]
    rows: dict[tuple[Any, ...], Row] = dataclasses.field(default_factory=dict)
    costs: dict[str, Any] = dataclasses.field(default_factory=dict)
    results: dict[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, path: Path | None, weights: dict[str, str]) -> "Table":
        """What the file has.

        Raises:
          SystemExit: some of it was measured with other weights.
        """
        table = cls(path, weights)
        if path is None or not path.exists():
            return table
        found = json.loads(path.read_text())
        for name, digest in found.get("weights", {}).items():
            if weights.get(name, digest) != digest:
                raise SystemExit(
                    f"{path} was measured with other weights of {name}: name another file for "
                    "--json, or move it"
                )
        table.weights = found.get("weights", {}) | weights
        table.rows = {key_of(row): row for row in found["rows"]}
        table.costs = found.get("costs", {})
        table.results = {name: found[name] for name in _KEPT if name in found}
        return table

    def has(self, case: Case) -> bool:
        """Whether a case has been measured, with as many prompts and seeds at least."""
        row = self.rows.get(case.key)
        return row is not None and row["prompts"] >= case.prompts and row["seeds"] >= case.seeds

    def add(self, row: Row) -> None:
        """A new row; all is saved."""
        self.rows[key_of(row)] = row
        self.save()

    def select(self, **wanted: Any) -> list[Row]:
        """Rows with these values."""
        return [
            row
            for row in self.rows.values()
            if all(row[name] == value for name, value in wanted.items())
        ]

    def save(self) -> None:
        """Write the file, a line for each row."""
        if self.path is None:
            return
        head = {"weights": self.weights, "costs": self.costs, **self.results}
        lines = ",\n".join("  " + json.dumps(row, allow_nan=False) for row in self.rows.values())
        text = (
            json.dumps(head, indent=1, allow_nan=False)[:-2] + f',\n "rows": [\n{lines}\n ]\n}}\n'
        )
        replace_file(self.path, lambda temporary: temporary.write_text(text))
