"""What the held-out judge of a task says of a picture."""

from typing import Any

import numpy as np

from flowsde.shapes import captions
from flowsde.shapes.tasks import TASKS, Challenge


def judge(prompt: str, image: np.ndarray, task: Challenge = TASKS["counts"]) -> dict[str, Any]:
    """What is seen in a shapes picture [32, 32, 3], and whether that is right.

    Keys: exact, rss, counts (by name) and unclear; for tasks other than counts also task, success
    and numbers (by name; None where a picture has none).
    """
    found = task.judge(image[None], [prompt])
    counts = found.counts[0]
    names = {(c, k): f"{captions.COLOURS[c]} {captions.KINDS[k]}" for c, k in np.argwhere(counts)}
    said = {
        "exact": bool(found.exact[0]),
        "rss": float(found.rss[0]),
        "counts": {name: int(counts[at]) for at, name in names.items()},
        "unclear": int(found.unclear[0]),
    }
    if task.name == "counts":
        return said
    numbers = {name: float(of[0]) for name, of in found.numbers.items()}
    return said | {
        "task": task.name,
        "success": bool(found.success[0]),
        "numbers": {name: x if np.isfinite(x) else None for name, x in numbers.items()},
    }


def is_right(heldout: dict[str, Any]) -> bool:
    """Whether a picture is what its task asks for."""
    return heldout.get("success", heldout["exact"])


def describe(heldout: dict[str, Any]) -> str:
    """What `judge` says, in words."""
    seen = [f"{n} {name}{'s' * (n > 1)}" for name, n in heldout["counts"].items()]
    seen += [f"{heldout['unclear']} unclear"] * (heldout["unclear"] > 0)
    verdict = "exactly what was asked" if heldout["exact"] else f"off by RSS {heldout['rss']:g}"
    if heldout["exact"] and not is_right(heldout):
        verdict = f"the right objects, but task {heldout['task']} has failed"
    known = heldout.get("numbers", {}).items()
    measured = [f"{name} {x:.2f}" for name, x in known if x is not None]
    return "; ".join([f"{', '.join(seen) or 'nothing'} ({verdict})", *measured])
