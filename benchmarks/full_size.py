"""Files as large as published ones: how soon are they recognised, and in how much memory converted?

Each file has the keys and shapes of a published bfloat16 model, in one of its layouts, and no
values: it is sparse, so that its zeros take no space and reading them costs little. `check` is what
`flowsde convert --check` does, from opening the file to the last key. Files of no more than
--gigabytes are also converted, one after the other, each in a process of its own; memory is the
most that it had resident, Python, JAX and mapped files included, which should be at most twice the
largest stacked parameter and 1 GiB.

    python benchmarks/full_size.py [--quick] [--json FILE] [--folder DIR] [--gigabytes N]

What the JSON file has converted already is not converted again.

Keys of the JSON: rows, each {name, family, layout, keys, parameters, bytes, check_seconds, load
(average over a minute, before and after)} and, if converted, {seconds, peak_rss_bytes,
start_rss_bytes, largest_stacked_bytes, limit_rss_bytes}; version, cores.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
import ml_dtypes
import numpy as np
import tyro
from _files import save_json

import flowsde as fs
from flowsde.models.common.paths import parameters
from flowsde.models.family import abstract
from flowsde.models.flux.model import FluxConfig
from flowsde.models.sd3.model import SD3Config
from flowsde.models.sit.model import SiTConfig
from flowsde.models.wan.model import WanConfig
from flowsde_converters import convert, detect
from flowsde_converters.tables import unconvert


@dataclasses.dataclass(frozen=True)
class Args:
    """Seconds of checks, and memory of conversions.

    Attributes:
      quick: small models alone, done in 45 seconds on two cores.
      json: where to write the results.
      folder: where the files go for the time being; twice --gigabytes are needed. The system's
        folder of temporary files by default.
      gigabytes: larger files are checked and not converted.
    """

    quick: bool = False
    json: pathlib.Path | None = None
    folder: pathlib.Path | None = None
    gigabytes: float = 13.0


@dataclasses.dataclass(frozen=True)
class File:
    """A published file, by its family, its configuration (the default one if None) and layout."""

    name: str
    family: str
    layout: str
    config: Any = None

    @property
    def key(self) -> tuple[str, str]:
        """By which its row is found."""
        return self.name, self.layout

    def shapes(self) -> tuple[Any, dict[str, jax.ShapeDtypeStruct]]:
        """The configuration, and the tensors by key."""
        family = detect.families()[self.family]
        config = family.config() if self.config is None else self.config
        zero = np.zeros((), ml_dtypes.bfloat16)
        model = parameters(abstract(family, config))
        like = {path: np.broadcast_to(zero, a.shape) for path, a in model.items()}
        made = unconvert(family.table(config, self.layout), like)
        return config, {k: jax.ShapeDtypeStruct(a.shape, a.dtype) for k, a in made.items()}


def _both(name: str, family: str, config: Any = None) -> list[File]:
    return [File(name, family, layout, config) for layout in ("diffusers", "original")]


FILES = [
    *_both("FLUX.1-dev", "flux", FluxConfig.dev()),
    *_both("FLUX.1-schnell", "flux", FluxConfig.schnell()),
    *_both("FLUX.2-klein-4B", "flux2"),
    *_both("SD3-medium", "sd3", SD3Config.medium()),
    *_both("SD3.5-medium", "sd3", SD3Config.medium_3_5()),
    *_both("SD3.5-large", "sd3", SD3Config.large_3_5()),
    *_both("Z-Image", "zimage"),
    *_both("Wan2.1-1.3B", "wan", WanConfig.t2v_1_3b()),
    *_both("Wan2.1-14B", "wan", WanConfig.t2v_14b()),
    File("SiT-XL/2", "sit", "original", SiTConfig.preset("XL/2", 256)),
    File("T5-XXL", "t5_encoder", "transformers"),
    File("UMT5-XXL", "umt5_encoder", "transformers"),
    File("UMT5-XXL", "umt5_encoder", "original"),
    File("Qwen3-4B", "qwen3", "transformers"),
    File("FLUX.1's autoencoder", "autoencoder_kl", "original"),
    *_both("Wan2.1's autoencoder", "autoencoder_wan"),
]
_CONVERT = pathlib.Path(__file__).with_name("convert.py")
"""Its child converts and tells its memory."""
QUICK = ("SiT-XL/2", "Wan2.1's autoencoder")


def write(path: pathlib.Path, shapes: dict[str, jax.ShapeDtypeStruct]) -> int:
    """A sparse safetensors file of zeros; its bytes."""
    header, end = {}, 0
    for key, like in shapes.items():
        begin, end = end, end + like.size * like.dtype.itemsize
        header[key] = {"dtype": "BF16", "shape": like.shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(file.tell() + end)
    return 8 + len(text) + end


def checked(file: File, path: pathlib.Path) -> dict[str, Any]:
    """Write a file and look at it, as `--check` does.

    Raises:
      ValueError: it is taken for something else.
    """
    config, shapes = file.shapes()
    size = write(path, shapes)
    began = time.perf_counter()
    job = convert.prepare(path)
    seconds = time.perf_counter() - began
    one = job.plans[""]
    found = (one.family.name, one.found.layout, one.found.config)
    if found != (file.family, file.layout, config):
        raise ValueError(f"{file.name} in the layout {file.layout} is taken for {found}")
    return {
        "name": file.name,
        "family": file.family,
        "layout": file.layout,
        "keys": len(shapes),
        "parameters": sum(like.size for like in shapes.values()),
        "bytes": size,
        "check_seconds": seconds,
    }


def converted(path: pathlib.Path, out: pathlib.Path) -> dict[str, Any]:
    """Convert a file, in another process."""
    command = [sys.executable, str(_CONVERT), "--child", str(path), str(out)]
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(ran.stdout)
    del found["cpu_seconds"]
    return found | {"limit_rss_bytes": 2 * found["largest_stacked_bytes"] + 2**30}


def measured(file: File, args: Args) -> dict[str, Any]:
    """Check a file and convert it if it is not too large."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = pathlib.Path(folder) / "model.safetensors"
        row = checked(file, path)
        if row["bytes"] <= 1e9 * args.gigabytes:
            row |= converted(path, pathlib.Path(folder) / "out")
    row["load"] = [load, os.getloadavg()[0]]
    told = f"{file.name:22s} {file.layout:12s} {row['keys']:5d} keys {row['bytes'] / 1e9:6.2f} GB"
    told += f" {row['check_seconds']:6.1f} s to check"
    if "seconds" in row:
        peak, limit = (row[f"{which}_rss_bytes"] / 2**30 for which in ("peak", "limit"))
        told += f", {row['seconds']:6.1f} s to convert, {peak:.2f} GiB of {limit:.2f}"
    print(told, flush=True)
    return row


def main(args: Args) -> None:
    """Measure all, and write what is there after each."""
    about = {"version": fs.__version__, "cores": os.cpu_count()}
    rows = {(row["name"], row["layout"]): row for row in _before(args.json, about)}
    for file in FILES:
        if "seconds" in rows.get(file.key, {}) or (args.quick and file.name not in QUICK):
            continue
        rows[file.key] = measured(file, args)
        every = [rows[one.key] for one in FILES if one.key in rows]
        save_json(args.json, about | {"rows": every})


def _before(path: pathlib.Path | None, about: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of a file of the same version and machine."""
    if path is None or not path.exists():
        return []
    found: dict[str, Any] = json.loads(path.read_text())
    return found["rows"] if about.items() <= found.items() else []


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
