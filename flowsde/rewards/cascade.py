"""`cascade`: a dear reward of those pictures alone that a cheap one thinks well of."""

import dataclasses
from typing import Any

import jax
import numpy as np

from flowsde._checks import check_float
from flowsde.rewards.base import HostReward, Reward, as_reward
from flowsde.rewards.combination import Cascaded, Combination
from flowsde.rewards.objects import Both, OfRewards
from flowsde.rewards.several import about_parts, each_on_host, version_of


def cascade(cheap: Any, dear: HostReward, *, threshold: float, floor: float) -> HostReward:
    """A dear reward, asked only about pictures that a cheap one gives a threshold or more.

        r = max(dear, floor)             where cheap >= threshold
        r = floor - (threshold - cheap)  elsewhere, and always below the floor

    So a picture that the dear reward has not seen is never better than one that it has seen, and
    among those that it has not seen the cheap one decides.

    What a picture is worth depends on that picture and these two numbers, not on those beside it.
    "The best quarter of the candidates of a round" would depend on its width and batches, and a
    particle kept from one round could not be compared with those of the next. To have the dear
    reward asked about some share, take as threshold the quantile of what the cheap one says of
    pictures of the prompt that were drawn before; early in a trajectory, where pictures are
    blurred, the share will be smaller.

    `Result.parts` and `flowsde.search.Info.parts` hold both rewards; that of the dear one is NaN
    where it was not asked. `Result.verifier_calls` counts calls of the cheap one and
    `Result.part_calls` those of the dear one; `Result.verifier_cost` takes both as asked each time.

    Args:
      cheap: a function, or a reward of `device` or `host`.
      dear: of `host` or `remote`, of another name. One in JAX is compiled for all candidates of a
        batch: asking it about some saves nothing.
      threshold: of the cheap reward, finite.
      floor: the least that the dear reward is told apart above, finite: its smallest value, or one
        that no good picture falls below.

    Raises:
      ValueError, TypeError: naming the argument.

    Example:
      >>> cheap = fs.rewards.host(lambda images, cond: images[:, 0], name="cheap")
      >>> dear = fs.rewards.host(lambda images, cond: images[:, 1], name="dear")
      >>> reward = fs.rewards.cascade(cheap, dear, threshold=2.0, floor=0.0)
      >>> reward(np.array([[3.0, 5.0], [1.0, 9.0]]), None).tolist()  # 0 - (2 - 1) of the second
      [5.0, -1.0]
    """
    if not isinstance(dear, HostReward):
        raise TypeError(
            f"dear must be a reward of flowsde.rewards.host or remote, got {type(dear).__name__}: "
            f"one in JAX is computed for all candidates of a batch"
        )
    for name, value in (("threshold", threshold), ("floor", floor)):
        check_float(name, value)
    parts = (as_reward(cheap), dear)
    rule = Cascaded(float(threshold), float(floor))
    names = (parts[0].name, dear.name)
    own = f"cascade at {rule.threshold} above {rule.floor}"
    return HostReward(
        fn=_Cascade(*parts, rule.threshold),
        timeout=None,
        version=", ".join(filter(None, [own, version_of(parts)])),
        combination=Combination(names, rule, unasked=(dear.name,)),
        **about_parts("cascade", parts),
    )


@dataclasses.dataclass(frozen=True)
class _Cascade(OfRewards):
    """Both rewards by name; NaN where the dear one was not asked, -inf where it has no reward."""

    cheap: Reward
    dear: HostReward
    threshold: float

    def asked(self) -> tuple[Reward, ...]:
        return (self.cheap, self.dear)

    def __call__(self, images: np.ndarray, cond: Any) -> dict[str, np.ndarray]:
        said = each_on_host([self.cheap], images, cond)
        at = np.flatnonzero(said[self.cheap.name] >= np.float32(self.threshold))
        told = np.full(len(images), np.nan, np.float32)
        if at.size:
            rewards = self.dear(images[at], _rows(cond, at))
            told[at] = np.where(np.isnan(rewards), -np.inf, rewards)
        return said | {self.dear.name: told}


def _rows(cond: Any, at: np.ndarray) -> Any:
    """Those of what the reward is told, arrays or a list of objects, one of each picture."""
    if isinstance(cond, Both):
        return Both(_rows(cond.objects, at), _rows(cond.cond, at))
    if isinstance(cond, list):
        return [cond[i] for i in at]
    return jax.tree.map(lambda a: a[at], cond)
