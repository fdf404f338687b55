"""The tree of `flowsde.search.dts`: values of nodes, selection, and what is added.

Rewards r of the samples below a node make its value, the log mean exp of its children's:

    v(leaf) = r,    v(node) = beta log mean exp(v(child) / beta).

Node 0 is the root, pure noise. Leaves are no nodes: what is left of them are sums in their parents,
so that memory is that of the nodes, whose number is fixed. Where there is no room for more, samples
become leaves of the last node on their way.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_LOWEST = float(np.finfo(np.float32).min)


class Tree(NamedTuple):
    """Nodes [M]; those from `used` on are not there yet.

    Attributes:
      used: int32, how many there are.
      parent: int32; -1 of the root.
      step: int32, position in the grid; -1 of the root.
      sample: int32, number of the sample that came by first; -1 of the root.
      visits: int32, samples that began below it, those on their way included.
      children: int32, likewise, of which it is the last node.
      best: float32, the highest reward of its leaves, -inf without.
      total: float32, sum over its leaves of exp((reward - best) / beta).
      leaves: int32.
      value: float32, -inf before it is known.
      known: bool, whether a sample below it has come to its end.
    """

    used: jax.Array
    parent: jax.Array
    step: jax.Array
    sample: jax.Array
    visits: jax.Array
    children: jax.Array
    best: jax.Array
    total: jax.Array
    leaves: jax.Array
    value: jax.Array
    known: jax.Array


def root(size: int) -> Tree:
    """The root alone, with room for `size` nodes."""
    none, zero = jnp.full(size, -1, jnp.int32), jnp.zeros(size, jnp.int32)
    nothing = jnp.full(size, -jnp.inf, jnp.float32)
    return Tree(
        used=jnp.ones((), jnp.int32),
        parent=none,
        step=none,
        sample=none,
        visits=zero,
        children=zero,
        best=nothing,
        total=jnp.zeros(size, jnp.float32),
        leaves=zero,
        value=nothing,
        known=jnp.zeros(size, jnp.bool),
    )


def _share(rewards: jax.Array, best: jax.Array, temperature: float) -> jax.Array:
    """exp((reward - best) / beta), 1 where both are the same, infinite ones too."""
    return jnp.exp(jnp.where(rewards == best, 0.0, rewards - best) / temperature)


def insert(
    tree: Tree, at: jax.Array, wanted: jax.Array, step: jax.Array, sample: jax.Array
) -> tuple[Tree, jax.Array]:
    """A node for each row that wants one, as long as there is room.

    Args:
      tree: to grow.
      at: int32 [w], the nodes that they come from.
      wanted: bool [w].
      step: int32 [w], positions in the grid.
      sample: int32 [w], numbers of the samples.

    Returns:
      The tree, and the place of each row's node, int32 [w]; the tree's size for none.
    """
    size = tree.parent.size
    place = tree.used + jnp.cumsum(wanted, dtype=jnp.int32) - 1
    stored = wanted & (place < size)
    place = jnp.where(stored, place, size)

    def put(a: jax.Array, new: jax.Array | int) -> jax.Array:
        return a.at[place].set(new, mode="drop")

    return tree._replace(
        used=tree.used + jnp.sum(stored, dtype=jnp.int32),
        parent=put(tree.parent, at),
        step=put(tree.step, step),
        sample=put(tree.sample, sample),
        visits=put(tree.visits, 1),
        children=put(tree.children, 1),
    ), place


def back_up(
    tree: Tree, at: jax.Array, ended: jax.Array, rewards: jax.Array, depth: int, temperature: float
) -> Tree:
    """The values once some samples have come to their end.

    Args:
      tree: to be told.
      at: int32 [w], the last node on the way of each sample.
      ended: bool [w].
      rewards: float32 [w].
      depth: levels of nodes below the root, at most.
      temperature: beta.
    """
    # Sums over a whole axis: their order, unlike that of a scatter, is the same on every device.
    nodes = jnp.arange(tree.parent.size, dtype=jnp.int32)
    leaf = ended[None] & (at[None] == nodes[:, None])
    best = jnp.maximum(tree.best, jnp.max(jnp.where(leaf, rewards, -jnp.inf), -1))
    shares = jnp.where(leaf, _share(rewards[None], best[:, None], temperature), 0.0)
    total = tree.total * _share(tree.best, best, temperature) + jnp.sum(shares, -1)
    leaves = tree.leaves + jnp.sum(leaf, -1, dtype=jnp.int32)

    child = (tree.parent[None] == nodes[:, None]) & (nodes < tree.used)[None]
    value, known = tree.value, leaves > 0
    for _ in range(depth + 1):
        told = child & known[None]
        most = jnp.maximum(best, jnp.max(jnp.where(told, value, -jnp.inf), -1))
        shares = jnp.where(told, _share(value[None], most[:, None], temperature), 0.0)
        sums = total * _share(best, most, temperature) + jnp.sum(shares, -1)
        n = leaves + jnp.sum(told, -1, dtype=jnp.int32)
        mean = sums / jnp.maximum(n, 1).astype(jnp.float32)
        raised = most + temperature * jnp.log(jnp.where(most > -jnp.inf, mean, 1.0))
        known = n > 0
        value = jnp.where(known, raised, -jnp.inf)
    return tree._replace(best=best, total=total, leaves=leaves, value=value, known=known)


def upper_bound(tree: Tree, node: jax.Array, open_: jax.Array, explore: float) -> jax.Array:
    """The open node of the highest value plus c sqrt(log N(parent) / N(child))."""
    visits = jnp.maximum(tree.visits, 1).astype(jnp.float32)
    bonus = explore * jnp.sqrt(jnp.log(visits[node]) / visits)
    score = jnp.maximum(tree.value, _LOWEST) + bonus
    return jnp.argmax(jnp.where(open_, score, -jnp.inf)).astype(jnp.int32)


def in_proportion(tree: Tree, key: jax.Array, open_: jax.Array, temperature: float) -> jax.Array:
    """An open node, drawn with probability proportional to exp(v / beta)."""
    value = jnp.where(open_, jnp.maximum(tree.value, _LOWEST), -jnp.inf)
    most = jnp.max(value)
    # Less the best first: scaled differences are finite for rewards of any size.
    logits = jnp.where(value == most, 0.0, value - most) / temperature
    drawn = logits + jax.random.gumbel(key, value.shape, jnp.float32)
    return jnp.argmax(jnp.where(open_, drawn, -jnp.inf)).astype(jnp.int32)


def room(tree: Tree, node: jax.Array, widen: float, exponent: float) -> jax.Array:
    """Whether a node may have one more child: fewer than C N^alpha, or none yet."""
    most = widen * tree.visits[node].astype(jnp.float32) ** exponent
    return (tree.children[node] == 0) | (tree.children[node].astype(jnp.float32) < most)
