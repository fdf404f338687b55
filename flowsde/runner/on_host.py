"""Rewards outside JAX, of candidates that the model has evaluated."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowsde.conds import for_reward, rows_on_host
from flowsde.rewards.base import HostReward, Scores
from flowsde.runner.ahead import to_score
from flowsde.runner.evaluate import shown, split
from flowsde.runner.mesh import ALONE, Placement
from flowsde.runner.parts import not_scored, with_scores, write_scores
from flowsde.runner.records import Kind, Model
from flowsde.search.protocol import Candidates, Evaluation


@partial(jax.jit, static_argnames=("kind", "placement"))
def _to_score(asked: Candidates, evals: Evaluation, kind: Kind, placement: Placement) -> Any:
    return to_score(split(asked, placement), evals, kind.value)


@partial(jax.jit, static_argnames=("kind", "placement"))
def _scored(
    asked: Candidates, evals: Evaluation, scores: Scores, kind: Kind, placement: Placement
) -> Evaluation:
    return with_scores(split(asked, placement), evals, scores, kind.value)


def evaluate_on_host(
    model: Model,
    reward: HostReward,
    asked: Candidates,
    evals: Evaluation,
    kind: Kind,
    size: int,
    placement: Placement = ALONE,
) -> Evaluation:
    """Add the rewards that are still wanted, through NumPy, as `evaluate_reward` does in JAX."""
    asking = _to_score(asked, evals, kind, placement)
    wanted, prompt = jax.device_get((asking.wanted, asking.prompt))
    told, at_all = not_scored(reward, wanted.size), np.flatnonzero(wanted)
    for start in range(0, at_all.size, size):
        at = at_all[start : start + size]
        # Filled up with further rows to the one compiled shape.
        seen = shown(model.flow, asking.x0[np.resize(at, size)], reward.latents)
        images, finite = (np.asarray(a)[: at.size] for a in seen)
        own = rows_on_host(for_reward(model.cond), prompt[at])
        write_scores(told, at, reward.scores(images, own), finite)
    on_device = placement.put(jax.tree.map(jnp.asarray, told), placement.by_row)
    return _scored(asked, evals, on_device, kind, placement)
