"""A budget in seconds of `flowsde batch`: what is left of it, and what is said of those without."""

from collections.abc import Sequence
from typing import Any

from flowsde._schema import number

NONE = "no reward by the deadline of --seconds; expected more, or another --out"


def check(seconds: float | None, total_nfe: int | None) -> None:
    """ValueError if there are two budgets of all prompts."""
    if seconds is not None and total_nfe is not None:
        raise ValueError(
            f"--total-nfe and --seconds are both given, {total_nfe} and {seconds:g}, expected one"
        )


def left(seconds: float | None, runs: Sequence[dict[str, Any]]) -> float | None:
    """What earlier entries of batch.json leave; None without a budget."""
    if seconds is None:
        return None
    spent = (run["timing"]["spent"] for run in runs if run.get("timing"))
    return seconds - sum(number(one, "batch.json: spent") for one in spent)
