"""The paper's tables on the embedded model: methods, interpolants, budgets, and its ablations.

    python benchmarks/paper_tables.py [--quick] [--json FILE] [--out DIR] [--tables NAME ...]
                                      [--partial]

Captions have at least five objects, and every fifth names a (count, colour, shape) that training
never showed; all rows search the same captions with the same seeds. What has been measured stays in
the folder, so that a run that was stopped goes on from there; an interpolant, kernel or setting is
one row of one table:

- methods: every method x {linear, VP} x {50, 100, 300, 500} NFE, recommended settings;
- paper: the paper's settings, 10 steps, Euler-Maruyama, its grid and the posterior mean, with 100
  NFE, and RBF with 500;
- kernel, grid, steps, diffusion, budget, finish: RBF at 100 NFE with one thing changed at a time;
- fifty: RBF at 50 NFE with few steps;
- twenty: 20 steps where the recommended settings have fewer;
- gradient: guided by the gradient of the scorer, at 100 NFE.

JSON keys: prompts, seeds, and ``rows``, each as in `flowsde.cli.compare.summarise`: table,
label, method, interpolant, kernel, nfe, given, accuracy, accuracy_low, accuracy_high, rss,
diversity, seconds, prompts, seeds and more. Seconds are of a machine that may have had other work.
Beside the JSON go two pictures: NAME_accuracy.png, and NAME_pictures.png of the first captions.
"""

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import tyro
from _files import replace_file
from matplotlib.figure import Figure

from flowsde.cli import compare, presets, settings
from flowsde.cli.compare.command import PARTS, prepare, report
from flowsde.cli.compare.figures import figure

BUDGETS = (50, 100, 300, 500)
METHODS = ("ode", "bon", "sop", "smc", "code", "svdd", "rbf")
PATHS = ("linear", "vp")
Rows = list[compare.Row]


def one(table: str, method: str = "rbf", nfe: int | None = 100, **given: Any) -> Rows:
    """A single row."""
    given = given if nfe is None else {"nfe": nfe, **given}
    settings = presets.resolve("recommended", method, given)
    presets.build(method, settings)
    return [compare.Row(method, settings, table)]


def methods() -> Rows:
    """Recommended settings."""
    return compare.plan(METHODS, nfe=BUDGETS, interpolants=PATHS).rows


def paper() -> Rows:
    """The paper's settings; CoDe, SVDD, SMC and RBF move by Linear-SDE and VP-SDE."""
    # Their SoP takes more than 100 for its first round.
    small = [method for method in METHODS if method != "sop"]
    plan = partial(compare.plan, preset="paper", table="paper")
    rows = plan(small, nfe=(100,), interpolants=PATHS).rows
    return rows + plan(("rbf",), nfe=(500,), interpolants=("vp",)).rows


def kernel() -> Rows:
    """What moves the particles, on 20 uniform steps."""
    rows: Rows = []
    for path in PATHS:
        rows += one("kernel", interpolant=path, kernel="euler_maruyama")
        for name in ("ddim", "cps"):
            for variance in (0.0, 0.25):
                rows += one("kernel", interpolant=path, kernel=name, data_variance=variance)
        rows += one("kernel", interpolant=path, kernel="ddim", eta=0.5)
    return rows


def grid() -> Rows:
    """Where the times are."""
    return [
        row
        for name in ("euler_maruyama", "ddim")
        for spacing in settings.GRIDS
        for row in one("grid", kernel=name, grid=spacing)
    ]


def steps() -> Rows:
    """How many there are."""
    return [row for n in (5, 10, 20, 40) for row in one("steps", steps=n, finish_steps=10)]


def diffusion() -> Rows:
    """How much noise Euler-Maruyama adds: g = scale t^2, the paper's 3."""
    return [
        row
        for path in PATHS
        for scale in (1.0, 3.0, 5.0, 9.0)
        for row in one("diffusion", interpolant=path, kernel="euler_maruyama",
                       diffusion_scale=scale)
    ]  # fmt: skip


def budget() -> Rows:
    """How RBF spends it: chains, seeds of a chain, what is left at the end."""
    rows = [row for n in (1, 2, 4) for row in one("budget", chains=n)]
    rows += [row for n in (4, 16) for row in one("budget", chains=1, seeds=n)]
    return rows + one("budget", last="improve")


def finish() -> Rows:
    """What becomes of the best particle."""
    return [row for how in ("complete", "heun", "mean") for row in one("finish", finish=how)]


def fifty() -> Rows:
    """Few steps leave more of a small budget for the search."""
    return [
        row
        for chains in (1, 2)
        for n, last in ((5, 4), (8, 4), (10, 5), (14, 6))
        for row in one("fifty", nfe=50, chains=chains, steps=n, finish_steps=last)
    ]


def twenty() -> Rows:
    """What the recommended settings leave: 20 steps whatever the budget."""
    rows = [row for n in BUDGETS for row in one("twenty", "bon", nfe=n, steps=20)]
    for method in ("smc", "code", "svdd", "rbf"):
        for path in PATHS:
            rows += one("twenty", method, nfe=50, interpolant=path, steps=20, finish_steps=10)
    return rows


def gradient() -> Rows:
    """DPS, one trajectory and four, and with a search."""
    moving: dict[str, Any] = {
        "interpolant": "vp",
        "kernel": "ddim",
        "data_variance": 0.25,
        "steps": 20,
    }
    rows: Rows = []
    for beta in (0.0, 3.0, 1.0):
        more: dict[str, Any] = {"gradient_temperature": beta}
        rows += one("gradient", "bon", **moving, **more)
        for method in ("svdd", "rbf"):
            rows += one("gradient", method, **more)
    return rows


TABLES: dict[str, Callable[[], Rows]] = {
    "methods": methods,
    "fifty": fifty,
    "twenty": twenty,
    "kernel": kernel,
    "grid": grid,
    "steps": steps,
    "diffusion": diffusion,
    "budget": budget,
    "finish": finish,
    "gradient": gradient,
    "paper": paper,
}


def before_and_after(rows: Rows, study: compare.Study, folder: Path, count: int = 8) -> Figure:
    """The first captions: one ODE trajectory, and RBF with 100 evaluations, of the same seed."""
    shown = {}
    for row in rows:
        s = row.settings
        if row.table == "methods" and row.method == "ode":
            shown["ODE, 40 NFE"] = row
        if row.table == "methods" and (row.method, s.interpolant, s.nfe) == ("rbf", "vp", 100):
            shown["RBF, 100 NFE"] = row
    measured = compare.measure(list(shown.values()), study, folder, progress=False)
    count = min(count, len(study.prompts))
    drawn = Figure(figsize=(1.45 * count, 1.75 * len(shown)), layout="constrained")
    every = drawn.subplots(len(shown), count, squeeze=False)
    for j, (name, row) in enumerate(shown.items()):
        line = every[j]
        for i, axes in enumerate(line):
            axes.imshow(measured[row].images[i, 0])
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set_color("#4d9a4d" if measured[row].exact[i, 0] else "#d6604d")
                spine.set_linewidth(3)
            if j == 0:
                axes.set_title(study.prompts[i].replace(" and ", "\nand "), fontsize=6)
        line[0].set_ylabel(name, fontsize=8)
    return drawn


@dataclasses.dataclass(frozen=True)
class Args:
    """The paper's tables on the embedded model."""

    quick: bool = False
    """Two captions and one seed, and only BoN and RBF under VP at the smallest budget."""
    json: Path | None = None
    """Write the rows to this file, after each table."""
    out: Path = Path("paper-tables")
    """Folder of what was measured, plots and page; gone on with if it is there."""
    tables: tuple[str, ...] = ()
    """Which tables; all by default."""
    partial: bool = False
    """Measure nothing: only rows that have been measured already."""
    captions: int = 100
    """How many."""
    seeds: int = 2
    """Searches a caption."""


def main(args: Args) -> None:
    """Table after table; everything so far is written after each."""
    unknown = [name for name in args.tables if name not in TABLES]
    if unknown:
        raise SystemExit(f"unknown table {unknown[0]!r}, expected one of {', '.join(TABLES)}")
    texts = compare.captions(2 if args.quick else args.captions, objects=5)
    study = compare.Study(texts, 1 if args.quick else args.seeds)
    prepare(args.out, overwrite=False)
    groups = [TABLES[name]() for name in args.tables or TABLES]
    if args.quick:
        few = [row for row in groups[0] if row.settings.nfe == BUDGETS[0]]
        groups = [
            [
                r
                for r in few
                if r.method == "bon" or (r.method, r.settings.interpolant) == ("rbf", "vp")
            ]
        ]
    if args.partial:
        every = [row for group in groups for row in group]
        groups = [compare.measured_already(every, study, args.out / PARTS)]
    rows: Rows = []
    for more in groups:
        rows += more
        table = report(args.out, "The paper's tables on the embedded model", rows, study)
        if args.json:
            values = {"prompts": len(texts), "seeds": study.seeds, "rows": table}
            text = json.dumps(values, indent=1, allow_nan=False) + "\n"
            replace_file(args.json, partial(Path.write_text, data=text))
    if args.json and not args.quick:
        pictures = {
            "accuracy": figure([row for row in table if row["table"] == "methods"], "accuracy"),
            "pictures": before_and_after(rows, study, args.out / PARTS),
        }
        for name, drawn in pictures.items():
            if drawn is not None:
                path = args.json.with_name(f"{args.json.stem}_{name}.png")
                replace_file(path, partial(drawn.savefig, format="png", dpi=110))


if __name__ == "__main__":
    main(tyro.cli(Args))
