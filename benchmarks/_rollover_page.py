"""What rollover does, for docs/tutorials/theory.md: of `tasks.json` and `diagnosis.json`."""

import json
from typing import Any

from _files import RESULTS

_TASK = "sides"


def rollover() -> str:
    """Evaluations of RBF at each step, and how often a reward rises in one by itself."""
    spent = json.loads((RESULTS / "tasks.json").read_text())["budget"]
    rows = json.loads((RESULTS / "diagnosis.json").read_text())["rows"]
    steps: dict[str, Any] = {}
    for row in rows:
        if row["task"] == _TASK:
            # The first of a model, of several numbers of steps.
            steps.setdefault(row["model"], row["times"])
    lines = [
        "| model | step from t | evaluations, improve | calibrated | the reward rises by itself |",
        "|---" * 5 + "|",
    ]
    for model, times in steps.items():
        for i, step in enumerate(times):
            # RBF's budget was measured on the first model alone.
            own = [f"{counts[i]:.1f}" if model == "shapes" else "–" for counts in spent.values()]
            cells = [model, f"{step['time']:.2g}", *own, _rises(step)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _rises(step: dict[str, Any]) -> str:
    if step.get("rises") is None:
        return "–"
    return f"{step['rises']:.2f} ({step['rises_low']:.2f} – {step['rises_high']:.2f})"
