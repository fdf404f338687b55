"""Searches: policies for which particle to extend next; one file a method.

`base` holds the protocol, `finish` what is done with the best particle, `resampling` the schemes of
`smc`. The runner is `run`; it checks its arguments in `job`, evaluates by `evaluate`, and gives
`result`.
"""

from flowsde.search.base import Candidates, Evaluation, Info, Particle, Search
from flowsde.search.bon import BestOfN, bon
from flowsde.search.code import CoDe, code
from flowsde.search.finish import Complete
from flowsde.search.rbf import RBF, rbf
from flowsde.search.result import Result
from flowsde.search.run import iterate, run
from flowsde.search.smc import SMC, smc
from flowsde.search.sop import SoP, sop
from flowsde.search.svdd import svdd

__all__ = [
    "RBF",
    "SMC",
    "BestOfN",
    "Candidates",
    "CoDe",
    "Complete",
    "Evaluation",
    "Info",
    "Particle",
    "Result",
    "Search",
    "SoP",
    "bon",
    "code",
    "iterate",
    "rbf",
    "run",
    "smc",
    "sop",
    "svdd",
]
