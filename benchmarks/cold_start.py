"""How long does it take to begin?

Every number is of fresh processes, one after the other, and a median over repetitions:

- import_s: importing flowsde once jax and flax are imported (flax.nnx, which flax itself leaves
  out, counts as flowsde's), by the clock inside the process;
- first_image_s: ``flowsde sample "three red circles and two blue squares"`` from the start of the
  process to its end, all files written, with an empty folder of compiled programs;
- first_image_warm_s: the same again, with the programs that the first left there.

    python benchmarks/cold_start.py [--quick] [--json FILE]

What the system caches of files is not dropped, and Python's bytecode, as an installation makes it,
and Matplotlib's list of fonts are there before anything is timed.

Keys of the JSON: import_s, first_image_s, first_image_warm_s; baseline_s (importing jax and flax),
search_s {cold, warm} (what the command itself counts, without importing and reading weights);
where {cold, warm} (seconds of one more run of each, by what its main thread does); kept_bytes,
kept_programs (in the folder of compiled programs); targets {import_s}; settings {command,
repetitions}; details, by number, a list over repetitions; version, versions {jax, jaxlib, flax,
python}, cores, load (average over a minute, at the start and at the end), seconds.
"""

import compileall
import dataclasses
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import flax
import jax
import jaxlib
import matplotlib.font_manager
import tyro
from _files import save_json

import flowsde as fs

PROMPT = "three red circles and two blue squares"
TARGETS = {"import_s": 1.5}
_WHERE = pathlib.Path(__file__).with_name("_cold_start_where.py")
_IMPORT = """
import time
start = time.perf_counter()
import jax, flax
middle = time.perf_counter()
import flowsde
print(middle - start, time.perf_counter() - middle)
"""


@dataclasses.dataclass(frozen=True)
class Args:
    """Seconds of importing, and until there is an image.

    Attributes:
      quick: one repetition, done in 45 seconds on two cores.
      json: where to write the results.
    """

    quick: bool = False
    json: pathlib.Path | None = None


def import_seconds() -> tuple[float, float]:
    """Of jax and flax, and of flowsde after them."""
    command = [sys.executable, "-c", _IMPORT]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    first, second = map(float, found.stdout.split())
    return first, second


def sample_seconds(folder: pathlib.Path, where: bool = False) -> tuple[float, float]:
    """Of a whole command, and what it counts itself; `folder` has results and caches.

    With `where` a file of this name gets what took how long.
    """
    # The settings of JAX would come before the folder.
    own = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    own |= {"XDG_CACHE_HOME": str(folder / "caches"), "MPLCONFIGDIR": matplotlib.get_cachedir()}
    script = [str(_WHERE), str(folder / "where")] if where else ["-m", "flowsde"]
    command = [sys.executable, *script, "sample", PROMPT, "--overwrite"]
    began = time.perf_counter()
    subprocess.run(
        [*command, "--out", str(folder / "out")], env=own, check=True, capture_output=True
    )
    seconds = time.perf_counter() - began
    about = json.loads((folder / "out" / "result.json").read_text())
    return seconds, about["seconds"]["total"]


def where_it_goes() -> dict[str, dict[str, float]]:
    """Seconds of a command by what it does, the first time and again."""
    found = {}
    with tempfile.TemporaryDirectory() as made:
        for name in ("cold", "warm"):
            sample_seconds(pathlib.Path(made), where=True)
            found[name] = json.loads((pathlib.Path(made) / "where").read_text())
    return found


def kept(folder: pathlib.Path) -> list[int]:
    """Bytes of every program in a folder of caches."""
    return [path.stat().st_size for path in folder.rglob("*-cache")]


def repeat(repetitions: int) -> tuple[dict[str, list[float]], list[int]]:
    """Every number, over and over; and the bytes of the programs kept."""
    names = ("baseline_s", "import_s", "first_image_s", "first_image_warm_s", "cold", "warm")
    details: dict[str, list[float]] = {name: [] for name in names}
    sizes: list[int] = []
    # Whatever PYTHONDONTWRITEBYTECODE says of a checkout.
    compileall.compile_dir(pathlib.Path(fs.__file__).parent, quiet=1)
    import_seconds()
    for _ in range(repetitions):
        with tempfile.TemporaryDirectory() as made:
            folder = pathlib.Path(made)
            found = [*import_seconds()]
            cold, warm = sample_seconds(folder), sample_seconds(folder)
            sizes = kept(folder / "caches")
        found += [cold[0], warm[0], cold[1], warm[1]]
        for name, value in zip(names, found, strict=True):
            details[name].append(round(value, 4))
        print("  ".join(f"{name} {values[-1]:.2f}" for name, values in details.items()), flush=True)
    return details, sizes


def measure(args: Args) -> dict[str, Any]:
    """Medians of all."""
    began, load = time.perf_counter(), os.getloadavg()[0]
    repetitions = 1 if args.quick else 5
    details, sizes = repeat(repetitions)
    middle = {name: statistics.median(values) for name, values in details.items()}
    versions = {one.__name__: one.__version__ for one in (jax, jaxlib, flax)}
    return {
        **{name: middle[name] for name in ("import_s", "first_image_s", "first_image_warm_s")},
        "baseline_s": middle["baseline_s"],
        "search_s": {name: middle[name] for name in ("cold", "warm")},
        "where": where_it_goes(),
        "kept_bytes": sum(sizes),
        "kept_programs": len(sizes),
        "targets": TARGETS,
        "settings": {"command": f'flowsde sample "{PROMPT}"', "repetitions": repetitions},
        "details": details,
        "version": fs.__version__,
        "versions": versions | {"python": platform.python_version()},
        "cores": os.cpu_count(),
        "load": [load, os.getloadavg()[0]],
        "seconds": time.perf_counter() - began,
    }


def main() -> None:
    """Measure, and write what is asked for."""
    args = tyro.cli(Args, description=__doc__)
    results = measure(args)
    save_json(args.json, results)


if __name__ == "__main__":
    main()
