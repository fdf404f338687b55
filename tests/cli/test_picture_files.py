"""Pictures that a user gives, of all modes: as a viewer shows them, or refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flowsde.cli.picture_files import as_array, opened

GREY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
"""A picture of 8 bits."""


def _read(path: Path, picture: Image.Image, **options: Any) -> np.ndarray:
    picture.save(path, **options)
    return as_array(opened("IMAGE", path))


@pytest.mark.parametrize(
    ("mode", "name"), [("L", "a.png"), ("P", "a.gif"), ("LA", "a.png"), ("RGBA", "a.tif")]
)
def test_a_picture_is_the_same_in_every_mode(tmp_path: Path, mode: str, name: str) -> None:
    found = _read(tmp_path / name, Image.fromarray(GREY).convert(mode))
    expected = (GREY[..., None] / 127.5 - 1.0).repeat(3, -1)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_are_scaled(tmp_path: Path, name: str) -> None:
    """White is 65535: they are neither cut at 255 nor taken modulo it."""
    found = _read(tmp_path / name, Image.fromarray(GREY.astype(np.uint16) * 257))
    np.testing.assert_allclose(found[..., 0], GREY / 127.5 - 1.0, atol=1e-6)


def test_a_photo_with_a_second_picture_inside_is_one(tmp_path: Path) -> None:
    grey = Image.new("L", (8, 8), 40)
    found = _read(tmp_path / "a.mpo", grey, save_all=True, append_images=[grey])
    np.testing.assert_allclose(found, 40 / 127.5 - 1.0, atol=0.02)


@pytest.mark.parametrize(
    ("picture", "name", "said"),
    [
        (Image.new("RGBA", (4, 3), (9, 9, 9, 254)), "a.png", "transparent"),
        (Image.fromarray(GREY.astype(np.float32)), "a.tif", "8 or 16 bits"),
        (Image.fromarray(GREY.astype(np.int32)), "a.tif", "8 or 16 bits"),
    ],
)
def test_pictures_of_unknown_colours_are_refused(
    tmp_path: Path, picture: Image.Image, name: str, said: str
) -> None:
    with pytest.raises(ValueError, match=f"IMAGE .*{name}: .*{said}"):
        _read(tmp_path / name, picture)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif"])
def test_several_pictures_in_a_file_are_refused(tmp_path: Path, name: str) -> None:
    first, second = Image.fromarray(GREY), Image.fromarray(255 - GREY)
    with pytest.raises(ValueError, match=f"{name}: it has 2 pictures, expected one"):
        _read(tmp_path / name, first, save_all=True, append_images=[second])


@pytest.mark.parametrize("raised", [SyntaxError("chunk"), RuntimeError("x"), ValueError("EOF")])
def test_whatever_a_reader_of_a_broken_file_raises_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception
) -> None:
    def broken(*_: Any) -> None:
        raise raised

    monkeypatch.setattr("PIL.ImageOps.exif_transpose", broken)
    with pytest.raises(ValueError, match=r"IMAGE .*a.png: it is no picture that can be read"):
        _read(tmp_path / "a.png", Image.fromarray(GREY))
