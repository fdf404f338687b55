"""Successive halving: draw many cheap drafts, continue the best of them (Karnin et al., 2013).

A draft follows the kernel down the grid in a few long steps. The 1 / factor of the drafts with the
highest rewards are resumed from a state that each passed on its way, and go on from there through
every time of the grid. Further rungs may halve them again; those that reach the last time compete
for the answer, with the drafts that got there. Nothing is evaluated twice: the state that is
resumed was evaluated in the draft.

Without drafts all trajectories start down the grid itself, and rewards of posterior means on the
way decide which go on. With neither drafts nor rungs this is Best-of-N.

Drafts resumed from kept states are those of Flash-BoN (arXiv 2607.04461), which makes them cheap
by caching inside the model instead.

Drafts may be of another flow that costs less, a smaller or a quantised one (`draft_cost`). What it
says of a state are not the flow's means there. So the flow evaluates anew the state from which it
resumes a draft, by default its noise, and drafts are no answers.

`maker` reads the arguments, and `policy` is the search.
"""

from flowsde.search.halving.maker import halving
from flowsde.search.halving.policy import SuccessiveHalving

__all__ = ["SuccessiveHalving", "halving"]
