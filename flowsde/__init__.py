"""flowsde: inference-time scaling of flow models in JAX."""

from flowsde import analytic, diffusion, distributed, grids, interpolants, kernels, rewards, search
from flowsde.checkpoint import load, restore_search, save_search
from flowsde.flow import Flow, guide, sample
from flowsde.interpolants import match_time
from flowsde.packing import batch
from flowsde.predictions import (
    reparameterise,
    score_to_velocity,
    score_to_x0,
    score_to_x1,
    velocity_to_score,
    velocity_to_x0,
    velocity_to_x1,
    x0_to_score,
    x0_to_velocity,
    x0_to_x1,
    x1_to_score,
    x1_to_velocity,
    x1_to_x0,
)
from flowsde.search import Result, iterate, run
from flowsde.sharding import ShardingRules

__version__ = "0.1.0"

__all__ = [
    "Flow",
    "Result",
    "ShardingRules",
    "analytic",
    "batch",
    "diffusion",
    "distributed",
    "grids",
    "guide",
    "interpolants",
    "iterate",
    "kernels",
    "load",
    "match_time",
    "reparameterise",
    "restore_search",
    "rewards",
    "run",
    "sample",
    "save_search",
    "score_to_velocity",
    "score_to_x0",
    "score_to_x1",
    "search",
    "velocity_to_score",
    "velocity_to_x0",
    "velocity_to_x1",
    "x0_to_score",
    "x0_to_velocity",
    "x0_to_x1",
    "x1_to_score",
    "x1_to_velocity",
    "x1_to_x0",
]
