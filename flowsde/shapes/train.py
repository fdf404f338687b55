"""Training of the embedded networks: one loop, resumable exactly, for the flow and the scorer.

The state after step k is a function of the configuration alone: batch k is
scenes [k B, (k + 1) B) of the seed, and step k's noise key is folded in from k. A run that is
killed and started again therefore continues bit for bit from its last checkpoint.

    OUT/log.jsonl, sheet_*.png    what the run says of itself
    OUT/.flowsde/config.json      of the run: while it is there, the files above are the run's
    OUT/.flowsde/checkpoints/     its states, with the log so far (`flowsde._states`)

Matrices of the transformer blocks are updated by Muon (Jordan et al., 2024), everything else by
Adam; the learning rate warms up linearly and decays by a cosine; the weights that
are kept are an exponential moving average.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers, muon
from tqdm import tqdm

from flowsde import _own, _states, interrupts
from flowsde._files import HIDDEN, read_json, replacing, write_json
from flowsde._keys import from_seed
from flowsde._schema import array, fields, items, number, text, whole
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


def _muon_matrices(params: Params) -> Params:
    """Marks the stacked matrices [depth, in, out] of attention and MLP for Muon."""

    def mark(path: tuple[Any, ...], leaf: jax.Array) -> MuonDimensionNumbers | None:
        names = [key.key for key in path]
        is_matrix = "blocks" in names and names[-1] == "kernel" and "modulation" not in names
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


class Task(NamedTuple):
    """What is trained.

    Attributes:
      name: of the network, used for its files.
      init: key -> params, a nested dict of arrays.
      loss: (params, key, batch) -> scalar.
      sheet: (params, path) -> None, writes a picture of what the network does; optional.
      batch: (seed, step, size) -> a pytree of arrays, what `loss` gets; a function of these alone.
      uses: weights that `init`, `loss` or `batch` depend on, by name and hash; a run continues only
        with the same.
      optimizer: of `params`, given the configuration.
      final: params -> those of the network that is named, if others learn beside it.
      least_batch: the fewest scenes a step.
    """

    name: str
    init: Callable[[jax.Array], Params]
    loss: Callable[[Params, jax.Array, Any], jax.Array]
    sheet: Callable[[Params, Path], None] | None = None
    batch: Callable[[int, int, int], Any] = scene_batch
    uses: str = ""
    optimizer: Callable[[TrainConfig], optax.GradientTransformation] = optimizer
    final: Callable[[Params], Params] = lambda params: params
    least_batch: int = 1


class TrainState(NamedTuple):
    """Weights, their moving average, and the optimiser's state."""

    params: Params
    ema: Params
    opt_state: optax.OptState


def make_step(task: Task, config: TrainConfig) -> Callable[..., tuple[TrainState, jax.Array]]:
    """(state, step number, scenes) -> (state, loss), compiled, donating the state."""
    tx = task.optimizer(config)

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


def init_state(task: Task, config: TrainConfig) -> TrainState:
    """State before step 0."""
    params = task.init(from_seed(config.seed))
    return TrainState(params, jax.tree.map(jnp.copy, params), task.optimizer(config).init(params))


def fit(task: Task, config: TrainConfig, out: Path, overwrite: bool = False) -> Params:
    """Train `task`, or continue the run in `out`, and return the averaged weights.

    Args:
      task: the network and its loss.
      config: must equal that of the run being continued.
      out: folder for checkpoints, ``log.jsonl`` (step, loss, images/s) and sample sheets.
      overwrite: begin anew, whatever run the folder holds.

    Raises:
      ValueError: `out` holds a run of another configuration, a log that is not of flowsde's, or
        another process is writing to it.
      FloatingPointError: the loss or the weights are not finite. No such weights are saved.
    """
    with _own.locked(out) as hidden:
        if overwrite and (hidden / CONFIG).exists():
            _discard(hidden, out)
        return _fit(task, config, out, hidden)


def _fit(task: Task, config: TrainConfig, out: Path, hidden: Path) -> Params:
    """`fit`, in a folder whose lock is held."""
    last = _begin(task, config, out, hidden)
    state, start = init_state(task, config), 0
    rows: list[Row] = []
    if last is not None:
        state, start, rows = last
    _write_log(out, rows)

    step, losses, clock = make_step(task, config), [], time.perf_counter()
    progress = tqdm(total=config.steps, initial=start, unit="step", desc=task.name)

    def batch(k: int) -> Any:
        return task.batch(config.seed, k, config.batch_size)

    with ThreadPoolExecutor(1) as pool, progress:
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
                    raise FloatingPointError(f"the loss is {mean} at step {done}; {_DIVERGED}")
                now = time.perf_counter()
                rate = len(losses) * config.batch_size / (now - clock)
                rows.append(
                    {"step": done, "loss": round(mean, 5), "images_per_second": round(rate, 1)}
                )
                _write_log(out, rows)
                progress.set_postfix(loss=f"{mean:.4f}", images_per_s=f"{rate:.0f}")
                losses, clock = [], now
            if done % config.save_every == 0 or done == config.steps:
                _save(hidden, task, config, Checkpoint(state, done, rows))
            if task.sheet and (done % config.sheet_every == 0 or done == config.steps):
                task.sheet(task.final(state.ema), out / f"sheet_{done:06d}.png")
    return task.final(state.ema)


LOG, CONFIG, _CHECKPOINTS = "log.jsonl", "config.json", "checkpoints"
LOSS, CARD = "loss.png", "MODEL_CARD.md"
_DIVERGED = "training has diverged: expected smaller learning rates"
Row = dict[str, Any]
ROW = fields(step=whole(1), loss=number, images_per_second=number)
_CONFIG = fields(
    task=text,
    uses=text,
    **{
        field.name: number if isinstance(field.default, float) else whole(0, 2**63 - 1)
        for field in dataclasses.fields(TrainConfig)
    },
)


class Checkpoint(NamedTuple):
    """Of a run: the state after a step, and the rows of its log by then."""

    state: TrainState
    step: int
    rows: list[Row]


def _wanted(task: Task, config: TrainConfig) -> dict[str, Any]:
    return {"task": task.name, "uses": task.uses, **dataclasses.asdict(config)}


def _begin(task: Task, config: TrainConfig, out: Path, hidden: Path) -> Checkpoint | None:
    """The checkpoint to go on from; ValueError if the folder is not this run's."""
    wanted, found = _wanted(task, config), run_config(out)
    if found not in (None, wanted):
        raise ValueError(
            f"{out} holds another run, {_differences(found, wanted)}; expected another folder, or "
            f"to overwrite it"
        )
    if found is None and not (hidden / CONFIG).exists():
        if (out / CONFIG).exists() and (out / _CHECKPOINTS).is_dir():
            raise ValueError(
                f"{out} holds a run of an earlier version of flowsde, with which this one cannot "
                f"go on; expected another folder"
            )
        for path in _files(out, task.name):
            if path.exists():
                raise ValueError(f"{path} is not of flowsde's; expected another folder")
    write_json(hidden / CONFIG, wanted)
    return latest(task, config, out)


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Of a run and another one that is asked for."""
    return ", ".join(
        f"of {name} {found[name]}, not {wanted[name]}"
        for name in wanted
        if found[name] != wanted[name]
    )


def _files(out: Path, name: str) -> list[Path]:
    """Of a run of a network, beside the hidden folder."""
    names = (LOG, LOSS, CARD, f"{name}.safetensors")
    return [*(out / own for own in names), *out.glob(f"sheet_{'[0-9]' * 6}.png")]


def _discard(hidden: Path, out: Path) -> None:
    """Say what run a folder holds, and remove it."""
    config = run_config(out)
    found = _states.newest(hidden / _CHECKPOINTS, _states.load)[0]
    at = "without a checkpoint" if found is None else f"at step {found[1].get('step')}"
    print(f"discard the run in {out} {at}", flush=True)
    if (hidden / _CHECKPOINTS).exists():
        _own.discard(hidden / _CHECKPOINTS)
    # What remains if this is killed here stays known as ours.
    (hidden / CONFIG).write_text("{}")
    for path in [] if config is None else _files(out, config["task"]):
        path.unlink(missing_ok=True)


def _save(hidden: Path, task: Task, config: TrainConfig, own: Checkpoint) -> None:
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(own.state.params)):
        raise FloatingPointError(f"weights are not finite after step {own.step}; {_DIVERGED}")
    leaves = jax.tree.leaves_with_path(own.state)
    arrays = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    about = {"config": _wanted(task, config), "step": own.step, "log": own.rows}
    _states.save(hidden / _CHECKPOINTS, arrays, about)


def latest(task: Task, config: TrainConfig, out: Path) -> Checkpoint | None:
    """The last checkpoint of a run that can be read, None if there is none.

    Those that are damaged are passed over, said on stderr.
    """
    like = jax.eval_shape(lambda: init_state(task, config))

    def read(path: Path) -> Checkpoint:
        arrays, about = _states.load(path)
        about = fields(step=whole(1, config.steps), log=items(ROW))(about, str(path))

        def leaf(at: Any, own: Any) -> jax.Array:
            name = jax.tree_util.keystr(at)
            where = f"{path}: {name}"
            return jnp.asarray(array(own.dtype, *own.shape)(arrays.get(name), where))

        return Checkpoint(jax.tree.map_with_path(leaf, like), about["step"], about["log"])

    found, passed = _states.newest(out / HIDDEN / _CHECKPOINTS, read)
    for said in passed:
        print(f"flowsde train: {said}; going on from what was saved before", file=sys.stderr)
    return found


def run_config(out: Path) -> dict[str, Any] | None:
    """What the run in a folder was begun with, None if there is none that can be read."""

    def of_state(path: Path) -> dict[str, Any]:
        return fields(config=_CONFIG)(_states.load(path)[1], str(path))["config"]

    path = out / HIDDEN / CONFIG
    try:
        return _CONFIG(read_json(path), str(path))
    except (FileNotFoundError, ValueError):
        return _states.newest(out / HIDDEN / _CHECKPOINTS, of_state)[0]


def _write_log(out: Path, rows: list[Row]) -> None:
    with replacing(out / LOG) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
