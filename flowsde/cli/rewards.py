"""`flowsde rewards`: what `--reward` may be, and which converted models here serve it."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import tyro

from flowsde._checks import check_path
from flowsde._text import shown as quoted
from flowsde.cli.described import described
from flowsde.cli.options import shown
from flowsde.cli.sources.known import KNOWN
from flowsde.models import registry
from flowsde.models.converted.opened import open_model


class _Line(NamedTuple):
    """Of the table."""

    name: str
    told: str
    gradient: str
    needs: str
    says: str


_EMBEDDED = (
    _Line("likelihood", "prompt", "yes", "the embedded model", "log-likelihood of its objects"),
    _Line("rss", "prompt", "yes", "the embedded model", "squared error of its counts, negative"),
)
_OUTSIDE = (
    _Line(
        "URL#MODEL", "prompt", "no", "an OpenAI-compatible server", "log-odds of Yes, by its model"
    ),
    _Line(
        "MODULE:FUNCTION",
        "prompt",
        "no",
        "your function",
        "(images [n, h, w, 3], prompts) -> n floats",
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
@described
class Rewards:
    """List what --reward of sample, batch, score and serve-reward may be, and what each needs.

    --heldout may be the same, but for none. With folders, also which of the converted models there
    serve which reward.
    """

    folder: Annotated[tuple[Path, ...], tyro.conf.Positional, shown("[FOLDER...]")] = ()
    """Folders of converted models, or with such folders in them."""

    def run(self) -> int:
        """Print.

        Raises:
          ValueError: a folder is none.
        """
        for folder in self.folder:
            if not check_path("FOLDER", folder).is_dir():
                raise ValueError(f"FOLDER: {quoted(folder)} is no folder")
        print("\n".join(table()))
        if self.folder:
            ready = list(served_by(self.folder))
            print("\n" + "\n".join(ready or ["no converted model here serves a reward"]))
        return 0


def table() -> list[str]:
    """Every reward, a line each."""
    lines = [_Line("reward", "told", "gradient", "needs", "what it is"), *_EMBEDDED]
    for name, known in KNOWN.items():
        needs = " and ".join([*known.folders, *["questions"] * known.asks]) or "–"
        told = "prompt" if known.reads_text else "–"
        gradient = "–" if name == "none" else "yes" if known.on_device else "no"
        lines.append(_Line(name, told, gradient, needs, known.says))
    lines += _OUTSIDE
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(cell.ljust(n) for cell, n in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def served_by(folders: Sequence[Path]) -> Iterator[str]:
    """Options that take the converted models in these folders, a line a reward."""
    found: dict[str, list[Path]] = {}
    for folder in folders:
        for one in [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]:
            if (family := _family(one)) is not None:
                found.setdefault(family, []).append(one)
    for name, known in KNOWN.items():
        if known.families and all(family in found for family in known.families):
            models = [f"--reward-model {quoted(found[family][0])}" for family in known.families]
            asked = " --reward-questions FILE.json" * known.asks
            yield f"--reward {name} {' '.join(models)}{asked}"


def _family(folder: Path) -> str | None:
    try:
        return open_model(folder, registry.families(), verify=False).family.name
    except (OSError, ValueError):
        return None
