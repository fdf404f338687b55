"""Searches: policies for which particle to extend next; one file a method.

`protocol` says what a search is, `complete` is what is done with the best particle, `resampling`
has the schemes of `smc`. A search imports mathematics alone: `flowsde.runner` carries it out.
"""

from flowsde.search.bon import BestOfN, bon
from flowsde.search.code import CoDe, code
from flowsde.search.complete import Complete
from flowsde.search.protocol import Candidates, Evaluation, Info, Particle, Search
from flowsde.search.rbf import RBF, rbf
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
    "Search",
    "SoP",
    "bon",
    "code",
    "rbf",
    "smc",
    "sop",
    "svdd",
]
