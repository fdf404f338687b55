"""Telling a search whose candidates were evaluated on several devices, moving what it keeps only.

What a search puts into its state when told are particles, of before or of this round. So it is told
numbers in place of their arrays, by which each device knows what to keep; of the posterior means,
those of kept candidates are then sent by the device that has them.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, jaxpr_as_fun

from flowsde._programs import programs_of
from flowsde.runner.mesh import Placement
from flowsde.search.protocol import Candidates, Evaluation, Info, Particle, Search

_IMPLEMENTATION = "threefry2x32"


class Slots(NamedTuple):
    """The particles [P, ...] of a state, one after the other."""

    particles: list[Particle]

    @property
    def sizes(self) -> list[int]:
        """How many there are of each, for a prompt."""
        return [math.prod(p.t.shape[1:]) for p in self.particles]

    @property
    def total(self) -> int:
        """How many there are, for a prompt."""
        return sum(self.sizes)

    def field(self, name: str) -> jax.Array:
        """An array [P, slots, ...] of all of them."""
        arrays = [getattr(p, name) for p in self.particles]
        parts = [
            a.reshape(a.shape[0], size, *a.shape[p.t.ndim :])
            for a, size, p in zip(arrays, self.sizes, self.particles, strict=True)
        ]
        return jnp.concatenate(parts, axis=1)


def _is_particle(leaf: Any) -> bool:
    return isinstance(leaf, Particle)


def slots_of(state: Any) -> Slots:
    """The particles of a state."""
    return Slots([p for p in jax.tree.leaves(state, is_leaf=_is_particle) if _is_particle(p)])


def _numbers(first: int, prompts: int, shape: tuple[int, ...]) -> jax.Array:
    """Numbers [prompts, *shape] that count on from `first` for each prompt.

    They are random keys, which can be selected and not computed with: tracing a search that does
    more fails.
    """
    counted = first + jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(shape)
    data = jnp.broadcast_to(counted[None, ..., None], (prompts, *shape, 2))
    return jax.random.wrap_key_data(data, impl=_IMPLEMENTATION)


def _numbered(particle: Particle, numbers: jax.Array) -> Particle:
    gradient = None if particle.gradient is None else numbers
    return particle._replace(x=numbers, x0=numbers, x1=numbers, gradient=gradient)


def tell_by_number(
    search: Search,
    state: Any,
    asked: Candidates,
    evals: Evaluation,
    rewards: jax.Array,
    placement: Placement,
) -> tuple[Any, Info] | None:
    """`Search.tell` of P prompts; within `Placement.local`.

    None for a search that does more than select particles: one that computes with their arrays, or
    keeps some outside of a `Particle`.

    Args:
      search: of the prompts.
      state: [P, ...].
      asked: [P, w].
      evals: of the rows of this device, [k, ...].
      rewards: of all rows, [P, w].
      placement: whose particle axes share the prompts.
    """
    old = slots_of(state)
    prompts, width = asked.t.shape
    there = old.total
    firsts = iter([sum(old.sizes[:i]) for i in range(len(old.sizes))])

    def number(leaf: Any) -> Any:
        if not _is_particle(leaf):
            return leaf
        return _numbered(leaf, _numbers(next(firsts), prompts, leaf.t.shape[1:]))

    numbered = jax.tree.map(number, state, is_leaf=_is_particle)
    rows = _numbers(there, prompts, (width,))
    gradient = None if evals.gradient is None else rows
    told = Evaluation(rows, rows, rewards, gradient)
    args = numbered, asked._replace(x=rows), told
    try:
        traced, like = jax.make_jaxpr(jax.vmap(search.tell), return_shape=True)(*args)
    except (TypeError, ValueError):
        return None
    if _sorts_keys(traced.jaxpr):
        return None
    results = jaxpr_as_fun(traced)(*jax.tree.leaves(args))
    new, info = jax.tree.unflatten(jax.tree.structure(like), results)
    if _kinds(new) != _kinds(numbered):
        return None

    # Which old slot, or row behind them, each new slot is.
    kept = slots_of(new)
    chosen = jax.random.key_data(kept.field("x"))[..., 0].astype(jnp.int32)
    row, is_row = jnp.maximum(chosen - there, 0), chosen >= there
    slot = jnp.minimum(chosen, there - 1)
    flat = row + width * jnp.arange(prompts, dtype=jnp.int32)[:, None]
    here = is_row & (flat % placement.particles == jax.lax.axis_index(placement.particle))

    def resolve(name: str, of_rows: jax.Array) -> jax.Array:
        before = jax.vmap(lambda a, at: a[at])(old.field(name), slot)
        return jnp.where(_like(is_row, before), of_rows, before)

    def sent(a: jax.Array) -> jax.Array:
        mine = a[flat // placement.particles]
        return jax.lax.psum(jnp.where(_like(here, mine), mine, 0.0), placement.particle)

    # All devices have the candidates, but not where those that moved have arrived.
    x = jax.vmap(lambda a, at: a[at])(asked.x, row) if evals.x is None else sent(evals.x)
    values = {"x": resolve("x", x)}
    for name in ("x0", "x1") if evals.gradient is None else ("x0", "x1", "gradient"):
        values[name] = resolve(name, sent(getattr(evals, name)))
    ends = iter([sum(kept.sizes[: i + 1]) for i in range(len(kept.sizes))])

    def fill(leaf: Any) -> Any:
        if not _is_particle(leaf):
            return leaf
        end = next(ends)
        begin = end - math.prod(leaf.t.shape[1:])
        return leaf._replace(
            **{
                name: a[:, begin:end].reshape(*leaf.t.shape, *a.shape[2:])
                for name, a in values.items()
            }
        )

    return jax.tree.map(fill, new, is_leaf=_is_particle), info


def _is_key(shaped: Any) -> bool:
    return jax.dtypes.issubdtype(shaped.dtype, jax.dtypes.prng_key)


def _sorts_keys(traced: Jaxpr) -> bool:
    """Whether a program sorts random keys, which is found out when it is compiled only."""
    for equation in traced.eqns:
        sorts = equation.primitive.name == "sort"
        if sorts and any(_is_key(a.aval) for a in equation.invars):
            return True
        if any(map(_sorts_keys, programs_of(equation))):
            return True
    return False


def _kinds(tree: Any) -> Any:
    """The structure of a tree, and the shapes and dtypes of its leaves."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]


def _like(condition: jax.Array, a: jax.Array) -> jax.Array:
    """A condition [P, n] with the axes of [P, n, ...]."""
    return condition.reshape(*condition.shape, *(1,) * (a.ndim - condition.ndim))
