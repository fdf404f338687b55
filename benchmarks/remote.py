"""Does the device compute while a remote reward is asked?

`flowsde.batch` of the embedded model with a reward of ``flowsde serve-reward``, in a process of its
own on this machine, that takes as long for an image as the model for an evaluation, and sleeps
meanwhile as a server on another machine would seem to. Compared are

- model: the same batches with a reward in the program that costs next to nothing;
- reward: the same number of images, sent to the server one batch after the other;
- both: the search.

Overlap is the longer of the first two over the third: 1 is perfect, 0.5 is one after the other.

XLA computes on the first core alone, as on a device beside the host, and what sends pictures and
serves rewards runs on the others. With --shared both have all cores, and are in each other's way.

    python benchmarks/remote.py [--quick] [--shared] [--json FILE]

Keys of the JSON: target; apart and shared, each when it was measured: version, versions {jax,
python}, cores, platform, overlap (median over repetitions), seconds {model, reward, both}, a list
over repetitions each, reward_seconds (of one image), evaluations, rewards, settings {prompts, nfe,
steps, batch, repetitions}.
"""

import dataclasses
import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from _files import save_json
from _served import served

import flowsde as fs
from flowsde import shapes

TARGET = 0.9
PROMPT = "two green triangles"


@dataclasses.dataclass(frozen=True)
class Args:
    """Overlap of the device with a remote reward.

    Attributes:
      quick: fewer prompts, done in a minute on two cores.
      shared: have the model, the host and the server share all cores.
      json: where to write the results, beside those of the other way.
    """

    quick: bool = False
    shared: bool = False
    json: pathlib.Path | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much is measured."""

    prompts: int = 64
    nfe: int = 40
    steps: int = 5
    batch: int = 32
    repetitions: int = 5


# Two batches must be under way at once: a few prompts fill no more than small ones.
QUICK = Plan(prompts=16, nfe=20, batch=8, repetitions=3)


def _brightness(images: jax.Array, cond: Any) -> jax.Array:
    return jnp.mean(images, axis=(1, 2, 3))


def _searched(plan: Plan, flow: fs.Flow, reward: Any) -> tuple[float, Any]:
    """Seconds of a batch of searches, and its totals."""
    kernel = fs.kernels.ddim(fs.interpolants.vp())
    grid = fs.grids.uniform(plan.steps)
    search = fs.search.rbf(nfe=plan.nfe, kernel=kernel, grid=grid)
    cond = np.tile(shapes.encode(PROMPT), (plan.prompts, 1))
    began = time.perf_counter()
    packing = fs.batch(jax.random.key(0), flow, search, reward, cond=cond, batch_size=plan.batch)
    for _ in packing:
        pass
    return time.perf_counter() - began, packing.totals


def _asked(plan: Plan, reward: Any, images: np.ndarray, n: int) -> float:
    """Seconds of n rewards, a batch at a time; no two images are alike."""
    began = time.perf_counter()
    for first in range(0, n, plan.batch):
        size = min(plan.batch, n - first)
        images[:size] += np.float32(1e-3)
        reward(images[:size], None)
    return time.perf_counter() - began


def measure(plan: Plan, say: Callable[[str], None] = print) -> dict[str, Any]:
    """All numbers, as in the JSON."""
    flow = shapes.load_flow()
    device = fs.rewards.device(_brightness)
    _searched(plan, flow, device)  # compiles
    alone, totals = _searched(plan, flow, device)
    each = alone / totals.evaluations
    say(f"an evaluation takes {1e3 * each:.2f} ms; so will a reward")
    seconds: dict[str, list[float]] = {"model": [], "reward": [], "both": []}
    with served("_remote_judge:judge", REWARD_SECONDS=str(each)) as url:
        reward = fs.rewards.remote(url)
        _, totals = _searched(plan, flow, reward)  # compiles
        images = np.random.default_rng(0).random((plan.batch, *flow.shape), np.float32)
        for number in range(plan.repetitions):
            seconds["model"].append(_searched(plan, flow, device)[0])
            images += np.float32(1.0)
            seconds["reward"].append(_asked(plan, reward, images, totals.verifier_calls))
            # The server remembers scores: another version of the pictures is another search.
            shifted = dataclasses.replace(reward, fn=_Shifted(reward.fn, number + 1))
            seconds["both"].append(_searched(plan, flow, shifted)[0])
            say("  ".join(f"{name} {found[-1]:.2f} s" for name, found in seconds.items()))
    rows = zip(*seconds.values(), strict=True)
    overlap = statistics.median(max(model, other) / both for model, other, both in rows)
    return {
        "version": fs.__version__,
        "versions": {"jax": jax.__version__, "python": platform.python_version()},
        "cores": os.cpu_count(),
        "platform": jax.default_backend(),
        "overlap": overlap,
        "seconds": seconds,
        "reward_seconds": each,
        "evaluations": totals.evaluations,
        "rewards": totals.verifier_calls,
        "settings": dataclasses.asdict(plan),
    }


@dataclasses.dataclass(frozen=True)
class _Shifted:
    """Pictures that the server has not seen, of which the same ones are the best."""

    fn: Callable[[np.ndarray, Any], np.ndarray]
    by: float

    def __call__(self, images: np.ndarray, cond: Any) -> np.ndarray:
        return self.fn(images + np.float32(self.by), cond)


def _apart() -> None:
    """Have XLA's threads on the first core, and all that is begun later on the others."""
    device, *host = sorted(os.sched_getaffinity(0))
    if not host:
        raise SystemExit("a device apart from its host takes two cores; --shared takes one")
    os.sched_setaffinity(0, {device})
    # Threads have the cores of the thread that starts them.
    jax.block_until_ready(jnp.ones((2048, 2048)) @ jnp.ones((2048, 2048)))
    os.sched_setaffinity(0, host)


def main(args: Args) -> None:
    """Measure, print, and write."""
    if not args.shared:
        _apart()
    found = measure(QUICK if args.quick else Plan())
    print(f"overlap {found['overlap']:.3f} (target {TARGET})")
    if args.json is not None:
        known = json.loads(args.json.read_text()) if args.json.exists() else {}
        own = {"shared" if args.shared else "apart": found}
        save_json(args.json, {"target": TARGET} | known | own)


if __name__ == "__main__":
    main(tyro.cli(Args))
