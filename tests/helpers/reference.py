"""Rollover Budget Forcing and Best-of-N, one particle at a time, in plain Python.

Written from the text of the method: a chain is a generator that draws a child, looks at its
reward and decides; chains take turns, one draw each. Only the model, the kernel, the reward and
the keys (prompt id, chain, stage, draw) are the library's.
"""

import statistics
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
    """(noise(key, *ids), move(key, particle, s, *ids)), each compiled once.

    What a solver's step leaves is kept by the array that it gave.
    """
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

    if not isinstance(kernel, fs.kernels.Multistep):
        return noise, lambda key, p, s, *ids: move(key, p.x, p.x0, p.x1, p.t, np.float32(s), *ids)
    step, start, left = jax.jit(kernel), kernel.start(jnp.zeros(shape, jnp.float32)), {}

    def solve(key, p, s, *ids):
        _, before = left.get(id(p.x), (p.x, start))
        x, now = step(before, p.x, p.x0, p.x1, p.t, np.float32(s))
        left[id(x)] = x, now
        return x

    return noise, solve


def shares(total, parts):
    """`total` in `parts` whole shares that differ by at most one, the larger ones first."""
    return [total // parts + (1 if i < total % parts else 0) for i in range(parts)]


def has_passed(rule, rewards, best, parent, quota, step):
    """Whether the last of the rewards of a step's children ends it; and r* if none ever does.

    Args:
      rule: (name, option).
      rewards: in the order of drawing.
      best, parent: r*, and the reward of the particle that they come from.
      quota: draws that the step has.
      step: position in the grid.
    """
    name, option = rule
    new, earlier = rewards[-1], [r for r in rewards[:-1] if r > -np.inf]
    if name == "improve":
        return new > best, best
    if name == "threshold":
        return new > option[step - 1], best
    if name == "quantile":
        q = 1.0 - 1.0 / quota if option is None else option
        if len(earlier) < 2 or q == 0.0:
            return False, best
        spread = np.std(earlier, ddof=1) * statistics.NormalDist().inv_cdf(q)
        return new > np.mean(earlier) + spread, best
    gain = natural_gain(earlier, parent)
    every = natural_gain(rewards, parent)
    carried = best + every if np.isfinite(best + every) else best
    return bool(earlier) and new > best + gain, carried


def natural_gain(rewards, parent):
    """By how much children are above their parent: a running mean, in float32 as ties want."""
    mean, n = np.float32(0.0), 0
    for r in rewards:
        if r > -np.inf:
            n += 1
            mean = mean + (np.float32(r) - mean) / np.float32(n)
    return mean - np.float32(parent) if n and parent > -np.inf else np.float32(0.0)


def chain(c, key, budget, grid, seeds, last, noise, move, evaluate, cond, rule, branch_at):
    """One chain; yields (point, accepted so far) after every draw."""
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
    best_reward = np.float32(current.reward)
    steps = list(range(1, stages)) if branch_at is None else list(branch_at)
    left = budget - seeds - (stages - 1 - len(steps))
    quotas = dict(zip(steps, shares(left, len(steps)), strict=True))
    if rule[0] == "threshold":
        quotas = dict.fromkeys(steps, 1) | {steps[0]: left - len(steps) + 1}
    rolled = 0
    for i in range(1, stages):
        quota = quotas[i] + rolled if i in quotas else 1
        keeps_drawing = last == "exhaust" and i == steps[-1]
        children, carried = [], best_reward
        for j in range(quota):
            child = evaluate(move(key, current, grid[i], c, i, j), grid[i], cond)
            if i not in quotas and i < stages - 1:
                child = child._replace(reward=-np.inf)
                if rule[0] == "calibrated" and i + 1 in quotas:
                    child = evaluate(child.x, child.t, cond)
            children.append(child)
            rewards = [p.reward for p in children]
            passed, carried = has_passed(rule, rewards, best_reward, current.reward, quota, i)
            passed = passed and not keeps_drawing
            if passed or j == quota - 1:
                accepted.append(max(children, key=lambda p: p.reward))
            yield child, accepted
            if passed:
                break
        current = accepted[-1]
        best_reward = np.float32(current.reward if passed else max(carried, current.reward))
        if i in quotas:
            rolled = quota - len(children)


def rbf(search, key, prompt_id, cond, noise, move, evaluate, target=np.inf, rule=("improve", None)):
    """(answer, accepted points of each chain, charged)."""
    key = jax.random.fold_in(key, prompt_id)
    budgets = shares(search.nfe, search.chains)
    running = [
        chain(
            c,
            key,
            budgets[c],
            search.grid,
            search.seeds,
            search.last,
            noise,
            move,
            evaluate,
            cond,
            rule,
            search.branch_at,
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


def blocks_of(search):
    """(steps, whether they have several children) of each block but the start."""
    stages = len(search.grid) - 1
    starts = search.branch_at or range(1, stages, search.block)
    blocks, i = [], 1
    while i < stages:
        following = min([s for s in starts if s > i], default=stages)
        length = min(search.block, following - i) if i in starts else 1
        blocks.append((range(i, i + length), i in starts))
        i += length
    return blocks


def code(search, key, prompt_id, cond, noise, move, evaluate, look=None, ahead=0):
    """Blockwise best-of-K: (children of the last block of all chains, charged).

    Args:
      look: ``(point, cond) -> reward``, of looking ahead; None for the point's own.
      ahead: evaluations that it takes.
    """
    key = jax.random.fold_in(key, prompt_id)
    grid, stages = search.grid, len(search.grid) - 1
    blocks = blocks_of(search)
    several = [block for block, branches in blocks if branches]
    cost = {b: len(b) + (0 if b[-1] == stages - 1 else ahead) for b in several}
    finished, charged = [], 0
    for c, budget in enumerate(shares(search.nfe, search.chains)):
        current = evaluate(noise(key, c, 0, 0), grid[0], cond)
        charged += 1
        singles = sum(not branches for _, branches in blocks)
        each, left = divmod(budget - 1 - singles, sum(cost.values()))
        for block, branches in blocks:
            more = branches and left >= cost[block]
            if branches:
                left -= cost[block] * more
            children = []
            for j in range(each + more if branches else 1):
                child = current
                for i in block:
                    child = evaluate(move(key, child, grid[i], c, i, j), grid[i], cond)
                    charged += 1
                if look is not None and branches and block[-1] < stages - 1:
                    child = child._replace(reward=look(child, cond))
                    charged += ahead
                children.append(child)
            current = max(children, key=lambda p: p.reward)
        finished += children
    return finished, charged
