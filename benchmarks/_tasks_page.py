"""The tables of README and docs from the results of `tasks.py`."""

from typing import Any

from _cells import with_bounds
from _tasks_compare import grouped, tuned
from _tasks_settings import MODELS

_MANY = 5
"""Methods that make a column worth while."""


def _number(value: float | None) -> str:
    return "∞" if value is None else f"{value:.1f}"


def _cell(one: dict[str, Any] | None) -> str:
    if one is None:
        return "–"
    low, high = _number(one["odds_ratio_low"]), _number(one["odds_ratio_high"])
    return (
        f"{one['success']:.2f} against {one['bon_success']:.2f}: "
        f"× {_number(one['odds_ratio'])} ({low} – {high})"
    )


def recommended(
    results: dict[str, Any], equal: str, verifier: int | None = None, whole: bool = False
) -> str:
    """Success of what is recommended against the best Best-of-N, and the ratio of odds.

    Args:
      results: what `tasks.py` wrote.
      equal: "nfe" or "seconds", of which Best-of-N has as many.
      verifier: of equal seconds, network evaluations that a reward costs.
      whole: only tasks with several budgets, and the budgets that all of those have.
    """
    chosen = results["chosen"]
    found = [
        one
        for one in results["comparisons"]["test"]
        if (one["equal"], one["verifier"]) == (equal, verifier)
        and (chosen[one["model"]]["default"] or {}).get("setting") == one["setting"]
        and (equal == "seconds" or one["nfe"] == one["bon_nfe"])
    ]
    # Budgets that equal seconds pay for are no columns of their own.
    kept = (50, 100, 300, 500, 1000)
    rows = {
        at: {one["bon_nfe"]: one for one in own if one["bon_nfe"] in kept}
        for at, own in grouped(found, "task", "model").items()
    }
    budgets = sorted({nfe for row in rows.values() for nfe in row})
    if whole:
        rows = {at: row for at, row in rows.items() if len(row) > 1}
        budgets = [nfe for nfe in budgets if all(nfe in row for row in rows.values())]
    lines = [
        f"| task | model | {' | '.join(f'{n} NFE' for n in budgets)} |",
        "|---|---|" + "---|" * len(budgets),
    ]
    # All tasks of one model, then of the other.
    for (task, model), row in sorted(rows.items(), key=lambda one: MODELS.index(one[0][1])):
        cells = " | ".join(_cell(row.get(n)) for n in budgets)
        lines.append(f"| {task} | {model} | {cells} |")
    return "\n".join(lines)


def best_settings(results: dict[str, Any]) -> str:
    """Successes on the development captions of each method's best setting.

    That is the one with the largest mean over what most have been measured on. Best-of-N is tuned
    to each task and budget; columns are those that `_MANY` methods have.
    """
    rows = [r for r in results["rows"] if r["split"] == "dev" and r["method"] != "ode"]
    lines = []
    for (model,), of_model in grouped(rows, "model").items():
        tasks = list(dict.fromkeys(row["task"] for row in of_model))
        budgets = sorted({row["nfe"] for row in of_model if row["method"] == "bon"})
        there = {(method, *_at(row)) for (method,), own in grouped(of_model, "method").items()
                 for row in own}  # fmt: skip
        methods = {method for method, *_ in there}
        columns = [
            column
            for column in ((task, nfe) for task in tasks for nfe in budgets)
            if sum((method, *column) in there for method in methods) >= min(_MANY, len(methods))
        ]
        shown = {}
        for (method,), own in grouped(of_model, "method").items():
            name = "bon, tuned" if method == "bon" else leader(own)
            found = tuned(own) if method == "bon" else [r for r in own if r["setting"] == name]
            successes = {_at(row): row["success"] for row in found}
            shown[name] = [successes.get(column) for column in columns]
        best = [
            max(v for v in column if v is not None) for column in zip(*shown.values(), strict=True)
        ]
        lines.append(f"| {model} | {' | '.join(f'{task} {nfe}' for task, nfe in columns)} |")
        lines.append("|---|" + "---|" * len(columns))
        for name, values in shown.items():
            lines.append(f"| `{name}` | {' | '.join(map(_marked, values, best))} |")
        lines.append("")
    return "\n".join(lines[:-1])


def of_paper(results: dict[str, Any], names: list[str]) -> str:
    """Success of the paper's settings on the test captions, and that of Best-of-N beside them.

    Args:
      results: what `tasks.py` wrote.
      names: of the settings, in their order; the first is Best-of-N, which has a line a budget.
    """
    rows = [r for r in results["rows"] if r["split"] == "test" and r["setting"] in names]
    searches = [r for r in rows if r["setting"] != names[0]]
    columns = list(dict.fromkeys((r["task"], r["model"]) for r in searches))
    budgets = sorted({r["nfe"] for r in searches})
    of_best = sorted({r["nfe"] for r in rows if r["setting"] == names[0]})
    lines = [
        f"| | NFE | {' | '.join(f'{task}, {model}' for task, model in columns)} |",
        "|---|---|" + "---|" * len(columns),
    ]
    for name, nfe in [(n, k) for n in names for k in (of_best if n == names[0] else budgets)]:
        own = {(r["task"], r["model"]): r for r in rows if (r["setting"], r["nfe"]) == (name, nfe)}
        if own.keys() & set(columns):
            cells = " | ".join(
                with_bounds(own[at], "success") if at in own else "–" for at in columns
            )
            lines.append(f"| `{name}` | {nfe} | {cells} |")
    return "\n".join(lines)


def of_tuned(rows: list[dict[str, Any]]) -> str:
    """Success of a tuned setting and of the recommended one, of the rows of `tuned.py`."""
    lines = [
        "| task | model | NFE | tuned | success | of the recommended | difference | tuning |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [with_bounds(row, name) for name in ("success", "default_success", "difference")]
        lines.append(
            f"| {row['task']} | {row['model']} | {row['nfe']} | `{row['setting']}` | "
            f"{' | '.join(cells)} | {row['cost']['nfe']:,} NFE |"
        )
    return "\n".join(lines)


def _marked(value: float | None, best: float) -> str:
    """Two digits, the best in bold."""
    if value is None:
        return "–"
    return f"**{value:.2f}**" if value == best else f"{value:.2f}"


def _at(row: dict[str, Any]) -> tuple[str, int]:
    return row["task"], row["nfe"]


def leader(rows: list[dict[str, Any]]) -> str:
    """A method's best setting by its mean, of those that have been measured most."""
    settings = {name: found for (name,), found in grouped(rows, "setting").items()}
    most = max(map(len, settings.values()))
    full = [name for name, found in settings.items() if len(found) == most]
    return max(full, key=lambda name: sum(row["success"] for row in settings[name]))
