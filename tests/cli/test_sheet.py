"""The sheet of a batch."""

from pathlib import Path

import numpy as np
from PIL import Image

from flowsde.cli.sheet import Cell, cells_of, write_sheet


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


def test_answers_are_numbered_and_say_their_weights(tmp_path: Path) -> None:
    kept = [
        {"image": "image.png", "reward": 2.5, "log_weight": None},
        {"image": "image-2.png", "reward": -1.0, "log_weight": float(np.log(0.25))},
    ]
    values = {"prompt": "a cat", "reward": 2.5, "kept": kept}
    first, second = cells_of(None, values, tmp_path)
    assert (first.label, first.note) == ("1: 2.5", "")
    assert (second.label, second.note) == ("2: -1", "weight 0.25")
    assert second.picture == tmp_path / "image-2.png"
    # Those of a list have its number.
    assert [cell.label for cell in cells_of(6, values, tmp_path)] == ["7: 2.5", "7: -1"]
    # The note is written, above the prompt.
    for cell in (first, second):
        Image.new("RGB", (64, 64), "blue").save(cell.picture)
    drawn = []
    for cells in ([second], [second._replace(note="")], [second._replace(prompt="")]):
        write_sheet(tmp_path / "sheet.png", cells)
        with Image.open(tmp_path / "sheet.png") as sheet:
            drawn.append(np.asarray(sheet))
    assert (drawn[0] != drawn[1]).any() and (drawn[0] != drawn[2]).any()
