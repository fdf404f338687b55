"""Contact sheet of a video: some frames of the answer, below those of the steps that led to it."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from flowsde._files import replacing
from flowsde.cli.lineage import Shot, Trace
from flowsde.flow import Flow
from flowsde.models.video_rewards import chosen_frames
from flowsde.pictures import pixels
from flowsde.runner.evaluate import decode
from flowsde.runner.result import Result

_FRAMES, _STEPS = 6, 4
"""Frames of a video, and steps before the answer, at most: each step is decoded as a whole."""
_SIDE, _LEFT, _TOP, _GAP, _LINE = 208, 96, 46, 6, 14


class Row(NamedTuple):
    """A video of the sheet.

    Attributes:
      label: lines beside it.
      video: float [frames, h, w, 3] in [-1, 1].
    """

    label: Sequence[str]
    video: np.ndarray


def draw(path: Path, title: str, trace: Trace, result: Result, flow: Flow) -> None:
    """Write the sheet of a search's answer, and of what it accepted on the way there.

    Args:
      path: of the PNG.
      title: written above.
      trace: of the search.
      result: its last, of a video.
      flow: whose `decode` gives videos.
    """
    before = _way(trace, result)[:-1]
    places = np.linspace(0, len(before) - 1, min(len(before), _STEPS)).round().astype(int)
    steps = [before[i] for i in places.tolist()]
    rows = [Row(_label(one), np.asarray(decode(flow, one.x0[None])[0])) for one in steps]
    write_sheet(path, title, [*rows, Row(["answer"], np.asarray(result.image))])


def _way(trace: Trace, result: Result) -> list[Shot]:
    """What was accepted up to the answer, which is the last; nothing if no line accepted that."""
    end = (float(result.t), float(result.reward))
    ends = [shot for shot in trace.shots if (shot.time, shot.reward) == end]
    return trace.lineage(ends[-1]) if ends else []


def _label(shot: Shot) -> list[str]:
    reward = [] if np.isnan(shot.reward) else [f"reward {shot.reward:.3g}"]
    return [f"t {shot.time:.3f}", *reward]


def write_sheet(path: Path, title: str, rows: Sequence[Row]) -> None:
    """Write a PNG with a row for each video, of six frames at most.

    Args:
      path: of the file.
      title: written above.
      rows: of videos of one shape.
    """
    frames = chosen_frames(len(rows[0].video), _FRAMES)
    height, width = rows[0].video.shape[1:3]
    shrink = min(1.0, _SIDE / max(height, width))
    size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    wide, high = size[0] + _GAP, size[1] + _GAP
    # Two lines of text beside the smallest frames, and a title over the fewest.
    high = max(high, 2 * _LINE + _GAP)
    whole = (max(_LEFT + len(frames) * wide, 480), _TOP + len(rows) * high)
    sheet = Image.new("RGB", whole, "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    pen.text((_GAP, _GAP), title, fill="black", font=font)
    for column, frame in enumerate(frames.tolist()):
        at = (_LEFT + column * wide, _TOP - _LINE - 2)
        pen.text(at, f"{frame + 1}", fill="#555555", font=font)
    for i, row in enumerate(rows):
        top = _TOP + i * high
        for k, line in enumerate(row.label):
            pen.text((_GAP, top + k * _LINE), line, fill="black", font=font)
        for column, frame in enumerate(frames.tolist()):
            small = Image.fromarray(pixels(row.video[frame])).resize(size)
            sheet.paste(small, (_LEFT + column * wide, top))
    with replacing(path) as temporary:
        sheet.save(temporary, format="PNG")
