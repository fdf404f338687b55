"""What does each device do when there are more of them?

Counted, not timed: programs are compiled for 1, 2, 4 and 8 devices that are simulated on the CPU,
and the compiler says what each of them computes (FLOPs), reads and writes, and sends.

    search, prompts     a round of RBF with the embedded model and its learned reward, prompts split
                        over the mesh: asking, evaluating, telling
    search, particles   the same of one prompt, its candidates split
    SiT, model          the velocity of a SiT of width 1,024 at 256 tokens, parameters split
    FLUX, model         the velocity of a FLUX of width 1,024 at 256 image and 64 text tokens,
                        parameters split
    FLUX, all           the same with the batch split in two

Weak scaling gives each device as much as one had, strong scaling shares what one had. The
efficiency is the FLOPs of the program on one device over those of all devices together, times how
much more work there is. In FLOPs and bytes a loop's body is counted once, whatever the number of
devices: that of the embedded model's blocks; the ports have one block of each kind. Collectives
count as often as they run.

    python benchmarks/scaling.py [--quick] [--json FILE]

Keys of the JSON: version, versions {jax, jaxlib, python}, settings {prompts (a device, weak; in
all, strong), candidates, width, tokens}; rows, each with program, scaling ("weak" or "strong"),
devices, mesh, flops, bytes, collectives (by kind, {count, bytes}), collective_count,
collective_bytes (all a device, the latter of what is reduced, gathered or exchanged), efficiency;
seconds. With --quick there are no more than two devices.
"""

import dataclasses
import math
import pathlib
import platform
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import tyro
from _files import save_json
from _hlo import collectives
from flax import nnx

import flowsde as fs
from flowsde import shapes
from flowsde.models.flux.model import Flux, FluxCond, FluxConfig
from flowsde.models.sit.model import SiT, SiTConfig
from flowsde.runner import rounds
from flowsde.runner.arguments import prepare
from flowsde.runner.run import _begin
from flowsde.sharding import axes_of

DEVICES = (1, 2, 4, 8)
PROMPTS = 2
CANDIDATES = 16
SIT = SiTConfig(width=1024, depth=1, heads=16, size=32)
FLUX = FluxConfig(
    heads=8, axes=(16, 56, 56), double=1, single=1, mlp=4096, text=512, pooled=256, guidance=False
)
TEXT_TOKENS = 64


@dataclasses.dataclass(frozen=True)
class Args:
    """FLOPs, bytes and collectives of each of several devices.

    Attributes:
      quick: at most two devices.
      json: where to write the results.
    """

    quick: bool = False
    json: pathlib.Path | None = None


Sizes = dict[str, int]
"""Devices along each axis of a mesh."""


def mesh_of(sizes: Sizes) -> jax.sharding.Mesh:
    """The first devices."""
    devices = np.asarray(jax.devices()[: math.prod(sizes.values())])
    return jax.sharding.Mesh(devices.reshape(*sizes.values()), tuple(sizes))


def search_round(sizes: Sizes, prompts: int) -> Any:
    """A compiled round of a search."""
    kernel = fs.kernels.ddim(fs.interpolants.linear())
    search = fs.search.rbf(
        nfe=200, kernel=kernel, grid=fs.grids.uniform(10), chains=2, width=CANDIDATES // 2,
        finish="mean",
    )  # fmt: skip
    cond = jax.tree.map(
        lambda a: np.stack([np.asarray(a)] * prompts), shapes.encode("two green triangles")
    )
    job = prepare(
        jax.random.key(0), shapes.load_flow(), search, shapes.load_reward(), cond=cond,
        prompt_ids=np.arange(prompts), chunk_size=None, target_reward=None, nfe=None,
        invalid="error", resume=None, mesh=mesh_of(sizes), rules=None,
    )  # fmt: skip
    one = jax.jit(rounds._round, static_argnames=("program", "sizes"))
    return one.lower(_begin(job), job.model, job.program, job.sizes).compile()


def forward(
    build: Callable[[], nnx.Module], inputs: Callable[[int], Any], sizes: Sizes, batch: int
) -> Any:
    """A compiled velocity, from shapes alone."""
    mesh = mesh_of(sizes)
    # SiT has 1,001 labels, which no two devices share evenly.
    rules = fs.ShardingRules(vocab=None).on(mesh)

    def lying(path: Any, leaf: nnx.Variable) -> nnx.Variable:
        like = leaf.get_value()
        sharding = rules.sharding(str(path), like.shape, axes_of(leaf), mesh)
        return leaf.replace(jax.ShapeDtypeStruct(like.shape, like.dtype, sharding=sharding))

    graph, params = nnx.split(nnx.eval_shape(build))
    params = nnx.map_state(lying, params)
    rows = jax.sharding.PartitionSpec("prompt" if "prompt" in sizes else None)
    split = jax.sharding.NamedSharding(mesh, rows)
    given = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=split), inputs(batch)
    )
    go = jax.jit(lambda params, given: nnx.merge(graph, params)(*given), out_shardings=split)
    # As a search traces a model that is split among devices.
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return go.lower(params, given).compile()


def _like(*shape: int, dtype: Any = jnp.float32) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)


def sit_inputs(n: int) -> Any:
    """(x, t, labels)."""
    return _like(n, SIT.size, SIT.size, SIT.channels), _like(n), _like(n, dtype=jnp.int32)


def flux_inputs(n: int) -> Any:
    """(x, t, cond)."""
    cond = FluxCond(_like(n, TEXT_TOKENS, FLUX.text), _like(n, FLUX.pooled), None)
    return _like(n, 32, 32, FLUX.channels // 4), _like(n), cond


def sit(sizes: Sizes, batch: int) -> Any:
    """Of a SiT."""
    return forward(lambda: SiT(SIT, rngs=nnx.Rngs(0)), sit_inputs, sizes, batch)


def flux(sizes: Sizes, batch: int) -> Any:
    """Of a FLUX."""
    return forward(lambda: Flux(FLUX, rngs=nnx.Rngs(0)), flux_inputs, sizes, batch)


def along(axis: str) -> Callable[[int], Sizes]:
    """Meshes of one axis."""
    return lambda n: {axis: n}


def in_two(n: int) -> Sizes:
    """Half of the devices to each half of the batch."""
    return {"prompt": min(n, 2), "model": max(1, n // 2)}


PROGRAMS: list[tuple[str, str, Callable[[Sizes, int], Any], Callable[[int], Sizes], int]] = [
    ("search, prompts", "weak", search_round, along("prompt"), PROMPTS),
    ("search, prompts", "strong", search_round, along("prompt"), PROMPTS * DEVICES[-1]),
    ("search, particles", "strong", search_round, along("particle"), 1),
    ("SiT, model", "strong", sit, along("model"), 2),
    ("FLUX, model", "strong", flux, along("model"), 2),
    ("FLUX, all", "strong", flux, in_two, 2),
]
"""Name, scaling, program, mesh of so many devices, prompts or rows (weak: a device)."""


def measure(name: str, scaling: str, program: Any, mesh: Any, work: int, devices: int) -> Any:
    """A row but for its efficiency."""
    sizes = mesh(devices)
    compiled = program(sizes, work * devices if scaling == "weak" else work)
    counted = compiled.cost_analysis()
    kinds: dict[str, dict[str, int]] = {}
    for one in collectives(compiled.as_text()):
        kind = kinds.setdefault(one.kind, {"count": 0, "bytes": 0})
        kind["count"] += one.times
        kind["bytes"] += one.times * one.bytes
    return {
        "program": name,
        "scaling": scaling,
        "devices": devices,
        "mesh": sizes,
        "flops": counted["flops"],
        "bytes": counted["bytes accessed"],
        "collectives": kinds,
        "collective_count": sum(kind["count"] for kind in kinds.values()),
        "collective_bytes": sum(kind["bytes"] for kind in kinds.values()),
    }


def main() -> None:
    """Count, print and write."""
    args = tyro.cli(Args, description=__doc__)
    jax.config.update("jax_num_cpu_devices", DEVICES[-1])
    began = time.perf_counter()
    rows = []
    heads = ("devices", "GFLOP", "MB", "sent MB", "eff.")
    print(f"{'program':<20}{'scaling':<8}" + "".join(f"{head:>9}" for head in heads))
    for name, scaling, program, mesh, work in PROGRAMS:
        one = 0.0
        for devices in DEVICES[: 2 if args.quick else None]:
            row = measure(name, scaling, program, mesh, work, devices)
            one = row["flops"] if devices == 1 else one
            share = devices if scaling == "strong" else 1
            row["efficiency"] = one / (share * row["flops"])
            rows.append(row)
            print(
                f"{name:<20}{scaling:<8}{devices:>9}{row['flops'] / 1e9:>9.3f}"
                f"{row['bytes'] / 1e6:>9.1f}{row['collective_bytes'] / 1e6:>9.3f}"
                f"{row['efficiency']:>9.3f}  {row['collectives']}",
                flush=True,
            )
    found = {
        "version": fs.__version__,
        "versions": {
            "jax": jax.__version__,
            "jaxlib": jaxlib.__version__,
            "python": platform.python_version(),
        },
        "settings": {
            "prompts": {"weak": PROMPTS, "strong": PROMPTS * DEVICES[-1]},
            "candidates": CANDIDATES,
            "width": SIT.width,
            "tokens": SIT.tokens,
        },
        "rows": rows,
        "seconds": time.perf_counter() - began,
    }
    save_json(args.json, found)


if __name__ == "__main__":
    main()
