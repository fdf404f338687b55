"""What the held-out checker says of a picture."""

from typing import Any

import numpy as np

from flowsde.shapes import captions, checker


def judge(prompt: str, image: np.ndarray) -> dict[str, Any]:
    """What the held-out checker sees in a shapes picture [32, 32, 3], and whether that is right."""
    wanted = captions.counts(captions.parse(prompt))[None]
    found = checker.detect(image[None])
    counts = found.counts[0]
    names = {(c, k): f"{captions.COLOURS[c]} {captions.KINDS[k]}" for c, k in np.argwhere(counts)}
    return {
        "exact": bool(checker.exact(image[None], wanted)[0]),
        "rss": float(checker.rss(image[None], wanted)[0]),
        "counts": {name: int(counts[at]) for at, name in names.items()},
        "unclear": int(found.unclear[0]),
    }


def describe(heldout: dict[str, Any]) -> str:
    """What `judge` says, in words."""
    seen = [f"{n} {name}{'s' * (n > 1)}" for name, n in heldout["counts"].items()]
    seen += [f"{heldout['unclear']} unclear"] * (heldout["unclear"] > 0)
    verdict = "exactly what was asked" if heldout["exact"] else f"off by RSS {heldout['rss']:g}"
    return f"{', '.join(seen) or 'nothing'} ({verdict})"
