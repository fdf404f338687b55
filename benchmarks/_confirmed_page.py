"""Searches beside the recommended one on the test captions, from the results of `tasks.py`."""

from typing import Any

from _cells import less, with_bounds
from _tasks_compare import grouped
from _tasks_plan import paper_settings
from _tasks_rows import Row
from _tasks_settings import GUIDED

_BUDGETS = (100, 300)
_NOT_SHOWN = ("ode", "bon", *GUIDED)


def table(results: dict[str, Any]) -> str:
    """Success with each budget, and the differences from Best-of-N as tuned and from what is
    recommended, paired over captions."""
    chosen, of_paper = results["chosen"], {setting.name for setting in paper_settings()}
    bon = {
        (one["task"], one["model"], one["nfe"]): one["bon_setting"]
        for one in results["comparisons"]["test"]
        if one["equal"] == "nfe"
    }
    rows = [row for row in results["rows"] if row["split"] == "test" and row["nfe"] in _BUDGETS]
    known = {(*_at(row), row["setting"]): row for row in rows}
    heads = [f"{nfe} NFE | less Best-of-N | less recommended" for nfe in _BUDGETS]
    lines = [f"| model | task | setting | {' | '.join(heads)} |", "|---" * 9 + "|"]
    for (model, task, setting), own in grouped(rows, "model", "task", "setting").items():
        default = chosen[model]["default"]["setting"]
        if own[0]["method"] in _NOT_SHOWN or setting in (default, *of_paper):
            continue
        by_nfe = {row["nfe"]: row for row in own}
        cells = [model, task, f"`{setting}`"]
        for nfe in _BUDGETS:
            row = by_nfe.get(nfe)
            if row is None:
                cells += ["–"] * 3
                continue
            others = (bon.get(_at(row)), default)
            cells.append(with_bounds(row, "success"))
            cells += [less(row, known.get((*_at(row), name))) for name in others]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _at(row: Row) -> tuple[str, str, int]:
    return row["task"], row["model"], row["nfe"]
