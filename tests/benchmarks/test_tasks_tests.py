"""The tables of test captions: the paper's searches, and others beside the recommended one."""

from typing import Any

import _confirmed_page
import _paper_page
from _tasks_plan import paper_settings

FEW, HALF, MANY = [0] * 9 + [1], [1] * 10, [2] * 9 + [1]
PAPER = {(s.method, s.get("interpolant")): s.name for s in paper_settings()}


def row(method: str, setting: str, nfe: int, wins: list[int], **own: Any) -> dict[str, Any]:
    success = sum(wins) / (2 * len(wins))
    same = {"task": "sides", "model": "one", "split": "test", "seeds": 2, "interpolant": "linear"}
    ends = {"success": success, "success_low": 0.0, "success_high": 1.0}
    named = {"method": method, "setting": setting, "nfe": nfe, "wins": wins, "prompts": len(wins)}
    return same | named | ends | own


def lines(found: str) -> dict[str, list[str]]:
    made = {}
    for line in found.splitlines()[2:]:
        first, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        made[first] = cells
    return made


def of_paper(method: str, path: str, nfe: int, wins: list[int], **own: Any) -> dict[str, Any]:
    return row(method, PAPER[method, path], nfe, wins, interpolant=path, **own)


def test_the_order_of_the_papers_searches() -> None:
    rows = [
        of_paper("bon", "linear", 100, FEW),
        of_paper("bon", "linear", 500, MANY),
        of_paper("smc", "linear", 100, HALF),
        of_paper("smc", "vp", 100, MANY),
        of_paper("svdd", "vp", 100, HALF),
        # Neither other captions nor another setting counts.
        of_paper("svdd", "linear", 100, HALF, split="dev"),
        row("svdd", "another", 100, MANY),
        of_paper("smc", "vp", 100, HALF, task="row"),
    ]
    found = lines(_paper_page.order({"rows": rows}))
    assert found["SMC, linear, over Best-of-N with 100"][0].startswith("**+0.45 (")
    assert found["SMC, VP, over Best-of-N with 500"][0].startswith("+0.00 (")
    assert found["SMC, linear, over Best-of-N with 500"][0].startswith("**-0.45 (")
    assert found["SMC over SVDD, VP"][0].startswith("**+0.45 (")
    assert found["VP over linear, SMC"][0].startswith("**+0.45 (")
    assert all(cells[1] == "–" for cells in found.values())
    # What nothing was measured of has no line.
    assert not any("RBF" in said or "SVDD, linear" in said for said in found)


def test_searches_beside_the_recommended_one() -> None:
    rows = [
        row("bon", "tuned", 100, FEW),
        row("bon", "other", 100, MANY),
        row("smc", "default", 100, HALF),
        row("smc", "default", 300, HALF),
        row("svdd", "own", 100, MANY),
        row("svdd", "own", 300, MANY),
        row("tds", "guided", 100, MANY),
        of_paper("svdd", "vp", 100, MANY),
        row("svdd", "own", 100, FEW, split="dev"),
    ]
    compared = {"task": "sides", "model": "one", "nfe": 100, "equal": "nfe", "bon_setting": "tuned"}
    results = {
        "rows": rows,
        "chosen": {"one": {"default": {"setting": "default"}}},
        "comparisons": {"test": [compared]},
    }
    found = lines(_confirmed_page.table(results))
    ((task, setting, few, less_bon, less_smc, many, *rest),) = found.values()
    assert (task, setting, few, many) == ("sides", "`own`", "0.95 (0.00 – 1.00)", few)
    assert less_bon.startswith("**+0.90 (") and less_smc.startswith("**+0.45 (")
    assert rest[0] == "–" and rest[1].startswith("**+0.45 (")
