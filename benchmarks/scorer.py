"""Whether the given reward of the embedded model limits what searches find.

    python benchmarks/scorer.py [--quick] [--json FILE] [--out DIR] [--before WEIGHTS]
                                [--parts NAME ...]

The packaged scorer, and with --before another one beside it (of an earlier commit, say:
``git show COMMIT:flowsde/shapes/weights/scorer.safetensors > WEIGHTS``):

- search: exact captions by the held-out checker at 500 NFE, as `flowsde compare` measures them;
- ranking: how often a right picture of a caption scores higher than a wrong one of the same, the
  mean over captions that have both. Renders: scenes of the caption, and scenes with one object more
  or less, or of another colour or kind. Samples: pictures of 40 ODE steps, right or wrong by the
  checker; and the posterior means on the way to them at t = .2, .5 and .8, right or wrong as the
  final picture is;
- reward: quantiles of the right and of the wrong samples;
- places: pixels between the mean place of a pair's objects in a rendered scene and the centre of
  mass of its first detections: median and 95 % quantile;
- speed: seconds for a batch, median ratio of alternating measurements.

Captions have at least five objects and are not those on which the scorer was developed. What
searches found stays in the folder, so that a run that was stopped goes on from there.

JSON keys: captions, seeds, samples, and ``search``, ``ranking``, ``reward``, ``places``: lists of
rows with the scorer's name, ``scorer``; ``speed``: seconds of each scorer and ``ratio``. Shares and
accuracies have _low and _high, 95 % over captions. Beside the JSON goes NAME.png, the rewards.
"""

import dataclasses
import json
import time
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from _files import replace_file, save_json
from flax import nnx
from matplotlib.figure import Figure

from flowsde import interpolants, shapes
from flowsde.cli import compare, presets
from flowsde.cli.compare.summary import interval
from flowsde.flow import Flow
from flowsde.shapes import checker, data, scorer, scorer_data, weights
from flowsde.shapes.captions import COLOURS, KINDS, MAX_COUNT, Group, counts, parse

Row = dict[str, Any]
Part = Literal["ranking", "places", "speed", "search"]
STEPS, TIMES = 40, (0.2, 0.5, 0.8)
NFE = 500
SEED = 2026
"""Of the captions, those of the other tables; development had others."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


def rows_of_searches(quick: bool) -> list[compare.Row]:
    """Best-of-N, and searches under VP."""
    vp: dict[str, Any] = {"nfe": 50 if quick else NFE, "interpolant": "vp"}
    cases = [("bon", {"nfe": vp["nfe"]})]
    if not quick:
        cases += [("smc", vp), ("svdd", vp)]
    cases += [("rbf", vp)]
    resolve = partial(presets.resolve, "recommended")
    return [compare.Row(method, resolve(method, given), "scorer") for method, given in cases]


@partial(jax.jit, static_argnames="samples")
def trajectories(flow: Flow, key: jax.Array, tokens: jax.Array, samples: int) -> jax.Array:
    """Pictures of one caption by the ODE and posterior means on the way.

    Returns:
      [1 + TIMES, samples, 32, 32, 3], the last step's first.
    """
    times = jnp.linspace(1.0, 0.0, STEPS + 1, dtype=jnp.float32)
    tokens = jnp.broadcast_to(tokens[None], (samples, *tokens.shape))
    x = jax.random.normal(key, (samples, data.SIZE, data.SIZE, 3), jnp.float32)

    def step(x: jax.Array, at: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        t, s = at
        x0, x1 = flow.means(x, jnp.full((samples,), t), tokens, interpolants.linear())
        return (1.0 - s) * x0 + s * x1, x0

    x, means = jax.lax.scan(step, x, (times[:-1], times[1:]))
    return jnp.concatenate([x[None], means[np.asarray([round((1 - t) * STEPS) for t in TIMES])]])


class Pictures(NamedTuple):
    """Pictures [n, K, 32, 32, 3] of n captions, and whether they are right, bool [n, K]."""

    images: np.ndarray
    right: np.ndarray


def sampled(texts: list[str], samples: int) -> dict[str, Pictures]:
    """Final pictures and posterior means, judged by the final picture."""
    flow, found, right = shapes.load_flow(), [], []
    for i, text in enumerate(texts):
        key = jax.random.fold_in(jax.random.key(SEED), i)
        found.append(np.asarray(trajectories(flow, key, shapes.encode(text), samples)))
        wanted = np.repeat(counts(parse(text))[None], samples, 0)
        right.append(checker.exact(found[-1][0], wanted))
    names = (f"{STEPS} ODE steps", *(f"mean at t = {t}" for t in TIMES))
    images = np.stack(found, axis=1)
    return {name: Pictures(x, np.stack(right)) for name, x in zip(names, images, strict=True)}


def one_off(rng: np.random.Generator, groups: tuple[Group, ...]) -> tuple[Group, ...]:
    """Groups with one object more or less, or one of another colour or kind."""
    i = int(rng.integers(len(groups)))
    group, rest = groups[i], groups[:i] + groups[i + 1 :]
    match rng.integers(4):
        case 0:
            return (*rest, group._replace(count=min(group.count + 1, MAX_COUNT + 1)))
        case 1:
            return (*rest, group._replace(count=group.count - 1))
        case 2:
            other = Group(1, (group.colour + int(rng.integers(1, len(COLOURS)))) % 6, group.kind)
        case _:
            other = Group(1, group.colour, (group.kind + int(rng.integers(1, len(KINDS)))) % 3)
    return (*rest, group._replace(count=group.count - 1), other)


def scene(rng: np.random.Generator, groups: tuple[Group, ...]) -> scorer_data.Layout:
    """Objects of groups, placed at random."""
    numbers = [group.count for group in groups]
    kinds = np.repeat([group.kind for group in groups], numbers)
    colours = np.repeat([group.colour for group in groups], numbers)
    centres, radii = data.place(rng, kinds)
    free = 2 * MAX_COUNT + 1 - len(kinds)
    return scorer_data.Layout(
        np.pad(centres, ((0, free), (0, 0))),
        *(np.pad(x, (0, free)) for x in (radii, kinds, colours)),
    )


def rendered(texts: list[str], samples: int) -> Pictures:
    """As many renders of each caption as of what is nearly one."""
    images, right = [], np.arange(samples) % 2 == 0
    for i, text in enumerate(texts):
        rng, groups = np.random.default_rng((SEED, i, 3)), parse(text)
        scenes = [scene(rng, groups if yes else one_off(rng, groups)) for yes in right]
        images.append(scorer_data.render(scenes))
    return Pictures(np.stack(images), np.stack([right] * len(texts)))


def rewards(path: Path, texts: list[str], images: np.ndarray) -> np.ndarray:
    """Of pictures [n, K, 32, 32, 3], [n, K]."""
    reward = jax.jit(shapes.load_reward(path=path))
    tokens = np.stack([shapes.encode(text) for text in texts])
    many = np.broadcast_to(tokens[:, None], (*images.shape[:2], tokens.shape[1]))
    return np.stack([np.asarray(reward(x, y)) for x, y in zip(images, many, strict=True)])


def accuracies(values: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Share of pairs of a right and a wrong picture that are in order, of captions with both."""
    shares = []
    for value, yes in zip(values, right, strict=True):
        difference = value[yes][:, None] - value[~yes][None, :]
        if difference.size:
            shares.append(np.mean((difference > 0) + 0.5 * (difference == 0)))
    return np.asarray(shares)


def places(path: Path, n: int) -> Row:
    """Median and 95 % quantile of the distances [pixels] over the pairs of rendered captions."""
    params, config = weights.load(path, "scorer")
    graphdef, _ = scorer.split(scorer.ScorerConfig(**config))
    model = jax.jit(lambda images: nnx.merge(graphdef, params).detect_and_count(images))
    texts = compare.captions(n, seed=SEED + 1)
    layouts = [
        scene(np.random.default_rng((SEED, i, 4)), parse(text)) for i, text in enumerate(texts)
    ]
    detections = jax.nn.sigmoid(model(scorer_data.render(layouts))[0][..., 0])
    cells = (np.arange(scorer.GRID) + 0.5) * scorer.CELL
    at = np.stack(np.meshgrid(cells, cells), axis=-1).reshape(-1, 2)
    distances = []
    for found, layout in zip(np.asarray(detections), layouts, strict=True):
        present = layout.radii > 0
        for colour, kind in {*zip(layout.colours[present], layout.kinds[present], strict=True)}:
            own = present & (layout.colours == colour) & (layout.kinds == kind)
            share = found[:, colour, kind] / found[:, colour, kind].sum()
            distances.append(np.linalg.norm(share @ at - layout.centres[own].mean(0)))
    return dict(
        zip(("median", "worst"), map(float, np.quantile(distances, (0.5, 0.95))), strict=True)
    )


def speed(scorers: dict[str, Path], batch: int = 32, repeats: int = 40) -> Row:
    """Seconds for a batch of rewards, and the median ratio of the first scorer to the last."""
    tokens = np.stack([shapes.encode("three red circles")] * batch)
    images = jnp.asarray(data.scenes(0, range(batch)).images)
    calls = {name: jax.jit(shapes.load_reward(path=path)) for name, path in scorers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(repeats + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            jax.block_until_ready(call(images, tokens))
            if i:
                seconds[name].append(time.perf_counter() - began)
    first, last = next(iter(seconds)), list(seconds)[-1]
    ratios = np.asarray(seconds[first]) / np.asarray(seconds[last])
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    return {"batch": batch, "seconds": medians, "ratio": float(np.median(ratios))}


def draw(found: dict[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Rewards of right and of wrong pictures, one panel a scorer."""
    figure = Figure(figsize=(4.2 * len(found), 3.2), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
    for axes, (name, (values, right)) in zip(panels, found.items(), strict=True):
        bins = np.linspace(-8.0, 0.0, 49)
        for own, label, colour in ((right, "right", "#4d9a4d"), (~right, "wrong", "#d6604d")):
            shown = np.clip(values[own], bins[0], bins[-1])
            axes.hist(shown, bins, density=True, alpha=0.6, color=colour, label=label)
        axes.set(xlabel="log-likelihood (−8 or less at the left)", yscale="log")
        axes.set_title(name, loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("density of pictures")
    panels[0].legend(frameon=False)
    return figure


@dataclasses.dataclass(frozen=True)
class Args:
    """Whether the given reward limits what searches find."""

    quick: bool = False
    """Two captions and one seed, and only BoN and RBF at 50 NFE."""
    json: Path | None = None
    """Write results to this file, after each part."""
    out: Path = Path("scorer-searches")
    """Folder of what searches found; gone on with if it is there."""
    before: Path | None = None
    """Weights of another scorer, to compare with."""
    parts: tuple[Part, ...] = get_args(Part)
    """What to measure; the JSON keeps what it has of the others."""
    captions: int = 100
    """How many."""
    seeds: int = 2
    """Searches a caption."""
    samples: int = 16
    """Samples a caption, for ranking."""


def interval_of(name: str, values: np.ndarray, share: bool = False) -> Row:
    """Mean and bounds."""
    return dict(zip((name, f"{name}_low", f"{name}_high"), interval(values, share), strict=True))


def rank(args: Args, scorers: dict[str, Path], texts: list[str]) -> tuple[Row, Figure]:
    """Ranking accuracies and quantiles of rewards."""
    cases = {"renders": rendered(texts, args.samples)} | sampled(texts, args.samples)
    ranking, quantiles, drawn = [], [], {}
    for name, path in scorers.items():
        for case, own in cases.items():
            values = rewards(path, texts, own.images)
            shares = accuracies(values, own.right)
            ranking.append(
                {"scorer": name, "pictures": case, "captions": len(shares)}
                | interval_of("accuracy", shares)
            )
            if case == f"{STEPS} ODE steps":
                drawn[name] = values, own.right
                for label, which in (("right", own.right), ("wrong", ~own.right)):
                    found = np.quantile(values[which], QUANTILES).tolist()
                    row = {"scorer": name, "pictures": label, "n": int(which.sum())}
                    keyed = zip(map(str, QUANTILES), found, strict=True)
                    quantiles.append(row | {"quantiles": dict(keyed)})
    return {"ranking": ranking, "reward": quantiles}, draw(drawn)


def search(args: Args, scorers: dict[str, Path], texts: list[str]) -> list[Row]:
    """Exact captions by scorer and search."""
    rows = rows_of_searches(args.quick)
    found = []
    for name, path in scorers.items():
        study = compare.Study(texts, args.seeds, weights.chosen("", ()) | {"scorer": path})
        measured = compare.measure(rows, study, args.out)
        found += [{"scorer": name, **row} for row in compare.summarise(rows, measured)]
    return found


def main(args: Args) -> None:
    """Part after part; everything so far is written after each."""
    if args.quick:
        args = dataclasses.replace(args, captions=2, seeds=1, samples=4)
    scorers = {} if args.before is None else {"before": args.before}
    scorers = {"packaged": weights.packaged("scorer")} | scorers
    texts = compare.captions(args.captions, objects=5, seed=SEED)
    results: Row = {}
    if args.json and args.json.exists():
        results = json.loads(args.json.read_text())
    results |= {name: getattr(args, name) for name in ("captions", "seeds", "samples")}
    for part in args.parts:
        match part:
            case "ranking":
                found, figure = rank(args, scorers, texts)
                results |= found
                if args.json:
                    save = partial(figure.savefig, format="png", dpi=110)
                    replace_file(args.json.with_suffix(".png"), save)
            case "places":
                rows = [{"scorer": k, **places(v, 10 * args.captions)} for k, v in scorers.items()]
                results["places"] = rows
            case "speed":
                results["speed"] = speed(scorers)
            case "search":
                results["search"] = search(args, scorers, texts)
        save_json(args.json, results)
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Args))
