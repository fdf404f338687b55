"""`flowsde train`."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro

from flowsde.cli.described import described
from flowsde.cli.failures import failed
from flowsde.cli.kinds import Flag, Float, Int, shown
from flowsde.cli.settings import flag
from flowsde.shapes.networks import network_named
from flowsde.shapes.runs import export, train
from flowsde.shapes.train import CARD


@dataclasses.dataclass(frozen=True, kw_only=True)
@described
class Recipe:
    """By default each is that of the packaged weights, which their model card names."""

    steps: Int = None
    """Optimiser steps; the learning rate reaches zero at the last."""
    batch_size: Int = None
    """Scenes a step."""
    learning_rate: Float = None
    """Peak, for the matrices that Muon updates."""
    adam_learning_rate: Float = None
    """Peak, for everything else."""
    warmup: Int = None
    """Steps of linear warm-up."""
    clip: Float = None
    """Largest global gradient norm."""
    ema: Float = None
    """Decay of the moving average of the weights, shorter at the start."""
    seed: Int = None
    """Of initialisation, scenes and noise."""
    log_every: Int = None
    """Steps between lines of the log."""
    save_every: Int = None
    """Steps between checkpoints."""
    sheet_every: Int = None
    """Steps between sheets of samples."""

    @property
    def given(self) -> dict[str, Any]:
        """What was asked for."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclasses.dataclass(frozen=True, kw_only=True)
@described
class Train:
    """Train an embedded network, or continue the run in --out; export weights and card."""

    network: Annotated[str, tyro.conf.Positional, shown("{shapes,turbo,scorer}")] = ""
    """Network to train: the text-to-image flow, the one distilled from it, or the scorer, which is
    their given reward."""
    out: Annotated[Path | None, shown("DIR")] = None
    """Folder of the run; runs/NETWORK by default."""
    export_only: Flag = False
    """Export the run's last checkpoint, with its own configuration, without training."""
    overwrite: Flag = False
    """Discard the run in the folder and begin anew; without it, the same command resumes."""
    recipe: Annotated[Recipe, tyro.conf.OmitArgPrefixes] = Recipe()

    def run(self) -> None:
        """Train or export, and print where the files are."""
        folder = Path("runs") / self.network if self.out is None else self.out
        given = self.recipe.given
        if self.export_only:
            for name in ("overwrite",) if self.overwrite else given:
                raise ValueError(
                    f"{flag(name)} has no effect with --export-only, which trains nothing"
                )
            path = export(self.network, folder)
        else:
            config = dataclasses.replace(network_named(self.network).recipe, **given)
            try:
                path = train(self.network, folder, config, self.overwrite)
            except FloatingPointError as error:
                raise failed("failed", error) from error
        print(f"weights {path}\ncard    {folder / CARD}", flush=True)
