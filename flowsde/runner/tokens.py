"""Whether a model splits its tokens over the axes of a mesh that the rules have for them.

Its own rules say where it does: those that it was loaded with.
"""

from collections.abc import Iterator

from jax.extend.core import Jaxpr

from flowsde._programs import programs_of
from flowsde.runner.mesh import Placement


def check_tokens(placement: Placement, name: str, traced: Jaxpr) -> None:
    """ValueError for a model, as it was traced, that leaves devices of such an axis idle."""
    assert placement.mesh is not None
    split = set(_axes(traced))
    for axis in placement.token:
        size = placement.mesh.shape[axis]
        if size > 1 and axis not in split:
            raise ValueError(
                f"rules split tokens over mesh axis {axis!r} of {size} devices, but model {name} "
                f"splits none over it: expected a transformer of flowsde.models that was loaded "
                f"with these rules, flowsde.load(folder, mesh, rules=rules)"
            )


def _axes(traced: Jaxpr) -> Iterator[str]:
    """Axes of a mesh over which a program wants arrays split."""
    for equation in traced.eqns:
        if equation.primitive.name == "sharding_constraint":
            for axes in equation.params["sharding"].spec:
                yield from (axes,) if isinstance(axes, str) else axes or ()
        for inner in programs_of(equation):
            yield from _axes(inner)
