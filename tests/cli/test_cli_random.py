"""Random command lines: each is prepared, or refused in one line that names what is wrong."""

import random
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import stand_in

from flowsde.cli import main as cli
from flowsde.cli import sample
from flowsde.cli.batch import Batch
from flowsde.cli.compare import command as comparing
from flowsde.cli.settings import CHOICES
from flowsde.shapes import runs
from flowsde_converters import hub

CONTROL = "\x1b]0;owned\x07"
NUMBERS = [
    *"0 1 2 3 5 7 16 40 100 -1 -0 +3 007 1_0 1e3 .5 0.1 1.5 2.5 nan inf -inf 1e38 1e39".split(),
    *"1e-300 1e300 1e999999 2147483647 2147483648 4294967295 4294967296 4294967326".split(),
    *("18446744073709551616", "9" * 5000, "x", "0x10", "٣", "½", "1,5", "−1", "é" * 300, CONTROL),
    *("", " ", "{", "%s", "--", "-"),
]
PROMPTS = [
    "one red circle", "two blue squares and one red circle", "", " ", "six red dogs", CONTROL,
    "a" * 100_000, "one red circle and " * 3000, "$x_$", "\udc80\udcff", "😀" * 60,
    "one\nred\ncircle", "--", "{}", "two green triangles", "three yellow circles",
]  # fmt: skip
INTEGERS = (
    "nfe steps seed chains chain-seeds block interval paths start forward backward finish-steps "
    "width label"
).split()
FLOATS = (
    "eta data-variance diffusion-scale guidance gradient-temperature temperature threshold "
    "target-reward reward-timeout"
).split()
TRAINING = (
    "steps batch-size learning-rate adam-learning-rate warmup clip ema seed log-every save-every "
    "sheet-every"
).split()
NAMED = re.compile(
    r"--?[a-z]|PROMPT|prompt|NETWORK|SOURCE|OUT|[Uu]nrecognized|argument|command|\.txt"
)


def _number(draw: random.Random) -> str:
    return draw.choice(NUMBERS[:10] if draw.random() < 0.5 else NUMBERS)


def _files(tmp_path: Path) -> dict[str, str]:
    """Names of files and folders, good and bad."""
    made = {"good.txt": b"one red circle\ntwo blue squares\n", "bad.txt": b"one red dog\n",
            "long.txt": b"a" * 200_000, "bytes.txt": bytes(range(256)), "empty.txt": b"",
            "x.safetensors": b"\xff" * 100, "x.pt": b"PK\x03\x04" * 10,
            CONTROL.replace("/", "") + ".txt": b"one red \x1b[31m dog\n"}  # fmt: skip
    for name, data in made.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "folder").mkdir()
    return {name: str(tmp_path / name) for name in [*made, "folder", "none", "n" * 300]}


def _options(draw: random.Random, places: dict[str, str]) -> Iterator[list[str]]:
    """Of `sample`, for ever."""
    while True:
        kind = draw.random()
        if kind < 0.4:
            yield [f"--{draw.choice(INTEGERS)}", _number(draw)]
        elif kind < 0.65:
            yield [f"--{draw.choice(FLOATS)}={_number(draw)}"]
        elif kind < 0.9:
            name = draw.choice([n for n in CHOICES if n != "method"])
            yield [f"--{name}", draw.choice([*CHOICES[name], "x", CONTROL, "y" * 10_000])]
        elif kind < 0.96:
            name = draw.choice(["model", "vae", "reward-model", "size"])
            yield [f"--{name}", draw.choice([*places.values(), CONTROL, "16x16", "9" * 5000])]
        else:
            yield [draw.choice(["--resume", "--overwrite", "--metod", "--nfe", "-x", "y" * 9999])]


def _line(draw: random.Random, places: dict[str, str], out: Path) -> list[str]:
    command = draw.choice(["sample"] * 4 + ["batch"] * 2 + ["compare"] * 2 + ["train", "convert"])
    options = _options(draw, places)
    some = [word for _ in range(draw.choice([0, 0, 1, 1, 2, 3])) for word in next(options)]
    method = ["--method", draw.choice(CHOICES["method"])] if draw.random() < 0.8 else []
    if command == "sample":
        prompts = draw.choices(PROMPTS, [9] + [1] * (len(PROMPTS) - 1), k=draw.choice([1, 1, 1, 2]))
        return [command, *prompts, *method, *some, "--out", str(out)]
    if command == "batch":
        file = ["--prompts-file", draw.choice([places["good.txt"]] * 3 + [*places.values()])]
        name = draw.choice(["batch-size", "slots", "total-nfe"])
        own = [f"--{name}", _number(draw)] if draw.random() < 0.5 else []
        return [command, *file, *method, *some, *own, "--out", str(out)]
    if command == "compare":
        name = draw.choice(["prompts", "objects", "seeds", "nfe", "methods", "kernels"])
        own = [f"--{name}", draw.choice([*NUMBERS, *CHOICES["method"], *CHOICES["kernel"]])]
        return [command, *own, *some[: draw.choice([0, 2])], "--out", str(out)]
    if command == "train":
        task = draw.choice(["shapes", "scorer", "cat", CONTROL, "t" * 9999])
        own = [f"--{draw.choice(TRAINING)}={_number(draw)}" for _ in range(2)]
        return [command, task, *own, "--out", str(out)]
    source = draw.choice([*places.values(), "owner/name", CONTROL, "s" * 9999])
    flags = draw.choice([[], ["--check"], ["--to-torch"], ["--dtype", draw.choice(NUMBERS)]])
    return [command, source, str(out), *flags]


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands end where their work would begin."""
    stand_in.use(monkeypatch.setattr)

    def offline(source: str, revision: str | None = None) -> Path:
        raise ValueError(f"SOURCE {source} is no path here")

    monkeypatch.setattr(sample, "run_all", lambda *_: 0)
    monkeypatch.setattr(Batch, "_search", lambda *_: 0)
    monkeypatch.setattr(comparing, "report", lambda *_: None)
    monkeypatch.setattr(runs, "make_task", lambda name: SimpleNamespace(least_batch=1))
    monkeypatch.setattr(runs, "fit", lambda *_: None)
    monkeypatch.setattr(runs, "_export", lambda *_: Path("weights"))
    monkeypatch.setattr(hub, "fetch", offline)


def _check(capsys: pytest.CaptureFixture[str], args: list[str]) -> int:
    capsys.readouterr()
    shown = [word if len(word) < 60 else f"{word[:50]}… {len(word)}" for word in args]
    code: Any = 0
    try:
        cli.main(args)
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    assert code in (0, 2), shown
    assert all(c.isprintable() or c == "\n" for c in out + err), (shown, err)
    if code == 2:
        assert out == "", shown
        assert err.startswith(f"flowsde {args[0]}: "), (shown, err)
        assert len(err.encode()) <= 4096, (shown, len(err))
        assert err.count("\n") == 1 or args[0] == "convert", (shown, err)
        assert NAMED.search(err.partition(": ")[2]), (shown, err)
    return code


@pytest.mark.slow
def test_random_command_lines(
    no_work: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw, places = random.Random(14), _files(tmp_path)
    codes = [_check(capsys, _line(draw, places, tmp_path / f"out{i}")) for i in range(300)]
    assert 30 < codes.count(0) < 200


@pytest.mark.slow_but_one
@pytest.mark.parametrize(
    ("words", "option"),
    [
        ("sample P --steps 2147483648", "--steps"),
        ("sample P --nfe 4294967296", "--nfe"),
        ("sample P --nfe 2147483647", "--nfe"),
        ("sample P --width 2147483648", "--width"),
        ("sample P --seed 18446744073709551616", "--seed"),
        ("sample P --seed=-1", "--seed"),
        ("sample P --guidance 1e39", "--guidance"),
        ("sample P --method smc --temperature 1e-300", "--temperature"),
        ("sample P --target-reward 1e300", "--target-reward"),
        ("sample P --target-reward nan", "--target-reward"),
        ("sample P --reward-timeout 3", "--reward-timeout"),
        ("sample P --kernel ddim --eta 2", "--eta"),
        ("compare --prompts 4294967296", "--prompts"),
        ("compare --seeds 4294967296", "--seeds"),
        ("compare --prompts 10000 --seeds 1000", "--seeds"),
        ("compare --nfe 4294967296", "--nfe"),
        ("batch --prompts-file F --batch-size 4294967296", "--batch-size"),
        ("batch --prompts-file F --slots 4294967296", "--slots"),
        ("batch --prompts-file F --total-nfe 4294967326 --target-reward 0", "--total-nfe"),
        ("train shapes --seed 4294967296", "--seed"),
        ("train shapes --steps 4294967296", "--steps"),
    ],
)
def test_large_numbers_are_refused_by_name(
    no_work: None, words: str, option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("one red circle\n")
    args = [{"P": "one red circle", "F": str(file)}.get(word, word) for word in words.split()]
    with pytest.raises(SystemExit) as stop:
        cli.main([*args, "--out", str(tmp_path / "out")])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"flowsde {args[0]}: {option} ") and said.count("\n") == 1
