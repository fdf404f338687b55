"""Models of other conventions as ``velocity_fn(params, x, t, cond)``, the one the library knows.

Four things differ between models, each of them one option of `Flow.from_nnx`, `Flow.from_linen` and
`Flow.from_callable`:

    how it is called         call="t, x" or "x, timestep=t, **cond"; kwargs={"train": False}
    with how many particles  per_example=True for one, without a batch axis
    what it calls t          time=(its time of data, its time of noise), e.g. (1, 0) or (0, 1000)
    what it predicts         prediction="velocity", "negative_velocity", "x0", "x1" or "score"

The first is checked against the model's signature when the flow is made.
"""

import ast
import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax

from flowsde._explain import name_of
from flowsde._static import Static
from flowsde.interpolants import Interpolant
from flowsde.predictions import (
    PREDICTIONS,
    Prediction,
    informative_time,
    prediction_to_velocity,
)

# Parameters of these names are no place for x.
_TIMES = ("t", "time", "times", "timestep", "timesteps")


@dataclasses.dataclass(frozen=True)
class Call:
    """The arguments that a model is called with, by the names "params", "x", "t" and "cond".

    Attributes:
      positional: names in their order.
      named: pairs of keyword and name.
      spread: whether the entries of cond, a mapping, are keyword arguments.
      optional: whether a cond of None is left out, as the model has a default.
      refuses_cond: whether there must be none.
    """

    positional: tuple[str, ...]
    named: tuple[tuple[str, str], ...] = ()
    spread: bool = False
    optional: bool = False
    refuses_cond: bool = False

    @classmethod
    def parse(cls, text: Any, names: tuple[str, ...]) -> "Call":
        """Arguments as they are written in Python; ValueError unless they are of `names`."""
        error = ValueError(
            f"call must be arguments as they are written in Python, of {', '.join(names)}, e.g. "
            f"'t, x', 'x, timestep=t, y=cond' or 'x, t, **cond', got {text!r}"
        )
        try:
            node = ast.parse(f"f({text})", mode="eval").body
        except (SyntaxError, ValueError):
            raise error from None
        if not isinstance(text, str) or not isinstance(node, ast.Call):
            raise error
        if not isinstance(node.func, ast.Name):
            raise error
        positional = tuple(getattr(value, "id", "") for value in node.args)
        pairs = [(keyword.arg, getattr(keyword.value, "id", "")) for keyword in node.keywords]
        used = [*positional, *(name for _, name in pairs)]
        spread = [name for key, name in pairs if key is None]
        if len(set(used)) < len(used) or not {"x"} <= set(used) <= set(names):
            raise error
        if spread not in ([], ["cond"]):
            raise error
        named = tuple((key, name) for key, name in pairs if key is not None)
        return cls(positional, named, bool(spread))

    def __str__(self) -> str:
        named = [f"{key}={name}" for key, name in self.named]
        return ", ".join([*self.positional, *named, *(["**cond"] if self.spread else [])])

    @property
    def takes_cond(self) -> bool:
        """Whether cond is among the arguments."""
        return self != self.without_cond()

    def without_cond(self) -> "Call":
        """The other arguments."""
        positional = tuple(name for name in self.positional if name != "cond")
        named = tuple(pair for pair in self.named if pair[1] != "cond")
        return Call(positional, named)

    def bind(self, **given: Any) -> tuple[list[Any], dict[str, Any]]:
        """Positional and keyword arguments, of values for all names."""
        if self.optional and given["cond"] is None:
            return self.without_cond().bind(**given)
        if self.refuses_cond and given["cond"] is not None:
            raise TypeError(
                f"the model is called with ({self}) and has no place for cond, but one was given; "
                f"call={str(self)!r} leaves it to the reward"
            )
        named = {key: given[name] for key, name in self.named}
        if self.spread:
            if not isinstance(given["cond"], Mapping):
                raise TypeError(
                    f"cond must map names to arrays for a model that is called as ({self}), got "
                    f"{type(given['cond']).__name__}"
                )
            named |= given["cond"]
        return [given[name] for name in self.positional], named


def _misfit(signature: inspect.Signature, call: Call, kwargs: dict[str, Any]) -> str | None:
    """Why a function of this signature cannot be called so; None if it can."""
    spread = call.spread
    args, named = dataclasses.replace(call, spread=False).bind(
        params="params", x="x", t="t", cond="cond"
    )
    try:
        # What a spread cond brings is not known yet.
        bound = (signature.bind_partial if spread else signature.bind)(*args, **named, **kwargs)
    except TypeError as error:
        return str(error)
    for parameter, given in bound.arguments.items():
        if parameter in kwargs or not isinstance(given, str):
            continue
        swapped = (given == "x" and parameter in _TIMES) or (given == "t" and parameter == "x")
        is_flag = isinstance(signature.parameters[parameter].default, bool)
        if swapped or (given == "cond" and is_flag):
            return f"{given} would be its {parameter!r}"
    return None


def _fitting(fn: Any, text: str | None, kwargs: dict[str, Any], names: tuple[str, ...]) -> Call:
    """How a function is called; TypeError unless its signature takes that.

    Modules are called without cond if they have no place for it, unless `text` says otherwise.
    """
    own = ", ".join(names)
    call = Call.parse(own if text is None else text, names)
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):
        # Some wrappers and builtins have none.
        return call
    less = call.without_cond()
    # Plain functions of the library's own convention are always given cond.
    choices = [call] if text is None and "params" in names else [call, less]
    misfits = [_misfit(signature, choice, kwargs) for choice in choices]
    if misfits[0] is None:
        return dataclasses.replace(call, optional=misfits[1:] == [None] and call != less)
    if text is None and misfits[-1] is None:
        return dataclasses.replace(less, refuses_cond=True)
    tried = 1 if text is not None else len(choices)
    written = " or ".join(f"({_written(choice, kwargs)})" for choice in choices[:tried])
    raise TypeError(
        f"the model would be called with {written}, which "
        f"{getattr(fn, '__qualname__', type(fn).__name__)}{signature} does not take: "
        f"{'; '.join(filter(None, misfits[:tried]))}. Say how it is called by call=, of {own}, "
        f"e.g. call={_example(signature, kwargs, names)!r}, and what else it takes by kwargs=, "
        f"e.g. kwargs={{'train': False}}"
    )


def _example(signature: inspect.Signature, kwargs: dict[str, Any], names: tuple[str, ...]) -> str:
    """A `call` to begin with, in which cond, and t, go to what is taken by keyword alone."""
    left = [
        name
        for name, parameter in signature.parameters.items()
        if parameter.kind == inspect.Parameter.KEYWORD_ONLY
        and name not in kwargs
        and not isinstance(parameter.default, bool)
    ]
    times = [f"{name}=t" for name in left if name in _TIMES][:1]
    others = [f"{name}=cond" for name in left if name not in _TIMES][:1]
    first = ["params"] if "params" in names and left else []
    orders = [["x"]] if times else [["t", "x"], ["x", "t"]]
    calls = [", ".join([*first, *order, *times, *others]) for order in orders]
    fitting = [c for c in calls if _misfit(signature, Call.parse(c, names), kwargs) is None]
    return [*fitting, *calls][0]


def _written(call: Call, kwargs: dict[str, Any]) -> str:
    return ", ".join([str(call), *(f"{key}={value!r}" for key, value in kwargs.items())])


def _check_kwargs(kwargs: Any) -> dict[str, Any]:
    if kwargs is None:
        return {}
    if not isinstance(kwargs, Mapping) or not all(isinstance(key, str) for key in kwargs):
        raise TypeError(f"kwargs must map names to constants, got {kwargs!r}")
    for key, value in kwargs.items():
        try:
            hash(value)
        except TypeError:
            raise TypeError(
                f"kwargs[{key!r}] must be a constant that hashes, got {type(value).__name__}; "
                f"arrays belong in cond or the parameters"
            ) from None
    return dict(kwargs)


def _check_time(time: Any) -> tuple[float, float]:
    try:
        data, noise = (float(end) for end in time)
    except (TypeError, ValueError):
        data = noise = math.nan
    if not (math.isfinite(data) and math.isfinite(noise) and data != noise):
        raise ValueError(
            f"time must be what the model calls t = 0, data, and t = 1, noise, two different "
            f"numbers such as (1, 0) or (0, 1000), got {time!r}"
        )
    return data, noise


@dataclasses.dataclass(frozen=True)
class Plain(Static):
    """A function that takes params, if it does, where `call` says."""

    fn: Callable[..., Any]

    @property
    def __name__(self) -> str:
        return name_of(self.fn)

    def __call__(self, params: Any, *args: Any, **kwargs: Any) -> Any:
        return self.fn(*args, **kwargs)


@dataclasses.dataclass(frozen=True)
class Adapted(Static):
    """The velocity of a model of another convention; options as for `Flow.from_callable`.

    Attributes:
      model: ``(params, *args, **kwargs) -> prediction``.
      call: its args.
      kwargs: pairs, given as they are.
      per_example, time, prediction, interpolant: as for `Flow.from_callable`.
    """

    model: Callable[..., Any]
    call: Call
    kwargs: tuple[tuple[str, Any], ...]
    per_example: bool
    time: tuple[float, float]
    prediction: str
    interpolant: Interpolant

    @property
    def __name__(self) -> str:
        return name_of(self.model)

    def __call__(self, params: Any, x: jax.Array, t: jax.Array, cond: Any) -> jax.Array:
        t = informative_time(self.prediction, self.interpolant, t)
        predicted = self.predict(params, x, t, cond)
        return prediction_to_velocity(self.prediction, self.interpolant, x, t, predicted)

    def predict(self, params: Any, x: jax.Array, t: jax.Array, cond: Any) -> Any:
        """What the model itself gives, of x [n, ...] and t [n]."""
        predict = partial(self._predict, params)
        return (jax.vmap(predict) if self.per_example else predict)(x, t, cond)

    def _predict(self, params: Any, x: jax.Array, t: jax.Array, cond: Any) -> Any:
        data, noise = self.time
        args, named = self.call.bind(params=params, x=x, t=data + (noise - data) * t, cond=cond)
        return self.model(params, *args, **named, **dict(self.kwargs))

    def simplest(self) -> Callable[..., Any]:
        """The user's own function, if that is a velocity_fn already."""
        own = Call(("params", "x", "t", "cond"))
        as_is = Adapted(self.model, own, (), False, (0.0, 1.0), "velocity", self.interpolant)
        return self.model.fn if isinstance(self.model, Plain) and self == as_is else self


def adapt(
    model: Callable[..., Any],
    called: Any,
    names: tuple[str, ...],
    interpolant: Interpolant,
    *,
    prediction: Prediction,
    time: tuple[float, float],
    call: str | None,
    kwargs: Mapping[str, Any] | None,
    per_example: bool,
) -> Adapted:
    """A model's velocity; options as for `Flow.from_callable`.

    Args:
      model: ``(params, *args, **kwargs) -> prediction``.
      called: the function that has the signature of its args.
      names: of those that `call` may have, in the order of its default.
      interpolant: of training.

    Raises:
      ValueError, TypeError: naming the option; or the call, if the signature does not take it.
    """
    if prediction not in PREDICTIONS:
        expected = ", ".join(map(repr, PREDICTIONS))
        raise ValueError(
            f"prediction must be one of {expected}, got {prediction!r}: of x = alpha x0 + sigma x1 "
            "x0 is the data and x1 the noise (epsilon)"
        )
    if not isinstance(interpolant, Interpolant):
        raise TypeError(
            f"interpolant must be one of flowsde.interpolants, such as flowsde.interpolants.vp(), "
            f"got {interpolant!r:.80}"
        )
    constants = _check_kwargs(kwargs)
    adapted = Adapted(
        model=model,
        call=_fitting(called, call, constants, names),
        kwargs=tuple(constants.items()),
        per_example=bool(per_example),
        time=_check_time(time),
        prediction=prediction,
        interpolant=interpolant,
    )
    try:
        hash(model)
    except TypeError as error:
        raise TypeError(
            f"the model must be hashable, for the programs compiled for it to be found again: "
            f"{error}"
        ) from error
    return adapted
