"""Pictures and files of a run, on searches of an analytic flow."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

import flowsde as fs
from flowsde import report
from flowsde.shapes import captions, data

SHAPE = (8, 8, 3)


def _velocity(params: Any, x: jax.Array, t: jax.Array, cond: Any) -> jax.Array:
    return x / (1.0 + t)[:, None, None, None]


def _reward(images: jax.Array, cond: Any) -> jax.Array:
    return jnp.mean(images, axis=(1, 2, 3))


def _trace(search: fs.search.Search) -> tuple[report.Trace, fs.Result]:
    flow = fs.Flow.from_callable(_velocity, None, SHAPE)
    trace, result = report.Trace(search, flow.decode), None
    for result in fs.iterate(jax.random.key(0), flow, search, _reward):
        trace.record(result)
    assert result is not None
    return trace, result


def _rbf(**options: Any) -> fs.search.Search:
    kernel = fs.kernels.euler_maruyama(fs.interpolants.linear(), fs.diffusion.square())
    return fs.search.rbf(kernel=kernel, grid=fs.grids.uniform(4), **options)


@pytest.mark.slow
def test_trace_and_spending_of_rbf() -> None:
    search = _rbf(nfe=33, chains=2, width=2, finish_steps=3)
    trace, result = _trace(search)
    assert list(trace.lines) == ["chain 1", "chain 2", "finish"]
    for name in ("chain 1", "chain 2"):
        times = [shot.time for shot in trace.lines[name]]
        np.testing.assert_allclose(times, fs.grids.uniform(4)[:-1])
    assert len(trace.lines["finish"]) == 3
    answer = trace.lines["finish"][-1]
    assert answer.reward == float(result.reward) and answer.nfe == 33
    np.testing.assert_array_equal(answer.image, result.image)
    spent = report.spending(search, result)
    np.testing.assert_allclose(spent.times, fs.grids.uniform(4)[:-1])
    assert spent.finishing == 3 and spent.budget.shape == (4, 2)
    np.testing.assert_array_equal(spent.budget.sum(0), [15, 15])
    assert spent.budget.sum() + spent.finishing == result.nfe
    for figure in (
        report.path_figure("title", trace.lines, float(result.reward)),
        report.search_figure("title", search, result),
    ):
        figure.canvas.draw()


@pytest.mark.slow
def test_trace_of_one_trajectory_and_of_best_of_n() -> None:
    kernel, grid = fs.kernels.ode_euler(fs.interpolants.linear()), fs.grids.uniform(5)
    trace, result = _trace(fs.search.bon(nfe=5, kernel=kernel, grid=grid))
    shots = trace.lines["trajectory"]
    np.testing.assert_allclose([s.time for s in shots], grid[:-1])
    assert np.isnan([s.reward for s in shots[:-1]]).all()
    assert shots[-1].reward == float(result.reward)

    search = fs.search.bon(nfe=33, kernel=kernel, grid=grid, width=4)
    trace, result = _trace(search)
    shots = trace.lines["samples"]
    rewards = [s.reward for s in shots]
    assert len(set(rewards)) == 6 and max(rewards) == float(result.reward)
    nfe, best = report.progress(search, result)
    np.testing.assert_array_equal(nfe, [5, 10, 15, 20, 25, 30])
    np.testing.assert_array_equal(best, np.maximum.accumulate(rewards))
    assert [s.nfe for s in shots] == nfe.tolist()
    np.testing.assert_array_equal(report.spending(search, result).budget, np.full((5, 1), 6))


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    report.write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        report.write_json(path, {"a": float("nan")})
    with pytest.raises(RuntimeError), report.replacing(path) as temporary:
        temporary.write_text("{")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_figure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def partly(self: Figure, path: Path, **_: Any) -> None:
        path.write_bytes(b"\x89PNG")
        raise OSError("no space left")

    monkeypatch.setattr(Figure, "savefig", partly)
    with pytest.raises(OSError):
        report.save_figure(tmp_path / "path.png", Figure())
    assert not list(tmp_path.iterdir())


def test_the_checker_judges() -> None:
    prompt = "three red circles and two blue squares"
    image = data.scenes(3, [0], groups=[captions.parse(prompt)]).images[0]
    right, wrong = report.judge(prompt, image), report.judge("two red circles", image)
    assert right == {
        "exact": True,
        "rss": 0.0,
        "counts": {"red circle": 3, "blue square": 2},
        "unclear": 0,
    }
    assert report.describe(right) == "3 red circles, 2 blue squares (exactly what was asked)"
    assert not wrong["exact"] and wrong["rss"] == 1.0 + 4.0
    assert json.loads(json.dumps(right)) == right
