"""What compiled rounds are given: a program, which is static, and a model, of array leaves.

The budget of a prompt is in model evaluations everywhere but inside a search, which counts
candidates: a guided flow takes two evaluations for one. `Program` divides, and nothing else does.
"""

import dataclasses
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax

from flowsde._exact import Snapshot
from flowsde.conds import Cond
from flowsde.flow import Flow
from flowsde.interpolants import Interpolant
from flowsde.kernels import Kernel
from flowsde.rewards import DeviceReward
from flowsde.runner.mesh import ALONE, Placement
from flowsde.search.drafts import draft_cost_of
from flowsde.search.protocol import BudgetTooSmall, Search, inner_kernel
from flowsde.search.value import LookAhead, value_of


class Sizes(NamedTuple):
    """Rows of a group computed at once: by the model and by the reward. Static.

    And the least that the model is given, to which what whole chunks leave is filled up.
    """

    model: int
    reward: int
    least: int


@dataclasses.dataclass(frozen=True, eq=False)
class Kind(Snapshot):
    """What evaluating depends on of a search: those that share it share the compiled program.

    Attributes:
      interpolant, uses_gradient, value: of the search.
      moves: its kernel, where candidates are `Moving`.
      drafts: whether some candidates are drafts of another flow.
    """

    interpolant: Interpolant
    uses_gradient: bool
    value: LookAhead | None = None
    moves: Kernel | None = None
    drafts: bool = False

    @property
    def inner(self) -> int:
        """Evaluations on the way of a candidate that moves."""
        return 0 if self.moves is None else self.moves.inner_evaluations


@dataclasses.dataclass(frozen=True, eq=False)
class Program(Snapshot):
    """What is compiled for. Static.

    Attributes:
      search: whose budget is in candidates.
      cost: evaluations of the model that a candidate takes.
      placement: of a mesh.
      draft: evaluations of the draft flow's model that a draft takes; 0 without a draft flow.
    """

    search: Search
    cost: int = 1
    placement: Placement = ALONE
    draft: int = 0

    @classmethod
    def of(cls, search: Search, cost: int, placement: Placement = ALONE) -> "Program":
        """For a search whose budget is in model evaluations; ValueError if they are too few."""
        program = cls(search, cost, placement)
        return program if cost == 1 else program.replace(search=program.with_budget(search.nfe))

    def candidates(self, nfe: Any) -> Any:
        """How many a budget in model evaluations pays for."""
        return nfe // self.cost

    def with_budget(self, nfe: int) -> Search:
        """The search with a budget in model evaluations; `BudgetTooSmall` if it takes more."""
        try:
            return self.search.with_nfe(self.candidates(nfe))
        except BudgetTooSmall as error:
            raise BudgetTooSmall(str(error), error.least * self.cost) from None

    def with_width(self, width: int) -> "Program":
        """The same, with waves of another width."""
        return self.replace(search=self.search.with_width(width))

    def replace(self, **changes: Any) -> "Program":
        """The same but for some attributes."""
        return dataclasses.replace(self, **changes)

    @cached_property  # a dispatch asks for it, and hashes it, several times a round
    def kind(self) -> Kind:
        """What evaluating depends on."""
        search = self.search
        return Kind(
            search.interpolant,
            search.uses_gradient,
            value_of(search),
            inner_kernel(search),
            draft_cost_of(search) is not None,
        )


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("flow", "reward", "cond", "draft"),
    meta_fields=(),
)
@dataclasses.dataclass(frozen=True)
class Model:
    """What candidates are evaluated by; a pytree.

    Attributes:
      flow: the model.
      reward: None where none is evaluated with it, or it runs outside JAX.
      cond: of each prompt, [P, ...].
      draft: the flow of drafts, whose latents the other's decoder takes; None without.
    """

    flow: Flow
    reward: DeviceReward | None
    cond: Cond
    draft: Flow | None = None
