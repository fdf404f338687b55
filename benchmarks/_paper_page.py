"""The order of the paper's searches, of the rows of its settings in the results of `tasks.py`."""

from typing import Any, NamedTuple

from _cells import less
from _tasks_plan import paper_settings

_NAMES = {"smc": "SMC", "code": "CoDe", "svdd": "SVDD", "rbf": "RBF", "bon": "Best-of-N"}
_PATHS = {"linear": "linear", "vp": "VP"}
_FEW, _MANY = 100, 500
"""NFE of the paper's table, and of the Best-of-N that its RBF is said to be level with."""


class Side(NamedTuple):
    """A search of the paper: Best-of-N has one path."""

    method: str
    path: str
    nfe: int = _FEW


def _pairs() -> list[tuple[str, Side, Side]]:
    """What is compared, in words, and the two searches."""
    made = []
    for nfe in (_FEW, _MANY):
        bon = Side("bon", "linear", nfe)
        methods = ("smc", "svdd", "code", "rbf") if nfe == _FEW else ("smc", "svdd", "rbf")
        said = f"over Best-of-N with {nfe}"
        made += [
            (f"{_NAMES[m]}, {_PATHS[p]}, {said}", Side(m, p), bon) for m in methods for p in _PATHS
        ]
    for one, other in (("svdd", "code"), ("smc", "svdd"), ("rbf", "svdd")):
        said = f"{_NAMES[one]} over {_NAMES[other]}"
        made += [(f"{said}, {_PATHS[p]}", Side(one, p), Side(other, p)) for p in _PATHS]
    for m in ("smc", "svdd", "code", "rbf"):
        made.append((f"VP over linear, {_NAMES[m]}", Side(m, "vp"), Side(m, "linear")))
    return made


def order(results: dict[str, Any]) -> str:
    """Differences in success on the test captions, paired over them, of each task and model."""
    names = {setting.name for setting in paper_settings()}
    rows = [r for r in results["rows"] if r["split"] == "test" and r["setting"] in names]
    of = {(r["task"], r["model"], Side(r["method"], r["interpolant"], r["nfe"])): r for r in rows}
    columns = list(dict.fromkeys((r["task"], r["model"]) for r in rows if r["method"] != "bon"))
    lines = [
        f"| | {' | '.join(f'{task}, {model}' for task, model in columns)} |",
        "|---|" + "---|" * len(columns),
    ]
    for said, one, other in _pairs():
        cells = [
            less(of[*at, one], of.get((*at, other))) if (*at, one) in of else "–" for at in columns
        ]
        if set(cells) != {"–"}:
            lines.append(f"| {said} | {' | '.join(cells)} |")
    return "\n".join(lines)
