"""The model card and the loss curve of an exported training run."""

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from flowsde._files import replacing
from flowsde._version import __version__
from flowsde.pictures import save_figure
from flowsde.shapes import weights
from flowsde.shapes.networks import network_named
from flowsde.shapes.train import (
    CARD,
    LOG,
    LOSS,
    ROW,
    TrainConfig,
    run_config,
)


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
    network, rows = network_named(name), read_log(run, step)
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
- Written by flowsde {__version__}

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
