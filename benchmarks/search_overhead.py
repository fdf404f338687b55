"""What does searching cost beside the model's evaluations?

RBF, SVDD and SMC search at `nfe` evaluations with a model of about 3 milliseconds a candidate (a
residual network over the 64 patches of a picture, of as many blocks as take that long here) and a
reward that costs next to nothing.
Compared are, one after the other in every repetition, each repetition in another order:

- bare: the velocity alone, in one compiled loop, as many chunks of as many rows as the search
  computed (`Result.evaluations`, so padded and surplus rows are on both sides);
- run: `flowsde.run`, one compiled program;
- iterate: `flowsde.iterate` to its end, a `Result` each round.

Memory compares what XLA plans for the compiled program of `run`, its arguments and temporaries
without the model's parameters, with what no search could do without: the search's state, a round's
candidates with both posterior means, and the velocity of one chunk (its temporaries and output).

Seconds are of pictures of 32 x 32 x 3, the embedded model's, bytes of 64 x 64 x 3 (32 x 32 x 3 with
--quick); `large` has the seconds of the latter, where a child's noise is four times as much beside
the same model.

    python benchmarks/search_overhead.py [--quick] [--json FILE]

Keys of the JSON: version, versions {jax, jaxlib, numpy, python}, cores, load (average over a
minute, at the start and at the end), model_ms (of one candidate, in chunks), settings {side,
patches, width, blocks, nfe, chunk, grid, repetitions, finish}; run, iterate {rbf, svdd, smc}
(median seconds over the median of the bare loop), memory {rbf, svdd, smc} (ratio of bytes); cpu
{run, iterate} the same of the process's CPU seconds, which other jobs on the machine disturb less;
large {run, iterate, cpu} of the larger picture, null with --quick; targets {run, iterate, memory};
details, by side and method, {rounds, nfe, evaluations, chunks, seconds {bare, run, iterate} and
cpu_seconds, a list over repetitions each}; bytes {rbf, svdd, smc}, each {run, state, candidates,
chunk}; seconds.
"""

import dataclasses
import os
import pathlib
import platform
import statistics
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import tyro
from _files import save_json

import flowsde as fs
from flowsde.runner.arguments import prepare
from flowsde.runner.rounds import run_rounds
from flowsde.runner.run import _begin

SIDE, LARGE = 32, 64
PATCHES, WIDTH = 8, 192
MODEL_MS = 3.0
"""Of a candidate."""
Details = dict[str, dict[str, Any]]
"""A row of `compare` for each method."""
TARGETS = {"run": 1.05, "iterate": 1.10, "memory": 1.10}


@dataclasses.dataclass(frozen=True)
class Args:
    """Seconds and bytes of a search against those of its model.

    Attributes:
      quick: fewer evaluations and repetitions, done in 45 seconds on two cores.
      json: where to write the results.
      chunk: candidates that the model evaluates at once; 8 are two chains' waves of four.
    """

    quick: bool = False
    json: pathlib.Path | None = None
    chunk: int = 8


def velocity(params: Any, x: jax.Array, t: jax.Array, cond: Any) -> jax.Array:
    """Residual blocks over the patches [n, 64, width], with the time as a feature."""
    n, side = x.shape[0], x.shape[1] // PATCHES
    first, blocks, final = params
    h = x.reshape(n, PATCHES, side, PATCHES, side, 3).transpose(0, 1, 3, 2, 4, 5)
    h = h.reshape(n, PATCHES**2, -1) @ first + t[:, None, None]

    def block(h: jax.Array, layer: Any) -> tuple[jax.Array, None]:
        into, out = layer
        return h + jax.nn.silu(h @ into) @ out, None

    h, _ = jax.lax.scan(block, h, blocks)
    h = (h @ final).reshape(n, PATCHES, PATCHES, side, side, 3).transpose(0, 1, 3, 2, 4, 5)
    return jnp.tanh(h.reshape(x.shape))


def make_flow(side: int, blocks: int) -> fs.Flow:
    """The model, with random parameters: only its cost matters."""
    keys = jax.random.split(jax.random.key(0), 4)
    inside = 3 * (side // PATCHES) ** 2
    shapes = [(inside, WIDTH), (blocks, WIDTH, 4 * WIDTH), (blocks, 4 * WIDTH, WIDTH)]
    first, into, out, final = (
        jax.random.normal(key, shape, jnp.float32) / shape[-2] ** 0.5
        for key, shape in zip(keys, [*shapes, (WIDTH, inside)], strict=True)
    )
    return fs.Flow.from_callable(velocity, (first, (into, out), final), (side, side, 3))


def reward(images: jax.Array, cond: Any) -> jax.Array:
    """One pixel: next to nothing."""
    return images[:, 0, 0, 0]


def make_searches(nfe: int, chunk: int) -> dict[str, fs.search.Search]:
    """The methods, RBF with waves that fill a chunk."""
    p = fs.interpolants.vp()
    kernel = fs.kernels.euler_maruyama(p, fs.diffusion.square(3.0))
    common: dict[str, Any] = {"nfe": nfe, "kernel": kernel, "grid": fs.grids.quadratic(10)}
    return {
        "rbf": fs.search.rbf(**common, chains=2, width=chunk // 2),
        "svdd": fs.search.svdd(**common, chains=2),
        "smc": fs.search.smc(**common),
    }


@partial(jax.jit, static_argnames=("chunk",))
def bare(flow: fs.Flow, x: jax.Array, chunks: jax.Array, chunk: int) -> jax.Array:
    """The velocity of `chunk` rows, `chunks` times; each starts from the last, as XLA would
    otherwise compute it once."""
    t = jnp.full((chunk,), 0.5, jnp.float32)
    return jax.lax.fori_loop(0, chunks, lambda _, x: flow.velocity_fn(flow.params, x, t, None), x)


def timed(f: Callable[[], Any]) -> tuple[float, float]:
    """Seconds, by the wall clock and of the process."""
    wall, cpu = time.perf_counter(), time.process_time()
    jax.block_until_ready(jax.tree.leaves(f()))
    return time.perf_counter() - wall, time.process_time() - cpu


def blocks_for(ms: float, chunk: int) -> int:
    """Blocks of a model that takes so many milliseconds a candidate, on this machine."""
    x, trial = jnp.ones((chunk, SIDE, SIDE, 3), jnp.float32), 16
    flow = make_flow(SIDE, trial)
    go = partial(timed, lambda: bare(flow, x, jnp.int32(10), chunk))
    go()
    seconds = statistics.median(go()[0] for _ in range(5))
    return max(1, round(trial * ms / (1e3 * seconds / (10 * chunk))))


def size_of(tree: Any) -> int:
    """Bytes of a pytree."""
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(tree))


def bytes_of(flow: fs.Flow, search: fs.search.Search, chunk: int) -> dict[str, int]:
    """What `run` takes beside the parameters, and its parts that cannot be spared."""
    job = prepare(
        jax.random.key(0), flow, search, reward, cond=None, prompt_ids=None, chunk_size=chunk,
        target_reward=None, nfe=None, invalid="error", resume=None,
    )  # fmt: skip
    carry = _begin(job)
    program = run_rounds.lower(carry, job.model, job.program, job.sizes)
    planned: Any = program.compile().memory_analysis()
    x, t = jnp.zeros((chunk, *flow.shape), jnp.float32), jnp.zeros(chunk, jnp.float32)
    model: Any = jax.jit(velocity).lower(flow.params, x, t, None).compile().memory_analysis()
    candidates = 3 * search.n_candidates * x[0].nbytes
    return {
        "run": planned.temp_size_in_bytes + planned.argument_size_in_bytes - size_of(flow.params),
        "state": size_of(jax.eval_shape(lambda c: c.state, carry)),
        "candidates": candidates,
        "chunk": model.temp_size_in_bytes + model.output_size_in_bytes,
    }


def last(results: Any) -> Any:
    """The last of an iterator."""
    return deque(results, maxlen=1).pop()


def ways_of(flow: fs.Flow, search: fs.search.Search, chunk: int) -> dict[str, Callable[[], Any]]:
    """Functions to time; run once here, so that all is compiled."""
    key = jax.random.key(0)
    chunks = fs.run(key, flow, search, reward, chunk_size=chunk).evaluations // chunk
    x = jax.random.normal(key, (chunk, *flow.shape), jnp.float32)
    ways: dict[str, Callable[[], Any]] = {
        "bare": lambda: bare(flow, x, jnp.int32(chunks), chunk),
        "run": lambda: fs.run(key, flow, search, reward, chunk_size=chunk),
        "iterate": lambda: last(fs.iterate(key, flow, search, reward, chunk_size=chunk)),
    }
    for f in ways.values():
        jax.block_until_ready(jax.tree.leaves(f()))
    return ways


def compare(ways: dict[str, Callable[[], Any]], chunk: int, repetitions: int) -> dict[str, Any]:
    """Seconds of one method."""
    found = ways["run"]()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    turns = np.random.default_rng(0)
    for _ in range(repetitions):
        for name in turns.permutation(list(ways)):
            times[name].append(timed(ways[name]))
    return {
        "rounds": len(found.info.time),
        "nfe": found.nfe,
        "evaluations": found.evaluations,
        "chunks": found.evaluations // chunk,
        "seconds": {name: [round(wall, 4) for wall, _ in own] for name, own in times.items()},
        "cpu_seconds": {name: [round(cpu, 4) for _, cpu in own] for name, own in times.items()},
    }


def ratio(row: dict[str, Any], way: str, clock: str = "seconds") -> float:
    """Median over the median of the bare loop."""
    return statistics.median(row[clock][way]) / statistics.median(row[clock]["bare"])


def time_searches(flow: fs.Flow, searches: dict[str, Any], chunk: int, repetitions: int) -> Details:
    """Seconds of every method and way on pictures of one side, printed as they come."""
    prepared, details = partial(ways_of, flow, chunk=chunk), {}
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # XLA compiles on one core
        compiled = list(threads.map(prepared, searches.values()))
    for name, ways in zip(searches, compiled, strict=True):
        row = details[name] = compare(ways, chunk, repetitions)
        bare_seconds = statistics.median(row["seconds"]["bare"])
        print(
            f"{flow.shape[0]:5}{name:>8}{row['rounds']:8}{row['nfe']:6}{row['evaluations']:13}",
            end="",
        )
        print(f"{bare_seconds:9.2f}{ratio(row, 'run'):8.3f}{ratio(row, 'iterate'):9.3f}", end="")
        cpu = (ratio(row, way, "cpu_seconds") for way in ("run", "iterate"))
        print("{:10.3f}{:9.3f}".format(*cpu), flush=True)
    return details


def measure_memory(
    flow: fs.Flow, searches: dict[str, Any], chunk: int
) -> tuple[dict[str, Any], dict[str, float]]:
    """Bytes of every method, and the ratio of what it takes to what it needs."""
    sizes, memory = {}, {}
    print(f"{'method':8}{'run MB':>8}{'state':>8}{'candidates':>12}{'chunk':>8}{'ratio':>8}")
    for name, search in searches.items():
        own = sizes[name] = bytes_of(flow, search, chunk)
        memory[name] = own["run"] / (own["state"] + own["candidates"] + own["chunk"])
        print(f"{name:8}{own['run'] / 1e6:8.2f}{own['state'] / 1e6:8.2f}", end="")
        print(f"{own['candidates'] / 1e6:12.2f}{own['chunk'] / 1e6:8.2f}{memory[name]:8.2f}")
    return sizes, memory


def ratios(details: Details) -> dict[str, Any]:
    """Ratios of one side, by way and method: of the wall clock, and of the process's time."""

    def of(clock: str) -> dict[str, dict[str, float]]:
        return {
            way: {name: ratio(row, way, clock) for name, row in details.items()}
            for way in ("run", "iterate")
        }

    return {**of("seconds"), "cpu": of("cpu_seconds")}


def measure(args: Args) -> dict[str, Any]:
    """All methods."""
    began, load = time.perf_counter(), os.getloadavg()[0]
    nfe, repetitions, sides = (50, 2, [SIDE]) if args.quick else (500, 9, [SIDE, LARGE])
    searches, blocks = make_searches(nfe, args.chunk), blocks_for(MODEL_MS, args.chunk)
    flows = {side: make_flow(side, blocks) for side in sides}
    print(f"{'side':>5}{'method':>8}{'rounds':>8}{'NFE':>6}{'evaluations':>13}", end="")
    print(f"{'bare s':>9}{'run':>8}{'iterate':>9}{'CPU: run':>10}{'iterate':>9}")
    details = {
        side: time_searches(flow, searches, args.chunk, repetitions) for side, flow in flows.items()
    }
    first = details[SIDE].values()
    computed = sum(row["evaluations"] for row in first)
    model_ms = 1e3 * sum(statistics.median(row["seconds"]["bare"]) for row in first) / computed
    print(f"{model_ms:.2f} ms an evaluation; targets {TARGETS}")
    sizes, memory = measure_memory(flows[sides[-1]], searches, args.chunk)
    return {
        "version": fs.__version__,
        "versions": {
            "jax": jax.__version__,
            "jaxlib": jaxlib.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "cores": os.cpu_count(),
        "load": [load, os.getloadavg()[0]],
        "model_ms": model_ms,
        "settings": {
            "side": {"seconds": SIDE, "bytes": sides[-1]},
            "patches": PATCHES,
            "width": WIDTH,
            "blocks": blocks,
            "nfe": nfe,
            "chunk": args.chunk,
            "grid": "quadratic(10)",
            "repetitions": repetitions,
            "finish": "complete",
        },
        **ratios(details[SIDE]),
        "memory": memory,
        "large": None if args.quick else ratios(details[LARGE]),
        "targets": TARGETS,
        "details": details,
        "bytes": sizes,
        "seconds": time.perf_counter() - began,
    }


def main(args: Args) -> None:
    """Measure, then write what was asked for."""
    results = measure(args)
    save_json(args.json, results)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
