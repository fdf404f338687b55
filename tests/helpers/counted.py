"""The flow of `problems` and its reward outside JAX, which count what they see."""

import jax
import problems
from problems import decode, flow, host_reward

import flowsde as fs

SEEN = {"model": 0, "verifier": 0}
"""Rows so far; a test sets them to 0."""


def velocity(params, x, t, cond):
    jax.debug.callback(lambda t: SEEN.update(model=SEEN["model"] + t.shape[0]), t)
    return problems.velocity(params, x, t, cond)


def counting_reward(images, cond):
    SEEN["verifier"] += images.shape[0]
    return host_reward(images, cond)


def counting_flow():
    return fs.Flow.from_callable(velocity, flow().params, (2,), decode=decode)
