"""Searches: policies for which particle to extend next; one file a method.

`base` holds the protocol, `finish` what is done with the best particle, `run` the runner that
evaluates and counts.
"""

from flowsde.search.base import Candidates, Evaluation, Info, Particle, Search
from flowsde.search.bon import BestOfN, bon
from flowsde.search.finish import Complete
from flowsde.search.rbf import RBF, rbf
from flowsde.search.run import Result, iterate, run

__all__ = [
    "RBF",
    "BestOfN",
    "Candidates",
    "Complete",
    "Evaluation",
    "Info",
    "Particle",
    "Result",
    "Search",
    "bon",
    "iterate",
    "rbf",
    "run",
]
