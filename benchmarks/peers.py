"""How long does a search take beside the same one written the way it is written in PyTorch today?

The embedded model and its given reward, as plain PyTorch modules with the same weights
(`_torch_shapes.py`; that they give the same answers is checked before anything is timed), are
searched by RBF, SVDD, SMC in one pass and Best-of-N written as eager loops (`_torch_search.py`)
and by `flowsde.run`, with the recommended settings of `flowsde sample`, in float32. Both are
charged the same evaluations. RBF has one child of each chain in a batch in PyTorch, and waves of
several in flowsde, which reads them in order; the others have the same batches on both sides.

Seconds are of a whole search of one prompt, from its tokens to the picture in NumPy, without
compilation, in inference mode, both sides with two threads. In one process every prompt is searched
by both sides, one right after the other and in turns first. Random numbers are each side's own, so
that rewards agree on average over prompts only; given the same ones the searches find the same
pictures (`tests/benchmarks/test_peers.py`).

The limit of a search is what its model would take if every evaluation that it is charged were one
of the batch where a row takes least, and nothing else took any time. That least is measured before
each prompt anew, as processors change their speed. What is above it is told apart by `iterate`.

Memory is of processes of their own, which run one search: resident with everything loaded, weights
included, and at most; on a GPU what the framework took there. That search is their first:
`first_s` are its seconds with compilation, without a cache of compiled programs.

    python benchmarks/peers.py [--quick] [--json FILE] [--device cpu|gpu] [--prompts N] [--nfe N]

On a GPU float32 products may use TF32 on both sides, and PyTorch's model and reward are timed as
they are and through `torch.compile`.

Keys of the JSON: version, versions {jax, jaxlib, torch, python}, device, processor, threads, load
(average over a minute, at the start and at the end), settings {nfe, prompts, methods: those of each
search}; rbf, svdd, smc, bon, each {ours_s, peer_s (medians), ratio (peer_s over ours_s), ours_nfe,
peer_nfe, ours_evaluations (surplus and padding included), ours_reward, peer_reward (means over
prompts), limit {row_ms (the least time of a row), of_limit (ours over the limit), rows (computed
over charged), model, verifier (seconds by `iterate` over the limit), medians over prompts},
ours_bytes, peer_bytes (at most), ours_loaded_bytes, peer_loaded_bytes (before the
search), ours_first_s, peer_first_s}, on a GPU the same of compiled and compiled_ratio; error
{velocity, reward} (largest difference over the largest value); model, by size of a batch, {ours_ms,
peer_ms} (of one evaluation without a search); details, by method, {ours, peer, …} (seconds, a list
over prompts each); seconds. It is saved after each method. With --quick memory is RBF's alone.
"""

import dataclasses
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jaxlib
import numpy as np
import torch
import tyro
from _files import save_json
from _torch_search import METHODS, Generated, Problem
from _torch_shapes import TorchScorer, TorchShapes, load, log_likelihood

import flowsde as fs
from flowsde import shapes
from flowsde.cli import presets
from flowsde.cli.settings import Settings
from flowsde.shapes import captions

THREADS = 2
BATCHES = (2, 8, 24)
"""Of the model alone: RBF's in PyTorch and in flowsde, and SMC's."""
_CALLS = 15
_FULL = (16, 32, 64)
"""Batches of which one is taken to be that where a row of the model takes least."""
_ERROR = 1e-5
_PROMPTS = (
    "three red circles and two blue squares",
    "five green triangles",
    "two yellow squares and four cyan circles",
    "one magenta triangle and three green squares",
    "four blue circles and one red triangle",
    "two cyan triangles and two yellow circles",
    "five magenta squares and one blue circle",
    "three yellow triangles and three red squares",
)
Side = Literal["ours", "peer", "compiled"]


@dataclasses.dataclass(frozen=True)
class Args:
    """Seconds and bytes of searches, beside the same ones in PyTorch.

    Attributes:
      quick: one prompt and fewer evaluations, done in 45 seconds on two cores.
      json: where to write the results.
      device: that both sides compute on.
      prompts: of each method, at most eight.
      nfe: evaluations of a search.
      alone: run one search and print what it took: "ours:rbf"; what the memory is measured by.
    """

    quick: bool = False
    json: pathlib.Path | None = None
    device: Literal["cpu", "gpu"] = "cpu"
    prompts: int = 8
    nfe: int = 500
    alone: str | None = None


class Found(NamedTuple):
    """What a search gave."""

    image: np.ndarray
    reward: float
    nfe: int
    evaluations: int


Searcher = Callable[[str, int], Found]
"""A search of a prompt with a seed."""


def settings_of(method: str, nfe: int) -> Settings:
    """The recommended ones; of SMC in one pass, as PyTorch's loop is."""
    one_pass = {"restart_at": 0.0} if method == "smc" else {}
    return presets.resolve("recommended", method, {"nfe": nfe} | one_pass)


def ours(method: str, nfe: int) -> Searcher:
    """`flowsde.run`."""
    flow, reward = shapes.load_flow(), shapes.load_reward()
    search = presets.build(method, settings_of(method, nfe))

    def run(prompt: str, seed: int) -> Found:
        found = fs.run(jax.random.key(seed), flow, search, reward, cond=shapes.encode(prompt))
        image = np.asarray(found.image)
        return Found(image, float(found.reward), found.nfe, found.evaluations)

    return run


class Limit:
    """How far from its limit a search of ours is."""

    def __init__(self, method: str, nfe: int):
        self._flow, self._reward = shapes.load_flow(), shapes.load_reward()
        self._search = presets.build(method, settings_of(method, nfe))
        self._model = jax.jit(self._flow.velocity_fn)
        self._rows: dict[str, list[float]] = {}

    def least_row(self) -> float:
        """Seconds of the model alone, for a row of the batch where it takes least, now."""
        least = float("inf")
        for n in _FULL:
            x, t = np.zeros((n, 32, 32, 3), np.float32), np.full(n, 0.5, np.float32)
            given = jax.device_put((x, t, np.tile(shapes.encode(_PROMPTS[0])[None], (n, 1))))
            seconds = []
            for _ in range(_CALLS // 3):
                began = time.perf_counter()
                jax.block_until_ready(self._model(self._flow.params, *given))
                seconds.append((time.perf_counter() - began) / n)
            least = min(least, statistics.median(seconds))
        return least

    def warm_up(self) -> None:
        """Compile all that is called."""
        self.add(_PROMPTS[0], 0, self.least_row(), 0.0)
        self._rows.clear()

    def add(self, prompt: str, seed: int, row: float, spent: float) -> None:
        """What a prompt took, and where; `row` as `least_row` gave it before."""
        args = (jax.random.key(seed), self._flow, self._search, self._reward)
        *_, found = fs.iterate(*args, cond=shapes.encode(prompt))
        limit, parts = found.nfe * row, found.info.seconds.sum(0)
        now = {
            "row_ms": 1e3 * row,
            "of_limit": spent / limit,
            "rows": found.evaluations / found.nfe,
            "model": float(parts[0]) / limit,
            "verifier": float(parts[1]) / limit,
        }
        for name, value in now.items():
            self._rows.setdefault(name, []).append(value)

    def medians(self) -> dict[str, float]:
        """Over the prompts."""
        return {name: statistics.median(own) for name, own in self._rows.items()}


class Torch(NamedTuple):
    """The peer's model and reward on a device."""

    model: TorchShapes
    scorer: TorchScorer
    device: str

    @classmethod
    def load(cls, device: str) -> "Torch":
        """With the packaged weights."""
        name = "cuda" if device == "gpu" else "cpu"
        model, scorer = load()
        return cls(model.to(name), scorer.to(name), name)

    def compiled(self) -> "Torch":
        """Through `torch.compile`; batches of several sizes share a program."""
        model: Any = torch.compile(self.model, dynamic=True)
        scorer: Any = torch.compile(self.scorer, dynamic=True)
        return Torch(model, scorer, self.device)

    def question(self, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens [1, 8] and wanted counts of a prompt."""
        tokens = torch.from_numpy(shapes.encode(prompt)).long()[None]
        wanted = torch.from_numpy(captions.counts(captions.parse(prompt))).long()
        return tokens.to(self.device), wanted.to(self.device)


def peer(peer: Torch, method: str, nfe: int) -> Searcher:
    """The eager loop."""
    settings = settings_of(method, nfe)

    @torch.inference_mode()
    def run(prompt: str, seed: int) -> Found:
        problem = Problem(peer.model, peer.scorer, *peer.question(prompt))
        best = METHODS[method](problem, Generated(seed, peer.device), settings)
        image = best.x0[0].permute(1, 2, 0).cpu().numpy()
        return Found(image, best.rewards[0], problem.nfe, problem.nfe)

    return run


@torch.inference_mode()
def errors(peer: Torch) -> dict[str, float]:
    """Largest differences of velocity and reward over their largest values."""
    x = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)
    t = np.linspace(0.0, 1.0, 4, dtype=np.float32)
    flow, reward = shapes.load_flow(), shapes.load_reward()
    cond = np.tile(shapes.encode(_PROMPTS[0])[None], (4, 1))
    tokens, wanted = peer.question(_PROMPTS[0])
    point = torch.from_numpy(x).permute(0, 3, 1, 2).to(peer.device)
    with jax.default_matmul_precision("highest"):
        wants = (
            jax.jit(flow.velocity_fn)(flow.params, x, t, cond),
            jax.jit(lambda reward, x, cond: reward(x, cond))(reward, x, cond),
        )
    velocity = peer.model(point, torch.from_numpy(t).to(peer.device), tokens.expand(4, -1))
    told = log_likelihood(peer.scorer(point), wanted)
    gives = (velocity.permute(0, 2, 3, 1).cpu().numpy(), told.cpu().numpy())
    return {
        name: float(np.abs(np.asarray(a) - b).max() / np.abs(b).max())
        for name, a, b in zip(("velocity", "reward"), wants, gives, strict=True)
    }


@torch.inference_mode()
def evaluations(peer: Torch) -> dict[str, dict[str, float]]:
    """Milliseconds of the model alone, by size of the batch, medians in turns."""
    flow, rows = shapes.load_flow(), {}
    ours = jax.jit(flow.velocity_fn)
    for n in BATCHES:
        x, t = np.zeros((n, 32, 32, 3), np.float32), np.full(n, 0.5, np.float32)
        given = jax.device_put((x, t, np.tile(shapes.encode(_PROMPTS[0])[None], (n, 1))))
        tokens = peer.question(_PROMPTS[0])[0].expand(n, -1)
        theirs = torch.from_numpy(x).permute(0, 3, 1, 2).to(peer.device)
        times = torch.from_numpy(t).to(peer.device)
        found: dict[str, list[float]] = {"ours_ms": [], "peer_ms": []}
        for i in range(_CALLS + 2):  # the first ones compile, and warm up
            began = time.perf_counter()
            jax.block_until_ready(ours(flow.params, *given))
            middle = time.perf_counter()
            peer.model(theirs, times, tokens).cpu()
            if i > 1:
                found["ours_ms"].append(1e3 * (middle - began))
                found["peer_ms"].append(1e3 * (time.perf_counter() - middle))
        rows[str(n)] = {name: statistics.median(own) for name, own in found.items()}
    return rows


def timed(run: Searcher, prompt: str, seed: int) -> tuple[float, Found]:
    """Seconds of the wall clock; answers are on the host when they come."""
    began = time.perf_counter()
    found = run(prompt, seed)
    return time.perf_counter() - began, found


def alone(args: Args, side: str, method: str) -> dict[str, Any]:
    """One search in this process: its seconds, and what memory it took."""
    peers = None if side == "ours" else Torch.load(args.device)
    if peers is None:
        run = ours(method, args.nfe)
    else:
        run = peer(peers.compiled() if side == "compiled" else peers, method, args.nfe)
    loaded, _ = memory(args, peers)
    seconds, _ = timed(run, _PROMPTS[0], 0)
    return {"first_s": seconds, "bytes": memory(args, peers)[1], "loaded_bytes": loaded}


def memory(args: Args, peers: Torch | None) -> tuple[int, int]:
    """Bytes in use now and at most: resident, or of the side's framework on the GPU."""
    if args.device == "gpu" and peers is None:
        taken = jax.devices()[0].memory_stats() or {}
        return taken["bytes_in_use"], taken["peak_bytes_in_use"]
    if args.device == "gpu":
        return torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
    rows = pathlib.Path("/proc/self/status").read_text().splitlines()
    sizes = dict(row.split(":", 1) for row in rows)
    now, most = (1024 * int(sizes[name].split()[0]) for name in ("VmRSS", "VmHWM"))
    return now, most


def in_a_process(args: Args, side: Side, method: str) -> dict[str, Any]:
    """`alone` in a process of its own, whose programs are not kept."""
    command = [sys.executable, __file__, "--alone", f"{side}:{method}", "--nfe", str(args.nfe)]
    command += ["--device", args.device]
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "0"}
    found = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return {f"{side}_{name}": value for name, value in json.loads(found.stdout).items()}


def compare(
    args: Args, method: str, searchers: dict[Side, Searcher]
) -> tuple[dict[str, Any], dict[Side, list[float]]]:
    """One method: medians, means, and seconds of every prompt."""
    for run in searchers.values():
        run(_PROMPTS[0], 0)  # compiles, and warms up
    limit = Limit(method, args.nfe)
    limit.warm_up()
    seconds: dict[Side, list[float]] = {side: [] for side in searchers}
    found: dict[Side, list[Found]] = {side: [] for side in searchers}
    for i, prompt in enumerate(_PROMPTS[: args.prompts]):
        least = limit.least_row()
        for side in list(searchers)[:: 1 if i % 2 else -1]:
            spent, answer = timed(searchers[side], prompt, i)
            seconds[side].append(round(spent, 4))
            found[side].append(answer)
        limit.add(prompt, i, least, seconds["ours"][-1])
    row: dict[str, Any] = {"limit": limit.medians()}
    for side, own in found.items():
        row[f"{side}_s"] = statistics.median(seconds[side])
        row[f"{side}_nfe"] = own[0].nfe
        row[f"{side}_reward"] = statistics.mean(one.reward for one in own)
    row["ours_evaluations"] = found["ours"][0].evaluations
    for other, name in (("peer", "ratio"), ("compiled", "compiled_ratio")):
        if f"{other}_s" in row:
            row[name] = row[f"{other}_s"] / row["ours_s"]
    if any(row[f"{side}_nfe"] != row["ours_nfe"] for side in searchers):
        raise ValueError(f"the sides were charged differently: {row}")
    return row, seconds


def processor() -> str:
    """What computes, by name."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    for row in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if row.startswith("model name"):
            return row.partition(":")[2].strip()
    return platform.processor()


def about(args: Args, load: float, peers: Torch) -> dict[str, Any]:
    """The result file without its numbers."""
    versions = {"jax": jax.__version__, "jaxlib": jaxlib.__version__, "torch": torch.__version__}
    return {
        "version": fs.__version__,
        "versions": versions | {"python": platform.python_version()},
        "device": args.device,
        "processor": processor(),
        "threads": THREADS,
        "load": [load, load],
        "settings": {
            "nfe": args.nfe,
            "prompts": args.prompts,
            "methods": {
                method: presets.describe(method, settings_of(method, args.nfe))
                for method in METHODS
            },
        },
        "error": errors(peers),
        "details": {},
    }


def measure(args: Args) -> dict[str, Any]:
    """All methods, saved as they come."""
    began, peers = time.perf_counter(), Torch.load(args.device)
    torch.backends.cudnn.allow_tf32 = False
    results = about(args, os.getloadavg()[0], peers)
    if not max(results["error"].values()) < _ERROR:
        raise ValueError(f"the sides do not compute the same: {results['error']}")
    # As JAX has it on a GPU.
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")
    results["model"] = evaluations(peers)
    print(
        "method   ours s   peer s   ratio  ÷ limit  NFE   ours MB   peer MB   our reward   peer's"
    )
    for method in METHODS:
        searchers: dict[Side, Searcher] = {
            "ours": ours(method, args.nfe),
            "peer": peer(peers, method, args.nfe),
        }
        if args.device == "gpu":
            searchers["compiled"] = peer(peers.compiled(), method, args.nfe)
        row, results["details"][method] = compare(args, method, searchers)
        if method == "rbf" or not args.quick:
            for side in searchers:
                row |= in_a_process(args, side, method)
        results[method] = row
        results["load"][1] = os.getloadavg()[0]
        results["seconds"] = time.perf_counter() - began
        megabytes = [(row.get(f"{side}_bytes", 0) / 1e6) for side in ("ours", "peer")]
        print(f"{method:6}{row['ours_s']:9.3f}{row['peer_s']:9.3f}{row['ratio']:8.2f}", end="")
        print(f"{row['limit']['of_limit']:9.2f}", end="")
        print("{:6}{:10.0f}{:10.0f}".format(row["ours_nfe"], *megabytes), end="")
        print(f"{row['ours_reward']:13.3f}{row['peer_reward']:9.3f}", flush=True)
        save_json(args.json, results)
    return results


def main() -> None:
    """Measure, or run the one search of a process of its own."""
    args = tyro.cli(Args, description=__doc__)
    if not 1 <= args.prompts <= len(_PROMPTS):
        raise SystemExit(f"--prompts must be from 1 to {len(_PROMPTS)}, got {args.prompts}")
    if args.quick:
        args = dataclasses.replace(args, prompts=1, nfe=60)
    # Before JAX starts its threads, one for each core that it may use.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    torch.set_num_threads(THREADS)
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # PyTorch needs some, too
    jax.config.update("jax_platforms", "cuda" if args.device == "gpu" else "cpu")
    if args.alone is not None:
        print(json.dumps(alone(args, *args.alone.split(":"))))
    else:
        measure(args)


if __name__ == "__main__":
    main()
