"""What compiled rounds are given: a program, which is static, and a model, of array leaves.

The budget of a prompt is in model evaluations everywhere but inside a search, which counts
candidates: a guided flow takes two evaluations for one. `Program` divides, and nothing else does.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax

from flowsde._exact import Snapshot
from flowsde.conds import Cond
from flowsde.flow import Flow
from flowsde.interpolants import Interpolant
from flowsde.rewards import DeviceReward
from flowsde.runner.mesh import ALONE, Placement
from flowsde.search.protocol import BudgetTooSmall, Search
from flowsde.search.value import LookAhead, value_of


class Sizes(NamedTuple):
    """Rows of a group computed at once: by the model and by the reward. Static."""

    model: int
    reward: int


@dataclasses.dataclass(frozen=True, eq=False)
class Kind(Snapshot):
    """What evaluating depends on of a search: those that share it share the compiled program."""

    interpolant: Interpolant
    uses_gradient: bool
    value: LookAhead | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Program(Snapshot):
    """What is compiled for. Static.

    Attributes:
      search: whose budget is in candidates.
      cost: evaluations of the model that a candidate takes.
      placement: of a mesh.
    """

    search: Search
    cost: int = 1
    placement: Placement = ALONE

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

    @property
    def kind(self) -> Kind:
        """What evaluating depends on."""
        return Kind(self.search.interpolant, self.search.uses_gradient, value_of(self.search))


@partial(jax.tree_util.register_dataclass, data_fields=("flow", "reward", "cond"), meta_fields=())
@dataclasses.dataclass(frozen=True)
class Model:
    """What candidates are evaluated by; a pytree.

    Attributes:
      flow: the model.
      reward: None where none is evaluated with it, or it runs outside JAX.
      cond: of each prompt, [P, ...].
    """

    flow: Flow
    reward: DeviceReward | None
    cond: Cond
