"""What a reward is: a function of JAX (`device`), or one outside it (`host`)."""

import dataclasses
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowsde import _threads
from flowsde._checks import check_bool, check_count, check_non_negative, check_positive
from flowsde._exact import Exact, Key
from flowsde._explain import name_of, noted, outside_jax, shapes, without_cond
from flowsde.conds import Cond, is_array, stacked
from flowsde.modules import as_partial
from flowsde.rewards.combination import Combination
from flowsde.rewards.objects import Both, OfObjects, OfRewards

Parts = dict[str, Any]
"""What each part of a combined reward says, [n], by name."""


class Scores(NamedTuple):
    """Rewards [n], and those of the parts of a combined one; None without.

    `asked` says of parts that are not asked about every picture how often each was, int32 [n].
    """

    reward: Any
    parts: Parts | None = None
    asked: Parts | None = None


class PartNames(NamedTuple):
    """Of a combined reward; `unasked` are those parts that are not asked about every picture."""

    every: tuple[str, ...] = ()
    unasked: tuple[str, ...] = ()


class RewardError(RuntimeError):
    """A reward outside JAX raised, took too long, or returned something else than n floats.

    Attributes:
      round: in which it did, counted from 0.
      result: `flowsde.Result` before that round; pass it on as ``resume`` to go on from there, or
        keep it with `flowsde.save_search`.

    Example:
      >>> def broken(images, cond):
      ...     raise OSError("no answer")
      >>> flow = fs.analytic.gaussian([0.0], 1.0).flow()
      >>> kernel = fs.kernels.ddim(flow.interpolant)
      >>> search = fs.search.bon(nfe=8, kernel=kernel, grid=fs.grids.uniform(4))
      >>> try:
      ...     fs.run(jax.random.key(0), flow, search, fs.rewards.host(broken))
      ... except fs.rewards.RewardError as error:
      ...     print(error.round)  # the first at whose end pictures are finished
      3
    """

    round: int = 0
    result: Any = None


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("fn",),
    meta_fields=("name", "cost", "minibatch", "combination", "latents"),
)
@dataclasses.dataclass(frozen=True)
class DeviceReward:
    """A JAX function ``fn(images, cond) -> [n]`` with a name; build it with `device`.

    That of several rewards (`flowsde.rewards.weighted`, …) gives those of all parts by name, which
    `combination` makes one of.

    Example:
      >>> reward = fs.rewards.device(lambda images, cond: images[:, 0], cost=0.5, minibatch=4)
      >>> reward.cost, reward.minibatch
      (0.5, 4)
    """

    fn: Callable[[jax.Array, Any], Any]
    name: str
    cost: float
    minibatch: int | None
    combination: Combination | None = None
    latents: bool = False

    def __call__(self, images: jax.Array, cond: Any) -> jax.Array:
        """Rewards [n]; raises if the function returns anything else."""
        return self.scores(images, cond).reward

    def scores(self, images: jax.Array, cond: Any) -> Scores:
        """Rewards [n], and those of the parts."""
        if self.combination is not None:
            parts = self.fn(images, cond)
            return Scores(self.combination(parts, jnp), parts)
        with noted(partial(self._note, images, cond)):
            rewards = self.fn(images, cond)
            check_rewards(self.name, rewards, images.shape[0])
        return Scores(rewards)

    def _note(self, images: jax.Array, cond: Any, error: Exception) -> str:
        seen = "latents" if self.latents else "images"
        note = (
            f"reward {self.name!r} is called as reward({seen}, cond): {seen} is {shapes(images)} "
            f"and cond is {shapes(cond)}"
        )
        if without_cond(error, cond):
            return f"{note}, as none was given"
        if outside_jax(error):
            return (
                f"{note}, both traced by JAX; wrap a reward outside JAX (NumPy, PyTorch, a "
                f"service) as flowsde.rewards.host({self.name})"
            )
        return note


@dataclasses.dataclass(frozen=True)
class HostReward:
    """A reward outside JAX: NumPy images [n, ...] and cond in, n floats out; see `host`, `remote`.

    A search is resumed only with the `version` that it was begun with.

    Example:
      >>> reward = fs.rewards.host(lambda images, cond: images[:, 0], timeout=60, version="1")
      >>> reward.timeout, reward.version
      (60, '1')
    """

    fn: Callable[[np.ndarray, Any], Any]
    name: str
    cost: float
    minibatch: int | None
    timeout: float | None
    version: str | None = None
    combination: Combination | None = None
    latents: bool = False

    def __call__(self, images: np.ndarray, cond: Any) -> np.ndarray:
        """Rewards float32 [n]; raises as `scores` does."""
        return self.scores(images, cond).reward

    def scores(self, images: np.ndarray, cond: Any) -> Scores:
        """Rewards float32 [n], and those of the parts.

        Raises:
          RewardError: the function raised, took longer than the timeout, or returned anything
            but n floats.
        """
        try:
            # Writable, which is all that PyTorch takes.
            if isinstance(cond, Both) and not isinstance(self.fn, OfRewards | OfObjects):
                cond = cond.objects
            given = jax.tree.map(_writable, (images, cond))
            if self.combination is not None:
                parts = self._call(*given)
                return Scores(as_float32(self.combination(parts, np), np), parts)
            rewards = np.asarray(self._call(*given))
        except RewardError:
            raise
        except (Exception, SystemExit) as error:
            raise RewardError(f"reward {self.name!r} raised {_said(error)}") from error
        try:
            check_rewards(self.name, rewards, images.shape[0])
        except ValueError as error:
            raise RewardError(str(error)) from None
        return Scores(as_float32(rewards, np))

    def _call(self, images: np.ndarray, cond: Any) -> Any:
        if self.timeout is None:
            return self.fn(images, cond)
        try:
            return _threads.call(f"reward {self.name}", self.timeout, self.fn, images, cond)
        except _threads.Late:
            raise RewardError(
                f"reward {self.name!r} gave no answer within its timeout of {self.timeout:g} s"
            ) from None
        except _threads.Busy:
            raise RewardError(
                f"reward {self.name!r} is not called again: {_threads.MOST} calls that took longer "
                f"than their timeout are still running; expected a new process"
            ) from None


def _writable(array: Any) -> Any:
    return np.require(array, requirements="W") if isinstance(array, np.ndarray) else array


Reward = DeviceReward | HostReward


def device(
    fn: Callable[..., jax.Array],
    *,
    name: str | None = None,
    cost: float = 0.0,
    minibatch: int | None = None,
    latents: bool = False,
) -> DeviceReward:
    """A JAX reward with a name, a cost and a minibatch; a plain function is one without.

    Args:
      fn: ``fn(images, cond) -> [n]``; with parameters, ``jax.tree_util.Partial(fn, params)``.
      name: for messages; the function's own by default.
      cost: of one reward, in model evaluations; reported as `Result.verifier_cost`.
      minibatch: images judged at once; as many as the model evaluates at once by default.
      latents: ``fn(x0, cond)`` is shown latents x0 [n, *flow.shape] in place of the images that
        the flow decodes them to. Only the answer is decoded then, and whether a candidate's
        picture is finite is not known.

    Raises:
      ValueError, TypeError: naming the argument, or the reward, if it does not take two arguments.

    Example:
      >>> reward = fs.rewards.device(lambda images, cond: images[:, 0], name="left", cost=0.5)
      >>> reward(jnp.array([[3.0, 2.0], [1.0, 4.0]]), None).tolist()
      [3.0, 1.0]
    """
    partial_fn = as_partial("reward", fn)
    _check_call(fn)
    check_non_negative("cost", cost)
    check_bool("latents", latents)
    size = None if minibatch is None else check_count("minibatch", minibatch)
    own = name_of(fn) if name is None else name
    return DeviceReward(partial_fn, own, float(cost), size, latents=latents)


def host(
    fn: Callable[[np.ndarray, Any], Any],
    name: str | None = None,
    *,
    cost: float = 0.0,
    minibatch: int | None = None,
    timeout: float | None = None,
    version: str | None = None,
    latents: bool = False,
) -> HostReward:
    """Mark a reward that runs outside JAX: PyTorch, an HTTP service, a human.

    Args:
      fn: ``fn(images, cond) -> n floats`` on NumPy arrays with a leading axis n, which are its own
        to write to; cond is a list of n objects where `reward_cond` of `flowsde.run` is text or the
        like.
      name, cost, minibatch: as for `device`.
      timeout: seconds that one call may take; for ever by default. Python cannot end the call: it
        goes on in a thread of its own, and may hold up the end of the process by five seconds.
        While eight such calls are running, the next reward is an error.
      version: of what it computes, such as a hash of its weights: a search that was begun with one
        version is not resumed with another. None says nothing of it.
      latents: as for `device`.

    Raises:
      ValueError, TypeError: naming the argument, or the reward, if it does not take two arguments.

    Example:
      >>> reward = fs.rewards.host(lambda images, cond: images[:, 0].tolist(), name="left")
      >>> reward(np.array([[3.0, 2.0], [1.0, 4.0]]), None).tolist()
      [3.0, 1.0]
    """
    if not callable(fn):
        raise TypeError(f"fn must be callable, fn(images, cond), got {fn!r}")
    _check_call(fn)
    check_non_negative("cost", cost)
    check_bool("latents", latents)
    if timeout is not None:
        check_positive("timeout", timeout)
    size = None if minibatch is None else check_count("minibatch", minibatch)
    own = name_of(fn) if name is None else name
    return HostReward(fn, own, float(cost), size, timeout, version, latents=latents)


def told(
    reward: Reward, reward_cond: Any, n: int, single: bool, cond: Cond = None
) -> tuple[Reward, Cond]:
    """A reward and what it is told of n prompts, with a leading axis of them.

    Args:
      reward: that takes objects if it runs outside JAX.
      reward_cond: of a single prompt without its axis; or a list of those of n prompts.
      cond: what parts in JAX of a reward outside it are told where these are objects.

    Raises:
      ValueError, TypeError: there are not n, or a JAX function is given no arrays.
    """
    if single:
        reward_cond = [reward_cond]
    if not isinstance(reward_cond, list):
        return reward, reward_cond
    if len(reward_cond) != n:
        raise ValueError(
            f"reward_cond is a list of {len(reward_cond)}, expected one of each of {n} prompts"
        )
    if isinstance(reward, HostReward) and not all(map(is_array, jax.tree.leaves(reward_cond))):
        objects = dataclasses.replace(reward, fn=OfObjects(reward.fn, reward_cond))
        numbers = np.arange(n, dtype=np.int32)
        return objects, Both(numbers, cond) if _in_jax(reward) else numbers
    return reward, stacked("reward_cond", reward_cond)


def _in_jax(reward: Reward) -> bool:
    """Whether a reward, or a part of it, is in JAX."""
    if isinstance(reward, DeviceReward):
        return True
    return isinstance(reward.fn, OfRewards) and any(map(_in_jax, reward.fn.asked()))


def as_reward(reward: Any) -> Reward:
    """A plain function as a `DeviceReward`; others as they are."""
    return reward if isinstance(reward, DeviceReward | HostReward) else device(reward)


def no_parts(reward: Reward | None, n: int) -> Parts | None:
    """What parts say of n pictures that they have not seen: NaN."""
    if reward is None or reward.combination is None:
        return None
    return {name: jnp.full(n, jnp.nan, jnp.float32) for name in reward.combination.names}


def exact(reward: DeviceReward, cond: Cond) -> DeviceReward:
    """A reward as it is now, which shares programs with none but its like; see `flow.exact`."""
    key = Key(jax.tree.structure((reward.fn, cond)))
    fn = jax.tree_util.Partial(Exact(_apply, key), reward.fn)
    return dataclasses.replace(reward, fn=fn)


def _apply(fn: Callable[..., jax.Array], *args: Any) -> jax.Array:
    return fn(*args)


def _said(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return type(error).__name__  # its own message fails


def as_float32(rewards: Any, numpy: Any) -> Any:
    """Rewards of any floating dtype: what is too large for float32, and +inf, is the largest.

    So a reward that is a number stays one, rewards differ by numbers, and none is as good as no
    target. NaN and -inf stay.

    Args:
      rewards: [n].
      numpy: `numpy` or `jax.numpy`.
    """
    most = float(np.finfo(np.float32).max)
    with np.errstate(all="ignore"):
        if rewards.dtype.itemsize < 8:
            rewards = rewards.astype(np.float32)
        clipped = numpy.clip(rewards, -most, most).astype(np.float32)
    return numpy.where(numpy.isneginf(rewards), -np.inf, clipped)


def _check_call(fn: Callable[..., Any]) -> None:
    """TypeError for a function whose signature does not take images and cond."""
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):
        return  # some wrappers and builtins have none
    try:
        signature.bind("images", "cond")
    except TypeError as error:
        raise TypeError(
            f"reward is called as reward(images, cond), which {name_of(fn)}{signature} does not "
            f"take: {error}"
        ) from None


def check_rewards(name: str, rewards: Any, n: int) -> None:
    """Raise unless `rewards` are n floating-point numbers."""
    if not hasattr(rewards, "shape") or not hasattr(rewards, "dtype"):
        raise TypeError(f"reward {name!r} returned {rewards!r}, expected an array of shape ({n},)")
    if rewards.shape != (n,) or not jnp.issubdtype(rewards.dtype, jnp.floating):
        raise ValueError(
            f"reward {name!r} returned shape {rewards.shape} and dtype {rewards.dtype}, "
            f"expected shape ({n},) and a floating dtype"
        )
