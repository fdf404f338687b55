"""Write the README's tables from the result files, or check that they are up to date.

python benchmarks/readme.py [--check]
"""

import json
import re
import sys
from pathlib import Path

from _files import replace_file

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


def methods_analytic() -> str:
    """Mean rewards of `methods_analytic.json` by path and method, the best of each row in bold."""
    found = json.loads((RESULTS / "methods_analytic.json").read_text())
    names = {"bon": "BoN", "sop": "SoP", "smc": "SMC", "code": "CoDe", "svdd": "SVDD", "rbf": "RBF"}
    rows = {(r["budget"], r["path"], r["method"]): r for r in found["rows"]}
    half = max((r["high"] - r["low"]) / 2 for r in rows.values())
    lines = [
        f"{found['settings']['seeds']} seeds; 95 % intervals are at most ± {half:.3f}.",
        "",
        f"| NFE | path | {' | '.join(names.values())} |",
        "|---|---|" + "---|" * len(names),
    ]
    for budget in found["settings"]["nfe"]:
        for path in dict.fromkeys(path for _, path, _ in rows):
            means = {m: rows[budget, path, m]["mean"] for m in names if (budget, path, m) in rows}
            best = max(means.values())
            cells = [
                "–"
                if m not in means
                else ("**{:.3f}**" if means[m] == best else "{:.3f}").format(means[m])
                for m in names
            ]
            lines.append(f"| {budget} | {path} | {' | '.join(cells)} |")
    return "\n".join(lines)


def search_overhead() -> str:
    """Ratios of `search_overhead.json`."""
    found = json.loads((RESULTS / "search_overhead.json").read_text())
    methods = ("rbf", "svdd", "smc")
    lines = [
        f"{found['cores']} CPU cores, {found['model_ms']:.1f} ms a candidate, chunks of "
        f"{found['settings']['chunk']}, {found['settings']['nfe']} NFE; load "
        f"{found['load'][0]:.1f} at the start.",
        "",
        f"| | {' | '.join(m.upper() for m in methods)} |",
        "|---|" + "---|" * len(methods),
    ]
    for label, ratios in (
        ("`run`, seconds", found["run"]),
        ("`iterate`, seconds", found["iterate"]),
        ("`run`, CPU seconds", found["cpu"]["run"]),
        ("`iterate`, CPU seconds", found["cpu"]["iterate"]),
        ("`run`, bytes", found["memory"]),
    ):
        lines.append(f"| {label} | {' | '.join(f'{ratios[m]:.2f}' for m in methods)} |")
    return "\n".join(lines)


TABLES = {
    "shapes_search": shapes_search,
    "methods_analytic": methods_analytic,
    "search_overhead": search_overhead,
}


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
    replace_file(path, lambda temporary: temporary.write_text(new))


if __name__ == "__main__":
    main()
