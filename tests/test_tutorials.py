"""The tutorials run, and their outputs are those that they show."""

import re

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest
import tutorials

NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@pytest.fixture(autouse=True)
def no_figures():
    yield
    plt.close("all")


def same(printed, said):
    """Word for word, numbers but for what another processor rounds."""
    assert NUMBER.sub("#", printed) == NUMBER.sub("#", said)
    got, expected = ([float(n) for n in NUMBER.findall(text)] for text in (printed, said))
    np.testing.assert_allclose(got, expected, rtol=0.05, atol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("name", tutorials.NAMES)
def test_outputs_are_those_of_the_page(name):
    text = tutorials.read(name)
    # As users have it.
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        _, printed, figures = tutorials.run(text, name)
    for cell, out in zip(tutorials.cells(text), printed, strict=True):
        same(out, cell.said)
    shown = re.findall(r"!\[[^\]]+\]\((\S+\.png)\)", text)
    assert shown == [f"{name}_{i}.png" for i in range(1, len(figures) + 1)] != []


def test_pictures_are_small_and_shown():
    pictures = {path.name: path.stat().st_size for path in tutorials.FOLDER.glob("*.png")}
    pages = "".join(map(tutorials.read, tutorials.NAMES))
    assert pictures.keys() == set(re.findall(r"\((\S+\.png)\)", pages))
    assert max(pictures.values()) < 100_000
