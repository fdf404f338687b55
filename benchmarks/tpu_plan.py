"""Do searches with published models fit on eight TPUs, and how fast would they be?

Compiled for the chips' topologies on a machine without any, from shapes alone, in bfloat16: the
step of `flowsde.run` that evaluates a round of RBF with FLUX.1 and SiT-XL/2, the text encoders, the
autoencoders' decoders, and what the search itself does between two evaluations. Bytes are the
compiler's; seconds are estimated from parts, see `_tpu_estimate.py`, and rest on assumptions that
the results repeat. Nothing here ran on a TPU.

    pip install "flowsde[tpu]"
    python benchmarks/tpu_plan.py [--quick] [--json FILE] [--only WORDS] [--compiled] [--cache DIR]

Compiling everything takes more than an hour on a core; what has been compiled is kept in the cache.
`--only` takes those programs whose name has all of these words, `--compiled` those in the cache.

Keys of the JSON: version, versions {jax, jaxlib, libtpu, python}, chips, by name {topology, flops,
hbm, bandwidth, link, source}; assumptions; options (of the compiler); programs, each {name, model,
resolution, chip, chips, layout, mesh {prompt, particle, model}, rules, batch, prompts, detail,
fits, peak_bytes (on a chip), and, unless the compiler found no room, estimated_seconds (of a call),
flops (of a call, all chips), peak_share, peak_share_range, nfe_per_second (a chip; null where
nothing is evaluated), parts {compute {name, count, seconds_each}, compute_seconds,
attention_seconds, attention_flops, collective_seconds}, collectives, by kind {count, bytes,
seconds}, limits, lost_seconds, compile_seconds}; rbf, where all programs that it takes are planned
and fit, {name, model, resolution, chip, layout, batch, prompts, seconds_per_image (500 NFE, the
chips shared by `prompts` that are searched together, their reward not among it), images_per_hour,
seconds {evaluate, decode, ask_tell (of a round), encode (of a prompt)}, resident_bytes (a chip's,
were all but the encoders in memory at once with all that they need)}; seconds.
"""

import os

# Before JAX is imported: nothing is run on a TPU, and none is asked for what it is.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
# Its lock is for chips, and this uses none.
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import dataclasses
import pathlib
import platform
import tempfile
import time
from importlib.metadata import version
from typing import Any

import tyro
from _tpu_chips import CHIPS, MESH, mesh
from _tpu_compile import OPTIONS, NotCompiled, TooLarge, facts
from _tpu_estimate import ASSUMPTIONS, Block, Facts, estimate
from _tpu_list import Entry, Uses, entries, quick
from _tpu_programs import Lower, Place

import flowsde as fs
from flowsde._files import write_json

SHARED = ("name", "model", "resolution", "chip", "layout", "batch", "prompts")


@dataclasses.dataclass(frozen=True)
class Args:
    """Programs on eight TPUs, planned without one.

    Attributes:
      quick: one small program, done in 45 seconds on two cores.
      json: where to write the results.
      only: of programs, words of their names.
      cache: what compiling told.
      compiled: only programs that the cache has.
    """

    quick: bool = False
    json: pathlib.Path | None = None
    only: tuple[str, ...] = ()
    cache: pathlib.Path = pathlib.Path(tempfile.gettempdir()) / "flowsde-tpu-plan"
    compiled: bool = False


def plan(entry: Entry, cache: pathlib.Path, compiling: bool) -> dict[str, Any]:
    """A row of `programs`; `NotCompiled` where it would have to be compiled and is not to be."""
    chip, layout = CHIPS[entry.chip], entry.layout
    place = Place(mesh(chip, layout.sizes), layout.rules)
    program = entry.build(place)
    row = {
        "name": entry.name,
        "model": entry.model,
        "resolution": entry.resolution,
        "chip": chip.name,
        "chips": place.mesh.size,
        "layout": layout.name,
        "mesh": dict(zip(MESH, layout.sizes, strict=True)),
        "rules": {name: axes for name, axes in vars(layout.rules).items() if axes is not None},
        "batch": program.batch,
        "prompts": entry.prompts,
        "detail": entry.detail,
    }

    def of(lower: Lower) -> Facts:
        return facts(lower(), chip.topology, cache, compiling=compiling)

    try:
        whole = of(program.lower)
    except TooLarge as error:
        return row | {"fits": False, "peak_bytes": error.bytes}
    blocks = [Block(b.name, b.depth, of(b.lower)) for b in program.blocks]
    return row | estimate(
        whole=whole,
        blocks=blocks,
        flops=program.flops,
        attention=program.attention,
        nfe=program.nfe,
        chips=place.mesh.size,
        chip=chip,
    )


def searches(rows: dict[str, dict[str, Any]], uses: dict[str, Uses]) -> list[dict[str, Any]]:
    """500 NFE of an image by RBF, where all the programs that it takes are planned and fit."""
    made = []
    for name, own in uses.items():
        needed = [name, own.decode, own.ask_tell, *own.encode]
        if any(not rows.get(other, {}).get("fits") for other in needed):
            continue
        row, decode, ask_tell = (rows[n] for n in (name, own.decode, own.ask_tell))
        seconds = {
            "evaluate": row["estimated_seconds"],
            "decode": decode["estimated_seconds"] * row["batch"] / decode["batch"],
            "ask_tell": ask_tell["estimated_seconds"],
            "encode": sum(rows[n]["estimated_seconds"] / rows[n]["batch"] for n in own.encode),
        }
        a_round = seconds["evaluate"] + seconds["decode"] + seconds["ask_tell"]
        each = own.nfe / row["batch"] * a_round + seconds["encode"]
        made.append(
            {key: row[key] for key in SHARED}
            | {
                "nfe": own.nfe,
                "seconds_per_image": each,
                "images_per_hour": 3600 / each,
                "seconds": seconds,
                "resident_bytes": sum(r["peak_bytes"] for r in (row, decode, ask_tell)),
            }
        )
    return made


def results(rows: list[dict[str, Any]], listed: list[Entry], seconds: float) -> dict[str, Any]:
    """What is written."""
    libraries = {name: version(name) for name in ("jax", "jaxlib", "libtpu")}
    return {
        "version": fs.__version__,
        "versions": libraries | {"python": platform.python_version()},
        "chips": {name: dataclasses.asdict(chip) for name, chip in CHIPS.items()},
        "assumptions": list(ASSUMPTIONS),
        "options": OPTIONS,
        "programs": rows,
        "rbf": searches(
            {row["name"]: row for row in rows}, {e.name: e.uses for e in listed if e.uses}
        ),
        "seconds": seconds,
    }


def told(row: dict[str, Any]) -> str:
    """A row as a line."""
    memory = f"{row['peak_bytes'] / 1e9:6.2f} GB {'fits' if row['fits'] else 'DOES NOT FIT'}"
    if "estimated_seconds" not in row:
        return f"{row['name']:58s} {memory}"
    rate = row["nfe_per_second"]
    return (
        f"{row['name']:58s} {memory} {row['estimated_seconds']:8.4f} s {row['flops']:8.2e} FLOPs "
        f"{row['peak_share']:4.0%} of peak, "
        f"{sum(kind['bytes'] for kind in row['collectives'].values()) / 1e9:6.2f} GB exchanged"
        + (f", {rate:6.2f} NFE/s a chip" if rate else "")
        + f"; limited by {row['limits']}"
    )


def main(args: Args) -> None:
    """Plan, print and write."""
    began = time.perf_counter()
    listed = quick() if args.quick else entries()
    chosen = [e for e in listed if all(word in e.name for word in args.only)]
    if not chosen:
        raise SystemExit(f"no program has {' '.join(args.only)!r} in its name")
    rows = []
    for entry in chosen:
        try:
            rows.append(plan(entry, args.cache, not args.compiled))
        except NotCompiled:
            continue
        print(told(rows[-1]), flush=True)
    found = results(rows, listed, time.perf_counter() - began)
    for row in found["rbf"]:
        print(f"{row['name']:58s} {row['seconds_per_image']:8.2f} s an image of {row['nfe']} NFE")
    if args.json is not None:
        write_json(args.json, found)


if __name__ == "__main__":
    main(tyro.cli(Args))
