"""Write the tables of README and docs from the result files, or check that they are up to date.

python benchmarks/readme.py [--check]
"""

import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from _confirmed_page import table as confirmed
from _converted_page import conversion, full_size, ports, rewards
from _files import RESULTS, replace_file
from _gradients_page import tables as gradient_tables
from _guided_page import table as guided
from _hardware_page import hardware
from _paper_page import order
from _rollover_page import rollover
from _searches_page import table as searches_table
from _speed_page import (
    cold_start,
    devices,
    memory,
    packing,
    peers,
    quantised,
    search_overhead,
    tpu_plan,
    tpu_search,
)
from _tasks_claims import table as claims
from _tasks_page import best_settings, of_paper, of_tuned, recommended
from _tasks_plan import paper_settings
from _verifiers_page import table as verifiers_table
from _world_page import base_success, diagnosis, distilled, methods_analytic, scorer

ROOT = Path(__file__).parents[1]
PAGES = (
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "tutorials").glob("*.md")),
)


def _tasks() -> dict[str, Any]:
    return json.loads((RESULTS / "tasks.json").read_text())


def tasks_nfe() -> str:
    """What is recommended against the best Best-of-N, at equal NFE."""
    return recommended(_tasks(), "nfe")


def tasks_whole() -> str:
    """The same, of the tasks and budgets that all have been measured."""
    return recommended(_tasks(), "nfe", whole=True)


def tasks_seconds(verifier: int) -> str:
    """The same at equal seconds, a reward costing so many network evaluations."""
    return recommended(_tasks(), "seconds", verifier)


def tasks_methods() -> str:
    """Each method's best setting of the development captions."""
    return best_settings(_tasks())


def tasks_claims() -> str:
    """What papers claim of their methods, on both models."""
    return claims(_tasks())


def tasks_guided() -> str:
    """Searches that take the reward's gradient, against what is recommended."""
    return guided(_tasks())


def searches() -> str:
    """All searches: what they need, and their place on the tasks."""
    return searches_table(_tasks())


def tasks_paper() -> str:
    """The paper's settings, and a plain sample and Best-of-N as in the paper."""
    return of_paper(_tasks(), [setting.name for setting in paper_settings()])


def tasks_order() -> str:
    """The order of the paper's searches."""
    return order(_tasks())


def tasks_confirmed() -> str:
    """Further searches on the test captions."""
    return confirmed(_tasks())


def tuned() -> str:
    """What was tuned to a task, against what is recommended, of `tuned.json`."""
    return of_tuned(json.loads((RESULTS / "tuned.json").read_text())["rows"])


def verifiers() -> str:
    """Ways of asking a dear verifier, of `verifiers.json`."""
    return verifiers_table(json.loads((RESULTS / "verifiers.json").read_text()))


def gradients() -> str:
    """What gradients buy, of `gradients.json`."""
    return gradient_tables(json.loads((RESULTS / "gradients.json").read_text()))


TABLES: dict[str, Callable[[], str]] = {
    "hardware": hardware,
    "rollover": rollover,
    "tpu_plan": tpu_plan,
    "tpu_search": tpu_search,
    "memory": memory,
    "peers": peers,
    "cold_start": cold_start,
    "devices": devices,
    "packing": packing,
    "ports": ports,
    "rewards": rewards,
    "conversion": conversion,
    "full_size": full_size,
    "quantised": quantised,
    "methods_analytic": methods_analytic,
    "scorer": scorer,
    "gradients": gradients,
    "base_success": base_success,
    "distilled": distilled,
    "tasks_nfe": tasks_nfe,
    "tasks_whole": tasks_whole,
    "tasks_seconds_1": partial(tasks_seconds, 1),
    "tasks_seconds_5": partial(tasks_seconds, 5),
    "tasks_methods": tasks_methods,
    "searches": searches,
    "tasks_confirmed": tasks_confirmed,
    "tasks_paper": tasks_paper,
    "tasks_order": tasks_order,
    "tasks_claims": tasks_claims,
    "tasks_guided": tasks_guided,
    "tuned": tuned,
    "verifiers": verifiers,
    "diagnosis": diagnosis,
    "search_overhead": search_overhead,
}


def fill(text: str) -> tuple[str, set[str]]:
    """A page with every marked block written anew, and the names of these."""
    found = set(re.findall(r"<!-- begin (\w+) -->", text))
    for name in found:
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        before, _, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if name not in TABLES or not closed:
            raise SystemExit(f"{begin} … {end} is no table of {', '.join(TABLES)}")
        text = f"{before}{begin}\n{TABLES[name]()}\n{end}{after}"
    return text, found


def main() -> None:
    """Write or check."""
    check, filled = "--check" in sys.argv[1:], set()
    for path in PAGES:
        old = path.read_text()
        new, found = fill(old)
        filled |= found
        if check and new != old:
            raise SystemExit(f"{path.name} is out of date: run python benchmarks/readme.py")
        if new != old:
            replace_file(path, partial(Path.write_text, data=new))
    if missing := TABLES.keys() - filled:
        raise SystemExit(f"no page has the tables {', '.join(sorted(missing))}")


if __name__ == "__main__":
    main()
