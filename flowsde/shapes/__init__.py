"""shapes: a small text-to-image flow that ships with the package, with its rewards.

    flow = shapes.load_flow()
    reward = shapes.load_reward()
    cond = shapes.encode("three red circles and two blue squares")
    result = fs.run(key, flow, search, reward, cond=cond)

`checker` judges pictures independently of the reward; no search should see it.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from flowsde.classifier_free import classifier_free_guidance
from flowsde.flow import Flow
from flowsde.shapes import scorer, weights
from flowsde.shapes.captions import MAX_TOKENS, parse, tokenize
from flowsde.shapes.data import SIZE
from flowsde.shapes.model import ModelConfig, split

__all__ = ["encode", "load_flow", "load_reward", "load_scorer"]

MODELS = {"shapes": "shapes", "shapes-turbo": "turbo"}
"""Names of the embedded flows, with those of their weights."""
_MEASURES = {"likelihood": scorer.log_likelihood, "rss": scorer.negative_rss}


def encode(prompt: str) -> np.ndarray:
    """The condition of one prompt, int32 [8].

    Raises:
      TypeError: it is no string.
      ValueError: naming a word that it does not know.

    Example:
      >>> fs.shapes.encode("two green triangles").shape
      (8,)
    """
    return tokenize(parse(prompt))


def _read(
    path: Path, name: str, kind: Callable[..., Any], parts: Callable[[Any], tuple[Any, nnx.State]]
) -> tuple[nnx.State, Any]:
    """Parameters, with their axes named as in its `parts`, and configuration of a network.

    Raises:
      ValueError: they are not of one model.
    """
    params, config = weights.load(path, name)
    try:
        own = kind(**config)
        _, wanted = parts(own)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} has no configuration of {name}: {error}") from None
    weights.check(path, params, nnx.to_pure_dict(wanted))
    named = jax.tree.map(lambda shape: shape, wanted)  # a copy
    nnx.replace_by_pure_dict(named, params)
    return named, own


@cache
def _velocity_fn(config: ModelConfig):
    graphdef, _ = split(config)

    def velocity(params, x, t, cond):
        return nnx.merge(graphdef, params)(x, t, cond)

    return velocity


def load_flow(path: Path | None = None, guidance: float = 1.0, model: str = "shapes") -> Flow:
    """An embedded flow: 32x32 RGB pictures in [-1, 1], linear interpolant.

    Args:
      path: weights written by ``flowsde train``, of the same model; the packaged ones by default.
      guidance: scale of classifier-free guidance; any other than 1 costs two evaluations.
      model: "shapes", or "shapes-turbo", which is distilled to four steps.

    Example:
      >>> flow = fs.shapes.load_flow()
      >>> flow.shape
      (32, 32, 3)
    """
    if model not in MODELS:
        raise ValueError(f"model must be one of {', '.join(MODELS)}, got {model!r}")
    name = MODELS[model]
    params, config = _read(path or weights.packaged(name), name, ModelConfig, split)
    flow = Flow.from_callable(_velocity_fn(config), params, (SIZE, SIZE, 3))
    if guidance == 1.0:
        return flow
    return classifier_free_guidance(flow, guidance, np.zeros(MAX_TOKENS, np.int32))


def measure_named(name: str) -> scorer.Measure:
    """What makes a reward of counts; ValueError if there is none of that name."""
    if name not in _MEASURES:
        raise ValueError(f"measure must be one of {', '.join(_MEASURES)}, got {name!r}")
    return _MEASURES[name]


@cache
def _reward_fn(config: scorer.ScorerConfig, measure: str):
    return scorer.make_reward(config, measure_named(measure))


def load_scorer(path: Path | None = None) -> tuple[scorer.Params, scorer.ScorerConfig]:
    """Parameters and sizes of the learned scorer, the packaged one by default.

    Example:
      >>> params, config = fs.shapes.load_scorer()
      >>> type(config).__name__
      'ScorerConfig'
    """
    return _read(path or weights.packaged("scorer"), "scorer", scorer.ScorerConfig, scorer.split)


def load_reward(measure: str = "likelihood", path: Path | None = None) -> jax.tree_util.Partial:
    """The given reward of the embedded flow, ``reward(images, cond) -> [n]``.

    Args:
      measure: "likelihood", the learned scorer's log-likelihood of the caption's counts; or
        "rss", minus the squared error of its most likely counts (0 is a perfect picture).
      path: weights written by ``flowsde train scorer``; the packaged ones by default.

    Example:
      >>> reward, cond = fs.shapes.load_reward(), fs.shapes.encode("one red circle")
      >>> reward(jnp.zeros([4, 32, 32, 3]), jnp.stack([cond] * 4)).shape
      (4,)
    """
    measure_named(measure)
    params, config = load_scorer(path)
    return jax.tree_util.Partial(_reward_fn(config, measure), params)
