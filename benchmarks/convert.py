"""How fast, and in how much memory, is a large checkpoint converted?

A bfloat16 transformer of random bits (blocks with q, k, v, a projection and an MLP, as large as
FLUX's double blocks) is written as three shards with an index, 6.3 GiB or with --quick 0.4. It is
copied, file by file and flushed to the disk, and converted, in a process of its own, by what
`flowsde convert` runs: reading, checking, hashing, transposing, stacking, writing, reading back.
The system's cache of the files is dropped before each, so that both read from the disk.

Memory is the most that the converting process had resident, Python, JAX and mapped files included.
It should be at most twice the largest stacked parameter and 1 GiB; speed at least half of copying.

    python benchmarks/convert.py [--quick] [--json FILE] [--folder DIR]

Other jobs on the machine slow down converting more than copying, which mostly waits for the disk:
the processor's seconds are given too, and the load.

Keys of the JSON: bytes (of the checkpoint), seconds (of converting), copy_seconds (of copying),
cpu_seconds and copy_cpu_seconds (of the processor, over all threads), peak_rss_bytes,
start_rss_bytes (before converting, all libraries loaded), largest_stacked_bytes, limit_rss_bytes,
speed (copy_seconds over seconds), targets {speed}, version, cores, load (average over a minute,
before and after).
"""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np
import tyro
from _files import save_json
from flax import nnx

import flowsde as fs
from flowsde.models.common.layers import Numerics, stack
from flowsde_converters import convert, detect
from flowsde_converters.family import Convertible, Found
from flowsde_converters.relayout import LINEAR
from flowsde_converters.safetensors_file import SafetensorsWriter
from flowsde_converters.tables import Row, Table

SHARDS = 3
TARGET = 0.5


@dataclasses.dataclass(frozen=True)
class Args:
    """Seconds and bytes of a conversion.

    Attributes:
      quick: a smaller checkpoint, done in 45 seconds on two cores.
      json: where to write the results.
      folder: where the files go for the time being, three times the checkpoint; the system's folder
        of temporary files by default.
    """

    quick: bool = False
    json: pathlib.Path | None = None
    folder: pathlib.Path | None = None


@dataclasses.dataclass(frozen=True)
class Config:
    """Of the stand-in."""

    depth: int
    width: int


class Block(nnx.Module):
    """Parameters of a transformer's block."""

    def __init__(self, config: Config, numerics: Numerics, rngs: nnx.Rngs):
        width = config.width
        self.qkv = numerics.linear(width, 3 * width, ("embed", "heads"), bias=False, rngs=rngs)
        self.out = numerics.linear(width, width, ("heads", "embed"), bias=False, rngs=rngs)
        self.up = numerics.linear(width, 4 * width, ("embed", "mlp"), bias=False, rngs=rngs)
        self.down = numerics.linear(4 * width, width, ("mlp", "embed"), bias=False, rngs=rngs)


class Blocks(nnx.Module):
    """All of them, stacked."""

    def __init__(self, config: Config, numerics: Numerics, rngs: nnx.Rngs):
        self.blocks = stack(lambda r: Block(config, numerics, r), config.depth, rngs)


def shapes_of(config: Config) -> dict[str, jax.ShapeDtypeStruct]:
    """The checkpoint's tensors."""
    width = config.width
    parts = {"q": (width, width), "k": (width, width), "v": (width, width), "out": (width, width)}
    parts |= {"up": (4 * width, width), "down": (width, 4 * width)}
    return {
        f"blocks.{i}.{name}.weight": jax.ShapeDtypeStruct(shape, ml_dtypes.bfloat16)
        for i in range(config.depth)
        for name, shape in parts.items()
    }


def table(config: Config, layout: str) -> Table:
    """All linear, the first three joined."""
    key = "blocks.{{i}}.{}.weight".format
    joined = Row((key("q"), key("k"), key("v")), "blocks.qkv.kernel", LINEAR)
    rows = (Row(key(name), f"blocks.{name}.kernel", LINEAR) for name in ("out", "up", "down"))
    return Table((joined, *rows))


def recognise(tensors: Mapping[str, Any], config: Any) -> Found | None:
    """By its keys."""
    if "blocks.0.up.weight" not in tensors:
        return None
    made = Config(len(tensors) // 6, tensors["blocks.0.up.weight"].shape[1])
    return Found(made, "original", table(made, "original"))


FAMILY = Convertible(name="stand-in", config=Config, build=Blocks, recognise=recognise, table=table)


def generate(folder: pathlib.Path, config: Config) -> None:
    """Shards of random bits that are finite numbers, and their index."""
    shapes = shapes_of(config)
    rng = np.random.default_rng(0)
    where: dict[str, str] = {}
    for shard in range(SHARDS):
        name = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        own = dict(list(shapes.items())[shard::SHARDS])
        with SafetensorsWriter(folder / name, own) as writer:
            for key, like in own.items():
                bits = np.frombuffer(rng.bytes(2 * like.size), np.uint16)
                # Without the exponent's first bit: below 2 in magnitude.
                writer.write(key, (bits & 0xBFFF).view(like.dtype).reshape(like.shape))
        where |= dict.fromkeys(own, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


def forget(folder: pathlib.Path) -> None:
    """Drop the system's cache of files."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def copy(source: pathlib.Path, target: pathlib.Path) -> tuple[float, float]:
    """Seconds of copying a folder's files to the disk: of the clock, and of the processor."""
    began, cpu = time.perf_counter(), time.process_time()
    target.mkdir()
    for path in sorted(source.iterdir()):
        shutil.copyfile(path, target / path.name)
        with (target / path.name).open("rb+") as file:
            os.fsync(file.fileno())
    return time.perf_counter() - began, time.process_time() - cpu


def resident(which: str) -> int:
    """Bytes of this process's memory: VmRSS now, VmHWM at most."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{which}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {which}")


def child(source: pathlib.Path, out: pathlib.Path) -> dict[str, Any]:
    """Convert, in this process."""
    detect.register(FAMILY)
    start, began, cpu = resident("VmRSS"), time.perf_counter(), time.process_time()
    job = convert.prepare(source)
    convert.run(job, out)
    return {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu,
        "peak_rss_bytes": resident("VmHWM"),
        "start_rss_bytes": start,
        "largest_stacked_bytes": job.largest,
    }


def measure(args: Args, folder: pathlib.Path) -> dict[str, Any]:
    """Generate, copy and convert."""
    source, load = folder / "source", os.getloadavg()[0]
    source.mkdir()
    generate(source, Config(20, 1024) if args.quick else Config(30, 3072))
    size = sum(path.stat().st_size for path in source.iterdir())
    print(f"checkpoint  {size / 2**30:8.2f} GiB", flush=True)
    forget(source)
    copy_seconds, copy_cpu = copy(source, folder / "copy")
    shutil.rmtree(folder / "copy")
    print(f"copying     {copy_seconds:8.1f} s", flush=True)
    forget(source)
    command = [sys.executable, __file__, "--child", str(source), str(folder / "out")]
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(ran.stdout)
    limit = 2 * found["largest_stacked_bytes"] + 2**30
    speed = copy_seconds / found["seconds"]
    print(f"converting  {found['seconds']:8.1f} s, {speed:.2f} of the speed of copying")
    print(f"processor   {found['cpu_seconds']:8.1f} s, copying {copy_cpu:.1f} s")
    print(f"memory      {found['peak_rss_bytes'] / 2**30:8.2f} GiB of {limit / 2**30:.2f}")
    return {
        "bytes": size,
        **found,
        "copy_seconds": copy_seconds,
        "copy_cpu_seconds": copy_cpu,
        "limit_rss_bytes": limit,
        "speed": speed,
        "targets": {"speed": TARGET},
        "version": fs.__version__,
        "cores": os.cpu_count(),
        "load": [load, os.getloadavg()[0]],
    }


def main(args: Args) -> None:
    """Measure, then write what was asked for."""
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        results = measure(args, pathlib.Path(folder))
    save_json(args.json, results)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(child(*map(pathlib.Path, sys.argv[2:]))))
    else:
        main(tyro.cli(Args, description=__doc__))
