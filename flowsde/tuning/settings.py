"""A setting: a method and all options that make it what it is, by the names that makers have."""

import dataclasses
import inspect
from typing import Any

from flowsde import diffusion, grids, interpolants, kernels
from flowsde.search import METHODS, Search

_OF_KERNEL = ("interpolant", "kernel", "diffusion", "diffusion_scale")


@dataclasses.dataclass(frozen=True)
class Setting:
    """A method and its options, which the budget is no part of.

    Attributes:
      method: of `flowsde.search.METHODS`.
      options: pairs of a name and a value: ``interpolant``, ``kernel``, ``diffusion``,
        ``diffusion_scale``, ``grid`` and ``steps`` by the names of those functions, and arguments
        of the kernel's and the method's makers.
    """

    method: str
    options: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, method: str, **options: Any) -> "Setting":
        """From arguments."""
        return cls(method, tuple(options.items()))

    @property
    def name(self) -> str:
        """The setting in one line: what it is known by."""
        return " ".join([self.method, *(f"{name}={_word(v)}" for name, v in self.options)])

    @property
    def path(self) -> tuple[tuple[str, Any], ...]:
        """The options that say how particles move but for the times: settings of one diagnosis."""
        taken = inspect.signature(kernels.KERNELS[self["kernel"]]).parameters
        return tuple((n, v) for n, v in self.options if n in _OF_KERNEL or n in taken)

    def __getitem__(self, name: str) -> Any:
        return dict(self.options)[name]

    def get(self, name: str, default: Any = None) -> Any:
        """An option's value."""
        return dict(self.options).get(name, default)

    def kernel(self) -> kernels.Kernel | kernels.Multistep:
        """How its particles move."""
        given = dict(self.path)
        arguments: list[Any] = [getattr(interpolants, given.pop("interpolant"))()]
        made, coefficient = given.pop("kernel"), given.pop("diffusion", None)
        scale = given.pop("diffusion_scale", None)
        if coefficient is not None:
            make = getattr(diffusion, coefficient)
            arguments.append(make() if scale is None else make(scale))
        return kernels.KERNELS[made](*arguments, **given)

    def search(self, nfe: int) -> Search:
        """The search with a budget in model evaluations.

        Raises:
          ValueError: the budget is too small, `flowsde.search.BudgetTooSmall`, or an option wrong.
        """
        moving = {*dict(self.path), "grid", "steps"}
        own = {name: value for name, value in self.options if name not in moving}
        times = getattr(grids, self["grid"])(self["steps"])
        return METHODS[self.method](nfe=nfe, kernel=self.kernel(), grid=times, **own)


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
