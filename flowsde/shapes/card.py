"""Training runs from the command line: train, export weights, write the model card.

An exported run folder holds, beside what `train.fit` writes, ``NAME.safetensors``, ``loss.png``
and ``MODEL_CARD.md``. The last names the data, the recipe and the hash of the weights, and
the command that makes them again.
"""

import contextlib
import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import tyro
from matplotlib.figure import Figure

import flowsde as fs
from flowsde._checks import check_count
from flowsde._files import replacing
from flowsde._text import shown
from flowsde.presets import check_float
from flowsde.report import save_figure
from flowsde.shapes import load_flow, weights
from flowsde.shapes.captions import COLOURS, KINDS, MAX_COUNT, MAX_GROUPS, caption
from flowsde.shapes.data import HELD_OUT, SIZE
from flowsde.shapes.flow_task import flow_task
from flowsde.shapes.model import ModelConfig
from flowsde.shapes.scorer import ScorerConfig
from flowsde.shapes.scorer_task import scorer_task
from flowsde.shapes.train import (
    CARD,
    LOG,
    LOSS,
    ROW,
    Params,
    Task,
    TrainConfig,
    fit,
    latest,
    run_config,
)

_WORLD = (
    f"Procedural {SIZE}x{SIZE} RGB scenes (`flowsde.shapes.data`): anti-aliased, non-touching "
    f"{', '.join(k + 's' for k in KINDS[:-1])} and {KINDS[-1]}s in {', '.join(COLOURS)}, of "
    f"varying size and place on a dark background. Scene i of seed s depends on (s, i) alone."
)
_CAPTIONS = (
    f"Captions name one (a third) or {MAX_GROUPS} groups of 1 to {MAX_COUNT} objects. "
    f"{len(HELD_OUT)} (count, colour, shape) triples never occur in training: "
    f"{'; '.join(caption([g]) for g in sorted(HELD_OUT))}."
)


class Network(NamedTuple):
    """An embedded network: what makes its task, its sizes, and text of its card."""

    task: Any
    sizes: Any
    title: str
    architecture: str
    data: str
    use: str


def _scorer_task(sizes: ScorerConfig) -> Task:
    path = weights.packaged("shapes")
    return scorer_task(sizes, load_flow(), f"{path.name} {weights.sha256(path)}")


NETWORKS = {
    "shapes": Network(
        flow_task,
        ModelConfig(),
        "text-to-image flow of the shapes world",
        "Convolutional stem and head around a transformer over pixel patches with the caption's "
        "words as context tokens and adaLN time conditioning (`flowsde.shapes.model`, Flax NNX). "
        "It predicts the velocity noise - data of the linear interpolant; a tenth of the captions "
        "is dropped, so that classifier-free guidance works.",
        f"{_WORLD} {_CAPTIONS}",
        "Demonstrations and measurements of inference-time search. It knows nothing but these "
        "captions, and gets the counts wrong often, on purpose: that is what search is to mend.",
    ),
    "scorer": Network(
        _scorer_task,
        ScorerConfig(),
        "given reward of the shapes world",
        "Convolutional network whose soft detections are summed over an 8x8 grid and read out as "
        "log-probabilities of the count of each colour and shape (`flowsde.shapes.scorer`, Flax "
        "NNX).",
        f"{_WORLD} Half of the scenes are captions', a quarter of those with triples that the flow "
        "never saw; the others hold 0 to 10 objects of any kind. A third of the pictures are the "
        "flow's posterior means of such scenes at random times; many of the others are damaged, "
        "blended, blurred, faded and made noisy (`flowsde.shapes.scorer_task`).",
        "The reward that searches maximise. Judge results by `flowsde.shapes.checker`, which "
        "shares no weights and no code with it.",
    ),
}


_DEFAULTS = TrainConfig()
_TASK = tyro.conf.arg(metavar="{shapes,scorer}", help_behavior_hint="")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """Train an embedded network, or continue the run in --out; export weights and card."""

    task: Annotated[str, tyro.conf.Positional, _TASK] = ""
    """The text-to-image flow, or the scorer that is its given reward."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Folder of the run; by default runs/TASK."""
    export_only: bool = False
    """Do not train: export the last checkpoint of the run, with its own configuration."""
    config: Annotated[TrainConfig, tyro.conf.OmitArgPrefixes] = _DEFAULTS

    def run(self) -> None:
        """Do it."""
        folder = Path("runs") / self.task if self.out is None else self.out
        make = export if self.export_only else partial(train, config=self.config)
        print(f"weights {make(self.task, folder)}\ncard    {folder / CARD}", flush=True)


def _network(name: str) -> Network:
    if name not in NETWORKS:
        raise ValueError(f"TASK must be one of {', '.join(NETWORKS)}, got '{shown(name)}'")
    return NETWORKS[name]


def make_task(name: str) -> Task:
    """The task of an embedded network."""
    network = _network(name)
    return network.task(network.sizes)


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


def train(name: str, run: Path, config: TrainConfig) -> Path:
    """Train, or continue the run in `run`, and export; the path of the weights.

    Raises:
      ValueError: a setting is wrong, or `run` holds a run of another configuration.
    """
    _network(name)
    _check(config)
    task = make_task(name)
    return _export(name, run, config, fit(task, config, run), config.steps)


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
    return found.step, found.state.ema


def _export(name: str, run: Path, config: TrainConfig, params: Params, step: int) -> Path:
    path = run / f"{name}.safetensors"
    weights.save(path, params, name, dataclasses.asdict(_network(name).sizes))
    write(name, run, path, config, step)
    return path


def read_log(run: Path, step: int) -> list[dict[str, float]]:
    """Rows (step, loss, images_per_second) of a run up to a step, but for damaged lines."""
    path = run / LOG
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    rows = []
    for number, line in enumerate(lines, 1):
        with contextlib.suppress(ValueError, RecursionError):
            rows.append(ROW(json.loads(line), f"{path}, line {number}"))
    return [row for row in rows if row["step"] <= step]


def loss_figure(title: str, rows: list[dict[str, float]]) -> Figure:
    """Training loss against steps."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot([r["step"] for r in rows], [r["loss"] for r in rows], color="#3b6ea8", linewidth=1.4)
    axes.set(xlabel="step", ylabel="loss")
    if rows:
        axes.set_yscale("log")
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", which="both", alpha=0.25)
    return figure


def command(name: str, config: TrainConfig) -> str:
    """What to type to train this network again."""
    options = dataclasses.asdict(config).items()
    return " ".join(
        [f"flowsde train {name}", *(f"--{k.replace('_', '-')} {v}" for k, v in options)]
    )


def _curve(rows: list[dict[str, float]]) -> str:
    if not rows:
        return "(no log)"
    picked = sorted({round(i) for i in np.linspace(0, len(rows) - 1, 6)})
    steps = " | ".join(str(rows[i]["step"]) for i in picked)
    losses = " | ".join(f"{rows[i]['loss']:.4f}" for i in picked)
    return f"| step | {steps} |\n|{'---|' * (len(picked) + 1)}\n| loss | {losses} |"


def _table(values: dict[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in values.items())])


def write(name: str, run: Path, path: Path, config: TrainConfig, step: int) -> None:
    """Write the model card and the loss curve of exported weights into the run's folder.

    Args:
      name: of the network.
      run: folder of the run, with its log.
      path: the weights file.
      config: of the run.
      step: at which the weights were taken.
    """
    network, rows = _network(name), read_log(run, step)
    params, sizes = weights.load(path, name)
    early = f"interrupt it after its checkpoint at step {step:,}, then add `--export-only`"
    stopped = "" if step == config.steps else f"\nThe run was stopped early: {early}.\n"
    rates = [row["images_per_second"] for row in rows]
    uses = (run_config(run) or {}).get("uses")
    text = f"""# {name}: {network.title}

{network.architecture}

{_table(sizes)}

- Parameters: {weights.count(params):,}, stored as bfloat16 ({path.stat().st_size:,} bytes)
- File: `{path.name}`, sha256 `{weights.sha256(path)}`
- Licence: Apache-2.0
- Written by flowsde {fs.__version__}

## Use

{network.use}

## Data

{network.data}{f" The flow is `{uses}`." if uses else ""}

## Recipe

{step:,} of {config.steps:,} steps of {config.batch_size} scenes, seed {config.seed}.
Muon for the matrices of transformer blocks and Adam for the rest, linear warm-up, cosine decay; the
weights are an exponential moving average (`flowsde.shapes.train`).

{_table(dataclasses.asdict(config))}

Speed: {f"{np.median(rates):.0f} images/s (median of the log)" if rates else "not logged"}.

To train it again:

```
{command(name, config)}
```
{stopped}
## Loss

![loss]({LOSS})

{_curve(rows)}
"""
    save_figure(run / LOSS, loss_figure(f"{name}: training loss", rows))
    with replacing(run / CARD) as temporary:
        temporary.write_text(text)
