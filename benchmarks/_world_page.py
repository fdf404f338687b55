"""The tables of README and docs about the embedded world: its tasks, scorer and closed forms."""

import json
from typing import Any

from _cells import difference, with_bounds
from _files import RESULTS
from _tasks_compare import grouped

from flowsde.tuning.intervals import Interval


def base_success() -> str:
    """How often a plain sample succeeds, task by task."""
    found = json.loads((RESULTS / "base_success.json").read_text())
    rows = sorted(found["rows"], key=lambda row: row["success"])
    (captions,), (seeds,) = {row["captions"] for row in rows}, {row["seeds"] for row in rows}
    lines = ["| task | asked for | success | exact counts |", "|---|---|---|---|"]
    for row in rows:
        success = with_bounds(row, "success", ".4f")
        lines.append(f"| {row['task']} | {row['summary']} | {success} | {row['exact']:.2f} |")
    steps = f"{captions} captions × {seeds} seeds, {found['steps']} ODE steps; 95% intervals."
    return "\n".join([*lines, "", steps])


def distilled() -> str:
    """Exactness and rewards of the distilled flow, beside its teacher's."""
    found = json.loads((RESULTS / "distilled.json").read_text())
    lines = ["| model | steps | exact counts | difference | reward |", "|---|---|---|---|---|"]
    for row in found["rows"]:
        gap = "–"
        if row["difference"] is not None:
            ends = (row[f"difference{end}"] for end in ("", "_low", "_high"))
            gap = difference(Interval(*ends))
        exact = with_bounds(row, "exact", ".3f")
        lines.append(f"| {row['model']} | {row['steps']} | {exact} | {gap} | {row['reward']:.2f} |")
    said = f"{found['captions']} captions × {found['seeds']} seeds; 95% intervals."
    return "\n".join([*lines, "", said])


def diagnosis() -> str:
    """Rank correlation and worth of branching at each time of `diagnosis.json`."""
    found = json.loads((RESULTS / "diagnosis.json").read_text())

    def cell(row: dict[str, Any], name: str) -> str:
        if row[name] is None:
            return "–"
        return with_bounds(row, name)

    tasks = list(dict.fromkeys(row["task"] for row in found["rows"]))
    lines = [
        f"{found['n']} trajectories of each of {found['captions']} development captions.",
        "",
        "| model | steps | t | "
        + " | ".join(f"{t}: rank correlation | {t}: worth" for t in tasks)
        + " |",
        "|---" * (3 + 2 * len(tasks)) + "|",
    ]
    for (model, steps), rows in grouped(found["rows"], "model", "steps").items():
        own = [row["times"] for row in rows]
        # The last time is the picture's.
        for at in list(zip(*own, strict=True))[:-1]:
            cells = [cell(row, name) for row in at for name in ("correlation", "worth")]
            lines.append(f"| {model} | {steps} | {at[0]['time']:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def scorer() -> str:
    """Exact captions, ranking accuracies, places and speed of `scorer.json`, by scorer."""
    found = json.loads((RESULTS / "scorer.json").read_text())
    names = list(dict.fromkeys(row["scorer"] for row in found["ranking"]))
    lines = [f"| | {' | '.join(names)} |", "|---|" + "---|" * len(names)]

    def line(label: str, cells: list[str]) -> None:
        lines.append(f"| {label} | {' | '.join(cells)} |")

    def own(rows: list[dict[str, Any]], name: str, key: str, value: str) -> dict[str, Any] | None:
        match = [row for row in rows if row["scorer"] == name and row[key] == value]
        return match[0] if match else None

    for key, form, part in (("label", ".2f", "search"), ("pictures", ".3f", "ranking")):
        for value in dict.fromkeys(row[key] for row in found.get(part, [])):
            rows = [own(found[part], name, key, value) for name in names]
            cells = ["–" if row is None else with_bounds(row, "accuracy", form) for row in rows]
            budget = next(f", {row['nfe']} NFE" if "nfe" in row else "" for row in rows if row)
            line(f"{'ranked: ' if part == 'ranking' else 'exact: '}{value}{budget}", cells)
    for label, quantile in (("right", "0.05"), ("wrong", "0.95")):
        rows = [own(found["reward"], name, "pictures", label) for name in names]
        cells = ["–" if row is None else f"{row['quantiles'][quantile]:.2f}" for row in rows]
        line(f"reward of {label} samples, {float(quantile):.0%} quantile", cells)
    for key, label in (("median", "median"), ("worst", "95% quantile")):
        at = {row["scorer"]: row[key] for row in found["places"]}
        line(f"error of the mean place, pixels: {label}", [f"{at[name]:.2f}" for name in names])
    return "\n".join(
        [
            f"{found['captions']} captions of at least five objects; {found['samples']} samples "
            f"of each are ranked"
            + (f", {found['seeds']} searches are run." if "search" in found else "."),
            "",
            *lines,
        ]
    )


def methods_analytic() -> str:
    """Mean rewards of `methods_analytic.json` by path and method, the best of each row in bold."""
    found = json.loads((RESULTS / "methods_analytic.json").read_text())
    names = {"bon": "BoN", "sop": "SoP", "smc": "SMC", "code": "CoDe", "svdd": "SVDD", "rbf": "RBF"}
    rows = {(r["budget"], r["path"], r["method"]): r for r in found["rows"]}
    half = max((r["high"] - r["low"]) / 2 for r in rows.values())
    lines = [
        f"{found['settings']['seeds']} seeds; 95% intervals are at most ± {half:.3f}.",
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
