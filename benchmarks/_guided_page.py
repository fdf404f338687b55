"""The table of searches that take the reward's gradient, from the results of `tasks.py`."""

from typing import Any

from _cells import less, with_bounds
from _tasks_compare import SLACK
from _tasks_settings import GUIDED

_NAMES = {"tds": "TDS", "das": "DAS", "noise_tilt": "NoiseTilt"}


def table(results: dict[str, Any]) -> str:
    """Successes on the test captions against what is recommended, at equal NFE and equal seconds.

    Seconds are of the network, of the task's own reward and of both differentiated. At equal
    seconds the recommended search has the most NFE that was measured and takes no longer.
    """
    lines = [
        "| search | task | model | NFE | success | recommended, equal NFE | difference | seconds "
        "| recommended, equal seconds | difference |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    of_test = [row for row in results["rows"] if row["split"] == "test"]
    for row in of_test:
        if row["method"] not in GUIDED:
            continue
        own = _recommended(results["chosen"], of_test, row)
        same = next((other for other in own if other["nfe"] == row["nfe"]), None)
        within = [other for other in own if other["seconds"] <= SLACK * row["seconds"]]
        longest = max(within, key=lambda other: other["seconds"], default=None)
        ratio = "–" if same is None else f"× {row['seconds'] / same['seconds']:.1f}"
        cells = [_NAMES[row["method"]], row["task"], row["model"], row["nfe"]]
        cells += [with_bounds(row, "success"), *_against(row, same, False), ratio]
        cells += _against(row, longest, True)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _recommended(
    chosen: dict[str, Any], rows: list[dict[str, Any]], row: dict[str, Any]
) -> list[dict[str, Any]]:
    """Rows of what is recommended on the task and model of another row."""
    made = chosen[row["model"]]["default"]
    return [
        other
        for other in rows
        if made is not None
        and other["setting"] == made["setting"]
        and (other["task"], other["model"]) == (row["task"], row["model"])
    ]


def _against(row: dict[str, Any], other: dict[str, Any] | None, says_nfe: bool) -> tuple[str, str]:
    """The other's success, and the difference, in bold where its interval is on one side of 0."""
    if other is None:
        return "–", "–"
    nfe = f", {other['nfe']} NFE" if says_nfe else ""
    return f"{other['success']:.2f}{nfe}", less(row, other)
