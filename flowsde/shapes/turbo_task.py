"""What the few-step flow is trained on: to paint as its teacher does, in one step from any time.

Distribution matching distillation (Yin et al., 2024, arXiv 2311.18828 and 2405.14867). The student
makes a picture of x_t in one step, x0 = x_t - t u(x_t, t). A critic, a flow that learns the
student's pictures while they change, says where these lie; the teacher, guided by `GUIDANCE`, says
where they should.
With x_s the picture noised to a random time s and D a flow's posterior mean, the picture
moves along

    g = (D_critic(x_s, s) - D_teacher(x_s, s)) / mean |x0 - D_teacher(x_s, s)|,

the gradient of the divergence of the two distributions, averaged over s.

Half of the student's inputs are all states of Euler's method in `STEPS` steps from noise, so that
it learns from what it is given when it samples so. The others are scenes noised to
random times: kernels with noise, too, are to find a sharp picture at every time.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flowsde.classifier_free import classifier_free_guidance
from flowsde.flow import Flow
from flowsde.shapes import data
from flowsde.shapes.captions import MAX_TOKENS
from flowsde.shapes.flow_task import drop_captions, make_sheet, noised, sample_times
from flowsde.shapes.train import Params, Task, TrainConfig, optimizer

STEPS = 4
"""Of Euler's method on a uniform grid, in which the student is to sample."""
GUIDANCE = 2.5
"""Scale of the teacher's classifier-free guidance, which the student then does without."""
_CRITIC_RATE = 5.0
"""Learning rates of the critic, which must keep up, over those of the student."""
_COPIES = 2
"""Noised copies of each picture that the critic learns from in a step."""
_TIMES = (0.02, 0.98)
"""Range of the times at which critic and teacher are compared: at the ends both know the answer."""


def _optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Of the two networks, each clipped by itself."""
    critic = dataclasses.replace(
        config,
        learning_rate=_CRITIC_RATE * config.learning_rate,
        adam_learning_rate=_CRITIC_RATE * config.adam_learning_rate,
    )
    parts = {"student": optimizer(config), "critic": optimizer(critic)}
    return optax.partition(parts, {name: name for name in parts})


def turbo_task(teacher: Flow, uses: str = "") -> Task:
    """Distil a flow of the shapes world.

    Args:
      teacher: the embedded flow, of the linear interpolant; student and critic begin as it is.
      uses: its name and hash, for the record.
    """
    velocity = teacher.velocity_fn
    guided = classifier_free_guidance(teacher, GUIDANCE, np.zeros(MAX_TOKENS, np.int32))

    def init(key: jax.Array) -> Params:
        return {name: jax.tree.map(jnp.copy, teacher.params) for name in ("student", "critic")}

    def picture(params: Params, x: jax.Array, t: jax.Array, tokens: jax.Array) -> jax.Array:
        return x - t[:, None, None, None] * velocity(params, x, t, tokens)

    def inputs(
        student: Params, key: jax.Array, images: Any, tokens: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """What the student is to make pictures of: states, times and captions."""
        noise_key, time_key, scene_key = jax.random.split(key, 3)
        paths = images.shape[0] // (2 * STEPS)
        rest = images[paths * STEPS :]

        def body(x: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
            u = velocity(student, x, jnp.full((paths,), t), tokens[:paths])
            return x - u / STEPS, x

        times = jnp.linspace(1.0, 1.0 / STEPS, STEPS, dtype=jnp.float32)
        start = jax.random.normal(noise_key, (paths, *images.shape[1:]), jnp.float32)
        _, states = jax.lax.scan(body, start, times)
        # Rather noisy: near the data, the teacher's step is sharp already.
        t = 1.0 - jnp.square(jax.random.uniform(time_key, rest.shape[:1], jnp.float32))
        x = noised(rest, t, jax.random.normal(scene_key, rest.shape, jnp.float32))
        return (
            jnp.concatenate([states.reshape(-1, *images.shape[1:]), x]),
            jnp.concatenate([jnp.repeat(times, paths), t]),
            jnp.concatenate([jnp.tile(tokens[:paths], (STEPS, 1)), tokens[paths * STEPS :]]),
        )

    def draw(key: jax.Array, x0: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """A random time of each picture, the picture noised to it, and the noise."""
        time_key, noise_key = jax.random.split(key)
        s = jnp.clip(sample_times(time_key, x0.shape[0]), *_TIMES)
        noise = jax.random.normal(noise_key, x0.shape, jnp.float32)
        return s, noised(x0, s, noise), noise

    def towards_teacher(
        critic: Params, key: jax.Array, x0: jax.Array, tokens: jax.Array
    ) -> jax.Array:
        """g of the module's docstring, at one time for each picture."""
        s, x, _ = draw(key, x0)
        wanted = x - s[:, None, None, None] * guided.velocity_fn(guided.params, x, s, tokens)
        scale = jnp.mean(jnp.abs(x0 - wanted), axis=(1, 2, 3), keepdims=True)
        return (picture(critic, x, s, tokens) - wanted) / (scale + 1e-3)

    def matching(critic: Params, key: jax.Array, x0: jax.Array, tokens: jax.Array) -> jax.Array:
        """The critic's flow matching loss."""
        x0, tokens = jnp.tile(x0, (_COPIES, 1, 1, 1)), jnp.tile(tokens, (_COPIES, 1))
        s, x, noise = draw(key, x0)
        return jnp.mean(jnp.square(velocity(critic, x, s, tokens) - (noise - x0)))

    def loss(params: Params, key: jax.Array, scenes: data.Scenes) -> jax.Array:
        """The critic's loss; of the student only the gradient, as a divergence has no estimate."""
        stop = jax.lax.stop_gradient
        input_key, drop_key, teacher_key, critic_key = jax.random.split(key, 4)
        tokens = drop_captions(drop_key, scenes.tokens)
        x, t, tokens = stop(inputs(params["student"], input_key, scenes.images, tokens))
        x0 = picture(params["student"], x, t, tokens)
        g = stop(towards_teacher(params["critic"], teacher_key, stop(x0), tokens))
        student = jnp.mean(g * x0)
        return student - stop(student) + matching(params["critic"], critic_key, stop(x0), tokens)

    return Task(
        "turbo",
        init,
        loss,
        make_sheet(velocity, STEPS),
        uses=uses,
        optimizer=_optimizer,
        final=lambda params: params["student"],
        least_batch=2 * STEPS,
    )
