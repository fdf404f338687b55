"""The table of README and docs from the results of `tasks.py`."""

from typing import Any

from _tasks_compare import grouped


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


def recommended(results: dict[str, Any], equal: str, verifier: int | None = None) -> str:
    """Success of what is recommended against the best Best-of-N, and the ratio of odds.

    Args:
      results: what `tasks.py` wrote.
      equal: "nfe" or "seconds", of which Best-of-N has as many.
      verifier: of equal seconds, network evaluations that a reward costs.
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
    budgets = sorted({one["bon_nfe"] for one in found if one["bon_nfe"] in kept})
    lines = [
        f"| task | model | {' | '.join(f'{n} NFE' for n in budgets)} |",
        "|---|---|" + "---|" * len(budgets),
    ]
    for (task, model), own in grouped(found, "task", "model").items():
        by_budget = {one["bon_nfe"]: one for one in own}
        cells = " | ".join(_cell(by_budget.get(n)) for n in budgets)
        lines.append(f"| {task} | {model} | {cells} |")
    return "\n".join(lines)
