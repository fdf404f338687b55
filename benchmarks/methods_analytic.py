"""Which method finds the most reward, on which path, for how many evaluations?

The flow is that of a mixture of 16 Gaussians in 8 dimensions, exact under every interpolant: no
model error blurs the comparison. The reward has five maxima, each two standard deviations off the
centre of a component, and the highest beside the rarest component (2 % of the data):

    r(x) = max_j h_j / (1 + |x - c_j|^2).

Every method searches with the same grid, uniform(10) in its own interpolant, the same finishing, 4
Euler steps of the ODE, and the same 200 seeds, which are prompts of one run. Best-of-N, which has
no finishing, takes the finishing's times as further steps of its kernel.

- ODE: Euler steps under the linear interpolant; only Best-of-N and SoP take a deterministic kernel.
- Linear-SDE, VP-SDE: Euler-Maruyama with g = 3 t^2 under the linear, the VP interpolant.
- VP-DDIM: DDIM(1) under VP, with the variance within a component as data variance.

    python benchmarks/methods_analytic.py [--quick] [--json FILE] [--png FILE]

Rows are saved as they come; those that FILE already has, of the same settings, are not run again.
Intervals are 95 %, by bootstrap over seeds.

Keys of the JSON: version, settings {dimension, components, variance, weights, heights, grid, steps,
finish_steps, seeds, nfe, temperature}, reference {data (mean reward of exact draws), best_of_1000
(mean over draws of the best of so many), highest (h)}, rows, each {path, method, budget, nfe and
evaluations (means), mean, low, high, less_rbf {path (that of the RBF run), mean, low, high} (paired
difference to RBF at the same budget on the same path, for the ODE on VP-SDE), distance (of the
answer from its component's centre, root mean square in standard deviations, about 1 for data),
rewards (of the seeds), seconds}.
"""

import dataclasses
import json
import math
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from _files import replace_file

import flowsde as fs
from flowsde.search.complete import END

DIMENSION, COMPONENTS, VARIANCE = 8, 16, 0.09
HEIGHTS = [1.0, 0.8, 0.8, 0.6, 0.6]
STEPS, FINISH_STEPS = 10, 4
TEMPERATURE = 0.1
METHODS = ("bon", "sop", "smc", "code", "svdd", "rbf")
LABELS = {"bon": "BoN", "sop": "SoP", "smc": "SMC", "code": "CoDe", "svdd": "SVDD", "rbf": "RBF"}
PATHS = ("ODE", "Linear-SDE", "VP-SDE", "VP-DDIM")


@dataclasses.dataclass(frozen=True)
class Args:
    """Reward against evaluations for every method and path.

    Attributes:
      quick: fewer seeds, budgets and methods, done in 45 seconds on two cores.
      json: where the results are, and are written to after each row.
      png: where to draw them.
    """

    quick: bool = False
    json: pathlib.Path | None = None
    png: pathlib.Path | None = None


def make_data() -> fs.analytic.GaussianMixture:
    """The mixture: component k has weight proportional to 1 / (k + 2)."""
    means = np.random.default_rng(0).normal(size=(COMPONENTS, DIMENSION))
    weights = 1.0 / (np.arange(COMPONENTS) + 2.0)
    return fs.analytic.mixture(weights, means, VARIANCE)


def make_reward(data: fs.analytic.GaussianMixture) -> Any:
    """The reward; its maxima belong to the last component and every third before it."""
    turns = np.random.default_rng(1).normal(size=(len(HEIGHTS), DIMENSION))
    turns *= 2.0 * math.sqrt(VARIANCE) / np.linalg.norm(turns, axis=1, keepdims=True)
    chosen = COMPONENTS - 1 - 3 * np.arange(len(HEIGHTS))
    return jax.tree_util.Partial(
        bumps, data.means[chosen] + jnp.asarray(turns, jnp.float32), jnp.asarray(HEIGHTS)
    )


def bumps(centres: jax.Array, heights: jax.Array, x: jax.Array, cond: Any) -> jax.Array:
    """Rewards [n] of points [n, d]."""
    squared = jnp.sum(jnp.square(x[:, None] - centres[None]), axis=-1)
    return jnp.max(heights[None] / (1.0 + squared), axis=-1)


def make_kernel(path: str) -> fs.kernels.Kernel:
    """The kernel of a path."""
    linear, vp, g = fs.interpolants.linear(), fs.interpolants.vp(), fs.diffusion.square(3.0)
    match path:
        case "ODE":
            return fs.kernels.ode_euler(linear)
        case "Linear-SDE":
            return fs.kernels.euler_maruyama(linear, g)
        case "VP-SDE":
            return fs.kernels.euler_maruyama(vp, g)
    return fs.kernels.ddim(vp, 1.0, VARIANCE)


def finished_grid(p: fs.interpolants.Interpolant) -> np.ndarray:
    """The grid, then the times of finishing: even in linear time, from the last above 0 to END."""
    grid, line = fs.grids.uniform(STEPS), fs.interpolants.linear()
    last = line.time(p.angle(jnp.float32(grid[-2])))
    more = last + (END - last) * np.arange(1, FINISH_STEPS + 1) / FINISH_STEPS
    times = np.asarray(p.time(line.angle(jnp.asarray(more, jnp.float32))), np.float64)
    return np.concatenate([grid[:-1], times, [0.0]])


def make_search(method: str, path: str, nfe: int) -> fs.search.Search:
    """A method at a budget."""
    kernel = make_kernel(path)
    if method == "bon":
        grid = finished_grid(kernel.interpolant)
        return fs.search.bon(nfe=nfe, kernel=kernel, grid=grid)
    options: dict[str, Any] = {"finish_steps": FINISH_STEPS}
    if method == "rbf":
        options["width"] = 4
    if method == "smc":
        options["temperature"] = TEMPERATURE
    make = getattr(fs.search, method)
    return make(nfe=nfe, kernel=kernel, grid=fs.grids.uniform(STEPS), **options)


def interval(values: np.ndarray) -> dict[str, float]:
    """Mean and its 95 % bootstrap interval."""
    draws = np.random.default_rng(0).integers(len(values), size=(4000, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}


def measure(
    data: fs.analytic.GaussianMixture, method: str, path: str, budget: int, seeds: int
) -> dict[str, Any]:
    """A row, without comparisons."""
    began = time.perf_counter()
    result = fs.run(
        jax.random.key(0), data.flow(), make_search(method, path, budget), make_reward(data),
        prompt_ids=np.arange(seeds),
    )  # fmt: skip
    x, rewards = np.asarray(result.image), np.asarray(result.reward, np.float64)
    centre = np.asarray(data.means)[np.asarray(data.component(result.image))]
    return {
        "path": path,
        "method": method,
        "budget": budget,
        "nfe": float(np.mean(result.nfe)),
        "evaluations": float(np.mean(result.evaluations)),
        **interval(rewards),
        "distance": float(np.sqrt(np.mean(np.square(x - centre)) / VARIANCE)),
        "rewards": [round(float(r), 4) for r in rewards],
        "seconds": round(time.perf_counter() - began, 1),
    }


def reference(data: fs.analytic.GaussianMixture) -> dict[str, float]:
    """What exact draws of the data are worth."""
    x = data.sample(jax.random.key(1), 200_000)
    rewards = np.asarray(make_reward(data)(x, None)).reshape(200, 1000)
    return {
        "data": float(rewards.mean()),
        "best_of_1000": float(rewards.max(axis=1).mean()),
        "highest": max(HEIGHTS),
    }


def add_comparisons(rows: list[dict[str, Any]]) -> None:
    """To each row, its paired difference to RBF, where that has been run."""
    found = {(row["path"], row["method"], row["budget"]): row for row in rows}
    for row in rows:
        path = "VP-SDE" if row["path"] == "ODE" else row["path"]
        other = found.get((path, "rbf", row["budget"]))
        if other is not None:
            difference = np.asarray(row["rewards"]) - np.asarray(other["rewards"])
            row["less_rbf"] = {"path": path, **interval(difference)}


def as_text(results: dict[str, Any]) -> str:
    """JSON with a line for each row."""
    head = {name: value for name, value in results.items() if name != "rows"}
    rows = ",\n".join("  " + json.dumps(row) for row in results["rows"])
    return json.dumps(head, indent=1)[:-2] + ',\n "rows": [\n' + rows + "\n ]\n}\n"


def load(path: pathlib.Path | None, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of an earlier run with the same settings."""
    if path is None or not path.exists():
        return []
    found = json.loads(path.read_text())
    return found["rows"] if found["settings"] == settings else []


def print_table(rows: list[dict[str, Any]]) -> None:
    """All rows, by budget and path."""
    print(f"\n{'NFE':>5} {'path':12}{'method':8}{'charged':>8}{'reward':>25}", end="")
    print(f"{'less RBF':>27}{'distance':>10}")
    rank = {name: i for i, name in enumerate(PATHS + METHODS)}
    for row in sorted(rows, key=lambda r: (r["budget"], rank[r["path"]], rank[r["method"]])):
        print(
            f"{row['budget']:5} {row['path']:12}{LABELS[row['method']]:8}{row['nfe']:8.0f}", end=""
        )
        print(f"{row['mean']:9.3f} [{row['low']:.3f}, {row['high']:.3f}]", end="")
        less = row.get("less_rbf", {"mean": math.nan, "low": math.nan, "high": math.nan})
        print(f"{less['mean']:+10.3f} [{less['low']:+.3f}, {less['high']:+.3f}]", end="")
        print(f"{row['distance']:9.2f}")


def draw(results: dict[str, Any], path: pathlib.Path) -> None:
    """Reward against evaluations: a panel a path, a line a method."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    titles = {
        "ODE": "ODE\nEuler, linear",
        "Linear-SDE": "Linear-SDE\nEuler-Maruyama, $g = 3t^2$",
        "VP-SDE": "VP-SDE\nEuler-Maruyama, $g = 3t^2$",
        "VP-DDIM": "VP-DDIM\nDDIM(1), data variance",
    }
    figure, axes = plt.subplots(1, len(PATHS), figsize=(14, 4.6), sharey=True)
    for ax, name in zip(axes, PATHS, strict=True):
        for i, method in enumerate(METHODS):
            mine = sorted(
                (r for r in results["rows"] if (r["path"], r["method"]) == (name, method)),
                key=lambda r: r["budget"],
            )
            # Beside each other, not on each other.
            nfe = [r["budget"] * 1.025 ** (i - 2.5) for r in mine]
            mean, low, high = (np.array([r[k] for r in mine]) for k in ("mean", "low", "high"))
            ax.errorbar(
                nfe, mean, yerr=[mean - low, high - mean], color=f"C{i}",
                marker="osv^D*"[i], markersize=5, linewidth=1.5, capsize=2,
            )  # fmt: skip
        ax.axhline(results["reference"]["best_of_1000"], color="0.5", linestyle="--")
        ax.set_xscale("log")
        budgets = results["settings"]["nfe"]
        ax.set_xlim(budgets[0] / 1.25, budgets[-1] * 1.25)
        ax.set_xticks(budgets, [str(nfe) for nfe in budgets])
        ax.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        ax.grid(True, color="0.92")
        ax.set_title(titles[name], fontsize=11)
        ax.set_xlabel("model evaluations")
    axes[0].set_ylabel(f"mean reward of {results['settings']['seeds']} seeds, 95 % interval")
    handles: list[Any] = [
        plt.Line2D([], [], color=f"C{i}", marker="osv^D*"[i], label=LABELS[method])
        for i, method in enumerate(METHODS)
    ]
    handles.append(
        plt.Line2D([], [], color="0.5", linestyle="--", label="best of 1000\nexact draws")
    )
    figure.legend(handles=handles, loc="center right", fontsize=9)
    figure.tight_layout(rect=(0.0, 0.0, 0.885, 1.0))
    figure.savefig(path, dpi=120, format="png")
    plt.close(figure)


def main(args: Args) -> None:
    """Measure row by row, write after each, draw."""
    seeds, budgets = (20, [50]) if args.quick else (200, [50, 100, 300, 500])
    data = make_data()
    settings = {
        "dimension": DIMENSION,
        "components": COMPONENTS,
        "variance": VARIANCE,
        "weights": [round(float(w), 4) for w in np.exp(data.log_weights)],
        "heights": HEIGHTS,
        "grid": "uniform",
        "steps": STEPS,
        "finish_steps": FINISH_STEPS,
        "seeds": seeds,
        "nfe": budgets,
        "temperature": TEMPERATURE,
    }
    results: dict[str, Any] = {"version": fs.__version__, "settings": settings}
    results["reference"] = reference(data)
    rows = results["rows"] = load(args.json, settings)
    print(", ".join(f"{name} {value:.3f}" for name, value in results["reference"].items()))
    have = {(row["path"], row["method"], row["budget"]) for row in rows}
    paths = ("ODE", "VP-SDE") if args.quick else PATHS
    methods = ("bon", "rbf") if args.quick else METHODS
    for budget in budgets:
        for path in paths:
            for method in methods:
                refused = path == "ODE" and method not in ("bon", "sop")
                if refused or (path, method, budget) in have:
                    continue
                row = measure(data, method, path, budget, seeds)
                rows.append(row)
                print(f"{budget:5} {path:12}{LABELS[method]:8}{row['mean']:7.3f}", flush=True)
                add_comparisons(rows)
                if args.json is not None:
                    replace_file(args.json, lambda path: path.write_text(as_text(results)))
    print_table(rows)
    if args.png is not None:
        replace_file(args.png, lambda path: draw(results, path))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
