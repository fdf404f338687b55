"""What a search around another one is, unless it says otherwise: the inner one."""

import dataclasses
from fractions import Fraction
from typing import Self

from flowsde.interpolants import Interpolant
from flowsde.kernels import Kernel
from flowsde.search.drafts import draft_cost_of
from flowsde.search.protocol import Search, SearchBase
from flowsde.search.starting import beginning, first_time
from flowsde.search.value import LookAhead, value_of
from flowsde.start import Start


@dataclasses.dataclass(frozen=True)
class Wrapper(SearchBase):
    """Base of searches around `inner`, of which the runner must know the same."""

    inner: Search

    @property
    def nfe(self) -> int:
        return self.inner.nfe

    @property
    def interpolant(self) -> Interpolant:
        return self.inner.interpolant

    @property
    def uses_gradient(self) -> bool:
        return self.inner.uses_gradient

    @property
    def kernel(self) -> Kernel | None:
        """By which the inner search moves particles."""
        return getattr(self.inner, "kernel", None)

    @property
    def charges_moves(self) -> bool:
        return getattr(self.inner, "charges_moves", False)

    @property
    def value(self) -> LookAhead | None:
        return value_of(self.inner)

    @property
    def draft_cost(self) -> Fraction | None:
        return draft_cost_of(self.inner)

    @property
    def first_time(self) -> float:
        return first_time(self.inner)

    @property
    def last_time(self) -> float:
        """At which particles are evaluated last, finishing aside; 1 if the search does not say."""
        return getattr(self.inner, "last_time", 1.0)

    def beginning(self, start: Start) -> Self:
        return self.replace(inner=beginning(self.inner, start))

    @property
    def n_candidates(self) -> int:
        return self.inner.n_candidates

    @property
    def max_rounds(self) -> int:
        return self.inner.max_rounds

    @property
    def path_name(self) -> str:
        return self.inner.path_name

    def with_nfe(self, nfe: int) -> Self:
        return self.replace(inner=self.inner.with_nfe(nfe))

    def with_width(self, width: int) -> Self:
        return self.replace(inner=self.inner.with_width(width))
