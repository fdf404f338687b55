"""Flax modules as pure functions of their parameters, in which rows do not depend on each other.

NNX modules are evaluated in a copy in evaluation mode (`Module.eval`): dropout is off, and batch
norms use their running averages. Linen modules say at the call how they are to be evaluated; those
that draw random numbers or update variables when called are refused, and so are NNX modules that do
so in evaluation mode.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import flax.errors
import jax
from flax import linen as nn
from flax import nnx
from flax.core.meta import Partitioned

from flowsde._exact import Snapshot


def refuse_module(name: str, value: Any) -> None:
    """TypeError for a module that the argument of this name does not take, saying what does."""
    kinds = {f"{base.__module__}.{base.__qualname__}" for base in type(value).__mro__}
    if "torch.nn.modules.module.Module" in kinds:
        kind = "a torch module"
        hint = "port it to Flax, see also `flowsde convert`"
        if name == "reward":
            hint = "a function of NumPy arrays that calls it is given to flowsde.rewards.host"
    elif isinstance(value, nn.Module):
        kind, hint = "a linen module", "expected Flow.from_linen(module, variables, shape)"
        if name in ("reward", "decode"):
            hint = "expected jax.tree_util.Partial(module.apply, variables)"
    elif isinstance(value, nnx.Module):
        kind, hint = "an NNX module", "expected Flow.from_nnx(model, shape)"
    else:
        return
    raise TypeError(f"{name} is {kind}, {type(value).__name__}: {hint}")


def _is_nnx(value: Any) -> bool:
    return isinstance(value, nnx.Module)


def in_eval_mode(tree: Any) -> Any:
    """A pytree with a copy in evaluation mode for each NNX module in it.

    Arrays are shared and variables are not: training the user's module afterwards changes nothing
    here.
    """

    def copy(leaf: Any) -> Any:
        if not _is_nnx(leaf):
            return leaf
        module = nnx.clone(leaf)
        module.eval()
        return module

    return jax.tree.map(copy, tree, is_leaf=_is_nnx)


def as_partial(name: str, fn: Any) -> Callable[..., jax.Array]:
    """A callable as a pytree: a `Partial` stays, a function becomes one without leaves.

    An NNX module, a method of one, and those in the arguments of a `Partial` are evaluated in
    evaluation mode.
    """
    if _is_nnx(fn):
        return jax.tree_util.Partial(*NNX.split(fn))
    owner = getattr(fn, "__self__", None)
    if isinstance(owner, nnx.Module):
        return jax.tree_util.Partial(*NNX.split(owner, fn.__name__))
    refuse_module(name, fn)
    if not callable(fn):
        raise TypeError(f"{name} must be callable, got {fn!r}")
    is_pytree = not jax.tree_util.treedef_is_leaf(jax.tree.structure(fn))
    return in_eval_mode(fn) if is_pytree else jax.tree_util.Partial(fn)


@dataclasses.dataclass(frozen=True, eq=False)
class Linen(Snapshot):
    """A linen module, as a function of its variables."""

    module: nn.Module

    @property
    def __name__(self) -> str:
        return type(self.module).__name__

    @classmethod
    def of(cls, module: Any, variables: Any) -> "Linen":
        """TypeError unless they are a linen module and what its `init` returns."""
        if not isinstance(module, nn.Module):
            refuse_module("module", module)
            raise TypeError(f"module must be a flax.linen.Module, got {describe(module)}")
        is_variables = isinstance(variables, Mapping)
        if not is_variables or (variables and "params" not in variables):
            got = f"the keys {list(variables)}" if is_variables else describe(variables)
            raise TypeError(
                f"params must be the variables that {type(module).__name__}.init returned, "
                f"{{'params': …}} with its other collections, got {got}"
            )
        return cls(module)

    def __call__(self, variables: Any, *args: Any, **kwargs: Any) -> Any:
        # On a mesh linen would take logical names of axes for the mesh's own.
        variables = jax.tree.map(_unboxed, variables, is_leaf=_is_partitioned)
        try:
            return self.module.apply(variables, *args, **kwargs)
        except (flax.errors.InvalidRngError, flax.errors.ModifyScopeVariableError) as error:
            raise ValueError(_moves(type(self.module).__name__, str(error))) from error


def _is_partitioned(value: Any) -> bool:
    return isinstance(value, Partitioned)


def _unboxed(value: Any) -> Any:
    return value.unbox(apply_constraint=False) if _is_partitioned(value) else value


@dataclasses.dataclass(frozen=True, eq=False)
class NNX(Snapshot):
    """An NNX module in evaluation mode, as a function of its state."""

    graphdef: Any
    method: str
    name: str

    @property
    def __name__(self) -> str:
        return self.name

    @classmethod
    def split(cls, module: nnx.Module, method: str = "__call__") -> tuple["NNX", Any]:
        """The function, and the state of the copy in evaluation mode."""
        graphdef, state = nnx.split(in_eval_mode(module))
        name = type(module).__name__
        return cls(graphdef, method, name if method == "__call__" else f"{name}.{method}"), state

    def __call__(self, state: Any, *args: Any, **kwargs: Any) -> Any:
        # Variables of its own: a call may change them, and the caller's must stay.
        module = nnx.merge(self.graphdef, jax.tree.map(lambda a: a, state))
        before = _moving_parts(module)
        output = getattr(module, self.method)(*args, **kwargs)
        for path, value in _moving_parts(module).items():
            if value is not before.get(path):
                what = f"{'.'.join(map(str, path))} changes"
                raise ValueError(_moves(type(module).__name__, what))
        return output


@dataclasses.dataclass(frozen=True, eq=False)
class Bound(Snapshot):
    """A function of an NNX module, as one of (state, ...); equal ones compute the same."""

    fn: Callable[..., Any]
    graphdef: Any

    def __call__(self, params: tuple[Any, ...], *args: Any) -> Any:
        state, *more = params
        return self.fn(nnx.merge(self.graphdef, state), *more, *args)


def bind(fn: Callable[..., Any], module: nnx.Module, *more: Any) -> tuple[Bound, tuple[Any, ...]]:
    """``fn(module, *more, *args)`` as ``bound(params, *args)``: the function, and its params.

    Args:
      fn: pure; a method by way of its class, or a function.
      module: which a call leaves as it is.
      more: arrays or pytrees that are parameters too.
    """
    graphdef, state = nnx.split(module)
    return Bound(fn, graphdef), (state, *more)


def _moving_parts(module: nnx.Module) -> dict[tuple[Any, ...], Any]:
    """Values of all that a call has no reason to change: what is left but caches and records."""
    records = nnx.Any(nnx.Cache, nnx.Intermediate, nnx.Perturbation)
    state = nnx.state(module, nnx.All(nnx.Variable, nnx.Not(records)))
    return {path: leaf.get_value() for path, leaf in nnx.to_flat_state(state)}


def _moves(name: str, what: str) -> str:
    return (
        f"{name} draws random numbers or updates statistics when it is called ({what}), and rows "
        f"would depend on their neighbours; expected a model in evaluation mode, e.g. "
        f"kwargs={{'train': False}} if it takes that"
    )


def describe(value: Any) -> str:
    """The kind of a value, for messages."""
    return f"the class {value.__name__}" if inspect.isclass(value) else type(value).__name__
