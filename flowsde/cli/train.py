"""`flowsde train`."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from flowsde.cli.described import described
from flowsde.shapes.runs import export, train
from flowsde.shapes.train import CARD, TrainConfig

_DEFAULTS = TrainConfig()
_NETWORK = tyro.conf.arg(metavar="{shapes,turbo,scorer}", help_behavior_hint="")


@dataclasses.dataclass(frozen=True, kw_only=True)
@described
class Train:
    """Train an embedded network, or continue the run in --out; export weights and card."""

    network: Annotated[str, tyro.conf.Positional, _NETWORK] = ""
    """Network to train: the text-to-image flow, the one distilled from it, or the scorer, which is
    their given reward."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Folder of the run; runs/NETWORK by default."""
    export_only: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Export the run's last checkpoint, with its own configuration, without training."""
    overwrite: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Discard the run in the folder and begin anew; without it, the same command resumes."""
    config: Annotated[TrainConfig, tyro.conf.OmitArgPrefixes] = _DEFAULTS

    def run(self) -> None:
        """Train or export, and print where the files are."""
        folder = Path("runs") / self.network if self.out is None else self.out
        if self.export_only and self.overwrite:
            raise ValueError("--overwrite has no effect with --export-only, which trains nothing")
        begin = partial(train, config=self.config, overwrite=self.overwrite)
        make = export if self.export_only else begin
        print(f"weights {make(self.network, folder)}\ncard    {folder / CARD}", flush=True)
