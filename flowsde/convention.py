"""Which convention a model is of: how well it predicts known data under each.

A model of another convention than the one that its flow was given fails silently: samples are bad,
and nothing else is. What tells them apart is the loss. Data x0 and noise x1 make points
x_t = alpha x0 + sigma x1, and of all predictors of x0 from x_t the posterior mean has the least
squared error. So the mean that a flow's model gives has an error below that of the mean of the
data, the best predictor that sees no x_t; read in another convention its error is larger than read
in its own.
"""

import dataclasses
import warnings
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowsde._arrays import check_output
from flowsde._exact import Now
from flowsde._explain import model_note, name_of, noted
from flowsde._keys import as_key
from flowsde.adapters import Adapted, Call, Plain
from flowsde.conds import Cond, as_arrays, check_cond
from flowsde.flow import Flow, check_flow, exact
from flowsde.predictions import (
    PREDICTIONS,
    expand,
    means_from_velocity,
    prediction_to_velocity,
)

ANGLES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Of the points that the model is asked about, from data, 0, to noise, 1."""
_STANDARD_ERRORS = 2.0
"""By which another convention must be better than the given one."""


class Convention(NamedTuple):
    """Options of `Flow.from_nnx` and its relatives."""

    time: tuple[float, float]
    prediction: str

    def __str__(self) -> str:
        data, noise = self.time
        return f"time=({data:g}, {noise:g}), prediction={self.prediction!r}"


@dataclasses.dataclass(frozen=True)
class ConventionCheck:
    """What `check_convention` found; its text is a table.

    Attributes:
      given: the flow's own convention.
      best: the one of the least mean error, or the given one unless that is clearly better.
      times: NumPy [times], from data to noise.
      errors: of each convention, the squared error of x0 at these times, relative to that of the
        mean of the data, NumPy [times]: below 1 if the model knows more than that.
    """

    given: Convention
    best: Convention
    times: np.ndarray
    errors: dict[Convention, np.ndarray]

    def __str__(self) -> str:
        marks = {self.given: "given", self.best: "best"}
        if self.best == self.given:
            marks = {self.best: "given, best"}
        width = max(len(str(convention)) for convention in self.errors)
        lines = [f"{'relative error at t =':{width}}" + "".join(f"{t:10.3g}" for t in self.times)]
        for convention in sorted(self.errors, key=self.error):
            numbers = "".join(f"{error:10.3g}" for error in self.errors[convention])
            lines.append(f"{convention!s:{width}}{numbers}  {marks.get(convention, '')}".rstrip())
        return "\n".join(lines)

    def error(self, convention: Convention) -> float:
        """Mean of a convention's errors."""
        return float(self.errors[convention].mean())


def check_convention(
    flow: Flow, data: Any, cond: Cond = None, *, key: jax.Array | None = None
) -> ConventionCheck:
    """Compare how well a model predicts known data as given with how well under other conventions.

    These are its own time and the reversed one, each with all that a model may predict, see
    `Flow.from_callable`. A few dozen points tell them apart, unless data are distributed as noise
    is: reversed time with the velocity negated is then the same flow. Interpolants and scales of
    time are not compared; where no convention is right, look at those.

    Args:
      flow: the model, without guidance.
      data: [n, *flow.shape], n >= 2, of what the model was trained on: latents, where it has a
        decoder, scaled as in training.
      cond: pytree with leading axis n, or None.
      key: of the noise; a fixed one by default.

    Returns:
      A `ConventionCheck`; print it for a table.

    Warns:
      UserWarning: another convention is better than the given one by two standard errors of the
        points' differences; or the best is no better than the mean of the data.

    Raises:
      ValueError, TypeError: naming the argument.

    Example:
      >>> flow = fs.analytic.gaussian([3.0, 0.0], 0.25).flow()
      >>> data = jnp.array([3.0, 0.0]) + 0.5 * jax.random.normal(jax.random.key(0), [256, 2])
      >>> found = fs.check_convention(flow, data)
      >>> found.best == found.given
      True
    """
    x0, cond = _checked(flow, data, cond)
    key = as_key(jax.random.key(0) if key is None else key)
    model = _adapted(flow)
    kinds = [Convention(t, kind) for t in (model.time, model.time[::-1]) for kind in PREDICTIONS]
    angles = jnp.asarray(ANGLES, jnp.float32) * jnp.float32(np.pi / 2)
    times = flow.interpolant.time(angles)
    keys, now = jax.random.split(key, len(ANGLES)), exact(flow, cond)
    squared = [
        jax.device_get(_squared_errors(now, x0, t, cond, k, Now(model), tuple(kinds)))
        for t, k in zip(times, keys, strict=True)
    ]
    # Divided by n - 1: a mean of the very points is nearer to them than that of all data.
    trivial = np.square(x0 - x0.mean(axis=0)).sum(dtype=np.float64) / (len(x0) - 1)
    errors = np.stack(squared, axis=-1).astype(np.float64) / trivial
    given = kinds.index(Convention(model.time, model.prediction))
    check = ConventionCheck(
        given=kinds[given],
        best=kinds[_best(errors.mean(axis=-1), given)],
        times=np.asarray(times),
        errors=dict(zip(kinds, errors.mean(axis=1), strict=True)),
    )
    _warn(check, name_of(flow.velocity_fn))
    return check


def _checked(flow: Flow, data: Any, cond: Cond) -> tuple[np.ndarray, Cond]:
    """Data as float32, cond as arrays."""
    if not isinstance(flow, Flow):
        raise TypeError(f"flow must be a flowsde.Flow, got {type(flow).__name__}")
    if flow.evaluations != 1:
        raise ValueError("flow is guided, which predicts no mean; expected it without guidance")
    check_flow(flow)
    x0 = np.asarray(data)
    if x0.ndim == 0 or x0.shape[1:] != flow.shape or len(x0) < 2:
        raise ValueError(
            f"data must have shape (n, {', '.join(map(str, flow.shape))}) with n of at least 2, "
            f"got {x0.shape}"
        )
    x0 = x0.astype(np.float32)
    if not np.isfinite(x0).all() or (x0 == x0[0]).all():
        raise ValueError("data must be finite, and not all the same")
    cond = as_arrays("cond", cond)
    check_cond(cond, len(x0), "len(data)")
    return x0, cond


def _adapted(flow: Flow) -> Adapted:
    """The flow's model, with its convention."""
    if isinstance(flow.velocity_fn, Adapted):
        return flow.velocity_fn
    own = Call(("params", "x", "t", "cond"))
    plain = Plain(flow.velocity_fn)
    return Adapted(plain, own, (), False, (0.0, 1.0), "velocity", flow.interpolant)


@partial(jax.jit, static_argnames=("now", "kinds"))
def _squared_errors(
    flow: Flow,
    x0: jax.Array,
    t: jax.Array,
    cond: Cond,
    key: jax.Array,
    now: Now,
    kinds: tuple[Convention, ...],
) -> jax.Array:
    """Squared distances [kinds, n] from x0 to what each convention takes for its mean at time t."""
    p, model = flow.interpolant, now.value
    t = jnp.full(x0.shape[:1], t)
    noise = jax.random.normal(key, x0.shape, jnp.float32)
    x = expand(p.alpha(t), x0) * x0 + expand(p.sigma(t), x0) * noise
    # Once for each order of time, whatever the output is taken for.
    with noted(partial(model_note, name_of(model), flow.shape, x, t, cond)):
        predicted = {
            time: dataclasses.replace(model, time=time).predict(flow.params, x, t, cond)
            for time in sorted({kind.time for kind in kinds})
        }
        for value in predicted.values():
            check_output(f"model {name_of(model)}", value, x)

    def error(kind: Convention) -> jax.Array:
        velocity = prediction_to_velocity(kind.prediction, p, x, t, predicted[kind.time])
        mean, _ = means_from_velocity(p, x, t, velocity.astype(jnp.float32))
        return jnp.sum(jnp.square(mean - x0).reshape(len(x0), -1), axis=1)

    return jnp.stack([error(kind) for kind in kinds])


def _best(errors: np.ndarray, given: int) -> int:
    """Of errors [conventions, n], the convention of the least, if that is clearly not `given`."""
    best = int(np.argmin(np.nan_to_num(errors.mean(axis=1), nan=np.inf)))
    gain = errors[given] - errors[best]
    # Of the same points and noise, so most of what errors share drops out.
    standard_error = gain.std(ddof=1) / np.sqrt(len(gain))
    return given if gain.mean() <= _STANDARD_ERRORS * standard_error else best


def _warn(check: ConventionCheck, name: str) -> None:
    if check.best != check.given:
        warnings.warn(
            f"model {name} predicts the data better with {check.best} than with {check.given} as "
            f"given: squared errors {check.error(check.best):.3g} and "
            f"{check.error(check.given):.3g} of that of the data's mean",
            stacklevel=3,
        )
    elif not check.error(check.best) < 1.0:
        warnings.warn(
            f"model {name} predicts the data no better than their mean does, squared error "
            f"{check.error(check.best):.3g} of its: look at interpolant, cond, the scale of data "
            f"and that of time",
            stacklevel=3,
        )
