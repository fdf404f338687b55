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

JSON keys: ``problems``, by name: quick, tune and report (clouds or captions of each set), and of
law particles (of a cloud), floor (distance of exact draws from others) and mean_reward (of the
law); ``rows``: problem, way, setting, set ("tune" or "report"), nfe, then the names above with _low
and _high, 95 % bootstraps over clouds or captions; seconds of the row, compiling included.
"""

import abc
import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from _files import save_json

import flowsde as fs
from flowsde import shapes
from flowsde.cli.compare.summary import interval
from flowsde.conds import stacked
from flowsde.shapes.tasks import TASKS

Row = dict[str, Any]
VP = fs.interpolants.vp()
DIMENSION, VARIANCE, BETA, STEPS = 16, 0.09, 0.25, 40
LAYOUT_STEPS, LAYOUT_NFE = 12, 24


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """Options of the benchmark.

    Attributes:
      quick: smaller numbers, without layout, done in 45 seconds on two cores.
      json: where the results are written to, after each row.
      problems: to measure, all by default; rows of others stay as the JSON file has them.
    """

    quick: bool = False
    json: Path | None = None
    problems: tuple[Literal["law", "layout"], ...] = ("law", "layout")


class Way(NamedTuple):
    """How to spend the evaluations: a search, and the reward's scale that it is given."""

    name: str
    setting: str
    search: fs.search.BestOfN
    scale: float = 1.0


def scaled(reward: Any, scale: jax.Array, images: jax.Array, cond: Any) -> jax.Array:
    """A reward in other units: guidance by it has another temperature, and is not compiled anew."""
    return scale * reward(images, cond)


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


class Problem(abc.ABC):
    """What all ways are measured on; `score` is what settings are chosen by."""

    name: str
    score: str
    sign: float
    short: tuple[int, ...]
    temperatures: tuple[float, ...]
    shares: tuple[float, ...]

    @abc.abstractmethod
    def curvature(self, temperature: float) -> float:
        """By which damping is."""

    @abc.abstractmethod
    def measure(self, way: Way, first: int, n: int) -> dict[str, np.ndarray]:
        """Values of n clouds or captions from the first on."""

    def about(self, n: int) -> Row:
        """What else is known, of n clouds or captions."""
        return {}


def quadratic(at: jax.Array, x: jax.Array, cond: Any) -> jax.Array:
    """-|x - a|^2 of points [n, d]."""
    return -jnp.sum(jnp.square(x - at), axis=-1)


class Law(Problem):
    """The tilted mixture, with clouds of so many particles."""

    name, score, sign = "law", "distance", -1.0
    short = (5, 8, 20, 40)
    temperatures = (0.5 * BETA, 0.7 * BETA, BETA, 1.4 * BETA)
    shares = (0.015, 0.03, 0.06, 0.12)

    def __init__(self, particles: int) -> None:
        rng = np.random.default_rng(0)
        self.particles = particles
        means = rng.normal(size=(4, DIMENSION)) / DIMENSION**0.5
        self.at = np.asarray(means[-1] + rng.normal(size=DIMENSION) / DIMENSION**0.5, np.float32)
        self.data = fs.analytic.mixture([0.4, 0.3, 0.2, 0.1], means, VARIANCE)
        slope, curve = 2.0 * self.at, -2.0 * np.eye(DIMENSION)
        self.tilted, _ = self.data.tilt(slope, curve, BETA)
        self.mean = np.asarray(self.tilted.mean(), np.float64)
        spread = np.trace(np.asarray(self.tilted.covariance(), np.float64))
        self.reward = -float(spread + np.sum(np.square(self.mean - self.at)))
        turns = rng.normal(size=(DIMENSION, 32))
        self.directions = turns / np.linalg.norm(turns, axis=0)

    def curvature(self, temperature: float) -> float:
        """That of the reward."""
        return 1.0

    def exact(self, cloud: int) -> np.ndarray:
        """Draws of the law [n, d]."""
        return np.asarray(self.tilted.sample(jax.random.key(10_000 + cloud), self.particles))

    def distance(self, x: np.ndarray, cloud: int) -> float:
        """Sliced Wasserstein-2 distance of a cloud [n, d] to exact draws."""
        own, law = (np.sort(a @ self.directions, axis=0) for a in (x, self.exact(cloud)))
        return float(np.sqrt(np.mean(np.square(own - law))))

    def about(self, n: int) -> Row:
        """Exact draws' distance from others."""
        floor = np.mean([self.distance(self.exact(-1 - i), i) for i in range(n)])
        return {"particles": self.particles, "floor": float(floor), "mean_reward": self.reward}

    def measure(self, way: Way, first: int, n: int) -> dict[str, np.ndarray]:
        """Values of n clouds."""
        reward = jax.tree_util.Partial(quadratic, jnp.asarray(self.at))
        found = fs.run(
            jax.random.key(0), self.data.flow(), way.search,
            jax.tree_util.Partial(scaled, reward, jnp.float32(way.scale)),
            prompt_ids=first * self.particles + np.arange(n * self.particles),
        )  # fmt: skip
        x = np.asarray(found.image, np.float64).reshape(n, self.particles, DIMENSION)
        rewards = -np.square(x - self.at).sum(-1).mean(1)
        return {
            "distance": np.asarray([self.distance(own, first + i) for i, own in enumerate(x)]),
            "reward": rewards - self.reward,
            "mean_error": np.linalg.norm(x.mean(1) - self.mean, axis=-1),
        }


class Layout(Problem):
    """Pictures by a sketch, so many captions at a time."""

    name, score, sign = "layout", "reward", 1.0
    batch = 16
    short = (4, 6, 12)
    temperatures = (1.0, 0.5, 0.25)
    shares = (0.05, 0.15, 0.4)

    def __init__(self, captions: int) -> None:
        self.task = TASKS["layout"]
        self.texts = self.task.captions("dev", captions)
        self.flow = self.task.flow(shapes.load_flow())
        self.reward_fn = self.task.load_reward()

    def curvature(self, temperature: float) -> float:
        """Halves the pull where x0 has half of the data's variance."""
        return 4.0 * temperature

    def measure(self, way: Way, first: int, n: int) -> dict[str, np.ndarray]:
        """Values of n captions, a multiple of the batch."""
        rewards, success = [], []
        reward = jax.tree_util.Partial(scaled, self.reward_fn, jnp.float32(way.scale))
        for start in range(first, first + n, self.batch):
            ids = np.arange(start, start + self.batch)
            texts = [self.texts[i] for i in ids]
            cond = stacked("cond", [self.task.encode(text) for text in texts])
            found = fs.run(
                jax.random.key(0), self.flow, way.search, reward, cond=cond, prompt_ids=ids,
            )  # fmt: skip
            rewards.append(np.asarray(found.reward, np.float64) / way.scale)
            success.append(self.task.judge(np.asarray(found.image), texts).success)
        return {"reward": np.concatenate(rewards), "success": np.concatenate(success)}


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
    if problem.name == "layout":
        chosen.append(tripled(best["bon"][1]))
    plain: np.ndarray | None = None
    for way in chosen:
        began = time.perf_counter()
        values = problem.measure(way, tune, report)
        if plain is None:
            plain = values["reward"]
        elif problem.name == "layout":
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


def layout() -> Part:
    """Of 48 captions."""
    problem, kernel = Layout(16 + 32), fs.kernels.ddim(VP, 1.0, 0.25)
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
        problem, every, tune, report = layout() if name == "layout" else law(args.quick)
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
