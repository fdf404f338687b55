"""Searches: policies for which particle to extend next; one file a method.

`base` holds the protocol, `finish` what is done with the best particle, `run` the runner that
evaluates and counts; `resampling` has the schemes of `smc`.
"""

from flowsde.search.base import Candidates, Evaluation, Info, Particle, Search
from flowsde.search.bon import BestOfN, bon
from flowsde.search.code import CoDe, code
from flowsde.search.finish import Complete
from flowsde.search.rbf import RBF, rbf
from flowsde.search.run import Result, iterate, run
from flowsde.search.smc import SMC, smc
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
    "bon",
    "code",
    "iterate",
    "rbf",
    "run",
    "smc",
    "svdd",
]
