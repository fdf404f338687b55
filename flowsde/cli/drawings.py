"""What `flowsde sample` draws of a run beside its answers; one that fails is a line on stderr."""

import sys
import threading
from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from flowsde import interrupts
from flowsde._text import shown
from flowsde.cli import pictures, sheet, video_sheet
from flowsde.cli.lineage import Trace
from flowsde.cli.sources.base import Source
from flowsde.runner.result import Result

if TYPE_CHECKING:
    from flowsde.cli.sample import PromptRun

_PATH, _SEARCH, _FRAMES, _SHEET = "path.png", "search.png", "frames.png", "sheet.png"


def names(offer: Source) -> list[str]:
    """Of all files that there may be."""
    frames, several = offer.video is not None, "keep" in offer.named
    return [_PATH, _SEARCH, *[_FRAMES] * frames, *[_SHEET] * several]


def begin(after: float = 0.0) -> None:
    """Import what draws in a thread of its own, in so many seconds if nothing did before."""
    timer = threading.Timer(after, _import)
    timer.daemon = True
    timer.start()


def _import() -> None:
    often, usual = 5e-4, sys.getswitchinterval()
    # A round of a small model takes a few milliseconds, and needs the interpreter several times:
    # each would wait for the five that a thread may keep it.
    sys.setswitchinterval(often)
    try:
        with suppress(Exception):  # drawing says what is wrong
            import_module("flowsde.cli.plots")
    finally:
        sys.setswitchinterval(usual)


def draw(run: "PromptRun", trace: Trace, result: Result, values: dict[str, Any]) -> None:
    """Draw the answers, the plots of a search by a reward, and the frames of a video.

    Args:
      run: of the prompt.
      trace: of its particles.
      result: of its search.
      values: of its result.json.

    Raises:
      Interrupted: a signal came.
    """
    title = f"{shown(run.prompt, 100)} · {run.about['method']}"
    if "kept" in values:
        cells = sheet.cells_of(None, values, run.folder)
        sheet.try_sheet("flowsde sample", run.folder / _SHEET, cells)
        interrupts.check()
    if run.offer.video is not None:
        path = run.folder / _FRAMES
        frames = partial(video_sheet.draw, path, title, trace, result, run.flow)
        pictures.try_to_draw("flowsde sample", path, frames)
        interrupts.check()
    if not run.offer.has_reward:
        return
    # Imported here: Matplotlib takes half of the time that imports take.
    from flowsde.cli import plots

    thumbnails = run.offer.thumbnails(run.flow)
    drawn = {
        _PATH: lambda: plots.path_figure(title, trace, result, thumbnails),
        _SEARCH: lambda: plots.search_figure(title, run.search, result, run.flow.evaluations),
    }
    for name, figure in drawn.items():
        pictures.try_to_draw("flowsde sample", run.folder / name, figure)
        interrupts.check()
