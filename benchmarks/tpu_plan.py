"""Do searches with published models fit on eight TPUs, and how fast would they be?

Compiled for the chips' topologies on a machine without any, from shapes alone, in bfloat16: the
step of `flowsde.run` that evaluates a round of RBF with FLUX.1 and SiT-XL/2, the text encoders, the
autoencoders' decoders, and what the search itself does between two evaluations. Bytes are the
compiler's; seconds are estimated from parts, see `_tpu_estimate.py`, and rest on assumptions that
the results repeat. Nothing here ran on a TPU.

    pip install "flowsde[tpu]"
    python benchmarks/tpu_plan.py [--quick] [--json FILE] [--only WORDS] [--compiled] [--cache DIR]
                                  [--keep]

Compiling everything takes hours on a core; what has been compiled is kept in the cache. `--only`
takes those programs whose name has all of these words, `--compiled` those in the cache. With
`--keep` the file's rows of all other programs stay in it.

Keys of the JSON: version, versions {jax, jaxlib, libtpu, python}, chips, by name {topology, flops,
hbm, bandwidth, link, source}; assumptions; options (of the compiler); programs, each {name, model,
resolution, chip, chips, layout, mesh {prompt, particle, model}, rules, batch, prompts, detail,
fits, peak_bytes (on a chip), and, unless the compiler found no room, estimated_seconds (of a call),
flops (of a call, all chips), peak_share, peak_share_range, nfe_per_second (a chip; null where
nothing is evaluated), parts {compute {name, count, seconds_each}, compute_seconds,
attention_seconds, attention_flops, collective_seconds}, collectives, by kind {count, bytes,
seconds}, limits, lost_seconds, compile_seconds}; rbf, where its evaluations are planned and fit,
{name, model, resolution, chip, layout, batch, prompts, nfe, missing (names of programs that it
takes and that are not planned: their seconds are left out), seconds_per_image (of all NFE, the
chips shared by `prompts` that are searched together, their reward not among it), images_per_hour,
seconds {evaluate, decode, ask_tell (of a round), encode (of a prompt); null if missing},
resident_bytes (a chip's, were all but the encoders in memory at once with all that they need; null
if missing)}; seconds.
"""

import os

# Before JAX is imported: nothing is run on a TPU, and none is asked for what it is.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
# Its lock is for chips, and this uses none.
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import dataclasses
import json
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
      keep: the rows that the JSON file has of programs that are not planned now.
    """

    quick: bool = False
    json: pathlib.Path | None = None
    only: tuple[str, ...] = ()
    cache: pathlib.Path = pathlib.Path(tempfile.gettempdir()) / "flowsde-tpu-plan"
    compiled: bool = False
    keep: bool = False


def plan(entry: Entry, cache: pathlib.Path, compiling: bool) -> dict[str, Any]:
    """A row of `programs`; `NotCompiled` where it would have to be compiled and is not to be."""
    chip, layout = CHIPS[entry.chip], entry.layout
    devices = mesh(chip, layout.sizes)
    place = Place(devices, layout.rules.on(devices))
    program = entry.build(place)
    row = {
        "name": entry.name,
        "model": entry.model,
        "resolution": entry.resolution,
        "chip": chip.name,
        "chips": place.mesh.size,
        "layout": layout.name,
        "mesh": dict(zip(MESH, layout.sizes, strict=True)),
        "rules": {name: axes for name, axes in vars(place.rules).items() if axes is not None},
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


def looped(row: dict[str, Any], loops: int | None) -> float:
    """Seconds of a program whose loop over all but the first frame runs so often; None as it is."""
    seconds = row["estimated_seconds"]
    if loops is None:
        return seconds
    parts = row["parts"]
    loop = parts["compute"][0]
    attention = parts["attention_seconds"] / (loop["count"] + 1)
    return seconds + (loops - loop["count"]) * (loop["seconds_each"] + attention)


def searches(rows: dict[str, dict[str, Any]], uses: dict[str, Uses]) -> list[dict[str, Any]]:
    """The NFE of an image by RBF, where its evaluations are planned, and nothing does not fit."""
    made = []
    for name, own in uses.items():
        needed = [name, own.decode, own.ask_tell, *own.encode]
        missing = [other for other in needed if other not in rows]
        if name in missing or not all(rows[n]["fits"] for n in needed if n in rows):
            continue
        row = rows[name]

        def seconds_of(
            other: str, share: float = 1.0, loops: int | None = None, rows: Any = rows
        ) -> float | None:
            return share * looped(rows[other], loops) if other in rows else None

        decoded = rows.get(own.decode, row)["batch"]
        encoded = [seconds_of(n, 1 / rows.get(n, row)["batch"]) for n in own.encode]
        seconds = {
            "evaluate": seconds_of(name),
            "decode": seconds_of(own.decode, row["batch"] / decoded, own.loops),
            "ask_tell": seconds_of(own.ask_tell),
            "encode": None if None in encoded else sum(one or 0.0 for one in encoded),
        }
        a_round = sum(seconds[part] or 0.0 for part in ("evaluate", "decode", "ask_tell"))
        each = own.nfe / row["batch"] * a_round + (seconds["encode"] or 0.0)
        held = [name, own.decode, own.ask_tell]
        # The video that a longer decoding makes is not in its program's bytes.
        whole = not {*held} & {*missing} and own.loops is None
        made.append(
            {key: row[key] for key in SHARED}
            | {
                "nfe": own.nfe,
                "missing": missing,
                "seconds_per_image": each,
                "images_per_hour": 3600 / each,
                "seconds": seconds,
                "resident_bytes": sum(rows[n]["peak_bytes"] for n in held) if whole else None,
            }
        )
    return made


def kept(
    path: pathlib.Path | None, rows: list[dict[str, Any]], listed: list[Entry]
) -> list[dict[str, Any]]:
    """Rows, and those of a file of all other programs, in the order of the list.

    Raises:
      SystemExit: the file is of another compiler.
    """
    if path is None or not path.exists():
        return rows
    old = json.loads(path.read_text())
    for name in ("jax", "libtpu"):
        if old["versions"][name] != version(name):
            raise SystemExit(f"--keep: {path} is of {name} {old['versions'][name]}, not this one")
    by_name = {row["name"]: row for row in [*old["programs"], *rows]}
    return [by_name[entry.name] for entry in listed if entry.name in by_name]


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
    if args.keep:
        rows = kept(args.json, rows, listed)
    found = results(rows, listed, time.perf_counter() - began)
    for row in found["rbf"]:
        print(f"{row['name']:58s} {row['seconds_per_image']:8.2f} s an image of {row['nfe']} NFE")
    if args.json is not None:
        write_json(args.json, found)


if __name__ == "__main__":
    main(tyro.cli(Args))
