"""Programs compiled for a TPU, what that told kept in a folder: a plan goes on where it stopped."""

import hashlib
import json
import re
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from _files import replace_file
from _hlo import Collective, collectives, loops
from _tpu_estimate import Facts

OPTIONS: dict[str, str | bool] = {
    # Products with gathered weights in one piece instead of a loop over pieces, which adds results
    # up in memory and which the cost analysis counts once.
    "xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"
}
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class TooLarge(Exception):
    """A program that the compiler finds no room for; `bytes` is what it wants."""

    def __init__(self, wanted: int):
        super().__init__(wanted)
        self.bytes = wanted


class NotCompiled(Exception):
    """A program that the cache does not have."""


def facts(
    lowered: jax.stages.Lowered, topology: str, cache: Path, *, compiling: bool = True
) -> Facts:
    """Of a program, from the cache where it has been compiled before.

    Args:
      lowered: the program, whose text does not say for which chips it is.
      topology: of the chips.
      cache: a folder.
      compiling: whether it may be compiled now.

    Raises:
      TooLarge: it does not fit.
      NotCompiled: it is not in the cache, and not to be compiled.
    """
    text = lowered.as_text()
    key = json.dumps([text, topology, OPTIONS, jax.__version__, version("libtpu")])
    path = cache / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    if not path.exists():
        if not compiling:
            raise NotCompiled
        told = _compile(lowered)
        replace_file(path, lambda temporary: temporary.write_text(json.dumps(told)))
    told = json.loads(path.read_text())
    if "too_large" in told:
        raise TooLarge(told["too_large"])
    told["collectives"] = tuple(Collective(*c) for c in told["collectives"])
    return Facts(**told)


def _compile(lowered: jax.stages.Lowered) -> dict[str, Any]:
    began = time.perf_counter()
    try:
        compiled = lowered.compile(compiler_options=OPTIONS)
    except jax.errors.JaxRuntimeError as error:
        found = re.search(r"(?:Used |HLO temporaries \()([\d.]+)([KMGT])", str(error))
        if "RESOURCE_EXHAUSTED" not in str(error) or found is None:
            raise
        return {"too_large": int(float(found[1]) * _UNITS[found[2]])}
    seconds = time.perf_counter() - began
    memory: Any = compiled.memory_analysis()
    cost: Any = compiled.cost_analysis()
    text = str(compiled.as_text())
    peak = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
        - memory.alias_size_in_bytes
    )
    return {
        "peak_bytes": peak,
        "optimal_seconds": cost["optimal_seconds"],
        "flops": cost.get("flops", 0.0),
        "bytes": cost.get("bytes accessed", 0.0),
        "loops": loops(text),
        "collectives": [[c.kind, c.bytes, c.group, c.times] for c in collectives(text)],
        "compile_seconds": seconds,
    }
