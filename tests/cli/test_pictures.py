"""Pictures and files of a run, on searches of an analytic flow."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

import flowsde as fs
from flowsde.cli import pictures, plots
from flowsde.cli.lineage import Shot, Trace
from flowsde.shapes import captions, data, verdict

SHAPE = (8, 8, 3)


def _velocity(params: Any, x: jax.Array, t: jax.Array, cond: Any) -> jax.Array:
    return x / (1.0 + t)[:, None, None, None]


def _reward(images: jax.Array, cond: Any) -> jax.Array:
    return jnp.mean(images, axis=(1, 2, 3))


FLOW = fs.Flow.from_callable(_velocity, None, SHAPE)
LINEAR = fs.interpolants.linear()
GRID = fs.grids.uniform(4)
TITLE = "A PHOTOGRAPH OF MANY WIDE MAMMOTHS " * 3 + "· epsilon_greedy"  # capitals are the widest


def _trace(search: fs.search.Search) -> tuple[Trace, fs.Result]:
    trace, result = Trace(search), None
    for result in fs.iterate(jax.random.key(0), FLOW, search, _reward):
        trace.record(result)
    assert result is not None
    return trace, result


def _place(drawn: Any) -> tuple[float, ...]:
    """Left, right, bottom and top of a picture or a frame, in inches."""
    if isinstance(drawn, Rectangle):
        return (*drawn.get_bbox().intervalx, *drawn.get_bbox().intervaly)
    return tuple(drawn.get_extent())


def _is_whole(figure: Figure, title: Any) -> None:
    """Whether `TITLE` is written, all of it within the figure."""
    FigureCanvasAgg(figure).draw()
    assert " ".join(title.get_text().split()) == TITLE
    box, page = title.get_window_extent(), figure.bbox
    assert page.x0 <= box.x0 and box.x1 <= page.x1 and box.y1 <= page.y1


def _draw(search: fs.search.Search, trace: Trace, result: fs.Result) -> list[Figure]:
    """Both figures, with a title over each panel and a framed answer."""
    sheet = plots.path_figure(TITLE, trace, result, FLOW.decode)
    panels = plots.search_figure(TITLE, search, result)
    _is_whole(sheet, sheet.axes[0].texts[0])
    title: Any = panels._suptitle  # type: ignore[attr-defined]
    _is_whole(panels, title)
    lowest = title.get_window_extent().y0
    assert all(axes._left_title.get_window_extent().y1 < lowest for axes in panels.axes)
    assert all(axes.get_title(loc="left") for axes in panels.axes)
    (frame,) = sheet.axes[0].patches
    (framed,) = [a for a in sheet.axes[0].images if _place(a) == _place(frame)]
    image = np.asarray(framed.get_array())
    np.testing.assert_array_equal(image, pictures.pixels(np.asarray(result.image)))
    return [sheet, panels]


def _rbf(**options: Any) -> fs.search.Search:
    kernel = fs.kernels.euler_maruyama(LINEAR, fs.diffusion.square())
    return fs.search.rbf(kernel=kernel, grid=GRID, **options)


@pytest.mark.slow
def test_trace_and_spending_of_rbf() -> None:
    search = _rbf(nfe=33, chains=2, width=2, finish_steps=3)
    trace, result = _trace(search)
    lines, _ = plots.shown(trace, result)
    assert list(lines) == ["chain 1", "chain 2", "finish"]
    for name in ("chain 1", "chain 2"):
        times = [shot.time for shot in lines[name] if shot]
        np.testing.assert_allclose(times, GRID[:-1])
    assert len(lines["finish"]) == 3
    answer = lines["finish"][-1]
    assert answer is not None
    assert answer.reward == float(result.reward) and answer.nfe == 33
    np.testing.assert_array_equal(answer.x0, result.x0)
    # It was finished from the best of the chains.
    start = trace.lineage(answer)[-4]
    assert start.reward == max(s.reward for s in trace.shots if s.line != "finish")
    spent = plots.spending(search, result)
    np.testing.assert_allclose(spent.times, GRID[:-1])
    assert spent.finishing == 3 and spent.budget.shape == (4, 2)
    np.testing.assert_array_equal(spent.budget.sum(0), [15, 15])
    assert spent.budget.sum() + spent.finishing == result.nfe
    left, right = _draw(search, trace, result)[1].axes
    # The round in which the answer was evaluated, and what had been charged by then.
    info = result.info
    found = info.counted & (info.reward == result.reward) & (info.time == result.t)
    nfe = np.cumsum(info.charged)[found.any(1).argmax()]
    assert any(f"found at {nfe} of 33" in text.get_text() for text in left.texts)
    assert any(text.get_text().startswith("last step: ") for text in left.texts)
    shown = [str(n) for n in [*spent.budget.sum(1), 3]]
    assert [text.get_text() for text in right.texts] == shown


@pytest.mark.slow
def test_trace_of_one_trajectory_and_of_best_of_n() -> None:
    kernel, grid = fs.kernels.ode_euler(LINEAR), fs.grids.uniform(5)
    search: Any = fs.search.bon(nfe=5, kernel=kernel, grid=grid)
    trace, result = _trace(search)
    assert {shot.line for shot in trace.shots} == {"trajectory"}
    assert trace.lineage(trace.shots[-1]) == trace.shots
    np.testing.assert_allclose([s.time for s in trace.shots], grid[:-1])
    assert np.isnan([s.reward for s in trace.shots[:-1]]).all()
    assert trace.shots[-1].reward == float(result.reward)
    _draw(search, trace, result)

    search = fs.search.bon(nfe=33, kernel=kernel, grid=grid, width=4)
    trace, result = _trace(search)
    lines, _ = plots.shown(trace, result)
    shots = [shot for shot in lines["samples"] if shot]
    rewards = [s.reward for s in shots]
    assert list(lines) == ["samples"]
    assert len(set(rewards)) == 6 and max(rewards) == float(result.reward)
    nfe, best = plots.progress(search, result)
    np.testing.assert_array_equal(nfe, [5, 10, 15, 20, 25, 30])
    np.testing.assert_array_equal(best, np.maximum.accumulate(rewards))
    assert [s.nfe for s in shots] == nfe.tolist()
    np.testing.assert_array_equal(plots.spending(search, result).budget, np.full((5, 1), 6))
    _draw(search, trace, result)


@pytest.mark.slow
def test_many_particles_are_traced_back() -> None:
    kernel = fs.kernels.euler_maruyama(LINEAR, fs.diffusion.square())
    search: Any = fs.search.smc(
        nfe=49, kernel=kernel, grid=GRID, temperature=0.02, threshold=1.0, finish="mean"
    )
    trace, result = _trace(search)
    n, last = search.n_candidates, 3
    # Ancestors, read backwards from each of the last particles.
    ancestors, rewards = np.asarray(result.info.ancestors), np.asarray(result.info.reward)
    ends = [shot for shot in trace.shots if shot.round == last]
    assert len(ends) == n == 12 and len(trace.shots) == 4 * n
    for place, end in enumerate(ends):
        expected, at = [], place
        for i in range(last, -1, -1):
            at = ancestors[i][at]
            expected.append(rewards[i][at])
        np.testing.assert_array_equal([s.reward for s in trace.lineage(end)], expected[::-1])
    assert len({id(trace.lineage(end)[0]) for end in ends}) < n
    lines, what = plots.shown(trace, result)
    assert "the best 4 of 12 particles" in what and len(lines) == 4
    tails = [shots[-1].reward for shots in lines.values() if shots[-1]]
    np.testing.assert_array_equal(tails, np.sort(rewards[last])[::-1][:4])
    # What lines share is there once.
    every = [id(shot) for shots in lines.values() for shot in shots if shot]
    assert len(every) == len(set(every)) and all(len(shots) == 4 for shots in lines.values())
    assert plots.spending(search, result).budget.shape == (4, 1)
    _, panels = _draw(search, trace, result)
    assert panels.axes[1].get_legend() is None

    # What was saved, after two rounds, is what goes on.
    restored = Trace(search)
    restored.restore({name: column[: 2 * n] for name, column in trace.arrays().items()})
    assert len(restored.shots) == 2 * n
    for ours, theirs in zip(restored.shots, trace.shots, strict=False):
        assert ours[:-1] == theirs[:-1]
        np.testing.assert_array_equal(ours.x0, theirs.x0)
    assert restored._last == {f"particle {i + 1}": n + i for i in range(n)}


@pytest.mark.slow
def test_paths_of_sop_cross() -> None:
    search: Any = fs.search.sop(
        nfe=60, kernel=fs.kernels.ode_euler(LINEAR), grid=fs.grids.uniform(6), start=1, forward=1,
        backward=2, finish="mean",
    )  # fmt: skip
    trace, result = _trace(search)
    assert {shot.line for shot in trace.shots} == {"path 1", "path 2"}
    decided = np.asarray(result.info.ancestors)
    rounds = np.flatnonzero((decided >= 0).any(1))
    assert len(trace.shots) == 2 * len(rounds)
    for i, shot in enumerate(trace.shots[2:], 2):
        # Child j is of path j modulo the number of paths.
        child = decided[shot.round][i % 2]
        assert trace.shots[shot.parent].line == f"path {child % 2 + 1}"
        assert trace.shots[shot.parent].round == rounds[i // 2 - 1]
    _draw(search, trace, result)


@pytest.mark.slow
def test_an_answer_that_was_not_accepted_is_shown() -> None:
    kernel = fs.kernels.euler_maruyama(LINEAR, fs.diffusion.square())
    search = fs.search.svdd(
        nfe=60, kernel=kernel, grid=GRID, chains=5, temperature=1e6, finish="mean"
    )
    trace, result = _trace(search)
    lines, what = plots.shown(trace, result)
    assert list(lines)[-1] == "answer" and "the best 4 of 5 chains" in what
    assert plots.spending(search, result).budget.shape == (4, 1)
    _draw(search, trace, result)


@pytest.mark.slow
@pytest.mark.parametrize("finish_steps", [3, 24])
def test_labels_are_within_the_figure(finish_steps: int) -> None:
    """However many digits rewards have, and however much of the budget went to finishing."""
    search = _rbf(nfe=33, chains=2, width=1, finish_steps=finish_steps)
    _, result = _trace(search)
    best = np.asarray(result.info.best_reward, np.float64)
    for low, high in ((-0.0124, -0.0123), (-19.993, -19.99), (1e5, 2e5), (-1e6, -1e3), (0.0, 1e6)):
        # Of each reward, its place between the lowest and the highest.
        ends = [np.nanmin(best[np.isfinite(best)]), np.max(best)]
        info = result.info._replace(best_reward=np.interp(best, ends, [low, high]))
        of_these = result._replace(info=info, reward=np.interp(result.reward, ends, [low, high]))
        figure = plots.search_figure("title", search, of_these)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        for axes in figure.axes:
            drawn = [axes.xaxis.label, axes.yaxis.label, *axes.texts, *axes.get_yticklabels()]
            for box in (text.get_window_extent(canvas.get_renderer()) for text in drawn):
                assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1, (low, high)


def test_the_title_of_a_long_prompt_is_whole_above_the_narrowest_sheet() -> None:
    search = fs.search.bon(nfe=4, kernel=fs.kernels.ode_euler(LINEAR), grid=GRID)
    trace, picture = Trace(search), np.zeros((4, 4, 3))
    trace.shots = [Shot("trajectory", 0, 0.25, 1.0, 4, -1, picture)]
    info = SimpleNamespace(time=[0.25])
    result: Any = SimpleNamespace(t=0.25, reward=1.0, nfe=4, x0=picture, info=info)
    sheet = plots.path_figure(TITLE, trace, result, lambda x0: x0)
    title, note = sheet.axes[0].texts[:2]
    _is_whole(sheet, title)
    assert note.get_window_extent().y1 < title.get_window_extent().y0


def test_names_of_four_chains_are_below_the_title() -> None:
    figure = Figure(figsize=(11, 4.2))
    _, axes = figure.subplots(1, 2)
    spent = plots.Spending(np.array([1.0, 0.5]), np.ones((2, 4), np.int64), 0)
    plots._plot_spending(axes, spent, "evaluations spent at each step")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    names = axes.get_legend().get_window_extent()
    # `get_title` gives its words alone.
    title = axes._left_title.get_window_extent(canvas.get_renderer())
    assert axes.bbox.y1 <= names.y0 and names.y1 <= title.y0


@pytest.mark.parametrize("reward", [-999999.9, -1234567.0, float(np.finfo(np.float32).min)])
def test_large_rewards_are_below_their_own_pictures(reward: float) -> None:
    search = fs.search.bon(nfe=4, kernel=fs.kernels.ode_euler(LINEAR), grid=GRID)
    trace, picture = Trace(search), np.zeros((4, 4, 3))
    trace.shots = [Shot("chain 1", i, 0.5, reward, 1, i - 1, picture) for i in range(2)]
    info = SimpleNamespace(time=[0.5])
    result: Any = SimpleNamespace(t=0.5, reward=reward, nfe=4, x0=picture, info=info)
    sheet = plots.path_figure("title", trace, result, lambda x0: x0)
    canvas = FigureCanvasAgg(sheet)
    canvas.draw()
    captions = [text for text in sheet.axes[0].texts if text.get_text().startswith("t 0.5")]
    left, right = (text.get_window_extent(canvas.get_renderer()) for text in captions)
    assert left.x1 < right.x0


@pytest.mark.parametrize(("high", "wide"), [(8, 4), (4, 8), (6, 6)])
def test_pictures_and_their_frames_have_their_shape(high: int, wide: int) -> None:
    search = fs.search.bon(nfe=4, kernel=fs.kernels.ode_euler(LINEAR), grid=GRID)
    trace, picture = Trace(search), np.linspace(-1.0, 1.0, high * wide * 3)
    picture = picture.reshape(high, wide, 3)
    trace.shots = [Shot("trajectory", 0, 0.25, 1.0, 4, -1, picture)]
    info = SimpleNamespace(time=[0.25])
    result: Any = SimpleNamespace(t=0.25, reward=1.0, nfe=4, x0=picture, info=info)
    sheet = plots.path_figure("title", trace, result, lambda x0: x0)
    FigureCanvasAgg(sheet).draw()
    (axes,) = sheet.axes
    for drawn in (axes.images[0], axes.patches[0]):
        box = drawn.get_window_extent()
        np.testing.assert_allclose(box.width / box.height, wide / high)
        assert max(box.width, box.height) == pytest.approx(sheet.dpi)


def test_a_failed_figure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def partly(self: Figure, path: Path, **_: Any) -> None:
        path.write_bytes(b"\x89PNG")
        raise OSError("no space left")

    monkeypatch.setattr(Figure, "savefig", partly)
    with pytest.raises(OSError):
        pictures.save_figure(tmp_path / "path.png", Figure())
    assert not list(tmp_path.iterdir())


def test_the_checker_judges() -> None:
    prompt = "three red circles and two blue squares"
    image = data.scenes(3, [0], groups=[captions.parse(prompt)]).images[0]
    right, wrong = verdict.judge(prompt, image), verdict.judge("two red circles", image)
    assert right == {
        "exact": True,
        "rss": 0.0,
        "counts": {"red circle": 3, "blue square": 2},
        "unclear": 0,
    }
    assert verdict.describe(right) == "3 red circles, 2 blue squares (exactly what was asked)"
    assert not wrong["exact"] and wrong["rss"] == 1.0 + 4.0
    assert json.loads(json.dumps(right)) == right


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rbf", "sop", "bon"])
def test_spending_counts_inner_steps(method: str) -> None:
    """All that is charged, at the times that it went to; noise and what is noised takes one."""
    options: dict[str, Any] = {"kernel": fs.kernels.glass(LINEAR, 3), "grid": GRID, "nfe": 61}
    options |= {"start": 1, "forward": 1, "backward": 2} if method == "sop" else {}
    search: Any = getattr(fs.search, method)(**options)
    _, result = _trace(search)
    spent = plots.spending(search, result)
    assert spent.budget.sum() + spent.finishing == result.nfe
    noise = np.asarray(result.info.counted) & (np.asarray(result.info.time) == 1.0)
    assert spent.budget[0].sum() == noise.sum()
