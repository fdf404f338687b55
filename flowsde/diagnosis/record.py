"""The numbers of a diagnosis."""

import dataclasses
from collections.abc import Sequence
from typing import Self

import numpy as np

from flowsde.diagnosis.statistics import Estimate, estimate
from flowsde.diagnosis.trajectories import Measured, Plan


@dataclasses.dataclass(frozen=True)
class Record:
    """When a reward is worth asking, by trajectories of a model; NumPy arrays.

    T is the number of times with a value, the last that of the final picture; step i leads from
    time i to time i + 1. `flowsde.diagnosis.statistics` defines the estimates, each with a 95 %
    interval by a bootstrap over trajectories.

    Attributes:
      times: float64 [T], falling from 1.
      correlation: [T], rank correlation of the posterior mean's reward with the final picture's.
      gain, gain_spread: [T - 1], mean and standard deviation of the reward's rise in a step.
      rises: [T - 1], how often it rises, by half where it stays.
      spread, final_spread: [T - 1], standard deviation of siblings' rewards over that of strangers'
        just after a step, and of their final pictures.
      agreement: [T - 1], how often the better of two siblings has the better final picture.
      choice: [T - 1], what the final reward gains by the best of some siblings, in standard
        deviations of it.
      worth: [T - 1], that gain an evaluation, over what Best-of-N gains by one.
      rewards: float32 [P, n, T], of posterior means.
      sibling_rewards, sibling_finals: float32 [P, families, T - 1, siblings], of the children of
        one state after a step, the trajectory's own first, and of their final pictures. No families
        if the kernel is deterministic.
      nfe, evaluations: model evaluations charged and computed, with the padding of chunks.
      verifier_calls: rewards.
      model_seconds, reward_seconds: of one candidate's evaluation and of one reward, decoding
        included, medians over prompts, compilation left out; NaN where nothing could be timed.
      stochastic: whether the kernel is.
    """

    times: np.ndarray
    correlation: Estimate
    gain: Estimate
    gain_spread: Estimate
    rises: Estimate
    spread: Estimate
    final_spread: Estimate
    agreement: Estimate
    choice: Estimate
    worth: Estimate
    rewards: np.ndarray
    sibling_rewards: np.ndarray
    sibling_finals: np.ndarray
    nfe: int
    evaluations: int
    verifier_calls: int
    model_seconds: float
    reward_seconds: float
    stochastic: bool

    @classmethod
    def of(cls, plan: Plan, measured: Sequence[Measured]) -> Self:
        """From what was measured of each prompt."""
        seconds = np.asarray([one.seconds for one in measured])
        known = (column[np.isfinite(column)] for column in seconds.T)
        model, reward = (float(np.median(own)) if own.size else np.nan for own in known)
        return cls(
            times=np.asarray(plan.times, np.float64),
            **estimate(measured, plan.along, plan.kernel.evaluations),
            rewards=np.stack([one.rewards for one in measured]),
            sibling_rewards=np.stack([one.sibling_rewards for one in measured]),
            sibling_finals=np.stack([one.sibling_finals for one in measured]),
            nfe=sum(one.nfe for one in measured),
            evaluations=sum(one.evaluations for one in measured),
            verifier_calls=sum(one.verifier_calls for one in measured),
            model_seconds=model,
            reward_seconds=reward,
            stochastic=plan.kernel.stochastic,
        )

    @property
    def reward_share(self) -> float:
        """Share of a reward in the seconds of a candidate that is evaluated and judged."""
        return self.reward_seconds / (self.model_seconds + self.reward_seconds)

    def table(self) -> list[dict[str, float | None]]:
        """A row for each time, with the step from it: estimates and their ends, None for none."""
        rows: list[dict[str, float | None]] = []
        for i, t in enumerate(self.times):
            row: dict[str, float | None] = {"time": float(t)}
            for name, own in vars(self).items():
                if isinstance(own, Estimate):
                    for end, part in zip(("", "_low", "_high"), own, strict=True):
                        known = i < len(part) and np.isfinite(part[i])
                        row[name + end] = float(part[i]) if known else None
            rows.append(row)
        return rows
