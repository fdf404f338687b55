"""Searches: policies for which particle to extend next; one file a method.

`protocol` says what a search is, `grid` has what searches down a grid of times are written with,
`complete` is what is done with the best particle, `resampling` has the schemes of `smc`. A search
imports mathematics alone: `flowsde.runner` carries it out.
"""

import inspect
from collections.abc import Callable

from flowsde.search import makers
from flowsde.search.bon import BestOfN, bon
from flowsde.search.code import CoDe, code
from flowsde.search.complete import Complete
from flowsde.search.dfs import DFS, dfs
from flowsde.search.dts import DTS, dts
from flowsde.search.epsilon_greedy import epsilon_greedy
from flowsde.search.evolution import Evolution, evolution
from flowsde.search.grid import (
    GridSearch,
    affordable_units,
    any_over_prompts,
    even_shares,
    fold_in_ids,
    further,
    map_valid,
    to_particles,
    tree_take,
    tree_where,
)
from flowsde.search.halving import SuccessiveHalving, halving
from flowsde.search.keep import Keeping, keep
from flowsde.search.lidar import LiDAR, lidar
from flowsde.search.noise import NoiseSearch
from flowsde.search.pcn import PCN, pcn
from flowsde.search.protocol import (
    BudgetTooSmall,
    Candidates,
    Evaluation,
    Info,
    Lines,
    Particle,
    Search,
    SearchBase,
)
from flowsde.search.psi import PsiSampler, psi
from flowsde.search.rbf import RBF, rbf
from flowsde.search.smc import SMC, Restarts, WeightedSample, Weights, smc, weighted_sample
from flowsde.search.sop import SoP, sop
from flowsde.search.svdd import svdd
from flowsde.search.zero_order import zero_order

METHODS: dict[str, Callable[..., Search]] = {
    name: maker for name, maker in vars(makers).items() if inspect.isfunction(maker)
}
"""The maker of each method; its signature and docstring make the options of the command."""

__all__ = [
    "DFS",
    "DTS",
    "METHODS",
    "PCN",
    "RBF",
    "SMC",
    "BestOfN",
    "BudgetTooSmall",
    "Candidates",
    "CoDe",
    "Complete",
    "Evaluation",
    "Evolution",
    "GridSearch",
    "Info",
    "Keeping",
    "LiDAR",
    "Lines",
    "NoiseSearch",
    "Particle",
    "PsiSampler",
    "Restarts",
    "Search",
    "SearchBase",
    "SoP",
    "SuccessiveHalving",
    "WeightedSample",
    "Weights",
    "affordable_units",
    "any_over_prompts",
    "bon",
    "code",
    "dfs",
    "dts",
    "epsilon_greedy",
    "even_shares",
    "evolution",
    "fold_in_ids",
    "further",
    "halving",
    "keep",
    "lidar",
    "map_valid",
    "pcn",
    "psi",
    "rbf",
    "smc",
    "sop",
    "svdd",
    "to_particles",
    "tree_take",
    "tree_where",
    "weighted_sample",
    "zero_order",
]
