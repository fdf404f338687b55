"""Two sides of a model, a port and the PyTorch class that it was converted from, timed in turns."""

import dataclasses
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from flowsde.models.common.paths import parameters, with_parameters
from flowsde.models.family import abstract
from flowsde_converters.detect import families
from flowsde_converters.tables import convert

BATCH = 4
TARGET = 1.15
_ERROR = 1e-3


@dataclasses.dataclass(frozen=True)
class Pair:
    """One model on both sides.

    Attributes:
      ours: compiled, without arguments; an array.
      theirs: the same in PyTorch.
    """

    ours: Callable[[], jax.Array]
    theirs: Callable[[], torch.Tensor]


def filled(module: Any) -> Any:
    """A module with normal weights whose products keep their size."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
            parameter.normal_(0.0, fan_in**-0.5, generator=generator)
    return module.eval()


def port(family: str, tensors: dict[str, np.ndarray], beside: dict[str, Any] | None) -> Any:
    """Our module of a checkpoint in memory."""
    known = families()[family]
    found = known.recognise(tensors, beside)
    assert found is not None
    model = abstract(known, found.config)
    return with_parameters(model, convert(found.table, tensors, parameters(model)))


def pair(
    family: str,
    module: torch.nn.Module,
    call: Callable[..., jax.Array],
    call_theirs: Callable[..., torch.Tensor],
    inputs: list[np.ndarray],
) -> Pair:
    """Both sides of a class, on the same inputs; `call` takes our module first."""
    tensors = {key: value.detach().numpy() for key, value in module.state_dict().items()}
    config: Any = module.config
    beside = dict(config) if hasattr(config, "keys") else config.to_dict()
    return sides(port(family, tensors, beside), call, call_theirs, inputs)


def sides(
    model: Any,
    call: Callable[..., jax.Array],
    call_theirs: Callable[..., torch.Tensor],
    inputs: list[np.ndarray],
) -> Pair:
    """Ours compiled, with parameters and inputs as arguments, already on the device."""
    graph, state = nnx.split(model)
    compiled = jax.jit(lambda state, *args: call(nnx.merge(graph, state), *args))
    on_device = [jnp.asarray(a) for a in inputs]
    in_torch = [torch.from_numpy(a.astype(np.int64) if a.dtype.kind == "i" else a) for a in inputs]

    def theirs() -> torch.Tensor:
        with torch.inference_mode():
            return call_theirs(*in_torch)

    return Pair(lambda: compiled(state, *on_device), theirs)


def normal(*shape: int) -> np.ndarray:
    """Inputs."""
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def tokens(vocab: int, length: int) -> np.ndarray:
    """Inputs that are texts."""
    return np.random.default_rng(0).integers(3, vocab, (BATCH, length), dtype=np.int32)


def error(both: Pair) -> float:
    """Largest difference over the largest value; this run also compiles."""
    ours, theirs = np.asarray(both.ours()), both.theirs().numpy()
    if ours.shape != theirs.shape:
        raise ValueError(f"ours has shape {ours.shape}, PyTorch's {theirs.shape}")
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def timed(f: Callable[[], Any]) -> float:
    """Seconds of the wall clock."""
    began = time.perf_counter()
    jax.block_until_ready(f())
    return time.perf_counter() - began


def ratios(
    models: Mapping[str, Callable[[int], Pair]], blocks: int, repetitions: int
) -> dict[str, Any]:
    """Our median seconds over PyTorch's, by name; with target, error and details.

    Args:
      models: make both sides, of so many blocks.
      blocks: of each.
      repetitions: of either side, in turns.

    Raises:
      ValueError: the answers differ.
    """
    found, errors, details = {}, {}, {}
    print(f"{'model':18}{'ours s':>9}{'torch s':>9}{'ratio':>8}{'error':>10}   target {TARGET}")
    for name, make in models.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            both = make(blocks)
        errors[name] = error(both)
        if not errors[name] < _ERROR:
            raise ValueError(f"{name}: the answers differ by {errors[name]:.1e} of their size")
        seconds: dict[str, list[float]] = {"ours": [], "torch": []}
        for i in range(repetitions):
            sides = {"ours": both.ours, "torch": both.theirs}
            for side in list(sides)[:: 1 if i % 2 else -1]:
                seconds[side].append(round(timed(sides[side]), 5))
        middle = {side: statistics.median(own) for side, own in seconds.items()}
        found[name], details[name] = middle["ours"] / middle["torch"], seconds
        print(f"{name:18}{middle['ours']:9.3f}{middle['torch']:9.3f}{found[name]:8.3f}", end="")
        print(f"{errors[name]:10.1e}", flush=True)
    return {**found, "target": TARGET, "error": errors, "details": details}
