"""Rollover Budget Forcing and Best-of-N, one particle at a time, in plain Python.

Written from the text of the method: a chain is a generator that draws a child, looks at its
reward and decides; chains take turns, one draw each. Only the model, the kernel, the reward and
the keys (prompt id, chain, stage, draw) are the library's.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import flowsde as fs


class Point(NamedTuple):
    x: np.ndarray
    t: np.ndarray
    x0: np.ndarray
    x1: np.ndarray
    reward: float


def evaluator(flow, interpolant, reward):
    """evaluate(x, t, cond) -> Point, for one particle."""

    @jax.jit
    def compiled(flow, x, t, cond):
        cond = jax.tree.map(lambda a: a[None], cond)
        x0, x1 = flow.means(x[None], t[None], cond, interpolant)
        return x0[0], x1[0], reward(flow.decode(x0), cond)[0]

    def evaluate(x, t, cond):
        x0, x1, r = compiled(flow, x, np.float32(t), cond)
        r = float(r)
        return Point(x, np.float32(t), x0, x1, -np.inf if np.isnan(r) else r)

    return evaluate


def mover(kernel, shape):
    """(noise(key, *ids), move(key, particle, s, *ids)), each compiled once."""
    radius = float(kernel.interpolant.radius(jnp.float32(1.0)))

    def fold(key, ids):
        for i in ids:
            key = jax.random.fold_in(key, i)
        return key

    @jax.jit
    def noise(key, *ids):
        return np.float32(radius) * jax.random.normal(fold(key, ids), shape, jnp.float32)

    @jax.jit
    def move(key, x, x0, x1, t, s, *ids):
        return kernel(fold(key, ids), x, x0, x1, t, s)

    return noise, lambda key, p, s, *ids: move(key, p.x, p.x0, p.x1, p.t, np.float32(s), *ids)


def shares(total, parts):
    """`total` in `parts` whole shares that differ by at most one, the larger ones first."""
    return [total // parts + (1 if i < total % parts else 0) for i in range(parts)]


def chain(c, key, budget, grid, seeds, last, noise, move, evaluate, cond):
    """One chain of Algorithm 2; yields (point, accepted so far) after every draw."""
    stages = len(grid) - 1
    accepted, drawn = [], []
    if stages == 1:
        seeds = budget
    for j in range(seeds):
        drawn.append(evaluate(noise(key, c, 0, j), grid[0], cond))
        if j == seeds - 1:
            accepted.append(max(drawn, key=lambda p: p.reward))  # the first of equals
        yield drawn[-1], accepted
    if stages == 1:
        return
    current = accepted[-1]
    best_reward = current.reward
    quotas = shares(budget - seeds, stages - 1)
    for i in range(1, stages):
        quota = quotas[i - 1]
        keeps_drawing = last == "exhaust" and i == stages - 1
        children = []
        for j in range(quota):
            child = evaluate(move(key, current, grid[i], c, i, j), grid[i], cond)
            children.append(child)
            improved = child.reward > best_reward and not keeps_drawing
            if improved or j == quota - 1:
                accepted.append(child if improved else max(children, key=lambda p: p.reward))
            yield child, accepted
            if improved:
                best_reward = child.reward
                if i < stages - 1:
                    quotas[i] += quota - (j + 1)
                break
        current = accepted[-1]


def rbf(search, key, prompt_id, cond, noise, move, evaluate, target=np.inf):
    """(answer, accepted points of each chain, charged)."""
    key = jax.random.fold_in(key, prompt_id)
    budgets = shares(search.nfe, search.chains)
    running = [
        chain(
            c, key, budgets[c], search.grid, search.seeds, search.last, noise, move, evaluate, cond
        )
        for c in range(search.chains)
    ]
    accepted = [[] for _ in running]
    seen = [[] for _ in running]
    charged = 0
    finished = set()
    while len(finished) < len(running):
        met = []
        for c, generator in enumerate(running):
            if c in finished:
                continue
            try:
                point, accepted[c] = next(generator)
            except StopIteration:
                finished.add(c)
                continue
            charged += 1
            seen[c].append(point)
            if point.reward >= target:
                met.append(point)
        if met:
            return last_best(met), accepted, charged
    return last_best([point for points in seen for point in points]), accepted, charged


def last_best(points):
    """Of the points that have a reward, the best of those furthest down; the first of equals."""
    scored = [point for point in points if point.reward > -np.inf]
    return max(scored, key=lambda point: (-point.t, point.reward))


def complete(velocity, start, steps, interpolant, cond):
    """(image's x0, last x in the linear interpolant): linear Euler steps of the ODE by hand.

    `velocity(x, t, cond)` is of one particle under the linear interpolant.
    """
    linear = fs.interpolants.linear()
    t, scale = fs.match_time(linear, interpolant, jnp.float32(start.t))
    x, t = np.asarray(start.x) * np.float32(scale), float(t)
    end = 0.07 if t > 0.07 else t / (steps + 1)
    dt = (t - end) / steps
    for k in range(steps):
        x = x - np.float32(dt) * np.asarray(velocity(x, np.float32(t - k * dt), cond))
    final = np.float32(t - steps * dt)
    return x - final * np.asarray(velocity(x, final, cond)), x


def bon(search, key, prompt_id, cond, noise, move, evaluate):
    """Every sample, in the order of drawing."""
    key = jax.random.fold_in(key, prompt_id)
    samples = []
    for n in range(search.nfe // (len(search.grid) - 1)):
        point = evaluate(noise(key, n, 0), search.grid[0], cond)
        for i in range(1, len(search.grid) - 1):
            point = evaluate(move(key, point, search.grid[i], n, i), search.grid[i], cond)
        samples.append(point)
    return samples


def code(search, key, prompt_id, cond, noise, move, evaluate):
    """Blockwise best-of-K: (children of the last block of all chains, charged)."""
    key = jax.random.fold_in(key, prompt_id)
    grid, stages = search.grid, len(search.grid) - 1
    blocks = [range(i, min(i + search.block, stages)) for i in range(1, stages, search.block)]
    finished, charged = [], 0
    for c, budget in enumerate(shares(search.nfe, search.chains)):
        current = evaluate(noise(key, c, 0, 0), grid[0], cond)
        charged += 1
        each, left = divmod(budget - 1, stages - 1)
        for block in blocks:
            more = left >= len(block)
            left -= len(block) * more
            children = []
            for j in range(each + more):
                child = current
                for i in block:
                    child = evaluate(move(key, child, grid[i], c, i, j), grid[i], cond)
                    charged += 1
                children.append(child)
            current = max(children, key=lambda p: p.reward)
        finished += children
    return finished, charged
