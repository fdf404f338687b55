"""Rollover Budget Forcing (Kim et al., 2025, arXiv 2503.19385, Algorithm 2).

Each chain starts from the best of `seeds` draws of noise, whose reward is r*. At each time of the
grid it draws children of its particle one after the other until one has a reward above r*: that
child is accepted, r* rises to its reward, and what is left of the step's quota rolls over to the
next step. If the quota runs out first, the best child of the step is accepted and r* stays.

``width = w`` evaluates w children of a chain at once and then reads them in draw order, as the
one-at-a-time algorithm would: which children are accepted and what is charged do not depend on w.
Children beyond the first improvement are surplus, evaluated but not charged.

Chains are independent. With a target reward they stop together, at the first count of draws at
which a chain one draw at a time, all chains abreast, would meet it; this too does not depend on w.

What ends a step early is a rule of `flowsde.search.rbf.acceptance`. With `branch_at`, only the
steps chosen have quotas; at others a chain has one child, which is accepted, and what was rolled
over goes past it. Quotas and charges are in evaluations: a draw whose value is seen ahead costs
several.

The answer is the best particle of the last time that any chain has reached: rewards of posterior
means of different times mean different things (at t = 1 the mean is an average of all data). After
a hit, only what met the target competes.

`maker` reads the arguments, `policy` is the search, and `quotas` divides a budget among steps.
"""

from flowsde.search.rbf.maker import rbf
from flowsde.search.rbf.policy import RBF, RBFState

__all__ = ["RBF", "RBFState", "rbf"]
