"""Training runs of the embedded networks: train, and export the weights with their model card.

An exported run folder holds, beside what `train.fit` writes, ``NAME.safetensors``, ``loss.png``
and ``MODEL_CARD.md``. The last names the data, the recipe and the hash of the weights, and
the command that makes them again.
"""

import dataclasses
from pathlib import Path

from flowsde._checks import check_count, check_float
from flowsde.shapes import card, weights
from flowsde.shapes.networks import make_task, network_named
from flowsde.shapes.train import Params, Task, TrainConfig, fit, latest, run_config


def _check(config: TrainConfig) -> None:
    for field in dataclasses.fields(config):
        value, flag = getattr(config, field.name), "--" + field.name.replace("_", "-")
        least = 0 if field.name in ("seed", "warmup") else 1
        if isinstance(field.default, int):
            # `seed + 1` is a seed as well.
            most = {"seed": 2**32 - 2, "batch_size": 100_000}.get(field.name, 2**31 - 1)
            check_count(flag, value, least, most)
        elif check_float(flag, value) <= 0.0:
            raise ValueError(f"{flag} must be a finite number above 0, got {value}")
    if config.warmup >= config.steps:
        raise ValueError(f"--warmup must be below --steps = {config.steps}, got {config.warmup}")
    if config.ema >= 1.0:
        raise ValueError(f"--ema must be below 1, got {config.ema}")


def train(name: str, run: Path, config: TrainConfig, overwrite: bool = False) -> Path:
    """Train, or continue the run in `run`, and export; the path of the weights.

    With `overwrite`, begin anew whatever run is there.

    Raises:
      ValueError: a setting is wrong, or `run` holds a run of another configuration.
      FloatingPointError: as of `train.fit`.
    """
    network_named(name)
    _check(config)
    task = make_task(name)
    if config.batch_size < task.least_batch:
        raise ValueError(
            f"--batch-size must be at least {task.least_batch} for {name}, got {config.batch_size}"
        )
    return _export(name, run, config, fit(task, config, run, overwrite=overwrite), config.steps)


def export(name: str, run: Path) -> Path:
    """Export the last checkpoint of a run, finished or not; the path of the weights.

    Raises:
      FileNotFoundError, ValueError: there is no run of this network, or no checkpoint yet.
    """
    task, config = make_task(name), read_config(name, run)
    step, params = restore(task, config, run)
    return _export(name, run, config, params, step)


def read_config(name: str, run: Path) -> TrainConfig:
    """Configuration of the run in a folder; raises as `export`."""
    values = run_config(run)
    if values is None:
        raise FileNotFoundError(f"--out: no training run at {run}")
    found = values.pop("task")
    if found != name:
        raise ValueError(f"--out: {run} holds a run of {found!r}, expected one of {name!r}")
    del values["uses"]
    return TrainConfig(**values)


def restore(task: Task, config: TrainConfig, run: Path) -> tuple[int, Params]:
    """Step and averaged weights of the last checkpoint; raises as `export`."""
    found = latest(task, config, run)
    if found is None:
        raise ValueError(f"--out: the run at {run} has no checkpoint yet")
    return found.step, task.final(found.state.ema)


def _export(name: str, run: Path, config: TrainConfig, params: Params, step: int) -> Path:
    path = run / f"{name}.safetensors"
    weights.save(path, params, name, dataclasses.asdict(network_named(name).sizes))
    card.write(name, run, path, config, step)
    return path
