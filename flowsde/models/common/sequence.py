"""A transformer's tokens, split over devices: each has a part of the text and a part of the image.

    text   | t0 t1 | t2 t3 |          joined   | t0 t1 i0 i1 i2 | t2 t3 i3 i4  . |
    image  | i0 i1 i2 | i3 i4 . |

Nothing moves to join them or to take them apart. Attention does not mind in which order tokens come
if their positions come in the same; those that fill the last part up are not looked at. What works
on each token alone stays where the token is, and `ring_attention` does the rest.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from flowsde.sharding import ShardingRules

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Split:
    """How tokens [n, tokens, ...] are split; without a mesh they are not.

    Attributes:
      rules: of the mesh.
      axes: those of its axes that tokens are split over.
      ways: devices along them.
    """

    rules: ShardingRules
    axes: tuple[str, ...] = ()
    ways: int = 1

    @classmethod
    def of(cls, rules: ShardingRules) -> "Split":
        """On the mesh that is known where a model is traced, see `jax.set_mesh`."""
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty or not mesh.are_all_axes_auto:
            return cls(rules)
        axes = tuple(axis for axis in rules.mesh_axes("token") if axis in mesh.axis_names)
        return cls(rules, axes, math.prod(mesh.shape[axis] for axis in axes))

    def keep(self, tree: T) -> T:
        """Tokens where they belong, in a compiled program; as many as come out even."""
        if self.ways == 1:
            return tree
        mesh = jax.sharding.get_abstract_mesh()

        def one(a: jax.Array) -> jax.Array:
            names = (("prompt", "particle"), ("token",))
            spec = PartitionSpec(*self.rules.dividing(mesh, a.shape[:2], names))
            return jax.lax.with_sharding_constraint(a, NamedSharding(mesh, spec))

        return jax.tree.map(one, tree)

    def fill(self, x: jax.Array) -> jax.Array:
        """Tokens with as many zeros behind them as come out even."""
        more = -x.shape[1] % self.ways
        if not more:
            return x
        return jnp.pad(x, ((0, 0), (0, more), *((0, 0),) * (x.ndim - 2)))

    def join(self, parts: Sequence[jax.Array]) -> jax.Array:
        """Tokens of several kinds, each filled up, as one sequence."""
        if self.ways == 1:
            return jnp.concatenate(parts, axis=1)
        each = [a.reshape(a.shape[0], self.ways, -1, *a.shape[2:]) for a in parts]
        joined = jnp.concatenate(each, axis=2)
        return joined.reshape(joined.shape[0], -1, *joined.shape[3:])

    def part(self, x: jax.Array, sizes: Sequence[int]) -> list[jax.Array]:
        """The inverse of `join`, for kinds of so many tokens, filled up."""
        ends = np.cumsum(sizes)[:-1] // self.ways
        if self.ways == 1:
            return jnp.split(x, ends, axis=1)
        each = x.reshape(x.shape[0], self.ways, -1, *x.shape[2:])
        parts = jnp.split(each, ends, axis=2)
        return [a.reshape(x.shape[0], -1, *x.shape[2:]) for a in parts]

    def arrange(self, x: jax.Array, sizes: Sequence[int]) -> jax.Array:
        """An array of all tokens, one kind of so many after the other, as `join` would have it."""
        if self.ways == 1:
            return x
        return self.join([self.fill(a) for a in jnp.split(x, np.cumsum(sizes)[:-1], axis=1)])

    def seen(self, *sizes: int) -> jax.Array | None:
        """Which tokens may be looked at, bool [1, 1, 1, tokens]; None for all.

        Args:
          sizes: tokens of each kind, before they are filled up.
        """
        if not any(size % self.ways for size in sizes):
            return None
        every = jnp.ones((1, sum(sizes)), jnp.bool)
        return self.arrange(every, sizes)[:, None, None]
