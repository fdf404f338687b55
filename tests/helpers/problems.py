"""Random search problems that differ in their arrays only, so that one program serves them all.

A problem is a Gaussian mixture and a reward, both given by `cond`: a batch of prompts is a batch of
problems. Rewards are smooth, rounded (many ties), constant, partly NaN, one of two given values, or
of an extreme scale.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import reference

import flowsde as fs

DIMENSION = 2
SMOOTH, ROUNDED, HOLES, CONSTANT, SIGN = range(5)
VP = fs.interpolants.vp()
SDE = fs.kernels.euler_maruyama(VP, fs.diffusion.square(3.0))
GRID = fs.grids.quadratic(5)


def velocity(params, x, t, cond):
    """Of the mixture that cond gives, and params scales; of the linear interpolant."""

    def one(x, t, means):
        data = fs.analytic.GaussianMixture(
            jnp.log(jnp.full(2, 0.5, jnp.float32)),
            params["scale"] * means,
            jnp.full((2, DIMENSION), 0.1, jnp.float32),
            jnp.broadcast_to(jnp.eye(DIMENSION, dtype=jnp.float32), (2, DIMENSION, DIMENSION)),
        )
        return data.velocity(fs.interpolants.linear(), x, t)

    return jax.vmap(one)(x, t, cond["means"])


def decode(x0):
    return 2.0 * x0


def reward(images, cond):
    wave = jnp.sin(jnp.sum(images * cond["frequency"], axis=-1) + cond["phase"])
    score = wave - 0.1 * jnp.sum(jnp.square(images), axis=-1)
    kinds = jnp.stack(
        [
            score,
            jnp.round(2.0 * score) / 2.0,
            jnp.where(jnp.sin(25.0 * images[:, 0]) > 0.8, jnp.nan, score),
            jnp.zeros_like(score),
            jnp.where(images[:, 0] > 0.0, cond["above"], cond["below"]),
        ]
    )
    return cond["size"] * jnp.take_along_axis(kinds, cond["kind"][None], axis=0)[0]


def host_reward(images, cond):
    """The same in NumPy."""
    wave = np.sin(np.sum(images * cond["frequency"], axis=-1) + cond["phase"])
    score = wave - 0.1 * np.sum(np.square(images), axis=-1)
    holes = np.where(np.sin(25.0 * images[:, 0]) > 0.8, np.nan, score)
    sign = np.where(images[:, 0] > 0.0, cond["above"], cond["below"])
    kinds = np.stack([score, np.round(2.0 * score) / 2.0, holes, np.zeros_like(score), sign])
    return cond["size"] * kinds[cond["kind"], np.arange(len(score))]


def traced():
    """The velocity and the reward, and a count of their traces."""
    traces = {"model": 0, "reward": 0}

    def counted_velocity(params, x, t, cond):
        traces["model"] += 1
        return velocity(params, x, t, cond)

    def counted_reward(images, cond):
        traces["reward"] += 1
        return reward(images, cond)

    return counted_velocity, counted_reward, traces


def flow():
    return fs.Flow.from_callable(
        velocity, {"scale": jnp.ones((), jnp.float32)}, (DIMENSION,), decode=decode
    )


def problems(n, seed=0, kinds=(SMOOTH, ROUNDED, HOLES, CONSTANT)):
    """Cond of n random problems: kinds in turn, every fifth reward of scale 1e6 or 1e-6."""
    rng = np.random.default_rng(seed)
    size = np.ones(n)
    size[::5] = np.where(rng.random(size[::5].shape) < 0.5, 1e6, 1e-6)
    cond = {
        "means": rng.normal(size=(n, 2, DIMENSION)),
        "frequency": rng.normal(size=(n, DIMENSION)),
        "phase": rng.uniform(0.0, 2.0 * np.pi, n),
        "size": size,
        "above": np.ones(n),
        "below": np.zeros(n),
    }
    cond = {name: np.asarray(value, np.float32) for name, value in cond.items()}
    return cond | {"kind": np.asarray(np.resize(kinds, n), np.int32)}


def row(tree, i):
    return jax.tree.map(lambda a: a[i], tree)


def by_sign(cond, above, below):
    """The problems with the reward `above` where an image's first value is above 0, or `below`."""
    ones = np.ones_like(cond["size"])
    kind = np.full_like(cond["kind"], SIGN)
    return cond | {"kind": kind, "size": ones, "above": above * ones, "below": below * ones}


@functools.cache
def batch(n, seed=0):
    """(ids, cond) of n problems with ids that are not their positions."""
    return np.arange(n) * 3 + 11, problems(n, seed)


@functools.cache
def tools(kernel=SDE):
    """(noise, move, evaluate) of the reference, for these problems."""
    evaluate = reference.evaluator(flow(), kernel.interpolant, reward)
    return *reference.mover(kernel, (DIMENSION,)), evaluate


def accepted_path(info, prompt, chain):
    """{time: reward} of the particles a chain accepted, from the log of every round."""
    times, rewards = info.path_time[:, prompt, chain], info.path_reward[:, prompt, chain]
    return dict(zip(times.tolist(), rewards.tolist(), strict=True))
