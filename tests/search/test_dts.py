"""Tree search against a tree of plain objects, its account, and the law that it samples from."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import GRID, ROUNDED, SDE, VP, batch, flow, reward, row, tools

import flowsde as fs

KEY = jax.random.key(4)
COUNT, STEPS = 12, len(GRID) - 1


def dts(nfe=90, kernel=SDE, grid=GRID, **options):
    options = {"branch_at": (1, 3), "width": 1, "widen": 0.8, "exponent": 0.6} | options
    return fs.search.dts(nfe=nfe, kernel=kernel, grid=grid, **options)


def run(search, **options):
    ids, cond = batch(COUNT)
    return fs.run(KEY, flow(), search, reward, cond=cond, prompt_ids=ids, invalid="warn", **options)


class Node:
    def __init__(self, step, point, parent):
        self.step, self.point, self.parent = step, point, parent
        self.visits = self.begun = 0
        self.children, self.leaves = [], []

    def value(self, beta):
        """beta log mean exp(v / beta) over what is known below; None if nothing is."""
        below = [child.value(beta) for child in self.children] + self.leaves
        below = [v for v in below if v is not None]
        if not below:
            return None
        best = max(below)
        if best == -np.inf:
            return best
        return best + beta * math.log(np.mean([math.exp((v - best) / beta) for v in below]))


@functools.cache
def gumbels(size):
    @jax.jit
    def draw(key, sample, node):
        for i in (sample, 2**31 - 4, node):
            key = jax.random.fold_in(key, i)
        return jax.random.gumbel(key, (size,), jnp.float32)

    return draw


def select(search, key, root, nodes, left, sample):
    """The path to the node at which a sample begins."""
    path = [root]
    while True:
        node = path[-1]
        known = [c for c in node.children if c.value(search.temperature) is not None]
        may = not node.begun or node.begun < search.widen * node.visits**search.exponent
        if (STEPS - node.step - 1 <= left and may) or not known:
            return path
        values = np.maximum([c.value(search.temperature) for c in known], np.finfo(np.float32).min)
        if search.select == "sample":
            places = [nodes.index(c) for c in known]
            noise = np.asarray(gumbels(search.nodes + 1)(key, sample, nodes.index(node)))[places]
            scores = (values - values.max()) / search.temperature + noise
        else:
            visits = np.asarray([c.visits for c in known])
            scores = values + search.explore * np.sqrt(math.log(node.visits) / visits)
        path.append(known[int(np.argmax(scores))])


def by_objects(search, prompt_id, cond, noise, move, evaluate):
    """(finished samples, evaluations, root), samples of `width` ways in turns."""
    key, grid = jax.random.fold_in(KEY, prompt_id), search.grid
    root = Node(-1, None, None)
    nodes, ways = [root], [None] * search.width
    left, begun, finished, charged = search.nfe, 0, [], 0
    while True:
        for w, way in enumerate(ways):
            if way is not None:
                continue
            path = select(search, key, root, nodes, left, begun)
            cost = STEPS - path[-1].step - 1
            if cost <= left:
                path[-1].begun += 1
                for node in path:
                    node.visits += 1
                ways[w] = [begun, path[-1], path[-1].point, path[-1].step + 1]
                left, begun = left - cost, begun + 1
        if not any(ways):
            return finished, charged, root
        for w, way in enumerate(ways):
            if way is None:
                continue
            sample, node, point, i = way
            if point is None:
                x = noise(key, sample, i)
            else:
                x = move(key, point, grid[i], sample, i)
            point = evaluate(x, grid[i], cond)
            charged += 1
            way[2:] = point, i + 1
            if i in search.branch_at and len(nodes) <= search.nodes:
                way[1] = Node(i, point, node)
                way[1].visits = way[1].begun = 1
                node.children.append(way[1])
                nodes.append(way[1])
            if i == STEPS - 1:
                way[1].leaves.append(point.reward)
                finished.append(point)
                ways[w] = None


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"width": 3, "explore": 0.3, "nodes": 20},
        {"select": "sample", "temperature": 0.5, "nodes": 8},
    ],
    ids=["three at once", "sample, full"],
)
def test_equals_a_tree_of_objects(options):
    """Of rewards that differ: means of a few equal ones are equal up to rounding alone."""
    ids, cond = batch(COUNT)
    search = dts(**options)
    result = run(search)
    for i in np.flatnonzero((cond["size"] == 1.0) & (cond["kind"] != ROUNDED)):
        finished, charged, root = by_objects(
            search, int(ids[i]), row(cond, i), *tools(search.kernel)
        )
        best = max(finished, key=lambda p: p.reward)
        assert result.nfe[i] == charged <= search.nfe
        assert result.verifier_calls[i] == len(finished) > search.nfe // STEPS
        np.testing.assert_allclose(result.reward[i], best.reward, rtol=2e-5, atol=5e-5)
        np.testing.assert_allclose(result.x[i], best.x, rtol=1e-4, atol=1e-4)
        wanted = root.value(search.temperature)
        np.testing.assert_allclose(result.state.tree.value[i, 0], wanted, rtol=1e-4, atol=1e-4)
        assert result.state.tree.visits[i, 0] == len(finished)


@pytest.mark.slow
def test_without_room_to_go_down_it_is_best_of_n():
    """The published C = 2 and alpha = .8 extend the root until 2^5 = 32 samples."""
    nfe = 32 * STEPS
    tree = run(dts(nfe, nodes=200, widen=2.0, exponent=0.8))
    bon = run(fs.search.bon(nfe=nfe, kernel=SDE, grid=GRID, width=1))
    size = batch(COUNT)[1]["size"]
    np.testing.assert_array_equal(tree.nfe, bon.nfe)
    np.testing.assert_array_equal(tree.verifier_calls, bon.verifier_calls)
    np.testing.assert_allclose(tree.x, bon.x, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(tree.reward / size, bon.reward / size, rtol=1e-5, atol=1e-5)


def test_memory_is_that_of_the_nodes_whatever_the_budget():
    states = [jax.eval_shape(functools.partial(_start, nfe)) for nfe in (100, 10_000)]
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(state)) for state in states]
    assert sizes[0] == sizes[1]
    assert states[0].nodes.particles.t.shape == (1 + 16,)


def _start(nfe):
    search = dts(nfe, nodes=16)
    return search.init(KEY, (2,), jnp.float32(np.inf), jnp.int32(nfe))


@pytest.mark.slow
def test_the_value_of_the_root_is_the_log_mean_of_what_samples_are_worth():
    """Half of the model's samples lie at 1 and are worth 1, the others nothing.

    Means of the rewards themselves would give 1 / 2, their maximum 1.
    """
    data, count, beta = fs.analytic.mixture([0.5, 0.5], [[1.0], [-1.0]], 0.05), 100, 0.7
    search = fs.search.dts(
        nfe=200, kernel=fs.kernels.ddim(fs.interpolants.linear()), grid=fs.grids.uniform(10),
        branch_at=4, select="sample", temperature=beta, exponent=0.6, width=1, nodes=40,
    )  # fmt: skip
    right = lambda images, cond: jnp.where(images[:, 0] > 0.0, 1.0, 0.0)  # noqa: E731
    found = fs.run(
        KEY, data.flow(), search, right,
        cond=np.zeros(count, np.float32), prompt_ids=np.arange(count),
    )  # fmt: skip
    value = np.asarray(found.state.tree.value)[:, 0]
    odds = math.exp(1.0 / beta)
    # Of some seven children of each root: four standard errors, and the bias of a log of a mean.
    error = beta * (odds - 1.0) / (odds + 1.0) / math.sqrt(7.0 * count)
    assert abs(value.mean() - beta * math.log((odds + 1.0) / 2.0)) < 4.0 * error + 0.03


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nfe": 4}, "nfe = 4 is less than one sample: the grid takes 5 evaluations"),
        ({"kernel": fs.kernels.ode_euler(VP)}, "kernel ODEEuler is deterministic, so all children"),
        ({"branch_at": (4,)}, "branch_at must lie behind position 0 of the grid"),
        ({"branch_at": 4}, "branch_at must be an integer of at most 3, got 4"),
        ({"select": "best"}, "select must be 'bound' or 'sample', got 'best'"),
        ({"temperature": 0.0}, "temperature must be a finite number above 0, got 0.0"),
        ({"exponent": 1.5}, "exponent must be at most 1, got 1.5"),
        ({"explore": -1.0}, "explore must be a finite number of at least 0, got -1.0"),
        ({"nodes": 0}, "nodes must be an integer of at least 1, got 0"),
    ],
)
def test_errors_name_the_argument(options, message):
    with pytest.raises(ValueError, match=message):
        dts(**options)
