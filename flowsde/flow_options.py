"""Options that all of `Flow`'s constructors have, as each names and shows them."""

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypedDict, TypeVar, cast

import jax

from flowsde.interpolants import Interpolant
from flowsde.predictions import Prediction


class Options(TypedDict, total=False):
    """Options of `Flow.from_callable`, `Flow.from_linen` and `Flow.from_nnx`, see the first."""

    interpolant: Interpolant | None
    decode: Callable[[jax.Array], jax.Array] | None
    prediction: Prediction
    time: tuple[float, float]
    call: str | None
    kwargs: Mapping[str, Any] | None
    per_example: bool


DEFAULTS: dict[str, Any] = {
    "interpolant": None,
    "decode": None,
    "prediction": "velocity",
    "time": (0.0, 1.0),
    "call": None,
    "kwargs": None,
    "per_example": False,
}
"""The values of `Options` that are not given."""
Constructor = TypeVar("Constructor", bound=Callable[..., Any])


def with_options(constructor: Constructor) -> Constructor:
    """Name the options of a constructor with ``**options``, in its signature and in its errors."""
    signature = inspect.signature(constructor)
    own = [p for p in signature.parameters.values() if p.kind != inspect.Parameter.VAR_KEYWORD]
    kind = inspect.Parameter.KEYWORD_ONLY
    options = [
        inspect.Parameter(name, kind, default=default, annotation=Options.__annotations__[name])
        for name, default in DEFAULTS.items()
    ]
    known = {*DEFAULTS, *(parameter.name for parameter in own)}

    @functools.wraps(constructor)
    def checked(*args: Any, **given: Any) -> Any:
        for name in given:
            if name not in known:
                close = difflib.get_close_matches(name, DEFAULTS, n=1)
                hint = f", did you mean {close[0]!r}? Its" if close else "; its"
                raise TypeError(
                    f"{constructor.__qualname__} has no option {name!r}{hint} options are "
                    f"{', '.join(DEFAULTS)}"
                )
        return constructor(*args, **given)

    checked.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
    return cast(Constructor, checked)
