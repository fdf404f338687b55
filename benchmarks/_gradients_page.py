"""The tables of `gradients.json`."""

from typing import Any

from _cells import with_bounds

_NAMES = {
    "bon": "Best-of-N, no gradient",
    "bon, 3x": "Best-of-N, three times the evaluations",
    "dps": "`reward_gradient`, as in DPS",
    "damped": "`reward_gradient`, damped",
    "noise_tilt": "`noise_tilt`",
}


def _table(rows: list[dict[str, Any]], columns: dict[str, tuple[str, str]]) -> list[str]:
    """Of rows that are reported; columns are names, with heading and format of each."""
    headings = ["way", "best setting", "NFE", *(heading for heading, _ in columns.values())]
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    for row in rows:
        cells = [
            with_bounds(row, name, form) if name in row else "–"
            for name, (_, form) in columns.items()
        ]
        own = [_NAMES[row["way"]], row["setting"], str(row["nfe"])]
        lines.append(f"| {' | '.join([*own, *cells])} |")
    return lines


def tables(found: dict[str, Any]) -> str:
    """A problem after the other."""
    said, lines = {"law": _law, "layout": _layout, "clip": _clip}, []
    for name, about in found["problems"].items():
        title, columns = said[name](about)
        rows = [r for r in found["rows"] if (r["problem"], r["set"]) == (name, "report")]
        lines += [title, "", *_table(rows, columns), ""]
    return "\n".join(lines[:-1])


def _law(about: dict[str, Any]) -> tuple[str, dict[str, tuple[str, str]]]:
    return (
        f"A tilted mixture: {about['report']} clouds of {about['particles']}; exact draws are "
        f"{about['floor']:.3f} from each other.",
        {
            "distance": ("distance from the law", ".3f"),
            "reward": ("reward above the law's", "+.2f"),
            "mean_error": ("error of the mean", ".3f"),
        },
    )


def _layout(about: dict[str, Any]) -> tuple[str, dict[str, tuple[str, str]]]:
    return (
        f"`layout`: {about['report']} captions, settings chosen on {about['tune']} others.",
        {
            "reward": ("reward", ".2f"),
            "gain": ("reward above Best-of-N's, paired", "+.2f"),
            "success": ("success", ".2f"),
        },
    )


def _clip(about: dict[str, Any]) -> tuple[str, dict[str, tuple[str, str]]]:
    return (
        f"A small CLIP of random weights: {about['report']} captions, settings chosen on "
        f"{about['tune']} others.",
        {
            "reward": ("reward", ".2f"),
            "gain": ("reward above Best-of-N's, paired", "+.2f"),
        },
    )
