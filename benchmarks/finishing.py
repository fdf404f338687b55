"""What becomes of the best particle: how to finish so that neither picture nor reward get worse.

    python benchmarks/finishing.py [--quick] [--json FILE] [--sets NAME ...]

RBF with the recommended settings draws 100 captions, finishing included in its budget, and ends in
different ways:

- former: half as many Euler steps as the grid has, evenly towards 0, whatever the picture is worth;
- completed: the same number of steps, down to `flowsde.search.complete.END`;
- better: the better, by reward, of that and of the posterior mean that it starts from;
- adams completed, adams better: the same two by two-step Adams (`flowsde.kernels.multistep`);
- start: that posterior mean;
- mean: the posterior mean at the end of a search with the whole budget.

All but the last are of the same search. Best-of-N is there for reference, by Euler and, as "adams
mean", by Adams. Captions have at least five objects; the end time was chosen on the development
set, and is reported on another.

Background is where no object can be: pixels further than 2 from any pixel whose colour is more than
a quarter of the way to the nearest object colour. The pictures' own background is one colour. Its
``background_std`` is the standard deviation of these pixels about their mean, of each channel,
averaged over channels, on the scale 0 to 255; without rounding.

JSON keys: captions, seeds (of the sets), quick, and ``rows``: set, method, interpolant, nfe,
ending, default (whether flowsde ends so), finish_steps, completed (the share of pictures that are
completed ones), exact (share of captions that the held-out checker finds exact), reward and
background_std (means over captions), each of the three with _low and _high, 95 %; and exact_gain,
reward_gain and background_gain with _low and _high: differences from the former way, with the same
set, interpolant and budget, paired over captions.
"""

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import tyro
from _files import save_json

import flowsde as fs
from flowsde import shapes
from flowsde.cli import compare, presets
from flowsde.cli.compare.summary import interval
from flowsde.cli.settings import Settings
from flowsde.shapes import checker
from flowsde.shapes.captions import counts, parse
from flowsde.shapes.data import BACKGROUND, PALETTE

SEEDS = {"development": 31, "report": 32}
BATCH = 25
MEAN = {"finish": "mean"}
_NEAR = 0.25 * np.linalg.norm(PALETTE - BACKGROUND, axis=-1).min()


def background(images: np.ndarray) -> np.ndarray:
    """Pixels that are far from any object, bool [n, h, w], of images [n, h, w, 3] in [-1, 1]."""
    colours = (np.clip(images, -1.0, 1.0) + 1.0) / 2.0
    objects = np.linalg.norm(colours - BACKGROUND, axis=-1) > _NEAR
    padded = np.pad(objects, ((0, 0), (2, 2), (2, 2)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), axis=(1, 2))
    return np.logical_not(windows.any((-1, -2)))


def background_std(images: np.ndarray) -> np.ndarray:
    """Of each image [n], on the scale 0 to 255; nan without background."""
    values = 255.0 * (np.clip(images, -1.0, 1.0) + 1.0) / 2.0
    return np.asarray(
        [image[at].std(0).mean() for image, at in zip(values, background(images), strict=True)]
    )


class Pictures(NamedTuple):
    """Answers to n captions, arrays [n, …]."""

    images: np.ndarray
    reward: np.ndarray
    completed: np.ndarray


@partial(jax.jit, static_argnames=("steps", "interpolant"))
def former(
    flow: fs.Flow, best: fs.search.Particle, cond: Any, steps: int, interpolant: Any
) -> jax.Array:
    """Images of Euler steps of the linear ODE evenly towards 0, from particles [n]."""
    line, wide = fs.interpolants.linear(), (slice(None), None, None, None)
    t, scale = fs.match_time(line, interpolant, best.t)
    x, x0, x1, step = best.x * scale[wide], best.x0, best.x1, t / (steps + 1)
    for k in range(1, steps + 1):
        x = x - step[wide] * (x1 - x0)
        x0, x1 = flow.means(x, t - k * step, cond, line)
    return x0


def search_all(method: str, settings: Settings, texts: list[str]) -> dict[str, Pictures]:
    """Answers to all captions, by the way to end."""
    # Captions side by side fill the batch; RBF's width changes no answer.
    width = 1 if method == "rbf" else settings.width
    search = presets.build(method, dataclasses.replace(settings, width=width))
    flow, reward = shapes.load_flow(), shapes.load_reward()
    parts: dict[str, list[Pictures]] = {}

    def add(name: str, images: Any, rewards: Any, completed: Any) -> None:
        found = Pictures(*map(np.asarray, (images, rewards, completed)))
        parts.setdefault(name, []).append(found)

    for i in range(0, len(texts), BATCH):
        ids = np.arange(i, min(i + BATCH, len(texts)))
        cond = np.stack([shapes.encode(texts[k]) for k in ids])
        result = fs.run(jax.random.key(0), flow, search, reward, cond=cond, prompt_ids=ids)
        yes, no = np.ones(len(ids), bool), np.zeros(len(ids), bool)
        adams = "adams " if getattr(search, "solver", None) is not None else ""
        if not isinstance(search, fs.search.Complete):
            add(f"{adams}mean", result.x0, result.reward, no)
            continue
        best, last = jax.vmap(search.inner.best)(result.state.inner), result.state.particle
        if not adams:
            images = former(flow, best, cond, search.steps, search.interpolant)
            add("former", images, reward(images, cond), yes)
            add("start", best.x0, best.reward, no)
        add(f"{adams}completed", last.x0, last.reward, yes)
        better = np.asarray(result.t) == np.asarray(last.t)
        add(f"{adams}better", result.x0, result.reward, better)
    return {
        name: Pictures(*map(np.concatenate, zip(*found, strict=True)))
        for name, found in parts.items()
    }


def searches(interpolant: str, nfe: int, quick: bool) -> list[tuple[str, Settings]]:
    """What is run, the search that completes its best particle first."""
    given: dict[str, Any] = {"nfe": nfe, "interpolant": interpolant}
    resolve = partial(presets.resolve, "recommended")
    half = {"finish": "complete", "finish_steps": min(nfe // 5, 20) // 2}
    ends = half, half | {"finish": "adams"}, MEAN
    found = [("rbf", resolve("rbf", given | end)) for end in ends]
    if not quick and interpolant == "vp":
        found += [
            ("bon", resolve("bon", {"nfe": nfe} | by)) for by in ({}, {"kernel": "ode_adams"})
        ]
    return found


def with_intervals(name: str, values: np.ndarray, share: bool = False) -> dict[str, float]:
    """Mean and bounds of values a caption."""
    keys = (name, f"{name}_low", f"{name}_high")
    return dict(zip(keys, interval(values, share), strict=True))


def rows_of(texts: list[str], interpolant: str, nfe: int, quick: bool) -> Iterator[dict[str, Any]]:
    """A row for each way to end and each answer, as they are measured."""
    wanted = np.stack([counts(parse(text)) for text in texts])
    default = presets.resolve("recommended", "rbf", {"nfe": nfe, "interpolant": interpolant})
    first: dict[str, np.ndarray] | None = None
    for method, settings in searches(interpolant, nfe, quick):
        for ending, found in search_all(method, settings, texts).items():
            measured = {
                "exact": checker.exact(found.images, wanted).astype(np.float64),
                "reward": found.reward.astype(np.float64),
                "background_std": background_std(found.images),
            }
            row = {
                "method": method,
                "interpolant": settings.interpolant,
                "nfe": nfe,
                "ending": ending,
                "default": settings == default and ending in ("better", "mean"),
                "finish_steps": settings.finish_steps,
                "completed": float(found.completed.mean()),
            }
            for name, values in measured.items():
                row |= with_intervals(name, values, share=name == "exact")
            first = measured if first is None else first
            for name, values in measured.items():
                gain = f"{name.removesuffix('_std')}_gain"
                row |= with_intervals(gain, values - first[name])
            yield row


@dataclasses.dataclass(frozen=True)
class Args:
    """How to finish."""

    quick: bool = False
    """Four captions of one set, and one budget."""
    json: Path | None = None
    """Write the rows to this file, after each."""
    captions: int = 100
    """How many in each set."""
    sets: tuple[Literal["report", "development"], ...] = ("report", "development")
    """Which captions."""


def main(args: Args) -> None:
    """Set after set; everything so far is written after each row."""
    n = 4 if args.quick else args.captions
    cases = [("vp", 50)] if args.quick else [("vp", 100), ("vp", 50), ("linear", 100)]
    results: dict[str, Any] = {"captions": n, "seeds": SEEDS, "quick": args.quick, "rows": []}
    print("set          method  path    NFE  ending           exact  reward  background  completed")
    for name in args.sets[:1] if args.quick else args.sets:
        texts = compare.captions(n, objects=5, seed=SEEDS[name])
        for interpolant, nfe in cases:
            for row in rows_of(texts, interpolant, nfe, args.quick):
                results["rows"].append({"set": name, **row})
                save_json(args.json, results)
                print(
                    f"{name:12} {row['method']:6}  {interpolant:6} {nfe:4}  {row['ending']:15}"
                    f"{row['exact']:7.2f}  {row['reward']:6.3f}  {row['background_std']:10.2f}"
                    f"  {row['completed']:9.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main(tyro.cli(Args))
