"""Several rewards of a command as one: `--combine`, by what `flowsde.rewards` makes of them.

Each is told what it is told alone, so that the whole is told a tuple. Of "normalised" that has
the mean and the standard deviation of the prompt's own pool beside it: one compiled reward serves
all prompts.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowsde import rewards
from flowsde._files import read_json, speakable
from flowsde._schema import fields, items, mapping, maybe, number, table
from flowsde._text import shown
from flowsde.cli.errors import OptionError
from flowsde.cli.option_groups import COMBINATIONS, Combining
from flowsde.cli.settings import flag
from flowsde.cli.sources.base import RewardSource
from flowsde.rewards.base import DeviceReward, HostReward, Reward
from flowsde.rewards.several import statistics

_OPTION, _WEIGHTS, _POOL = "--combine", "--reward-weights", "--reward-pool"
_READ = fields({"settings": mapping}, kept=items(fields(parts=table(maybe(number)))))
_OF_REWARDS = (
    *("task", "judge", "reward_version", "reward_counts", "reward_questions"),
    *("reward_frames", "over_frames"),
)
"""Settings on which depends what rewards say, beside the contents of their models."""
Statistics = dict[str, tuple[np.float32, np.float32]]
"""Mean and standard deviation over a pool, by name of the reward."""


def check(names: Sequence[str], given: Combining) -> None:
    """OptionError or ValueError naming the option that is wrong, of some --reward."""
    kind = given.combine
    if len(names) < 2:
        own = {_OPTION: kind, _WEIGHTS: given.reward_weights, _POOL: given.reward_pool}
        for option, value in own.items():
            if value not in (None, ()):
                raise OptionError(option, f"has no effect without several --reward, got {value}")
        return
    if kind is None:
        raise OptionError(
            _OPTION, f"is missing for {len(names)} --reward, expected {', '.join(COMBINATIONS)}"
        )
    if kind not in COMBINATIONS:
        raise OptionError(_OPTION, f"must be one of {', '.join(COMBINATIONS)}, got '{shown(kind)}'")
    for i, name in enumerate(names):
        if name in names[:i]:
            raise OptionError("--reward", f"{shown(name)} is given twice")
        if name == "none":
            raise OptionError("--reward", f"none cannot be one of {len(names)}")
    if (kind == "normalised") != (given.reward_pool is not None):
        said = "is missing for" if kind == "normalised" else "has no effect with"
        raise OptionError(_POOL, f"{said} {_OPTION} {kind}")
    _made(kind, [rewards.device(_nothing, name=name) for name in names], given.reward_weights)


def check_gradient(given: Mapping[str, Any], without: Sequence[str]) -> None:
    """ValueError for settings that want a gradient, with the rewards that are without one."""
    for option in ("gradient_temperature", "noise_tilt"):
        for name in without:
            if given.get(option):
                raise ValueError(
                    f"{flag(option)} wants a reward with a gradient, got --reward {shown(name)}"
                )


def _nothing(images: jax.Array, cond: Any) -> jax.Array:
    return jnp.zeros(images.shape[0], jnp.float32)


def _made(kind: str, parts: Sequence[Reward], weights: Sequence[float]) -> Reward:
    """The combination of parts that are told what they want; errors name the option."""
    if len(weights) != len(parts) and (weights or kind in ("weighted", "lexicographic")):
        what = {"lexicographic": "steps", "minimum": "scales"}.get(kind, "weights")
        raise OptionError(
            _WEIGHTS,
            f"must be {len(parts)} numbers, the {what} of {_OPTION} {kind}, one for each --reward, "
            f"got {len(weights)}",
        )
    try:
        if kind == "minimum":
            return rewards.minimum(parts, weights or None)
        if kind == "lexicographic":
            return rewards.lexicographic(parts, weights)
        reward = rewards.weighted(parts, weights or [1.0] * len(parts))
    except ValueError as error:
        for name in ("weights", "scales", "steps"):
            if str(error).startswith(name):
                said = str(error).removeprefix(name).strip()
                raise OptionError(_WEIGHTS, said) from None
        raise
    return dataclasses.replace(reward, name=reward.name.replace("weighted", kind, 1))


def named(names: Sequence[str], given: Combining) -> dict[str, Any]:
    """Settings of a result besides the reward's name."""
    weights = list(given.reward_weights)
    return {"reward_weights": weights} if len(names) > 1 and weights else {}


def said(statistics: Statistics | None) -> dict[str, Any]:
    """The setting of a prompt's result that says what its pool says."""
    if statistics is None:
        return {}
    each = {
        name: {"mean": float(mean), "deviation": float(deviation)}
        for name, (mean, deviation) in statistics.items()
    }
    return {"reward_pool": each}


def _of_rewards(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of a result's settings, those on which depends what its rewards say, by option."""
    models = len(settings.get("reward_model", ()))
    contents = list(settings.get("contents", ()))
    own = {flag(name): settings.get(name) for name in _OF_REWARDS}
    own["--weights"] = [one for one in settings.get("weights", ()) if one.startswith("scorer ")]
    return {"--reward-model": contents[len(contents) - models :], **own}


def pool(
    names: Sequence[str], given: Combining, slug: str, named: Mapping[str, Any]
) -> Statistics | None:
    """What the pool says of a prompt, whose folder is called so; None without one.

    Args:
      names, given: as for `check`.
      slug: the folder of the prompt.
      named: the settings of the command's own result.

    Raises:
      OptionError: it has no such prompt, not at least two numbers of every reward, or is of rewards
        that are not those of the command.
    """
    if given.reward_pool is None:
        return None
    folder = given.reward_pool
    found = [path for path in (folder / slug, folder) if (path / "result.json").is_file()]
    if not found:
        raise OptionError(_POOL, f"{shown(folder, 500)} has no result of {shown(slug)}")
    path = found[0] / "result.json"
    values = read_json(path)
    try:
        pooled = _READ(values, str(path))
    except ValueError as error:
        raise OptionError(
            _POOL, f"{error}: expected a result of the same --reward with --combine and --keep"
        ) from None
    kept, theirs = pooled["kept"], _of_rewards(pooled.get("settings", {}))
    for option, own in _of_rewards(speakable(dict(named))).items():
        if theirs[option] != own:
            raise OptionError(
                _POOL,
                f"{path} is of other rewards: {option} {theirs[option]}, not {own}",
            )
    each: Statistics = {}
    for name in names:
        said = [one["parts"].get(name) for one in kept]
        try:
            each[name] = statistics(name, {name: [np.nan if n is None else n for n in said]})
        except ValueError as error:
            raise OptionError(_POOL, f"{path}: {error}") from None
    return each


class Combined:
    """A `RewardSource` of several, checked.

    Args:
      names: of the parts.
      parts: their sources.
      given: how they are combined.
      pools: of every prompt, by its text; of "normalised" alone.
    """

    def __init__(
        self,
        names: Sequence[str],
        parts: Sequence[RewardSource],
        given: Combining,
        pools: dict[str, Statistics | None],
    ):
        self._names, self._parts, self._given, self._pools = names, parts, given, pools

    @property
    def reads_text(self) -> bool:
        return any(part.reads_text for part in self._parts)

    @property
    def on_device(self) -> bool:
        return all(part.on_device for part in self._parts)

    def load(self, prompts: Sequence[str]) -> tuple[Reward, list[Any]]:
        loaded = [part.load(prompts) for part in self._parts]
        on_host = any(isinstance(reward, HostReward) for reward, _ in loaded)
        scales = self._given.combine == "normalised"
        parts = [
            _part(reward, name, i, scales, on_host)
            for i, (name, (reward, _)) in enumerate(zip(self._names, loaded, strict=True))
        ]
        assert self._given.combine is not None
        reward = _made(self._given.combine, parts, self._given.reward_weights)
        each = zip(*(told for _, told in loaded), strict=True)
        if not scales:
            return reward, [tuple(told) for told in each]
        own = [self._scale(prompt) for prompt in prompts]
        return reward, [
            tuple(zip(told, scale, strict=True)) for told, scale in zip(each, own, strict=True)
        ]

    def _scale(self, prompt: str) -> list[tuple[np.float32, np.float32]]:
        found = self._pools[prompt]
        assert found is not None
        return [found[name] for name in self._names]


def _part(reward: Reward, name: str, i: int, scales: bool, on_host: bool) -> Reward:
    """A reward that is told its own of a tuple, and scaled by what is told of its pool."""
    about: dict[str, Any] = {"name": name, "combination": None}
    if isinstance(reward, HostReward):
        # Its own timeout: the whole has none.
        return dataclasses.replace(reward, fn=_OnHost(reward, i, scales), timeout=None, **about)
    fn = jax.tree_util.Partial(_OnDevice(i, scales), reward)
    own = dataclasses.replace(reward, fn=fn, **about)
    if not on_host:
        return own
    return HostReward(_Called(own, i), name, own.cost, own.minibatch, None)


@dataclasses.dataclass(frozen=True)
class _OnDevice:
    i: int
    scales: bool

    def __call__(self, reward: DeviceReward, images: jax.Array, cond: Any) -> jax.Array:
        told = cond[self.i]
        if not self.scales:
            return reward(images, told)
        told, (mean, deviation) = told
        return (reward(images, told) - mean) / deviation


@dataclasses.dataclass(frozen=True)
class _OnHost:
    """Of a reward outside JAX; cond is a list of tuples."""

    reward: HostReward
    i: int
    scales: bool

    def __call__(self, images: np.ndarray, cond: list[Any]) -> np.ndarray:
        told = [one[self.i] for one in cond]
        if not self.scales:
            return self.reward(images, told)
        mean, deviation = np.asarray([scale for _, scale in told], np.float32).T
        return (self.reward(images, [own for own, _ in told]) - mean) / deviation


_called = jax.jit(lambda reward, images, cond: reward(images, cond))


@dataclasses.dataclass(frozen=True)
class _Called:
    """Of a JAX reward beside others outside JAX: it is called there, too."""

    reward: DeviceReward
    i: int

    def __call__(self, images: np.ndarray, cond: list[Any]) -> np.ndarray:
        own = [one[self.i] for one in cond]
        told = jax.tree.map(lambda *each: np.stack(each), *own)
        return np.asarray(_called(self.reward, images, (*[None] * self.i, told)))


def folders_of(
    names: Sequence[str], folders: Sequence[Path], needs: Sequence[int]
) -> list[Sequence[Path]]:
    """Those of --reward-model that each reward gets, in their order; one alone gets all."""
    if len(names) == 1:
        return [folders]
    if sum(needs) != len(folders):
        each = ", ".join(f"{n} of {name}" for name, n in zip(names, needs, strict=True) if n)
        raise OptionError(
            "--reward-model", f"must be {sum(needs)} folders, {each or 'none'}, got {len(folders)}"
        )
    left = list(folders)
    found: list[Sequence[Path]] = []
    for n in needs:
        found.append(left[:n])
        left = left[n:]
    return found
