"""`Flow`: a velocity field with its parameters, source interpolant and decoder.

The library knows a model only as ``velocity_fn(params, x, t, cond) -> velocity`` with x
[n, *shape], t [n] float32 in [0, 1] (0 data, 1 noise) and cond a pytree with leading axis n, or
None. The constructors bring linen, NNX and plain functions of any convention to that form, see
`flowsde.adapters`. A `Flow` is a pytree whose leaves are its parameters: pass it to compiled
functions as an argument.
"""

import dataclasses
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Unpack

import chex
import jax
import jax.numpy as jnp
from flax import nnx

from flowsde._arrays import check_output
from flowsde._checks import check_count
from flowsde._exact import Exact, Key
from flowsde._explain import model_note, name_of, noted
from flowsde._static import check_static
from flowsde.adapters import Plain, adapt
from flowsde.conds import Cond, Held
from flowsde.flow_options import DEFAULTS, Options, with_options
from flowsde.interpolants import Interpolant, Linear, match_time
from flowsde.kernels.base import standard_normal
from flowsde.modules import NNX, Linen, as_partial, describe, in_eval_mode, refuse_module
from flowsde.predictions import expand, means_from_velocity
from flowsde.start import hold

Params = Any
VelocityFn = Callable[[Params, jax.Array, jax.Array, Cond], jax.Array]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("params", "decode", "encode"),
    meta_fields=("velocity_fn", "shape", "interpolant", "evaluations"),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Flow:
    """A flow model as a pytree.

    Attributes:
      params: pytree of arrays, the first argument of `velocity_fn`.
      velocity_fn: ``(params, x, t, cond) -> velocity`` of the source interpolant; hashable.
      shape: of one particle, without the batch axis.
      interpolant: the model was trained on.
      decode: maps x0 [n, *shape] to what rewards see; a pytree callable
        (`jax.tree_util.Partial`), so a decoder's own parameters are leaves too.
      evaluations: forward passes of the model that one call of `velocity_fn` costs.
      encode: maps images to x0 [n, *shape], as the `start` of `flowsde.run`; None where x0 are the
        images, or there is no encoder. No part of what a search computes.

    Example:
      >>> def toward(params, x, t, cond):  # data are all at params: x1 - x0 at x
      ...     return (x - params) / jnp.maximum(t, 1e-3)[:, None]
      >>> flow = fs.Flow.from_callable(toward, jnp.array([2.0]), shape=(1,))
      >>> x0, x1 = flow.means(jnp.zeros([1, 1]), jnp.array([0.5]), None, flow.interpolant)
      >>> x0.tolist(), x1.tolist()  # (x0 + x1) / 2 is x, 0
      ([[2.0]], [[-2.0]])
    """

    params: Params
    velocity_fn: VelocityFn
    shape: tuple[int, ...]
    interpolant: Interpolant = Linear()
    decode: Callable[[jax.Array], jax.Array]
    evaluations: int = 1
    encode: Callable[[jax.Array], jax.Array] | None = None

    @classmethod
    @with_options
    def from_callable(
        cls, fn: VelocityFn, params: Params, shape: tuple[int, ...], **options: Unpack[Options]
    ) -> "Flow":
        """Flow of a plain function, by default ``fn(params, x, t, cond) -> velocity``.

        Args:
          fn: pure; what it returns is shaped as x, of any floating dtype.
          params: its parameters, or None. NNX modules in them are copied in evaluation mode.
          shape: of one particle.
          interpolant: of training; None is linear.
          decode: x0 [n, *shape] -> images; None is the identity. Wrap a decoder with parameters as
            ``jax.tree_util.Partial(decode_fn, decoder_params)``; an NNX module, or a method of
            one, is taken as it is and evaluated in evaluation mode.
          prediction: what the model gives: "velocity", alpha' x0 + sigma' x1, which is noise -
            data under the linear interpolant; "negative_velocity", data - noise; "x0", data;
            "x1", noise; or "score".
          time: what the model calls t = 0, data, and t = 1, noise: (1, 0) if it counts from noise
            to data, (0, 1000) if it counts to a thousand. It changes the model's t alone: a
            velocity along reversed time is the "negative_velocity".
          call: the arguments of the model as they are written in Python, of params, x, t and
            cond; None is "params, x, t, cond". Others are "params, t, x", or
            "params, x, timestep=t, **cond" for a cond that maps names to arrays.
          kwargs: what else the model is given, constants by name: {"train": False}.
          per_example: whether the model takes one particle, x [*shape] and t [], with its cond.

        Raises:
          ValueError, TypeError: naming the argument, or the call that the model does not take.
        """
        refuse_module("fn", fn)
        if not callable(fn):
            raise TypeError(f"fn must be callable, fn(params, x, t, cond), got {fn!r}")
        model, params = Plain(fn), in_eval_mode(params)
        return cls._adapted(model, fn, params, shape, ("params",), options)

    @classmethod
    @with_options
    def from_linen(
        cls, module: Any, params: Params, shape: tuple[int, ...], **options: Unpack[Options]
    ) -> "Flow":
        """Flow of a `flax.linen` module called as ``module(x, t, cond)``, or ``module(x, t)``.

        Args:
          module: with its method ``__call__``. It must not draw random numbers or update
            collections when called: `kwargs` says how to evaluate it, {"train": False}.
          params: the variables that ``module.apply`` takes, all collections; axes named by
            `flax.linen.with_partitioning` are split by their names on a mesh.
          shape: of one particle.
          interpolant, decode, prediction, time, kwargs, per_example: as for `from_callable`.
          call: as for `from_callable`, without params; None is "x, t, cond".
        """
        return cls._adapted(Linen.of(module, params), module.__call__, params, shape, (), options)

    @classmethod
    @with_options
    def from_nnx(
        cls, model: nnx.Module, shape: tuple[int, ...], **options: Unpack[Options]
    ) -> "Flow":
        """Flow of an NNX module called as ``model(x, t, cond)``, or ``model(x, t)``.

        The module is copied in evaluation mode (`nnx.Module.eval`) and split once; the copy's state
        becomes the flow's parameters. What is done to the module later does not change the flow.

        Args:
          model: the module.
          shape: of one particle.
          interpolant, decode, prediction, time, kwargs, per_example: as for `from_callable`.
          call: as for `from_callable`, without params; None is "x, t, cond".
        """
        if not isinstance(model, nnx.Module):
            refuse_module("model", model)
            raise TypeError(f"model must be a flax.nnx.Module, got {describe(model)}")
        if not callable(model):
            raise TypeError(f"model must have a __call__, {type(model).__name__} has none")
        function, state = NNX.split(model)
        return cls._adapted(function, model.__call__, state, shape, (), options)

    @classmethod
    def _adapted(
        cls,
        model: Callable[..., Any],
        called: Any,
        params: Params,
        shape: tuple[int, ...],
        first: tuple[str, ...],
        options: Options,
    ) -> "Flow":
        """Flow of ``model(params, *args, **kwargs)``, whose args are those of `called`."""
        convention: dict[str, Any] = {**DEFAULTS, **options}
        interpolant, decode = convention.pop("interpolant"), convention.pop("decode")
        source = Linear() if interpolant is None else interpolant
        adapted = adapt(model, called, (*first, "x", "t", "cond"), source, **convention)
        return cls(
            params=params,
            velocity_fn=adapted.simplest(),
            shape=_check_shape(shape),
            interpolant=source,
            decode=as_partial("decode", _identity if decode is None else decode),
        )

    def means(
        self, x: jax.Array, s: jax.Array, cond: Cond, interpolant: Interpolant
    ) -> tuple[jax.Array, jax.Array]:
        """Posterior means (x0, x1), float32 [n, *shape], at points of any interpolant.

        Args:
          x: float32 [n, *shape], at times `s` of `interpolant`.
          s: float32 [n].
          cond: leading axis n, or None; with `flowsde.conds.Held`, means of known data where they
            are known.
          interpolant: of x and s; converted to the source by matching the angle.
        """
        chex.assert_shape(x, (None, *self.shape), custom_message="x of a flow")
        if isinstance(cond, Held):
            x0, x1 = self.means(x, s, cond.cond, interpolant)
            return hold(interpolant, x, s, x0, x1, cond)
        t, scale = match_time(self.interpolant, interpolant, s)
        point = expand(scale, x) * x
        name = name_of(self.velocity_fn)
        with noted(partial(model_note, name, self.shape, point, t, cond)):
            velocity = self.velocity_fn(self.params, point, t, cond)
            check_output(f"model {name}", velocity, x)
        return means_from_velocity(self.interpolant, point, t, velocity.astype(jnp.float32))


def _identity(x: jax.Array) -> jax.Array:
    return x


def _check_shape(shape: Any) -> tuple[int, ...]:
    if isinstance(shape, str) or not isinstance(shape, Iterable):
        raise TypeError(f"shape must be a tuple of one particle's axes, got {shape!r}")
    return tuple(check_count("shape", size) for size in shape)


def check_flow(flow: Flow) -> None:
    """Raise unless flows whose functions compute differently are told apart."""
    check_static("velocity_fn", flow.velocity_fn)
    check_static("interpolant", flow.interpolant)
    check_static("decode", flow.decode)


def exact(flow: Flow, cond: Cond, interpolant: Interpolant | None = None) -> Flow:
    """A flow as it is now, which shares programs with none but its like.

    Args:
      flow: whose programs are looked up by all that they depend on: its functions, and what
        params, decode and cond keep beside their arrays.
      cond: that the model is given, or one of its structure.
      interpolant: that it is converted to, of programs that are looked up by it as it is.
    """
    trees = (flow.params, flow.decode, cond)
    own = (flow.velocity_fn, flow.interpolant, interpolant)
    key = Key((*own, *map(jax.tree.structure, trees)))
    return dataclasses.replace(flow, velocity_fn=Exact(flow.velocity_fn, key), encode=None)


def finite_rows(a: jax.Array) -> jax.Array:
    """Rows without NaN and infinity, bool [n]."""
    return jnp.all(jnp.isfinite(a), axis=tuple(range(1, a.ndim)))


def initial_noise(key: chex.PRNGKey, shape: tuple[int, ...], interpolant: Interpolant) -> jax.Array:
    """A particle at t = 1: N(0, r(1)^2 I), float32."""
    radius = interpolant.radius(jnp.ones((), jnp.float32))
    return radius * standard_normal(key, shape)
