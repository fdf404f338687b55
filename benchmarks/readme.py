"""Write the README's tables from the result files, or check that they are up to date.

python benchmarks/readme.py [--check]
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def shapes_search() -> str:
    """Table of `shapes_search.json`."""
    found = json.loads((RESULTS / "shapes_search.json").read_text())
    lines = [
        f"{found['captions']} captions × {found['seeds']} seeds.",
        "",
        "| setting | NFE | exact captions | 95 % interval | squared count error | clean objects |",
        "|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        lines.append(
            f"| {row['setting']} | {row['nfe']:.0f} | {row['accuracy']:.2f} | "
            f"{row['accuracy_low']:.2f} – {row['accuracy_high']:.2f} | {row['rss']:.2f} | "
            f"{row['clean']:.2f} |"
        )
    return "\n".join(lines)


TABLES = {"shapes_search": shapes_search}


def fill(text: str) -> str:
    """The README with every marked block written anew."""
    for name, table in TABLES.items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        found = pattern.search(text)
        if found is None:
            raise SystemExit(f"README.md has no block {begin} … {end}")
        block = f"{begin}\n{table()}\n{end}"
        start, stop = found.span()
        text = text[:start] + block + text[stop:]
    return text


def main() -> None:
    """Write or check."""
    path = ROOT / "README.md"
    old = path.read_text()
    new = fill(old)
    if "--check" in sys.argv[1:]:
        if new != old:
            raise SystemExit("README.md is out of date: run python benchmarks/readme.py")
        return
    temporary = path.with_suffix(".tmp")
    temporary.write_text(new)
    temporary.replace(path)


if __name__ == "__main__":
    main()
