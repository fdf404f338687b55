"""Which kernel is how exact, for how many evaluations of the model?

Every kernel runs down a grid of 5 to 100 steps with the exact flow of a two-dimensional mixture of
three Gaussians (on the linear interpolant), under the linear and the VP interpolant. The final
cloud is compared with the exact law of the data by

- the sliced Wasserstein-2 distance: root mean square, over 32 directions, of the distance between
  the cloud's projection and the projected mixture, whose quantiles are computed, not sampled;
- the covariance error, |C_cloud - C| / |C| in Frobenius norm.

Both are root mean squares over clouds. Exact draws of as many particles have errors too: the noise
floor, below which nothing can be told apart.

    python benchmarks/kernels.py [--quick] [--json FILE] [--png FILE] [--kernels NAME ...]

`data_variance` is v = mode, the mean variance within a mode, or v = total, that of all the data.

Keys of the JSON: version; settings {particles, clouds, steps, grid, weights, means, covariances,
data_variance {mode, total}}; noise_floor {wasserstein, covariance_error}; rows, a list of
{interpolant, kernel, steps, evaluations, wasserstein, covariance_error}; seconds, of all of them.
"""

import dataclasses
import json
import math
import pathlib
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from _files import replace_file, save_json
from scipy.special import ndtr

import flowsde as fs

WEIGHTS = [0.25, 0.35, 0.4]
MEANS = [[-1.6, 0.4], [0.4, -1.2], [1.0, 1.0]]
COVARIANCES = [
    [[0.15, 0.06], [0.06, 0.1]],
    [[0.3, 0.0], [0.0, 0.08]],
    [[0.12, -0.05], [-0.05, 0.2]],
]
INTERPOLANTS = {"linear": fs.interpolants.linear(), "vp": fs.interpolants.vp()}
DIRECTIONS = 32


@dataclasses.dataclass(frozen=True)
class Args:
    """Error of every kernel against evaluations.

    Attributes:
      quick: smaller numbers, done in 45 seconds on two cores.
      json: where to write the results.
      png: where to draw them.
      grid: of times.
      kernels: to measure, all by default; rows of others stay as the JSON file has them.
    """

    quick: bool = False
    json: pathlib.Path | None = None
    png: pathlib.Path | None = None
    grid: Literal["uniform", "quadratic", "cosine"] = "uniform"
    kernels: tuple[str, ...] = ()


Kernel = fs.kernels.Kernel | fs.kernels.Multistep


def make_kernels(p: fs.interpolants.Interpolant, mode: float, total: float) -> dict[str, Kernel]:
    """The kernels compared, by name."""
    ddim, cps = partial(fs.kernels.ddim, p), partial(fs.kernels.cps, p)
    return {
        "ode_euler": fs.kernels.ode_euler(p),
        "ode_heun": fs.kernels.ode_heun(p),
        "ode_adams": fs.kernels.ode_adams(p),
        "dpm_solver_2m": fs.kernels.dpm_solver_2m(p),
        "uni_pc": fs.kernels.uni_pc(p),
        "euler_maruyama(3 t^2)": fs.kernels.euler_maruyama(p, fs.diffusion.square(3.0)),
        "exact(3 t^2)": fs.kernels.exact(p, fs.diffusion.square(3.0)),
        "correlated(.4)": fs.kernels.correlated(p, 0.4),
        "ddim(1)": ddim(1.0),
        "ddim(.5)": ddim(0.5),
        "cps(.5)": cps(0.5),
        "ddim(1, v=mode)": ddim(1.0, mode),
        "ddim(1, v=total)": ddim(1.0, total),
        "cps(.5, v=mode)": cps(0.5, mode),
        "cps(.5, v=total)": cps(0.5, total),
    }


@partial(jax.jit, static_argnums=(2, 5))
def cloud(
    key: jax.Array,
    flow: fs.Flow,
    kernel: Kernel,
    grid: jax.Array,
    steps: jax.Array,
    n: int,
) -> jax.Array:
    """Final particles [n, 2]; the number of steps is traced, so that it compiles once."""
    p = kernel.interpolant

    def means(x: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        return flow.means(x, jnp.full((n,), t), None, p)

    def step(i: jax.Array, carry: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        (x, before), t, s = carry, grid[i], grid[i + 1]
        x0, x1 = means(x, t)
        if isinstance(kernel, fs.kernels.Multistep):
            return kernel(before, x, x0, x1, t, s)  # all of them as one particle
        keys = jax.random.split(jax.random.fold_in(key, i), n)
        moved = jax.vmap(kernel, (0, 0, 0, 0, None, None))(keys, x, x0, x1, t, s)
        if kernel.evaluations == 2:
            correct = jax.vmap(kernel.correct, (0, 0, 0, 0, 0, 0, None, None))
            moved = correct(x, x0, x1, moved, *means(moved, s), t, s)
        return moved, None

    start = p.radius(jnp.ones((), jnp.float32)) * jax.random.normal(key, (n, 2), jnp.float32)
    before = kernel.start(start) if isinstance(kernel, fs.kernels.Multistep) else None
    return jax.lax.fori_loop(0, steps, step, (start, before))[0]


def directions() -> np.ndarray:
    """Unit vectors [DIRECTIONS, 2] over a half turn."""
    angles = math.pi * np.arange(DIRECTIONS) / DIRECTIONS
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def projected_quantiles(n: int) -> np.ndarray:
    """Quantiles at (i + 1/2) / n of the mixture along each direction, [DIRECTIONS, n]."""
    points = np.linspace(-6.0, 6.0, 6001)
    wanted = (np.arange(n) + 0.5) / n
    found = []
    for a in directions():
        cdf = np.zeros_like(points)
        for weight, mean, covariance in zip(WEIGHTS, MEANS, COVARIANCES, strict=True):
            z = (points - a @ np.array(mean)) / math.sqrt(a @ np.array(covariance) @ a)
            cdf += weight * ndtr(z)
        keep = np.append(True, np.diff(cdf) > 0.0)
        found.append(np.interp(wanted, cdf[keep], points[keep]))
    return np.stack(found)


def make_errors(data: fs.analytic.GaussianMixture, n: int) -> Callable[[Any], dict[str, float]]:
    """The function from clouds [cloud, n, 2] to their errors, root mean squares over clouds."""
    quantiles, exact = projected_quantiles(n), np.asarray(data.covariance(), np.float64)

    def errors(clouds: Any) -> dict[str, float]:
        x = np.asarray(clouds, np.float64)
        projected = np.sort(np.einsum("cnd,ad->can", x, directions()), axis=-1)
        squared = np.mean((projected - quantiles) ** 2, axis=(1, 2))
        off = [np.linalg.norm(np.cov(c.T) - exact) / np.linalg.norm(exact) for c in x]
        return {
            "wasserstein": float(np.sqrt(np.mean(squared))),
            "covariance_error": float(np.sqrt(np.mean(np.square(off)))),
        }

    return errors


def already(args: Args, settings: dict[str, Any]) -> dict[str, Any]:
    """What the JSON file has, if some kernels alone are to be measured."""
    if not args.kernels:
        return {"rows": [], "seconds": 0.0}
    if unknown := set(args.kernels) - set(make_kernels(fs.interpolants.linear(), 1.0, 1.0)):
        sys.exit(f"--kernels: no kernel is called {min(unknown)!r}")
    if args.json is None or not args.json.exists():
        sys.exit("--kernels needs a --json FILE with the rows of the others")
    found: dict[str, Any] = json.loads(args.json.read_text())
    if found["settings"] != settings:
        sys.exit(f"{args.json} was measured with other settings than these")
    return found


def measure(args: Args) -> dict[str, Any]:
    """All rows, printed as they come."""
    began = time.perf_counter()
    n, repeats = (2_000, 2) if args.quick else (20_000, 3)
    steps = [5, 20] if args.quick else [5, 10, 20, 50, 100]
    data = fs.analytic.mixture(WEIGHTS, MEANS, COVARIANCES)
    mode = float(np.average([np.trace(c) / 2 for c in COVARIANCES], weights=WEIGHTS))
    total = float(np.trace(np.asarray(data.covariance())) / 2)
    settings = {
        "particles": n,
        "clouds": repeats,
        "steps": steps,
        "grid": args.grid,
        "weights": WEIGHTS,
        "means": MEANS,
        "covariances": COVARIANCES,
        "data_variance": {"mode": mode, "total": total},
    }
    before = already(args, settings)
    flow, errors = data.flow(), make_errors(data, n)
    key = jax.random.key(0)
    floor = errors(data.sample(key, 4 * repeats * n).reshape(4 * repeats, n, 2))
    print(f"{'interpolant':12}{'kernel':24}{'steps':>6}{'evaluations':>13}", end="")
    print(f"{'wasserstein':>13}{'covariance':>13}")
    print(f"{'exact draws':55}", end="")
    print(f"{floor['wasserstein']:13.4f}{floor['covariance_error']:13.4f}")
    rows = []
    for interpolant, p in INTERPOLANTS.items():
        for name, kernel in make_kernels(p, mode, total).items():
            if args.kernels and name not in args.kernels:
                own = (interpolant, name)
                rows += [r for r in before["rows"] if (r["interpolant"], r["kernel"]) == own]
                continue
            for count in steps:
                grid = getattr(fs.grids, args.grid)(count)
                padded = jnp.asarray(np.pad(grid, (0, max(steps) - count)), jnp.float32)
                x = cloud(key, flow, kernel, padded, jnp.int32(count), repeats * n)
                found = errors(x.reshape(repeats, n, 2))
                spent = count * kernel.evaluations
                row = {"interpolant": interpolant, "kernel": name, "steps": count}
                rows.append(row | {"evaluations": spent} | found)
                print(f"{interpolant:12}{name:24}{count:6}{spent:13}", end="")
                print(f"{found['wasserstein']:13.4f}{found['covariance_error']:13.4f}", flush=True)
    return {
        "version": fs.__version__,
        "settings": settings,
        "noise_floor": floor,
        "rows": rows,
        "seconds": before["seconds"] + time.perf_counter() - began,
    }


def draw(results: dict[str, Any], path: pathlib.Path) -> None:
    """Errors against evaluations, log-log: a row of axes an error, a column an interpolant."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    labels = {"wasserstein": "sliced Wasserstein-2", "covariance_error": "covariance error"}
    names = list(dict.fromkeys(row["kernel"] for row in results["rows"]))
    figure, axes = plt.subplots(2, 2, figsize=(11, 8), sharey="row")
    for line, (key, label) in zip(axes, labels.items(), strict=True):
        floor = results["noise_floor"][key]
        for ax, interpolant in zip(line, INTERPOLANTS, strict=True):
            for i, name in enumerate(names):
                mine = [
                    r
                    for r in results["rows"]
                    if (r["interpolant"], r["kernel"]) == (interpolant, name)
                ]
                style = "--" if "v=total" in name else ":" if "v=mode" in name else "-"
                ax.loglog(
                    [r["evaluations"] for r in mine],
                    [r[key] for r in mine],
                    style,
                    color=plt.get_cmap("tab20")(i),
                    marker="os^vD<>ph*"[i % 10],
                    markersize=5,
                    label=name,
                )
            ax.axhspan(0.1 * floor, floor, color="0.9", label="noise floor (exact draws)")
            ax.grid(True, which="major", color="0.9")
            ax.set_title(f"{interpolant} interpolant")
            ax.set_xlabel("model evaluations")
        line[0].set_ylim(bottom=0.4 * floor)
        line[0].set_ylabel(label)
    for ax in axes.flat:
        ax.xaxis.set_major_locator(matplotlib.ticker.FixedLocator([5, 10, 20, 50, 100, 200]))
        ax.xaxis.set_major_formatter(matplotlib.ticker.ScalarFormatter())
        ax.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    handles, texts = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="center right", fontsize=9)
    figure.tight_layout(rect=(0.0, 0.0, 0.81, 1.0))
    figure.savefig(path, dpi=120, format="png")
    plt.close(figure)


def main(args: Args) -> None:
    """Measure, then write what was asked for."""
    results = measure(args)
    save_json(args.json, results)
    if args.png is not None:
        replace_file(args.png, lambda path: draw(results, path))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
