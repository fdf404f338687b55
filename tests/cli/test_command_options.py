"""Options of converted models that need none: names of folders, functions as rewards."""

import random
import re
import string
import sys
from pathlib import Path

import numpy as np
import pytest

from flowsde.cli.sources import rewards
from flowsde.cli.sources.published import slug

ODD = [
    *("two cats", "two-cats", "Two cats", "two  cats", " two cats", "two cats.", "two_cats"),
    *("two/cats", "../two cats", "two\ncats", "two cats $x_$", "\u00e9t\u00e9", "e\u0301t\u00e9"),
    *("\udc80", "...", "-", "😀" * 60, "𝒜" * 60, "a" * 300, "a" * 301),
    *("two cats 0123456789", "two-cats-0123456789"),
]


def test_every_prompt_has_a_folder_of_its_own() -> None:
    draw = random.Random(20)
    letters = string.ascii_letters + "  --__é😀"
    prompts = {
        *ODD,
        *("".join(draw.choices(letters, k=draw.choice([2, 5, 80]))) for _ in range(3000)),
    }
    prompts = {prompt for prompt in prompts if prompt.strip()}
    names = {slug(prompt) for prompt in prompts}
    assert len(names) == len(prompts) == len({name.casefold() for name in names})
    for name in names:
        assert len(name.encode()) <= 80 and re.fullmatch(r"[\w-]+", name)
    # What can be read is left as it is.
    assert slug("two cats") == "two-cats" and slug("a red fox") == "a-red-fox"


def test_a_digest_cannot_be_taken_for_another_prompt() -> None:
    name = slug("Two cats")
    assert slug(name.replace("-", " ")) != name


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def test_a_function_may_import_its_neighbour_when_it_is_called(here: Path) -> None:
    (here / "late_neighbour.py").write_text("def value(n): return [0.5] * n\n")
    (here / "json.py").write_text("raise SystemExit('hijacked')\n")
    (here / "late_judge.py").write_text(
        "import numpy as np\n"
        "def score(images, prompts):\n"
        "    import late_neighbour\n"
        "    return np.asarray(late_neighbour.value(len(images)))\n"
    )
    reward, told = rewards.reward_source("late_judge:score", ()).load(["two cats"])
    assert told == ["two cats"] and reward.timeout == 3600.0
    found = reward(np.zeros((3, 2, 2, 3), np.float32), told * 3)
    np.testing.assert_array_equal(found, 0.5)
    # What is there stands before nothing that is installed.
    assert sys.path[-1] == str(here)


def test_reward_timeout(here: Path) -> None:
    (here / "timed_judge.py").write_text("def score(images, prompts): return images\n")
    assert rewards.reward_source("timed_judge:score", (), 2.5).load([])[0].timeout == 2.5
    for value in (0.0, -1.0):
        with pytest.raises(ValueError, match="--reward-timeout must be a finite number above 0"):
            rewards.reward_source("timed_judge:score", (), value)
    with pytest.raises(ValueError, match="--reward-timeout has no effect with --reward none"):
        rewards.reward_source("none", (), 2.5)


def test_a_reward_of_several_keeps_what_each_says(here: Path) -> None:
    (here / "both_judges.py").write_text(
        "import flowsde as fs\n"
        "def dark(images, prompts): return -images.mean((1, 2, 3))\n"
        "def length(images, prompts): return [float(len(p)) for p in prompts]\n"
        "slow = fs.rewards.host(length, timeout=7.0)\n"
        "both = fs.rewards.weighted([fs.rewards.host(dark), slow], [1.0, 2.0])\n"
    )
    both = rewards.reward_source("both_judges:both", ()).load([])[0]
    scores = both.scores(np.ones((2, 4, 4, 3), np.float32), ["a", "abc"])
    np.testing.assert_array_equal(scores.reward, [1.0, 5.0])
    np.testing.assert_array_equal(scores.parts["length"], [1.0, 3.0])
    assert both.timeout == 3600.0
    # Its own timeout stands where the command gives none.
    assert rewards.reward_source("both_judges:slow", ()).load([])[0].timeout == 7.0
    assert rewards.reward_source("both_judges:slow", (), 2.5).load([])[0].timeout == 2.5


def test_what_cannot_be_imported_is_one_short_line(here: Path) -> None:
    (here / "broken_judge.py").write_text("raise SystemExit('x' * 100000)\n")
    for name in ("broken_judge:score", "no_such_module_1:f", "\x1b[31m:" + "f" * 9999):
        with pytest.raises(ValueError) as error:
            rewards.reward_source(name, ())
        assert len(str(error.value)) < 900 and str(error.value).isprintable()
        assert str(error.value).startswith("--reward ")
