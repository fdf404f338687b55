"""The table of all searches: every one is in it, and places follow from successes."""

from typing import Any

import _searches_page as page
import pytest

import flowsde as fs


def test_every_search_is_described() -> None:
    assert list(page.SEARCHES) == list(fs.search.METHODS)
    for name, about in page.SEARCHES.items():
        assert all(about) and "|" not in "".join(about), name
        # Its rewards of blurred pictures cost calls: said of none that asks for finished ones.
        assert about.rewards.startswith(("finished", "posterior means")), name


def row(method: str, success: float, setting: str = "own", **other: Any) -> dict[str, Any]:
    same = {"model": "shapes", "task": "sides", "split": "dev", "nfe": 300, "verifier_calls": 7.4}
    won = round(10 * success)
    same |= {"prompts": 10, "seeds": 1, "wins": [1] * won + [0] * (10 - won)}
    return same | {"method": method, "success": success, "setting": setting} | other


def places(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    lines = page.table({"rows": rows}).splitlines()[2:]
    cells = [[cell.strip(" `") for cell in line.strip("|").split(" | ")] for line in lines]
    return {first: rest[5:] for first, *rest in cells}


def test_places() -> None:
    rows = [row("bon", 0.2), row("bon", 0.4, "other"), row("smc", 0.8), row("svdd", 0.8)]
    # Neither another split, budget or task, nor a setting that is not the best, counts.
    rows += [row("rbf", 0.9, split="test"), row("dfs", 0.9, nfe=100), row("pcn", 0.9, task="row")]
    rows += [row("sop", 0.1, nfe=n) for n in (100, 300)] + [row("sop", 0.9, "lucky")]
    found = places(rows)
    assert found["smc"] == found["svdd"] == ["0.80, 1 of 4", "7"]
    assert found["bon"] == ["0.40, 3 of 4", "7"] and found["sop"] == ["0.10, 4 of 4", "7"]
    for name in ("rbf", "dfs", "pcn"):
        assert found[name] == ["–", "–"]


def test_models_are_columns() -> None:
    found = places([row("bon", 0.5), row("smc", 0.75, model="turbo", verifier_calls=3.0)])
    assert found["bon"] == ["0.50, 1 of 1", "–", "7"]
    assert found["smc"] == ["–", "0.75, 1 of 1", "3"]
    with pytest.raises(KeyError):
        page.table({})
