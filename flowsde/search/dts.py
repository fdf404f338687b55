"""Diffusion tree sampling and search (Jain et al., 2025, arXiv 2506.20701).

A tree over a few times of the grid: a node is a particle there, its children are where the kernel
brought it. Each sample begins at a node that is selected from the root down. A node with fewer than
C N^alpha children, N the samples below it, is extended; else one of its children is looked at, in
proportion to exp(v / beta) (DTS) or by the upper bound v + c sqrt(log N(parent) / N(child))
(DTS*). From there the sample follows the kernel to the end, its particles at those times become
nodes, and its reward, of the finished picture alone, is backed up (`flowsde.search.tree`).

`width` samples are on their way at once. Those under way count in N before their reward is known, a
virtual loss, which sends the others elsewhere; with width 1 the algorithm is the published one. A
node is looked at only once its value is known, and leaves are not selected again: the node above
them is extended. What the budget does not pay for is not begun: then a node further down is.
"""

import dataclasses
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from flowsde._checks import check_count, check_non_negative, check_positive
from flowsde.grids import as_grid
from flowsde.kernels import Kernel
from flowsde.search.branching import steps_between
from flowsde.search.grid import (
    GridSearch,
    check_kernel,
    check_stochastic,
    fold_in_ids,
    map_valid,
    to_particles,
    tree_take,
    tree_where,
)
from flowsde.search.protocol import (
    BudgetTooSmall,
    Candidates,
    Evaluation,
    Info,
    Lines,
    Particle,
    Stored,
)
from flowsde.search.tree import Tree, back_up, in_proportion, insert, room, root, upper_bound

Select = Literal["bound", "sample"]
_SELECT = np.iinfo(np.int32).max - 3
"""In place of a step, the key of a sample's selection."""


class Way(NamedTuple):
    """A sample on its way; in the state with a leading axis [W].

    Attributes:
      sample: int32, its number; -1 before there is any.
      mother: int32, that of the sample whose node it began at; -1 for the root.
      node: int32, the last node on its way.
      step: int32, position in the grid of its next candidate; `DTS.steps` when it has ended.
    """

    sample: jax.Array
    mother: jax.Array
    node: jax.Array
    step: jax.Array


class DTSState(NamedTuple):
    """State of `DTS`.

    Attributes:
      key, target: of the run.
      left: int32, evaluations that no sample has been given.
      samples: int32, that have begun.
      tree: its nodes [M].
      nodes: their particles [M]; that of the root is not used.
      ways: [W].
      particles: of the ways, as last evaluated, [W].
      told: the ways before the last round.
      best: the best finished sample.
    """

    key: jax.Array
    target: jax.Array
    left: jax.Array
    samples: jax.Array
    tree: Tree
    nodes: Stored
    ways: Way
    particles: Particle
    told: Way
    best: Particle


@dataclasses.dataclass(frozen=True, kw_only=True)
class DTS(GridSearch):
    """See `dts`.

    Attributes:
      branch_at: positions in the grid at which there are nodes, rising.
      nodes: most nodes, the root not counted.
    """

    charges_moves: ClassVar[bool] = True

    branch_at: tuple[int, ...]
    select: str
    temperature: float
    explore: float
    widen: float
    exponent: float
    width: int
    nodes: int

    def __post_init__(self) -> None:
        if self.nfe < self._rest[0]:
            raise BudgetTooSmall(
                f"nfe = {self.nfe} is less than one sample: the grid takes {self._rest[0]} "
                f"evaluations",
                int(self._rest[0]),
            )
        if self.branch_at:
            check_stochastic(self.kernel, self.grid, "all children of a node are the same")

    @cached_property
    def _costs(self) -> np.ndarray:
        """Evaluations of a sample at each step."""
        return self.costs(np.zeros(self.steps, bool))

    @cached_property
    def _rest(self) -> np.ndarray:
        """int32 [steps]: evaluations from each step to the end."""
        return np.cumsum(self._costs[::-1])[::-1].astype(np.int32)

    @cached_property
    def _branches(self) -> np.ndarray:
        """bool [steps]: where there are nodes."""
        return np.isin(np.arange(self.steps), self.branch_at)

    @property
    def n_candidates(self) -> int:
        return self.width

    @property
    def max_rounds(self) -> int:
        return self.nfe

    def init(self, key, shape, target_reward, nfe) -> DTSState:
        # A node takes an evaluation, at least.
        size, none = 1 + min(self.nodes, self.nfe), jnp.full(self.width, -1, jnp.int32)
        ways = Way(none, none, jnp.zeros_like(none), jnp.full_like(none, self.steps))
        state = DTSState(
            key=key,
            target=target_reward,
            left=jnp.asarray(nfe, jnp.int32),
            samples=jnp.zeros((), jnp.int32),
            tree=root(size),
            nodes=Stored(self.empty(size, shape)),
            ways=ways,
            particles=self.empty(self.width, shape),
            told=ways,
            best=self.empty(None, shape),
        )
        return self._begun(state)

    def _begun(self, state: DTSState) -> DTSState:
        """With a new sample on each way that has ended, as far as the budget goes."""
        met, rest = state.best.reward >= state.target, jnp.asarray(self._rest)

        def begin(row: int, carry: tuple[Any, ...]) -> tuple[Any, ...]:
            left, sample, tree, ways = carry
            node, path = self._selected(state.key, tree, left, sample)
            step = tree.step[node] + 1
            begins = ~met & (ways.step[row] >= self.steps) & (rest[step] <= left)
            grown = tree._replace(
                visits=tree.visits + path.astype(jnp.int32),
                children=tree.children.at[node].add(1),
            )
            own = Way(sample, tree.sample[node], node, step)
            gone = jax.tree.map(lambda a, b: a.at[row].set(b), ways, own)
            left -= jnp.where(begins, rest[step], 0)
            sample += begins.astype(jnp.int32)
            return left, sample, *tree_where(begins, (grown, gone), (tree, ways))

        start = (state.left, state.samples, state.tree, state.ways)
        left, samples, tree, ways = jax.lax.fori_loop(0, self.width, begin, start)
        return state._replace(left=left, samples=samples, tree=tree, ways=ways)

    def _selected(
        self, key: jax.Array, tree: Tree, left: jax.Array, sample: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The node at which a sample begins, and those on the way to it, bool [M]."""
        nodes, rest = jnp.arange(tree.parent.size, dtype=jnp.int32), jnp.asarray(self._rest)

        def down(_: int, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            node, path = carry
            open_ = (tree.parent == node) & tree.known & (nodes < tree.used)
            pays = rest[tree.step[node] + 1] <= left
            stays = (pays & room(tree, node, self.widen, self.exponent)) | ~jnp.any(open_)
            if self.select == "sample":
                own = fold_in_ids(key, sample, jnp.int32(_SELECT), node)
                child = in_proportion(tree, own, open_, self.temperature)
            else:
                child = upper_bound(tree, node, open_, self.explore)
            node = jnp.where(stays, node, child)
            return node, path | (nodes == node)

        start = (jnp.zeros((), jnp.int32), nodes == 0)
        return jax.lax.fori_loop(0, len(self.branch_at), down, start)

    def ask(self, state: DTSState) -> tuple[DTSState, Candidates]:
        ways, rows = state.ways, jnp.arange(self.width, dtype=jnp.int32)
        step = jnp.minimum(ways.step, self.steps - 1)
        keys = jax.vmap(partial(fold_in_ids, state.key))(ways.sample, step)
        valid = (ways.step < self.steps) & ~self.done(state)
        at_node = ways.step == state.tree.step[ways.node] + 1

        def extend(key: jax.Array, row: jax.Array) -> jax.Array:
            node = tree_take(state.nodes.particles, ways.node[row])
            origin = tree_where(at_node[row], node, tree_take(state.particles, row))
            return self.extend(key, origin, step[row])

        return state, Candidates(
            x=map_valid(extend, valid, keys, rows),
            t=jnp.asarray(self.grid, jnp.float32)[step],
            wants_reward=step == self.steps - 1,
            wants_gradient=self.wants_gradient(step),
            valid=valid,
        )

    def tell(
        self, state: DTSState, candidates: Candidates, evals: Evaluation
    ) -> tuple[DTSState, Info]:
        ways, particles = state.ways, to_particles(candidates, evals)
        step, active = jnp.minimum(ways.step, self.steps - 1), candidates.valid
        ended = active & (step == self.steps - 1)
        joins = active & jnp.asarray(self._branches)[step]
        tree, place = insert(state.tree, ways.node, joins, step, ways.sample)
        nodes = jax.tree.map(
            lambda a, new: a.at[place].set(new, mode="drop"), state.nodes.particles, particles
        )
        at = jnp.where(place < tree.parent.size, place, ways.node)
        depth, rewards = len(self.branch_at), particles.reward
        tree = back_up(tree, at, ended, rewards, depth, self.temperature)

        row = jnp.argmax(jnp.where(ended, rewards, -jnp.inf))
        row = jnp.where(jnp.any(ended & (rewards > -jnp.inf)), row, jnp.argmax(ended))
        winner, none = tree_take(particles, row), state.best.reward == -jnp.inf
        better = jnp.any(ended) & ((winner.reward > state.best.reward) | none)
        best = tree_where(better, winner, state.best)
        moved = ways._replace(node=at, step=ways.step + active.astype(jnp.int32))
        new = state._replace(
            tree=tree, nodes=Stored(nodes), ways=moved, particles=particles, told=ways, best=best
        )
        return self._begun(new), Info(
            time=candidates.t,
            reward=rewards,
            counted=candidates.valid,
            accepted=better & (jnp.arange(self.width) == row),
            ancestors=jnp.where(better, ways.sample[row], -1)[None],
            ess=jnp.ones((), jnp.float32),
            charged=jnp.sum(jnp.asarray(self._costs)[step], where=active, dtype=jnp.int32),
            best_reward=best.reward,
            path_time=best.t[None],
            path_reward=best.reward[None],
        )

    def done(self, state: DTSState) -> jax.Array:
        return jnp.all(state.ways.step >= self.steps) | (state.best.reward >= state.target)

    def best(self, state: DTSState) -> Particle:
        return state.best

    def path(self, state: DTSState) -> Particle:
        return jax.tree.map(lambda a: a[None], state.best)

    def lines(self, state: DTSState, info: Info) -> Lines:
        """Finished samples, a line each, that continues the one whose node it began at."""
        ended = info.counted & (state.told.step == self.steps - 1)
        return Lines(jnp.where(ended, state.told.sample, -1), state.told.mother, state.particles)


def dts(
    *,
    nfe: int,
    kernel: Kernel,
    grid: Any,
    branch_at: int | Sequence[float] | None = None,
    select: Select = "bound",
    temperature: float = 0.1,
    explore: float = 1.0,
    widen: float = 1.0,
    exponent: float = 0.8,
    width: int = 4,
    nodes: int = 64,
) -> DTS:
    """Diffusion tree search, DTS*, or with `select` "sample" diffusion tree sampling, DTS.

    Args:
      nfe: budget in model evaluations; what is left after the last sample that it pays for is not
        used.
      kernel: a stochastic one; guided ones work too.
      grid: times falling from 1 to 0. Samples are evaluated at all but the last.
      branch_at: steps with nodes, before the last that is evaluated: so many spread evenly, or in
        Python a tuple of positions in the grid or of times; 0 is Best-of-N. By default up to 4.
      select: which child of a node without room is looked at: "bound" that of the highest upper
        bound, "sample" one in proportion to exp(value / beta).
      temperature: beta > 0, in units of the reward.
      explore: c >= 0 of the upper bound, in units of the reward.
      widen: C > 0. With more than N^(1 - alpha), 2 at 32 samples, all begin at the root.
      exponent: alpha, above 0 and up to 1: a node with N samples below it has C N^alpha children.
      width: samples on their way at once; 1 is as published, more are faster.
      nodes: particles that are kept, at most, each of three times a sample's memory. A full tree
        grows no further; its values do.

    Raises:
      ValueError, TypeError: naming the argument.

    Example:
      >>> flow = fs.analytic.gaussian([0.0, 0.0], 1.0).flow()
      >>> reward = lambda images, cond: images[:, 0]  # of a sample: 0, give or take 1
      >>> budget = {"nfe": 40, "kernel": fs.kernels.ddim(flow.interpolant)}
      >>> search = fs.search.dts(grid=fs.grids.uniform(8), **budget)
      >>> result = fs.run(jax.random.key(1), flow, search, reward)
      >>> bool(result.reward > 0), bool(result.nfe <= 40)
      (True, True)
    """
    if select not in get_args(Select):
        raise ValueError(f"select must be 'bound' or 'sample', got {select!r}")
    for name, positive in (("temperature", temperature), ("widen", widen), ("exponent", exponent)):
        check_positive(name, positive)
    if exponent > 1.0:
        raise ValueError(f"exponent must be at most 1, got {exponent}")
    check_non_negative("explore", explore)
    times = as_grid("grid", grid)
    if branch_at is None:
        branch_at = min(4, max(len(times) - 3, 0))
    return DTS(
        nfe=check_count("nfe", nfe),
        kernel=check_kernel(kernel),
        grid=times,
        branch_at=steps_between("branch_at", branch_at, times, 0),
        select=select,
        temperature=temperature,
        explore=explore,
        widen=widen,
        exponent=exponent,
        width=check_count("width", width),
        nodes=check_count("nodes", nodes),
    )
