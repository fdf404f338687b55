"""`--combine`: several rewards of a command as one, each told its own."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stand_in
from refusing import refused

import flowsde as fs
from flowsde.cli import main as cli
from flowsde.cli.option_groups import Combining
from flowsde.cli.sources.combined import Combined, check, pool

PROMPT = "two red circles"
IMAGES = np.random.default_rng(0).normal(size=(3, 4, 4, 3)).astype(np.float32)


def bright(images: jax.Array, cond: jax.Array) -> jax.Array:
    """Told a number."""
    return jnp.mean(images, axis=(1, 2, 3)) + cond


def long(images: np.ndarray, cond: list[str]) -> np.ndarray:
    """Told a text."""
    return np.asarray([image.max() + len(text) for image, text in zip(images, cond, strict=True)])


class Source(NamedTuple):
    """A `RewardSource` that tells numbers or the prompts."""

    reward: Any
    numbers: bool

    reads_text = True

    @property
    def on_device(self) -> bool:
        return self.numbers

    def load(self, prompts: Sequence[str]) -> tuple[Any, list[Any]]:
        told: list[Any] = [np.float32(len(one)) for one in prompts] if self.numbers else [*prompts]
        return self.reward, told


DEVICE = Source(fs.rewards.device(bright), True)
HOST = Source(fs.rewards.host(long, timeout=60.0), False)
NAMES, TEXTS = ("a", "b"), ["x", "xyz", "xy"]


def _parts(sources: Sequence[Source]) -> list[np.ndarray]:
    """What they say of the pictures, each told its own."""
    numbers = np.float32([len(text) for text in TEXTS])
    return [
        np.asarray(bright(jnp.asarray(IMAGES), numbers) if one.numbers else long(IMAGES, TEXTS))
        for one in sources
    ]


def _said(sources: Sequence[Source], given: Combining, pools: dict[str, Any]) -> Any:
    """Scores of the combination, told as the runner tells it."""
    both = Combined(NAMES, sources, given, pools)
    reward, told = both.load(TEXTS)
    assert both.on_device == isinstance(reward, fs.rewards.DeviceReward)
    if both.on_device:
        told = jax.tree.map(lambda *each: np.stack(each), *told)
    return reward.scores(IMAGES, told)


@pytest.mark.parametrize("sources", [(DEVICE, DEVICE), (DEVICE, HOST), (HOST, HOST)],
                         ids=["JAX", "mixed", "host"])  # fmt: skip
def test_each_is_told_its_own(sources: Sequence[Source]) -> None:
    one, other = _parts(sources)
    scores = _said(sources, Combining(combine="weighted", reward_weights=(1.0, -0.5)), {})
    np.testing.assert_allclose(scores.reward, one - 0.5 * other, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(scores.parts["b"], other, rtol=1e-5)
    scores = _said(sources, Combining(combine="minimum"), {})
    np.testing.assert_allclose(scores.reward, np.minimum(one, other), rtol=1e-5)
    # Every prompt by its own pool.
    pools = {
        text: {"a": (np.float32(i), np.float32(2 + i)), "b": (np.float32(-i), np.float32(0.5))}
        for i, text in enumerate(TEXTS)
    }
    given = Combining(combine="normalised", reward_pool=Path("pool"), reward_weights=(1.0, 3.0))
    i = np.arange(3)
    wanted = (one - i) / (2 + i) + 3.0 * (other + i) / 0.5
    np.testing.assert_allclose(_said(sources, given, pools).reward, wanted, rtol=1e-4)


@pytest.mark.parametrize(
    ("names", "given", "message"),
    [
        (("a",), {"combine": "minimum"}, "--combine: has no effect without several --reward"),
        (("a",), {"reward_weights": (1.0,)}, "--reward-weights: has no effect without several"),
        (NAMES, {}, "--combine: is missing for 2 --reward, expected weighted, minimum, lexico"),
        (NAMES, {"combine": "mean"}, "--combine: must be one of weighted, .*, got 'mean'"),
        (NAMES, {"combine": "weighted"}, r"--reward-weights: must be 2 numbers, the weights of"),
        (NAMES, {"combine": "lexicographic", "reward_weights": (1.0,) * 3},
         "--reward-weights: must be 2 numbers, the steps of --combine lexicographic, .*, got 3"),
        (NAMES, {"combine": "weighted", "reward_weights": (1.0, 0.0)}, "weights: must not be 0"),
        (NAMES, {"combine": "minimum", "reward_weights": (1.0, -1.0)}, "weights: must be .*-1.0"),
        (NAMES, {"combine": "normalised"}, "--reward-pool: is missing for --combine normalised"),
        (NAMES, {"combine": "minimum", "reward_pool": Path("p")}, "--reward-pool: has no effect"),
        (("a", "a"), {"combine": "minimum"}, "--reward: a is given twice"),
        (("a", "none"), {"combine": "minimum"}, "--reward: none cannot be one of 2"),
    ],
)  # fmt: skip
def test_mistakes_name_the_option(names: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(names, Combining(**given))


def test_a_pool_has_numbers_of_every_reward(tmp_path: Path) -> None:
    given = Combining(combine="normalised", reward_pool=tmp_path)
    with pytest.raises(ValueError, match="--reward-pool: .* has no result of a-cat"):
        pool(NAMES, given, "a-cat", {})
    (tmp_path / "a-cat").mkdir()
    file = tmp_path / "a-cat" / "result.json"
    file.write_text(json.dumps({"kept": [{"reward": 1.0}]}))
    with pytest.raises(ValueError, match="expected a result of the same --reward with --combine"):
        pool(NAMES, given, "a-cat", {})
    kept = [{"parts": {"a": 1.0, "b": 5.0}}, {"parts": {"a": 3.0, "b": None}}]
    file.write_text(json.dumps({"kept": kept}))
    with pytest.raises(ValueError, match="at least two numbers of reward 'b'"):
        pool(NAMES, given, "a-cat", {})
    found = pool(("a",), given, "a-cat", {})
    assert found == {"a": (2.0, 1.0)}


@pytest.mark.parametrize(
    ("theirs", "own", "said"),
    [
        ({"reward_model": ["m"], "contents": ["1", "2"]}, {"contents": ["1"]}, "--reward-model"),
        ({"reward_model": ["m"], "contents": ["1", "2"]},
         {"reward_model": ["n"], "contents": ["1", "3"]}, r"--reward-model \['2'\], not \['3'\]"),
        ({"reward_frames": {"a": 4}}, {"reward_frames": {"a": 2}}, "--reward-frames"),
        ({"weights": ["scorer 1"]}, {"weights": ["shapes 1"]}, r"--weights \['scorer 1'\], not"),
        ({"task": "sides"}, {}, "--task sides, not None"),
        # Where pictures come from is no matter, nor what a folder is called.
        ({"reward_model": ["m"], "contents": ["1", "2"], "model": "x", "weights": ["shapes 2"]},
         {"reward_model": ["n"], "contents": ["3", "4", "2"]}, ""),
    ],
)  # fmt: skip
def test_a_pool_is_of_the_same_rewards(
    tmp_path: Path, theirs: dict[str, Any], own: dict[str, Any], said: str
) -> None:
    kept = [{"parts": {"a": 1.0}}, {"parts": {"a": 3.0}}]
    (tmp_path / "result.json").write_text(json.dumps({"kept": kept, "settings": theirs}))
    given = Combining(combine="normalised", reward_pool=tmp_path)
    if said:
        with pytest.raises(ValueError, match=f"--reward-pool: .* is of other rewards: {said}"):
            pool(("a",), given, "a-cat", own)
    else:
        assert pool(("a",), given, "a-cat", own) == {"a": (2.0, 1.0)}


@pytest.mark.slow
def test_the_command_combines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in.use(monkeypatch.setattr)
    several = "--method bon --steps 3 --nfe 12 --reward likelihood --reward rss --combine".split()

    def sample(out: str, *more: str) -> dict[str, Any]:
        cli.main(["sample", PROMPT, *several, *more, "--out", str(tmp_path / out)])
        return json.loads((tmp_path / out / "result.json").read_text())

    drawn = sample("pool", "weighted", "--reward-weights", "1", "-0.3", "--keep", "4")
    assert drawn["settings"]["reward"] == "weighted(likelihood, rss)"
    assert drawn["settings"]["reward_weights"] == [1.0, -0.3]
    assert len(drawn["kept"]) == 4
    for one in drawn["kept"]:
        wanted = one["parts"]["likelihood"] - 0.3 * one["parts"]["rss"]
        assert one["reward"] == pytest.approx(wanted, rel=1e-4)
    found = sample("normalised", "normalised", "--reward-pool", str(tmp_path / "pool"))
    total = np.zeros(4)
    for name in ("likelihood", "rss"):
        said = [one["parts"][name] for one in drawn["kept"]]
        own = found["settings"]["reward_pool"][name]
        assert own["mean"] == pytest.approx(np.mean(said), rel=1e-5)
        assert own["deviation"] == pytest.approx(np.std(said), rel=1e-3)
        # The same draws: the best of the pool by what both say.
        total = total + (np.asarray(said) - np.mean(said)) / np.std(said)
    assert found["reward"] == pytest.approx(np.max(total), rel=1e-2)
    # Another combination is another run, and one of the rewards cannot be held out.
    args = ["sample", PROMPT, *several, "minimum", "--out", str(tmp_path / "pool")]
    capsys.readouterr()
    said = refused(capsys, *args)
    assert "--reward weighted(likelihood, rss), not minimum(likelihood, rss)" in said
    held = [*args[:-1], str(tmp_path / "held"), "--heldout", "rss"]
    assert "is the reward that is searched by" in refused(capsys, *held)
