"""The tutorials run, and their outputs are those that they show."""

import importlib.util
import inspect
import re
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest
import tutorials
from problems import GRID, SDE

NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
PICTURE = re.compile(r"!\[[^\]]+\]\(([^/\s)]+\.png)\)")  # that a cell of the page draws


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
    if name == "checkpoint":
        for package in ("torch", "diffusers", "transformers"):
            pytest.importorskip(package)
    # As users have it.
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        _, printed, figures = tutorials.run(text, name)
    for cell, out in zip(tutorials.cells(text), printed, strict=True):
        same(out, cell.said)
    assert PICTURE.findall(text) == [f"{name}_{i}.png" for i in range(1, len(figures) + 1)] != []


def test_pictures_are_small_and_shown():
    pictures = {path.name: path.stat().st_size for path in tutorials.FOLDER.glob("*.png")}
    pages = "".join(map(tutorials.read, tutorials.NAMES))
    assert pictures.keys() == set(PICTURE.findall(pages))
    assert max(pictures.values()) < 100_000


def shared_suite():
    """Tests that every method is held to, by name."""
    path = Path(__file__).parent / "search" / "test_every_method.py"
    spec = importlib.util.spec_from_file_location("every_method", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = {name: test for name, test in vars(module).items() if name.startswith("test_")}
    assert len(found) > 8
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:reward 'reward' was NaN or -inf")
def test_the_search_of_a_page_is_held_to_what_every_method_is(tmp_path):
    """With a bar that some particles pass."""
    names = {"__name__": "one-file"}
    for cell in tutorials.cells(tutorials.read("one-file"))[:2]:
        exec(compile(cell.code, "one-file", "exec"), names)
    search = names["Restarts"](nfe=41, kernel=SDE, grid=tuple(map(float, GRID)), check=3, bar=0.0)
    for name, test in shared_suite().items():
        # Programs of their own, for what this one leaves to others.
        if any(word in name for word in ("chunks", "nobody", "x64")):
            continue
        wanted = inspect.signature(test).parameters
        given = {"search": search, "tmp_path": tmp_path}
        test(**{name: value for name, value in given.items() if name in wanted})
