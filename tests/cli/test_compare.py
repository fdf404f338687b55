"""`flowsde compare`: rows, statistics, parts that are kept, files; with a small stand-in model."""

import base64
import csv
import io
import json
import re
import shutil
import signal
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import stand_in
from PIL import Image
from refusing import refused

import flowsde as fs
from flowsde.cli import compare, presets
from flowsde.cli import main as cli
from flowsde.cli.compare import summary
from flowsde.cli.compare.command import PARTS
from flowsde.cli.compare.figures import MEASURES, figure
from flowsde.cli.compare.page import page as make
from flowsde.cli.lines import resume_with
from flowsde.cli.pictures import pixels
from flowsde.runner import rounds
from flowsde.shapes import checker
from flowsde.shapes.captions import counts, parse
from flowsde.shapes.data import HELD_OUT

measuring = stand_in.measure

ARGS = ["compare", "--nfe", "8", "14", "--prompts", "3", "--steps", "3"]
RBF_TOO = ["--methods", "bon", "rbf", "--finish-steps", "2"]
FILES = {"compare.json", "compare.csv", "compare.html", ".flowsde"}
PLOTS = {f"{name}.png" for name in MEASURES}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flow and a reward that compile fast."""
    stand_in.use(monkeypatch.setattr)


def _compare(out: Path, *args: str, rbf: bool = False) -> dict[str, Any]:
    methods = RBF_TOO if rbf else ["--methods", "bon"]
    cli.main([*ARGS, *methods, *args, "--out", str(out)])
    return json.loads((out / "compare.json").read_text())


# Rows.


def test_rows_are_all_combinations_that_differ() -> None:
    rows, left_out = compare.plan(
        ["ode", "bon", "sde", "svdd"], nfe=[60, 90], interpolants=["linear", "vp"],
        kernels=["ddim", "cps"],
    )  # fmt: skip
    found = [(r.method, r.settings.interpolant, r.settings.kernel, r.settings.nfe) for r in rows]
    moving = [(p, k) for p in ("linear", "vp") for k in ("ddim", "cps")]
    assert found == [
        ("ode", "linear", "ode_euler", 40),
        *(("bon", "linear", "ode_euler", n) for n in (60, 90)),
        *(("sde", p, k, 40) for p, k in moving),
        *(("svdd", p, k, n) for p, k in moving for n in (60, 90)),
    ]
    assert left_out == [] and len(set(rows)) == len(rows)


def test_budgets_too_small_are_left_out_in_words() -> None:
    rows, left_out = compare.plan(["bon", "rbf"], nfe=[30, 60], given={"steps": 20})
    assert [(r.method, r.settings.nfe) for r in rows] == [("bon", 30), ("bon", 60), ("rbf", 60)]
    (words,) = left_out
    assert words.startswith("rbf at 30 NFE: --nfe leaves 27 evaluations for the search")
    with pytest.raises(ValueError, match=r"^--nfe leaves 27 evaluations"):
        compare.plan(["rbf"], nfe=[30], given={"steps": 20})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": []}, "--methods is empty"),
        ({"methods": ["best"]}, "--methods must be one of ode, .*, got 'best'"),
        ({"interpolants": ["curve"]}, "--interpolants must be one of linear, .*, got 'curve'"),
        ({"kernels": ["heun"]}, "--kernels must be one of .*, got 'heun'"),
        ({"methods": ["bon"], "interpolants": ["vp"]}, "--interpolant has no effect on bon, got"),
        ({"given": {"block": 2}}, "--block has no effect on bon, rbf, got 2"),
        ({"given": {"steps": 0}}, "--steps must be an integer of at least 1"),
        ({"preset": "mine"}, "--preset must be one of"),
        ({"nfe": []}, "--nfe is empty"),
    ],
)
def test_wrong_rows_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare.plan(**{"methods": ["bon", "rbf"], "nfe": [60]} | options)


def test_labels_name_what_differs() -> None:
    rows, _ = compare.plan(["bon", "smc"], nfe=[60], kernels=["ddim", "euler_maruyama"])
    more = presets.resolve("recommended", "smc", {"nfe": 60, "scheme": "ssp"})
    assert compare.labels([*rows, compare.Row("smc", more)]) == [
        "bon",
        "smc vp ddim eta 1 data variance 0.25 scheme systematic",
        "smc vp euler_maruyama diffusion square diffusion scale 3 scheme systematic",
        "smc vp ddim eta 1 data variance 0.25 scheme ssp",
    ]
    assert compare.labels([*rows[:2], compare.Row("smc", more, "other")]) == [
        "bon", "smc vp ddim", "smc vp ddim"
    ]  # fmt: skip
    # Steps that follow the budget tell no rows apart.
    both = compare.plan(["rbf"], nfe=[30, 100]).rows
    assert {row.settings.steps for row in both} == {6, 10}
    assert compare.labels(both) == ["rbf vp ddim"] * 2


def test_captions_are_of_as_many_objects_as_asked() -> None:
    texts = compare.captions(20, objects=5)
    assert texts == compare.captions(30, objects=5)[:20]
    for i, text in enumerate(texts):
        groups = parse(text)
        assert sum(g.count for g in groups) >= 5
        assert any(g in HELD_OUT for g in groups) == (i % 5 == 4)


def test_no_caption_is_there_twice() -> None:
    assert len(set(compare.captions(200))) == 200


@pytest.mark.slow
def test_more_captions_than_there_are_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["compare", "--task", "size", "--prompts", "600", "--out", str(tmp_path / "out")]
    assert re.search("--prompts must be at most .* for task size, got 600", refused(capsys, *words))
    with pytest.raises(ValueError, match="--prompts must be at most .*, got 100000: no more"):
        compare.captions(100_000, objects=10)


# Statistics.


@pytest.mark.slow
def test_intervals_cover_the_mean() -> None:
    """Of 300 samples of 40, about 95 % have the true mean in their interval."""
    rng = np.random.default_rng(0)
    samples = rng.gamma(2.0, 1.0, (300, 40))
    found = np.asarray([summary.interval(values) for values in samples])
    np.testing.assert_allclose(found[:, 0], samples.mean(1))
    covered = np.mean((found[:, 1] <= 2.0) & (2.0 <= found[:, 2]))
    assert 0.90 <= covered <= 0.98


def test_intervals_where_all_agree() -> None:
    mean, low, high = summary.interval(np.ones(20), share=True)
    # Exact binomial: the p at which 20 of 20 has probability 2.5 %.
    assert (mean, high) == (1.0, 1.0) and low == pytest.approx(0.025 ** (1 / 20))
    # Wilson's of 10 of 20: 1/2, give or take z sqrt(1/4 / 20 + z^2 / (4 20^2)) / (1 + z^2 / 20).
    z = 1.959963984540054
    half = z * np.sqrt(0.25 / 20 + z * z / 1600) / (1 + z * z / 20)
    found = summary.interval(np.full(20, 0.5), share=True)
    np.testing.assert_allclose(found, (0.5, 0.5 - half, 0.5 + half))
    assert np.isnan(summary.interval(np.asarray([3.0]))[1:]).all()


def test_a_gain_of_nothing_has_an_interval() -> None:
    rows, _ = compare.plan(["bon", "rbf"], nfe=[60])
    table = compare.summarise(rows, dict.fromkeys(rows, _measured(np.zeros((5, 1)))))
    # Of 0 of 5 Wilson's upper bound is z^2 / (5 + z^2), which both may be above the other by.
    most = 1.959963984540054**2
    most /= 5 + most
    gain = [table[1][name] for name in ("gain", "gain_low", "gain_high")]
    np.testing.assert_allclose(gain, (0.0, -most, most))


def test_diversity_is_the_distance_of_pairs() -> None:
    images = np.zeros((2, 3, 4, 4, 3), np.uint8)
    images[1, 2] = 255
    # Prompt 0 thrice the same; of prompt 1 two pairs of three are black and white.
    np.testing.assert_allclose(summary.diversity(images), [0.0, 2 / 3])
    assert summary.diversity(images[:, :1]) is None


def _measured(exact: Any, seed: int = 0) -> compare.Measured:
    exact = np.asarray(exact, bool)
    rng = np.random.default_rng(seed)
    ones = np.ones(exact.shape, np.int32)
    images = rng.integers(0, 255, (*exact.shape, 4, 4, 3)).astype(np.uint8)
    return compare.Measured(
        images=images, reward=rng.normal(size=exact.shape), success=exact, exact=exact,
        rss=4.0 * ~exact,
        objects=3 * ones, unclear=ones, nfe=7 * ones, evaluations=8 * ones,
        backward_passes=0 * ones, verifier_calls=2 * ones, seconds=0.5,
    )  # fmt: skip


@pytest.mark.slow
def test_gain_is_paired_over_prompts() -> None:
    rows, _ = compare.plan(["bon", "rbf"], nfe=[60, 90])
    rng = np.random.default_rng(1)
    easy = rng.random(60)[:, None] < 0.5
    base = np.broadcast_to(easy, (60, 2))
    # Better at every seventh prompt and never worse: certain, though prompts differ more than that.
    better = base | (np.arange(60) % 7 == 0)[:, None]
    found = {row: _measured(base if row.method == "bon" else better) for row in rows}
    table = compare.summarise(rows, found)
    for first, second in ((table[0], table[2]), (table[1], table[3])):
        assert first["nfe"] == second["nfe"]
        assert first["gain"] is None and first["against"] is None
        assert second["against"] == "bon"
        assert second["gain"] == pytest.approx(second["accuracy"] - first["accuracy"])
        assert second["gain_low"] > 0.0 and first["accuracy_high"] > second["accuracy_low"]
        assert second["rss"] == pytest.approx(4.0 * (1.0 - second["accuracy"]))
        m = found[rows[2]]
        assert table[2]["given_wrong"] == pytest.approx(np.median(m.reward[~m.exact]))
        assert table[2]["given_right"] == pytest.approx(np.median(m.reward[m.exact]))
        assert second["clean"] == 0.75 and second["prompts"] == 60 and second["seeds"] == 2
    for measure in MEASURES:
        drawn = figure(table, measure)
        assert drawn is not None
        drawn.draw_without_rendering()
        (axes,), (legend,) = drawn.axes, drawn.legends
        assert axes.get_title(loc="left") == "vp interpolant"
        assert [text.get_text() for text in legend.get_texts()] == ["bon", "rbf vp ddim"]
        assert legend.get_window_extent().x0 > axes.get_window_extent().x1, "beside the data"


# Measuring.


@pytest.mark.slow
def test_a_cell_is_one_search(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed with other prompts, in a program of a larger budget, and at another width."""
    given = {"steps": 3, "finish_steps": 2, "width": 2}
    rows, _ = compare.plan(["rbf"], nfe=[9, 14], given=given)
    study = compare.Study(compare.captions(3), seeds=2)
    monkeypatch.setattr(measuring, "BATCH", 2)
    found = compare.measure(rows, study, tmp_path, progress=False)
    for row in rows:
        search, m = presets.build(row.method, row.settings), found[row]
        for i in range(3):
            for seed in range(2):
                alone = fs.run(
                    jax.random.key(seed), stand_in.FLOW, search, stand_in._reward,
                    cond=study.cond[i : i + 1], prompt_ids=[i],
                )  # fmt: skip
                image = np.asarray(alone.image)
                near = np.abs(m.images[i, seed].astype(int) - pixels(image)[0].astype(int))
                assert near.max() <= 1
                np.testing.assert_allclose(m.reward[i, seed], alone.reward[0], rtol=1e-5)
                assert m.nfe[i, seed] == alone.nfe[0] == row.settings.nfe
                # Without the surplus of a wave.
                assert m.nfe[i, seed] - 1 <= m.verifier_calls[i, seed] <= alone.verifier_calls[0]
                wanted = counts(parse(study.prompts[i]))[None]
                assert m.exact[i, seed] == checker.exact(image, wanted)[0]
                assert m.rss[i, seed] == checker.rss(image, wanted)[0]


@pytest.mark.slow
def test_seconds_hold_no_compilation(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even those of the only part that there is."""
    compiled: list[int] = []
    measured = measuring._run

    def run(*args: Any) -> dict[str, Any]:
        before = rounds.run_rounds._cache_size()
        found = measured(*args)
        compiled.append(rounds.run_rounds._cache_size() - before)
        return found

    monkeypatch.setattr(measuring, "_run", run)
    rows, _ = compare.plan(["bon"], nfe=[7, 14], given={"steps": 7})
    compare.measure(rows, compare.Study(compare.captions(2), seeds=1), tmp_path, progress=False)
    assert compiled == [0, 0]


# The command.


@pytest.mark.slow
def test_writes_everything(small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = _compare(tmp_path / "out", rbf=True)
    said = capsys.readouterr()
    assert {p.name for p in (tmp_path / "out").iterdir()} == FILES | PLOTS
    assert found["seeds"] == 2 and found["prompts"] == compare.captions(3)
    rows = found["rows"]
    assert [(row["method"], row["nfe"]) for row in rows] == [
        ("bon", 8), ("bon", 14), ("rbf", 8), ("rbf", 14)
    ]  # fmt: skip
    keys = "interpolant kernel given accuracy accuracy_low accuracy_high rss diversity seconds"
    for row in rows:
        assert set(keys.split()) <= set(row)
        assert row["charged"] <= row["nfe"] and row["prompts"] == 3 and row["seeds"] == 2
        assert row["label"] in said.out
    assert "NFE/s" in said.err and "compare.html" in said.out
    with (tmp_path / "out" / "compare.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    for line, row in zip(lines, rows, strict=True):
        assert line == {k: "" if v is None else str(v) for k, v in row.items()}
    # The same command measures nothing again, and one with more seeds only what is new.
    parts = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / PARTS).iterdir()}
    assert _compare(tmp_path / "out", rbf=True) == found
    assert f"{tmp_path / 'out'} is already complete" in capsys.readouterr().out
    more = _compare(tmp_path / "out", "--seeds", "3", rbf=True)
    assert "resume  8 of 12 parts are measured" in capsys.readouterr().out
    assert [row["seeds"] for row in more["rows"]] == [3] * 4
    there = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / PARTS).iterdir()}
    assert len(there) == len(parts) + 4 and parts.items() <= there.items()


@pytest.mark.slow
def test_goes_on_after_a_kill(small: None, tmp_path: Path) -> None:
    expected = _compare(tmp_path / "whole")
    out = tmp_path / "killed"
    script = Path(stand_in.__file__)
    command = [sys.executable, str(script), "3", *ARGS, "--methods", "bon", "--out", str(out)]
    killed = subprocess.run(command, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(list((out / PARTS).glob("*.npz"))) == 3
    assert not (out / "compare.json").exists()
    found = _compare(out)
    for row in expected["rows"] + found["rows"]:
        del row["seconds"]
    assert found == expected


@pytest.mark.slow
def test_more_prompts_keep_what_is_there(small: None, tmp_path: Path) -> None:
    out = tmp_path / "grown"
    _compare(out)
    before = {path.name: path.stat().st_mtime_ns for path in (out / PARTS).glob("*.npz")}
    found = _compare(out, "--prompts", "5")
    after = {path.name: path.stat().st_mtime_ns for path in (out / PARTS).glob("*.npz")}
    assert before.items() < after.items() and len(after) == 2 * len(before)
    expected = _compare(tmp_path / "whole", "--prompts", "5")
    for row in expected["rows"] + found["rows"]:
        del row["seconds"], row["evaluations"]  # What fills chunks up is of the parts.
    assert found == expected
    # Nothing is measured a third time.
    _compare(out, "--prompts", "5")
    assert {path.name for path in (out / PARTS).glob("*.npz")} == after.keys()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--methods best", "flowsde compare: --methods must be one of"),
        ("--nfe many", "flowsde compare: .*nfe"),
        ("--nfe 0", "--nfe must be an integer of at least 1, got 0"),
        ("--nfe 3 --methods rbf", "nfe leaves 2 evaluations"),
        ("--seeds 0", "--seeds must be an integer of at least 1"),
        ("--prompts 0", "--prompts must be an integer of at least 1"),
        ("--objects 11", "--objects must be an integer of at most 10, got 11"),
        ("--prompts-file nowhere.txt", "--prompts-file: cannot read nowhere.txt"),
        ("--methods bon --block 3", "--block has no effect on bon"),
    ],
)
def test_wrong_values(
    words: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    said = refused(capsys, "compare", *words.split(), "--out", str(tmp_path / "out"))
    assert re.search(message, said), said
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_results_are_not_overwritten(
    small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--methods", "bon", "--nfe", "6", "--steps", "3", "--seeds", "2", "--prompts", "2"]
    cli.main(["compare", *few, "--out", str(tmp_path)])
    capsys.readouterr()
    for other, says in (
        (["--seeds", "1"], "has --seeds 2, not 1"),
        (["--prompts", "1"], "has 2 prompts, not 1"),
        (["--objects", "10"], "has other prompts"),
        (["--nfe", "9"], "has bon at 6 NFE, which this command leaves out"),
        (["--methods", "ode"], "has bon at 6 NFE, which this command leaves out"),
    ):
        said = refused(capsys, "compare", *few, *other, "--out", str(tmp_path))
        assert f"{says}; expected another --out, or --overwrite" in said
    one = ["--seeds", "1", "--prompts", "1"]
    cli.main(["compare", *few, *one, "--out", str(tmp_path), "--overwrite"])
    assert "discard 2 measured parts" in capsys.readouterr().out
    found = json.loads((tmp_path / "compare.json").read_text())
    assert found["rows"][0]["prompts"] == 1 and found["rows"][0]["diversity"] is None
    assert len(list((tmp_path / PARTS).iterdir())) == 1


@pytest.mark.slow
def test_ctrl_c_says_how_to_resume(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(measuring, "write_arrays", interrupt)
    with pytest.raises(SystemExit) as stop:
        _compare(tmp_path)
    assert stop.value.code == 130
    again = resume_with([*ARGS, "--methods", "bon", "--out", str(tmp_path)])
    assert again in capsys.readouterr().err


# The page.


class _Reader(HTMLParser):
    """Headings, pictures and references of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.images: list[dict[str, Any]] = []
        self.references: list[str] = []
        self._open = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        values, self._open = dict(attrs), tag
        if tag == "img":
            self.images.append(values)
        self.references += [values[k] for k in ("src", "href") if k in values]

    def handle_data(self, data: str) -> None:
        if self._open in ("h1", "h2", "th") and data.strip():
            self.headings.append(data.strip())


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two tables."""
    rows, _ = compare.plan(["ode", "bon", "rbf"], nfe=[60, 90], interpolants=["linear", "vp"])
    more, _ = compare.plan(["rbf"], nfe=[60], given={"steps": 10}, table="few <steps>")
    rows += more
    study = compare.Study(compare.captions(12), 2)
    rng = np.random.default_rng(0)
    found = {row: _measured(rng.random((12, 2)) < 0.6, i) for i, row in enumerate(rows)}
    table = compare.summarise(rows, found)
    path = tmp_path_factory.mktemp("page") / "compare.html"
    path.write_text(make("A & B", study, rows, found, table), encoding="utf-8")
    return path


@pytest.mark.slow
def test_page_holds_everything_itself(page: Path) -> None:
    reader = _Reader()
    reader.feed(page.read_text(encoding="utf-8"))
    assert {"A & B", "methods", "few <steps>", "exact captions"} <= set(reader.headings)
    assert all(source.startswith("data:image/png;base64,") for source in reader.references)
    for image in reader.images:
        assert image["alt"]
        Image.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1]))).verify()
    plots = [image for image in reader.images if image.get("class") == "plot"]
    # Four measures of two tables; ten prompts of ode, bon and rbf on two paths, at each of two
    # budgets, and one more.
    assert len(plots) == 8
    assert len(reader.images) - len(plots) == 10 * (2 * (1 + 1 + 2) + 1)


@pytest.mark.slow
def test_page_in_a_browser(page: Path, tmp_path: Path) -> None:
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip("no Chromium is installed")
    script = """<script>addEventListener("load", () => {
      document.querySelectorAll("details").forEach(d => d.open = true);
      const images = [...document.images];
      document.title = [images.length, images.filter(i => !i.naturalWidth).length,
        document.querySelectorAll("table").length,
        document.documentElement.scrollWidth <= innerWidth &&
          (d => d.scrollWidth <= d.clientWidth)(document.querySelector(".scroll")),
        getComputedStyle(document.querySelector("img.exact")).borderTopColor].join(";");
    });</script></body>"""
    copy = tmp_path / "page.html"
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", script), encoding="utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1280,900",
               f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", copy.as_uri()]  # fmt: skip
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    title = shown.split("<title>")[1].split("</title>")[0]
    images, broken, tables, fits, frame = title.split(";")
    assert (images, broken, fits) == ("98", "0", "true")
    # Two tables of numbers, and of pictures one a budget: 60, 90, and 60.
    assert tables == "5" and frame == "rgb(77, 154, 77)"
