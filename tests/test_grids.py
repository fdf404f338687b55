"""Grids against their formulas, and what `as_grid` refuses."""

import math

import numpy as np
import pytest

import flowsde as fs
from flowsde.grids import as_grid

G = fs.grids
MAKERS = {
    "uniform": G.uniform,
    "quadratic": G.quadratic,
    "cosine": G.cosine,
    "shifted": lambda n: G.shifted(n, 3.0),
    "shifted_back": lambda n: G.shifted(n, 0.25),
    "flux": lambda n: G.flux(n, 4096),
}
every_grid = pytest.mark.parametrize("name", MAKERS)


@every_grid
@pytest.mark.parametrize("n", [1, 2, 3, 7, 10, 50, 1000])
def test_runs_from_one_to_zero_strictly_falling(name, n):
    grid = MAKERS[name](n)
    assert grid.shape == (n + 1,) and grid.dtype == np.float64
    assert grid[0] == 1.0 and grid[-1] == 0.0
    assert np.all(np.diff(grid) < 0)
    assert np.all(np.diff(grid.astype(np.float32)) < 0)
    assert as_grid("grid", grid) == tuple(grid)
    assert hash(as_grid("grid", grid)) == hash(as_grid("grid", list(grid)))


@pytest.mark.parametrize("n", [1, 4, 10])
def test_formulas(n):
    i = np.arange(n + 1)
    close = {"rtol": 1e-14, "atol": 1e-15}
    np.testing.assert_allclose(G.uniform(n), [(n - k) / n for k in i], **close)
    np.testing.assert_allclose(G.quadratic(n), [math.sqrt(n * n - k * k) / n for k in i], **close)
    np.testing.assert_allclose(
        G.cosine(n), [math.cos(k * math.pi / (2 * n)) for k in i], atol=1e-15
    )
    t = (n - i) / n
    np.testing.assert_allclose(G.shifted(n, 3.0), 3 * t / (1 + 2 * t), **close)
    np.testing.assert_allclose(G.shifted(n, 1.0), G.uniform(n), **close)
    for tokens, mu in ((256, 0.5), (4096, 1.15), (2176, 0.825)):
        np.testing.assert_allclose(
            G.flux(n, tokens), G.shifted(n, math.exp(mu)), rtol=1e-13, err_msg=str(tokens)
        )
    # FLUX writes the same shift as exp(mu) / (exp(mu) + 1 / t - 1).
    inner = t[:-1]
    np.testing.assert_allclose(
        G.flux(n, 4096)[:-1], math.exp(1.15) / (math.exp(1.15) + 1 / inner - 1), rtol=1e-13
    )


def test_the_papers_grid():
    """Section 1 of the paper's settings, three digits."""
    wanted = [1, 0.995, 0.980, 0.954, 0.917, 0.866, 0.800, 0.714, 0.600, 0.436, 0]
    np.testing.assert_allclose(G.quadratic(10), wanted, atol=5.01e-4)


@every_grid
def test_a_wrong_number_of_steps_is_named(name):
    for bad in (0, -3, True):
        with pytest.raises(ValueError, match="n must be an integer of at least 1"):
            MAKERS[name](bad)
    for bad in (2.0, "4", None):
        with pytest.raises(TypeError, match="n must be an integer"):
            MAKERS[name](bad)
    np.testing.assert_array_equal(MAKERS[name](np.int64(4)), MAKERS[name](4))


def test_wrong_shift_and_tokens_are_named():
    for bad in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="shift must be"):
            G.shifted(4, bad)
    with pytest.raises(ValueError, match="tokens must be"):
        G.flux(4, 0)
    with pytest.raises(TypeError, match="tokens must be"):
        G.flux(4, 256.0)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([1.0, 0.5, 0.5, 0.0], "my_grid must fall strictly, got 0.5 then 0.5 at position 2"),
        ([1.0, 0.2, 0.5, 0.0], "my_grid must fall strictly, got 0.2 then 0.5 at position 2"),
        ([0.0, 0.5, 1.0], "my_grid must fall strictly"),
        ([1.5, 0.5, 0.0], r"my_grid must lie in \[0, 1\], got 1.5"),
        ([1.0, 0.5, -0.1], r"my_grid must lie in \[0, 1\], got -0.1"),
        ([1.0, np.nan, 0.0], r"my_grid must lie in \[0, 1\], got nan"),
        ([0.9, 0.5, 0.0], "my_grid must run from 1 to 0, got 0.9 to 0"),
        ([1.0, 0.5, 0.1], "my_grid must run from 1 to 0, got 1.0 to 0.1"),
        ([1.0], r"my_grid must hold at least two times, .*got shape \(1,\)"),
        ([], "my_grid must hold at least two times"),
        ([[1.0, 0.0]], "my_grid must hold at least two times"),
        (10, r"my_grid must hold .* e.g. flowsde.grids.uniform\(10\), got 10"),
        (None, r"my_grid must hold .* e.g. flowsde.grids.uniform\(10\), got None"),
    ],
)
def test_as_grid_says_where_a_grid_is_wrong(values, words):
    with pytest.raises(ValueError, match=words):
        as_grid("my_grid", values, whole=True)


@pytest.mark.parametrize("values", ["uniform", G.uniform, {"n": 10}, [1.0, "0.5", "zero"]])
def test_as_grid_refuses_what_is_no_numbers(values):
    with pytest.raises(TypeError, match=r"my_grid must hold .* e.g. flowsde.grids.uniform\(10\)"):
        as_grid("my_grid", values)


@every_grid
def test_the_number_of_times_is_documented(name):
    """Of n steps: one more."""
    maker = getattr(G, name.removesuffix("_back"))
    assert "n: steps." in maker.__doc__ and "n + 1 times, from 1 to 0." in maker.__doc__


def test_as_grid_accepts_any_float_sequence():
    assert as_grid("grid", (1, 0)) == (1.0, 0.0)
    assert as_grid("grid", np.asarray([1.0, 0.25, 0.0], np.float32)) == (1.0, 0.25, 0.0)
    assert all(type(t) is float for t in as_grid("grid", G.uniform(3)))
