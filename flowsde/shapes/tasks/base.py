"""`Challenge`: what pictures are asked for, the given reward of a search, and the held-out judge.

The given reward is the learned scorer's log-likelihood of the caption's counts, plus a bonus of
the task's own: of the picture, of what the scorer detects and where, and of the caption. The judge
is made of the checker, which shares neither code nor weights with it, and which no search sees.

Captions are split in two by a hash of their text: those of "dev" are there to choose settings by,
those of "test" to report on. A caption is in the same set in every task.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from flowsde import shapes
from flowsde._text import shown
from flowsde.flow import Flow
from flowsde.shapes import captions, checker, scorer
from flowsde.shapes.captions import Group
from flowsde.shapes.tasks.given import Given, make_given

SPLITS = ("dev", "test")
_SEED = 2026
_TRIES = 50
"""Draws in a row without a new caption after which there is none."""

Groups = tuple[Group, ...]


class Verdicts(NamedTuple):
    """What the held-out judge says of n pictures.

    Attributes:
      success: bool [n], whether a picture is what the task asks for: `exact`, and more.
      exact: bool [n], whether it has exactly the objects of the caption, and nothing unclear.
      rss: float [n], squared error of the counts and unclear regions; 0 where exact.
      counts: int32 [n, colours, kinds], clean objects.
      unclear: int32 [n], regions that are no clean object.
      numbers: by name, float [n], what else success depends on.
    """

    success: np.ndarray
    exact: np.ndarray
    rss: np.ndarray
    counts: np.ndarray
    unclear: np.ndarray
    numbers: dict[str, np.ndarray]


class Finding(NamedTuple):
    """What a task's own criterion says of a picture whose counts are right."""

    success: bool
    numbers: dict[str, float]


class Cond(NamedTuple):
    """Condition of a task that tells its reward more than the caption.

    Attributes:
      tokens: int32 [MAX_TOKENS], all that the flow sees.
      more: arrays for the reward.
    """

    tokens: Any
    more: Any


@dataclasses.dataclass(frozen=True)
class _ReadsTokens:
    """A velocity function that sees the tokens of a `Cond`."""

    velocity_fn: Callable[..., jax.Array]

    @property
    def __name__(self) -> str:
        return getattr(self.velocity_fn, "__name__", "velocity")

    def __call__(self, params: Any, x: jax.Array, t: jax.Array, cond: Cond) -> jax.Array:
        return self.velocity_fn(params, x, t, cond.tokens)


def split_of(text: str) -> str:
    """The set that a canonical caption belongs to."""
    return SPLITS[hashlib.sha256(text.encode()).digest()[0] % 2]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Challenge:
    """A task of the embedded flow; all of its functions are deterministic.

    Attributes:
      name: of the task.
      summary: of what it asks for, one line.
      draw: rng -> the groups of a caption.
      objection: groups -> what a caption must be, if this one is not; else "".
      phrase: groups -> what is asked of a picture beside its counts; "" if nothing is.
      judge_one: (objects, groups) -> `Finding`, of the clean objects in one picture; counts alone
        if None.
      bonus: (given, cond) -> [n], added to the likelihood; nothing if None.
      more: groups -> arrays that the reward is told beside the tokens, of fixed shapes; or None.
    """

    name: str
    summary: str
    draw: Callable[[np.random.Generator], Groups]
    objection: Callable[[Groups], str] = lambda groups: ""
    phrase: Callable[[Groups], str] = lambda groups: ""
    judge_one: Callable[[checker.Objects, Groups], Finding] | None = None
    bonus: Callable[[Given, Any], jax.Array] | None = None
    more: Callable[[Groups], Any] | None = None

    def captions(self, split: str, n: int) -> list[str]:
        """The first n captions of a set, the same each time; they repeat once all have been told.

        Raises:
          ValueError: there is no such set.
        """
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        found: dict[str, None] = {}
        tries = 0
        for i in itertools.count():
            if len(found) >= n or tries >= _TRIES * (1 + len(found)):
                return list(itertools.islice(itertools.cycle(found), n))
            text = captions.caption(self.draw(np.random.default_rng((_SEED, i))))
            tries = tries + 1 if text in found or split_of(text) != split else 0
            if split_of(text) == split:
                found[text] = None
        raise AssertionError

    def parse(self, caption: str) -> Groups:
        """Meaning of a caption; ValueError if the task cannot ask for it."""
        groups = captions.parse(caption)
        if why := self.objection(groups):
            raise ValueError(f"prompt '{shown(caption)}': task {self.name} expects {why}")
        return groups

    def words(self, caption: str) -> str:
        """What is asked for, in words."""
        return ", ".join(filter(None, (caption, self.phrase(self.parse(caption)))))

    def encode(self, caption: str) -> Any:
        """Condition of one caption: its tokens, or `Cond`; for `flow` and `load_reward`."""
        groups = self.parse(caption)
        tokens = captions.tokenize(groups)
        return tokens if self.more is None else Cond(tokens, self.more(groups))

    def flow(self, flow: Flow) -> Flow:
        """The embedded flow, guided or not, as one of this task's conditions."""
        if self.more is None:
            return flow
        return dataclasses.replace(flow, velocity_fn=_ReadsTokens(flow.velocity_fn))

    def load_reward(
        self, measure: str = "likelihood", path: Path | None = None
    ) -> jax.tree_util.Partial:
        """The given reward, ``reward(images, cond) -> [n]``; arguments as `shapes.load_reward`."""
        if self.bonus is None:
            return shapes.load_reward(measure, path)
        params, config = shapes.load_scorer(path)
        return jax.tree_util.Partial(_reward_fn(self.bonus, config, measure), params)

    def judge(self, images: np.ndarray, texts: Sequence[str]) -> Verdicts:
        """Judge pictures without the reward.

        Args:
          images: float [n, 32, 32, 3] in [-1, 1].
          texts: captions [n].
        """
        asked = [self.parse(text) for text in texts]
        scene = checker.locate(images)
        wanted = np.stack([captions.counts(groups) for groups in asked])
        rss = checker.squared_error(scene, wanted)
        findings = [
            Finding(True, {})
            if self.judge_one is None
            else self.judge_one(scene.objects.where(scene.objects.picture == i), groups)
            for i, groups in enumerate(asked)
        ]
        names = dict.fromkeys(name for finding in findings for name in finding.numbers)
        return Verdicts(
            (rss == 0) & np.asarray([finding.success for finding in findings], bool),
            rss == 0,
            rss,
            scene.counts,
            scene.unclear,
            {
                name: np.asarray([f.numbers.get(name, np.nan) for f in findings], np.float64)
                for name in names
            },
        )


@cache
def _reward_fn(
    bonus: Callable[[Given, Any], jax.Array], config: scorer.ScorerConfig, measure: str
) -> Callable[[Any, jax.Array, Any], jax.Array]:
    given, of_counts = make_given(config), shapes.measure_named(measure)

    def reward(params: Any, images: jax.Array, cond: Any) -> jax.Array:
        tokens = cond.tokens if isinstance(cond, Cond) else cond
        seen = given(params, images)
        counted = of_counts(seen.log_probs, scorer.counts_from_tokens(tokens))
        return counted + bonus(seen, cond)

    return reward
