"""The few-step flow: what its training does is known for Gaussian pictures."""

from functools import cache
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowsde import Flow
from flowsde.shapes import data
from flowsde.shapes.train import TrainConfig, TrainState, init_state, make_step
from flowsde.shapes.turbo_task import turbo_task

CONFIG = TrainConfig(
    steps=80, batch_size=16, warmup=5, learning_rate=0.01, adam_learning_rate=0.01, ema=0.9
)
SPREAD = 0.3


def _gaussian(params: Any, x: jax.Array, t: jax.Array, cond: jax.Array) -> jax.Array:
    """Exact velocity of pictures N(mean, SPREAD^2) in every value, where the mean is a parameter.

    With x = (1 - t) x0 + t x1 the pair (x0, x) is Gaussian, and E[x0 | x] linear in x.
    """
    t = t[:, None, None, None]
    mean = params["mean"][None, None, None, :]
    variance = jnp.square((1.0 - t) * SPREAD) + jnp.square(t)
    centred = (x - (1.0 - t) * mean) / variance
    x0 = mean + (1.0 - t) * SPREAD**2 * centred
    return t * centred - x0


TEACHER = Flow.from_callable(_gaussian, {"mean": jnp.asarray([0.4, -0.2, 0.1])}, (32, 32, 3))


@cache
def _scenes() -> data.Scenes:
    """Pictures of the teacher's distribution, with captions that mean nothing to it."""
    own = data.scenes(0, range(CONFIG.batch_size))
    noise = jax.random.normal(jax.random.key(9), own.images.shape, jnp.float32)
    return own._replace(images=TEACHER.params["mean"][None, None, None, :] + SPREAD * noise)


def _state(student: list[float], critic: list[float]) -> TrainState:
    state = init_state(turbo_task(TEACHER), CONFIG)
    params = {"student": {"mean": jnp.asarray(student)}, "critic": {"mean": jnp.asarray(critic)}}
    return state._replace(params=params, ema=jax.tree.map(jnp.copy, params))


def test_student_and_critic_begin_as_the_teacher() -> None:
    params = turbo_task(TEACHER).init(jax.random.key(0))
    chex.assert_trees_all_equal(params, {"student": TEACHER.params, "critic": TEACHER.params})


@pytest.mark.slow
def test_a_student_moves_as_its_critic_says() -> None:
    """Away from where the critic says that it is, towards the teacher; not at all if they agree."""
    task = turbo_task(TEACHER)
    gradient = jax.jit(jax.grad(task.loss))
    own = [0.4, -0.2, 0.1]
    for critic, sign in (([0.6, -0.2, 0.1], [1, 0, 0]), ([0.4, -0.5, 0.3], [0, -1, 1])):
        found = gradient(_state(own, critic).params, jax.random.key(1), _scenes())["student"]
        np.testing.assert_array_equal(np.sign(np.round(found["mean"], 6)), sign)
    none = gradient(_state(own, own).params, jax.random.key(1), _scenes())["student"]["mean"]
    np.testing.assert_array_equal(none, np.zeros(3))


@pytest.mark.slow
def test_a_wrong_student_learns_the_teachers_mean_and_the_critic_follows_it() -> None:
    state, task = _state([0.2, 0.0, 0.1], [0.2, 0.0, 0.1]), turbo_task(TEACHER)
    step = make_step(task, CONFIG)
    for k in range(CONFIG.steps):
        state, _ = step(state, jnp.asarray(k), _scenes())
    found = task.final(state.ema)["mean"]
    np.testing.assert_allclose(found, TEACHER.params["mean"], atol=0.01)


@pytest.mark.slow
def test_the_value_of_the_loss_is_the_critics() -> None:
    """A critic that knows the pictures has the least loss, the spread of noise - x0 given x_s."""
    task = turbo_task(TEACHER)
    key, own = jax.random.key(3), [0.4, -0.2, 0.1]
    values = [
        float(task.loss(_state(own, critic).params, key, _scenes()))
        for critic in (own, [0.5, -0.2, 0.1], [0.7, -0.2, 0.1])
    ]
    assert values == sorted(values)
