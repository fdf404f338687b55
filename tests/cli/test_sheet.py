"""The sheet of a batch."""

from pathlib import Path

import numpy as np
from PIL import Image

from flowsde.cli.sheet import Cell, write_sheet


def _sheet(tmp_path: Path, prompt: str, exact: bool | None, label: str = "1: 0.5") -> np.ndarray:
    picture = tmp_path / "image.png"
    Image.new("RGB", (256, 256), "blue").save(picture)
    write_sheet(tmp_path / "sheet.png", [Cell(picture, label, prompt, exact)])
    with Image.open(tmp_path / "sheet.png") as sheet:
        return np.asarray(sheet).astype(int)


def test_the_verdict_frames_the_picture(tmp_path: Path) -> None:
    yes, no, unknown = (_sheet(tmp_path, "a cat", exact) for exact in (True, False, None))
    corner = (11, 11)
    assert yes[corner][1] > yes[corner][0] + 40, "green"
    assert no[corner][0] > no[corner][1] + 40, "red"
    assert len(set(unknown[corner])) == 1, "grey"
    # The same below it.
    np.testing.assert_array_equal(yes[160:], no[160:])


def test_prompts_are_written_and_fit(tmp_path: Path) -> None:
    none, short = _sheet(tmp_path, "", True), _sheet(tmp_path, "three red circles", True)
    assert (none != short).any()
    other = _sheet(tmp_path, "three red squares", True)
    assert (other != short).any()
    # Neither a long prompt, nor one of a single word or of other scripts, leaves its cell.
    for prompt in ("many words " * 200, "w" * 1000, "\U00020000" * 60, "猫と犬"):
        drawn = _sheet(tmp_path, prompt, True)
        assert drawn.shape == short.shape
        assert (drawn[-8:] == 255).all() and (drawn[:, -4:] == 255).all(), prompt
