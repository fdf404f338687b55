"""What drafts of another, cheaper flow cost.

The cost of an evaluation of the draft flow is p / q of one of the flow, of whole numbers, so that
an account of both is exact in integers: d of the one and n of the other fit into a budget if
q n + p d is at most q of it. That is so if n + ceil(p d / q) is at most the budget, which is what
is charged.
"""

import numbers
from fractions import Fraction
from typing import Any

FINEST = 1000
"""The largest denominator of a cost: what is multiplied then fits into int32."""


def as_draft_cost(value: Any) -> Fraction:
    """The cost nearest to a number whose denominator is at most `FINEST`.

    Raises:
      ValueError, TypeError: naming the argument.
    """
    expected = f"draft_cost must be a number from 1/{FINEST} to 1"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{expected}, got {value!r}")
    if not 1.0 <= FINEST * float(value) <= FINEST:
        raise ValueError(f"{expected}, got {value}")
    exact = value if isinstance(value, Fraction) else Fraction(float(value))
    return exact.limit_denominator(FINEST)


def draft_cost_of(search: Any) -> Fraction | None:
    """What a draft costs of a search that takes them of another flow; None of any other."""
    return getattr(search, "draft_cost", None)


def price(drafts: Any, cost: Fraction) -> Any:
    """Evaluations of the flow that so many of the draft flow are charged as, rounded up.

    Args:
      drafts: an integer, or int32.
      cost: of one.
    """
    p, q = cost.numerator, cost.denominator
    return drafts // q * p + -(-(drafts % q * p) // q)
