"""Training of the embedded networks: one loop, resumable exactly, for the flow and the scorer.

The state after step k is a function of the configuration alone: batch k is
scenes [k B, (k + 1) B) of the seed, and step k's noise key is folded in from k. A run that is
killed and started again therefore continues bit for bit from its last checkpoint.

Matrices of the transformer blocks are updated by Muon (Jordan et al., 2024), everything else by
Adam; the learning rate warms up linearly and decays by a cosine; the weights that
are kept are an exponential moving average.
"""

import dataclasses
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from optax.contrib import MuonDimensionNumbers, muon
from tqdm import tqdm

from flowsde import interrupts
from flowsde._keys import from_seed
from flowsde.shapes import data

Params = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a network is trained.

    Attributes:
      steps: optimiser steps; the learning rate reaches zero at the last.
      batch_size: scenes a step.
      learning_rate: peak, for Muon's matrices.
      adam_learning_rate: peak, for everything else.
      warmup: steps of linear warm-up.
      clip: largest global gradient norm.
      ema: decay of the moving average of the weights, shorter at the start.
      seed: of initialisation, scenes and noise.
      log_every, save_every, sheet_every: steps between log lines, checkpoints and sample sheets.
    """

    steps: int = 3000
    batch_size: int = 64
    learning_rate: float = 0.02
    adam_learning_rate: float = 2e-3
    warmup: int = 200
    clip: float = 1.0
    ema: float = 0.999
    seed: int = 0
    log_every: int = 25
    save_every: int = 250
    sheet_every: int = 500


def scene_batch(seed: int, step: int, size: int) -> data.Scenes:
    """Captions' scenes of one step: ``size`` scenes of ``seed`` from number ``step * size`` on."""
    return data.scenes(seed, range(step * size, (step + 1) * size))


class Task(NamedTuple):
    """What is trained.

    Attributes:
      name: of the network, used for its files.
      init: key -> params, a nested dict of arrays.
      loss: (params, key, batch) -> scalar.
      sheet: (params, path) -> None, writes a picture of what the network does; optional.
      batch: (seed, step, size) -> a pytree of arrays, what `loss` gets; a function of these alone.
      uses: weights that `batch` depends on, by name and hash; a run continues only with the same.
    """

    name: str
    init: Callable[[jax.Array], Params]
    loss: Callable[[Params, jax.Array, Any], jax.Array]
    sheet: Callable[[Params, Path], None] | None = None
    batch: Callable[[int, int, int], Any] = scene_batch
    uses: str = ""


class TrainState(NamedTuple):
    """Weights, their moving average, and the optimiser's state."""

    params: Params
    ema: Params
    opt_state: optax.OptState


def _muon_matrices(params: Params) -> Params:
    """Marks the stacked matrices [depth, in, out] of attention and MLP for Muon."""

    def mark(path: tuple[Any, ...], leaf: jax.Array) -> MuonDimensionNumbers | None:
        names = [key.key for key in path]
        is_matrix = names[0] == "blocks" and names[-1] == "kernel" and "modulation" not in names
        return MuonDimensionNumbers(1, 2) if is_matrix else None

    return jax.tree.map_with_path(mark, params)


def optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Clipping, then Muon for the blocks' matrices and Adam for the rest, warmup-cosine."""

    def schedule(peak: float) -> optax.Schedule:
        return optax.warmup_cosine_decay_schedule(0.0, peak, config.warmup, config.steps)

    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        muon(
            schedule(config.learning_rate),
            adam_learning_rate=schedule(config.adam_learning_rate),
            muon_weight_dimension_numbers=_muon_matrices,
        ),
    )


def make_step(task: Task, config: TrainConfig) -> Callable[..., tuple[TrainState, jax.Array]]:
    """(state, step number, scenes) -> (state, loss), compiled, donating the state."""
    tx = optimizer(config)

    def step(state: TrainState, k: jax.Array, scenes: data.Scenes) -> tuple[TrainState, jax.Array]:
        key = jax.random.fold_in(from_seed(config.seed + 1), k)
        loss, grads = jax.value_and_grad(task.loss)(state.params, key, scenes)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            # Optax mixes Python floats with integer counts.
            updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        k = k.astype(jnp.float32)
        decay = jnp.minimum(config.ema, (1.0 + k) / (10.0 + k))
        ema = jax.tree.map(lambda old, new: decay * old + (1.0 - decay) * new, state.ema, params)
        return TrainState(params, ema, opt_state), loss

    return jax.jit(step, donate_argnums=0)


def init_state(task: Task, config: TrainConfig, initial: Params | None = None) -> TrainState:
    """State before step 0: fresh weights, or those of an earlier run."""
    params = task.init(from_seed(config.seed)) if initial is None else initial
    return TrainState(params, jax.tree.map(jnp.copy, params), optimizer(config).init(params))


def fit(task: Task, config: TrainConfig, out: Path, initial: Params | None = None) -> Params:
    """Train `task`, or continue the run in `out`, and return the averaged weights.

    Args:
      task: the network and its loss.
      config: must equal that of the run being continued.
      initial: weights to begin from instead of fresh ones; a run that continues has its own.
      out: folder for checkpoints, ``log.jsonl`` (step, loss, images/s) and sample sheets.

    Raises:
      ValueError: `out` holds a run of another configuration.
    """
    out = out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    _check_config(task, config, out / "config.json")
    manager = ocp.CheckpointManager(
        out / "checkpoints", options=ocp.CheckpointManagerOptions(max_to_keep=2)
    )
    state, start = init_state(task, config, initial), manager.latest_step() or 0
    if start:
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        state = manager.restore(start, args=ocp.args.StandardRestore(abstract))
    log = out / "log.jsonl"
    kept = [line for line in _lines(log) if json.loads(line)["step"] <= start]
    log.write_text("".join(kept))

    step, losses, clock = make_step(task, config), [], time.perf_counter()
    progress = tqdm(total=config.steps, initial=start, unit="step", desc=task.name)

    def batch(k: int) -> Any:
        return task.batch(config.seed, k, config.batch_size)

    with closing(manager), ThreadPoolExecutor(1) as pool, progress:
        upcoming = pool.submit(batch, start)
        for k in range(start, config.steps):
            interrupts.check()
            scenes, upcoming = upcoming.result(), pool.submit(batch, k + 1)
            state, loss = step(state, jnp.asarray(k), scenes)
            losses.append(loss)
            progress.update()
            done = k + 1
            if done % config.log_every == 0:
                mean = float(np.mean(jax.device_get(losses)))
                if not np.isfinite(mean):
                    raise FloatingPointError(f"loss of {task.name} is {mean} at step {done}")
                now = time.perf_counter()
                rate = len(losses) * config.batch_size / (now - clock)
                row = {"step": done, "loss": round(mean, 5), "images_per_second": round(rate, 1)}
                with log.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                progress.set_postfix(loss=f"{mean:.4f}", images_per_s=f"{rate:.0f}")
                losses, clock = [], now
            if done % config.save_every == 0 or done == config.steps:
                manager.save(done, args=ocp.args.StandardSave(state))
            if task.sheet and (done % config.sheet_every == 0 or done == config.steps):
                task.sheet(state.ema, out / f"sheet_{done:06d}.png")
    return state.ema


def _check_config(task: Task, config: TrainConfig, path: Path) -> None:
    wanted = {"task": task.name, "uses": task.uses, **dataclasses.asdict(config)}
    if path.exists():
        found = json.loads(path.read_text())
        if found != wanted:
            raise ValueError(f"{path.parent} holds another run: {found}, asked to train {wanted}")
    else:
        path.write_text(json.dumps(wanted, indent=1))


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines(keepends=True) if path.exists() else []
