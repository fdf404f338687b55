"""What does the gradient of a reward buy: DPS' guidance, damped, NoiseTilt, or Best-of-N without?

    python benchmarks/gradients.py [--quick] [--json FILE] [--problems NAME ...]

Each way spends the same number of model evaluations, and each has as many settings, of which the
best on one set of draws is reported on another:

- bon: Best-of-N of the ODE; the setting is its number of steps;
- dps: `kernels.reward_gradient` without damping; its temperature;
- damped: the same with damping, by the curvature of the reward, which is known of the law, and of
  layout a multiple of the temperature; its temperature;
- noise_tilt: `kernels.noise_tilt`; its share of the noise.

A gradient takes a backward pass, about two evaluations more that NFE does not count: on layout
"bon, 3x" has three times as many.

law: samples of a mixture of four Gaussians in 16 dimensions, whose exact flow it is, tilted by
exp(r / beta) of r = -|x - a|^2: one trajectory of 40 steps each, Best-of-N of N short ones. Clouds
are compared with the law in closed form: `distance` is the sliced Wasserstein-2 distance to as many
exact draws, chosen by; `reward` the mean less that of the law, above 0 where it is overdone; and
`mean_error` the norm of the error of the mean.

layout: objects at the places of a sketch (`flowsde.shapes.tasks.layout`), a smooth reward: the best
of 2 trajectories of 12 steps, VP and DDIM(1). `reward` is the given one, chosen by; `success` the
share of pictures that the held-out judge finds right; `gain` is the reward's paired difference to
bon. Captions of both sets are of the development split.

clip: the same with the cosine of captions and pictures by a small CLIP of random weights: how well
a reward of that family, which no picture of the flow's was made for, is climbed. Rewards are in
standard deviations over scenes.

JSON keys: ``problems``, by name: quick, tune and report (clouds or captions of each set), and of
law particles (of a cloud), floor (distance of exact draws from others) and mean_reward (of the
law); ``rows``: problem, way, setting, set ("tune" or "report"), nfe, then the names above with _low
and _high, 95 % bootstraps over clouds or captions; seconds of the row, compiling included.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import tyro
from _files import save_json
from _gradients_problems import VARIANCE, Clip, Law, Layout, Pictures, Problem, Row, Way

import flowsde as fs
from flowsde.cli.compare.summary import interval

Name = Literal["law", "layout", "clip"]
_PICTURES: dict[str, Callable[[int], Pictures]] = {"layout": Layout, "clip": Clip}
VP = fs.interpolants.vp()
STEPS = 40
LAYOUT_STEPS, LAYOUT_NFE = 12, 24


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """Options of the benchmark.

    Attributes:
      quick: smaller numbers, of law alone, done in 45 seconds on two cores.
      json: where the results are written to, after each row.
      problems: to measure, all by default; rows of others stay as the JSON file has them.
    """

    quick: bool = False
    json: Path | None = None
    problems: tuple[Name, ...] = get_args(Name)


def ways(kernel: fs.kernels.Kernel, steps: int, nfe: int, problem: "Problem") -> Iterator[Way]:
    """All settings of the four ways."""

    def best(kernel: fs.kernels.Kernel, n: int) -> fs.search.BestOfN:
        return fs.search.bon(nfe=nfe, kernel=kernel, grid=fs.grids.uniform(n))

    for n in problem.short:
        ode = fs.kernels.ode_euler(fs.interpolants.linear())
        yield Way("bon", f"{n} steps", best(ode, n))
    for beta in problem.temperatures:
        guided = fs.kernels.reward_gradient(kernel, 1.0)
        yield Way("dps", f"temperature {beta:g}", best(guided, steps), 1.0 / beta)
    for beta in problem.temperatures:
        # Of the scaled reward.
        damped = fs.kernels.reward_gradient(kernel, 1.0, problem.curvature(beta) / beta)
        yield Way("damped", f"temperature {beta:g}", best(damped, steps), 1.0 / beta)
    for rho in problem.shares:
        yield Way("noise_tilt", f"rho {rho:g}", best(fs.kernels.noise_tilt(kernel, rho), steps))


def summary(values: dict[str, np.ndarray]) -> Row:
    """Means and bounds."""
    row: Row = {}
    for name, own in values.items():
        keys = (name, f"{name}_low", f"{name}_high")
        row |= dict(zip(keys, interval(own, name == "success"), strict=True))
    return row


def rows_of(problem: Problem, every: Sequence[Way], tune: int, report: int) -> Iterator[Row]:
    """Rows of all settings, then of the best of each way on other draws."""

    def row(way: Way, part: str, values: dict[str, np.ndarray], began: float) -> Row:
        about = {"problem": problem.name, "way": way.name, "setting": way.setting, "set": part}
        seconds = round(time.perf_counter() - began, 1)
        return about | {"nfe": way.search.nfe} | summary(values) | {"seconds": seconds}

    best: dict[str, tuple[float, Way]] = {}
    for way in every:
        began = time.perf_counter()
        values = problem.measure(way, 0, tune)
        score = problem.sign * float(np.mean(values[problem.score]))
        if way.name not in best or score > best[way.name][0]:
            best[way.name] = score, way
        yield row(way, "tune", values, began)
    chosen = [way for _, way in best.values()]
    if problem.paired:
        chosen.append(tripled(best["bon"][1]))
    plain: np.ndarray | None = None
    for way in chosen:
        began = time.perf_counter()
        values = problem.measure(way, tune, report)
        if plain is None:
            plain = values["reward"]
        elif problem.paired:
            values["gain"] = values["reward"] - plain
        yield row(way, "report", values, began)


def tripled(bon: Way) -> Way:
    """With three times the evaluations."""
    own = bon.search
    more = fs.search.bon(nfe=3 * own.nfe, kernel=own.kernel, grid=own.grid)
    return bon._replace(name="bon, 3x", search=more)


class Part(NamedTuple):
    """A problem, its ways, and how many clouds or captions to tune and to report on."""

    problem: Problem
    ways: list[Way]
    tune: int
    report: int


def law(quick: bool) -> Part:
    """With quick two of each four settings, and small clouds."""
    problem = Law(200 if quick else 500)
    every = list(ways(fs.kernels.ddim(VP, 1.0, VARIANCE), STEPS, STEPS, problem))
    if quick:
        return Part(problem, [way for i, way in enumerate(every) if i % 4 in (1, 2)], 2, 2)
    return Part(problem, every, 8, 16)


def pictures(make: Callable[[int], Pictures]) -> Part:
    """Of 48 captions."""
    problem, kernel = make(16 + 32), fs.kernels.ddim(VP, 1.0, 0.25)
    return Part(problem, list(ways(kernel, LAYOUT_STEPS, LAYOUT_NFE, problem)), 16, 32)


def main(args: Args) -> None:
    """Measure, print and write."""
    found: dict[str, Any] = {}
    if args.json is not None and args.json.exists():
        found = json.loads(args.json.read_text())
    asked = ("law",) if args.quick else args.problems
    rows = [row for row in found.get("rows", []) if row["problem"] not in asked]
    about = found.get("problems", {})
    for name in asked:
        problem, every, tune, report = (
            law(args.quick) if name == "law" else pictures(_PICTURES[name])
        )
        about[name] = {"quick": args.quick, "tune": tune, "report": report} | problem.about(report)
        for row in rows_of(problem, every, tune, report):
            rows.append(row)
            save_json(args.json, {"problems": about, "rows": rows})
            score = problem.score
            bounds = f"{row[score]:8.3f} [{row[f'{score}_low']:.3f}, {row[f'{score}_high']:.3f}]"
            print(f"{row['problem']:7}{row['set']:7}{row['way']:11}{row['setting']:18}{bounds}"
                  f"{row['reward']:9.3f}{row['seconds']:7.1f} s", flush=True)  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
