"""What the ways of `gradients.py` are measured on."""

import abc
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import flowsde as fs
from flowsde import shapes
from flowsde.conds import stacked
from flowsde.models.clip.model import CLIP, CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from flowsde.models.clip.rewards import clip_score, text_embeddings
from flowsde.models.common.layers import Numerics
from flowsde.shapes import data
from flowsde.shapes.captions import parse, tokenize
from flowsde.shapes.tasks import TASKS

Row = dict[str, Any]
DIMENSION, VARIANCE, BETA = 16, 0.09, 0.25


class Way(NamedTuple):
    """How to spend the evaluations: a search, and the reward's scale that it is given."""

    name: str
    setting: str
    search: fs.search.BestOfN
    scale: float = 1.0


def scaled(reward: Any, scale: jax.Array, images: jax.Array, cond: Any) -> jax.Array:
    """A reward in other units: guidance by it has another temperature, and is not compiled anew."""
    return scale * reward(images, cond)


class Problem(abc.ABC):
    """What all ways are measured on; `score` is what settings are chosen by."""

    name: str
    score: str
    sign: float
    short: tuple[int, ...]
    temperatures: tuple[float, ...]
    shares: tuple[float, ...]
    paired = False
    """Whether rewards are compared caption by caption."""

    @abc.abstractmethod
    def curvature(self, temperature: float) -> float:
        """By which damping is."""

    @abc.abstractmethod
    def measure(self, way: Way, first: int, n: int) -> dict[str, np.ndarray]:
        """Values of n clouds or captions from the first on."""

    def about(self, n: int) -> Row:
        """What else is known, of n clouds or captions."""
        return {}


def quadratic(at: jax.Array, x: jax.Array, cond: Any) -> jax.Array:
    """-|x - a|^2 of points [n, d]."""
    return -jnp.sum(jnp.square(x - at), axis=-1)


class Law(Problem):
    """The tilted mixture, with clouds of so many particles."""

    name, score, sign = "law", "distance", -1.0
    short = (5, 8, 20, 40)
    temperatures = (0.5 * BETA, 0.7 * BETA, BETA, 1.4 * BETA)
    shares = (0.015, 0.03, 0.06, 0.12)

    def __init__(self, particles: int) -> None:
        rng = np.random.default_rng(0)
        self.particles = particles
        means = rng.normal(size=(4, DIMENSION)) / DIMENSION**0.5
        self.at = np.asarray(means[-1] + rng.normal(size=DIMENSION) / DIMENSION**0.5, np.float32)
        self.data = fs.analytic.mixture([0.4, 0.3, 0.2, 0.1], means, VARIANCE)
        slope, curve = 2.0 * self.at, -2.0 * np.eye(DIMENSION)
        self.tilted, _ = self.data.tilt(slope, curve, BETA)
        self.mean = np.asarray(self.tilted.mean(), np.float64)
        spread = np.trace(np.asarray(self.tilted.covariance(), np.float64))
        self.reward = -float(spread + np.sum(np.square(self.mean - self.at)))
        turns = rng.normal(size=(DIMENSION, 32))
        self.directions = turns / np.linalg.norm(turns, axis=0)

    def curvature(self, temperature: float) -> float:
        """That of the reward."""
        return 1.0

    def exact(self, cloud: int) -> np.ndarray:
        """Draws of the law [n, d]."""
        return np.asarray(self.tilted.sample(jax.random.key(10_000 + cloud), self.particles))

    def distance(self, x: np.ndarray, cloud: int) -> float:
        """Sliced Wasserstein-2 distance of a cloud [n, d] to exact draws."""
        own, law = (np.sort(a @ self.directions, axis=0) for a in (x, self.exact(cloud)))
        return float(np.sqrt(np.mean(np.square(own - law))))

    def about(self, n: int) -> Row:
        """Exact draws' distance from others."""
        floor = np.mean([self.distance(self.exact(-1 - i), i) for i in range(n)])
        return {"particles": self.particles, "floor": float(floor), "mean_reward": self.reward}

    def measure(self, way: Way, first: int, n: int) -> dict[str, np.ndarray]:
        """Values of n clouds."""
        reward = jax.tree_util.Partial(quadratic, jnp.asarray(self.at))
        found = fs.run(
            jax.random.key(0), self.data.flow(), way.search,
            jax.tree_util.Partial(scaled, reward, jnp.float32(way.scale)),
            prompt_ids=first * self.particles + np.arange(n * self.particles),
        )  # fmt: skip
        x = np.asarray(found.image, np.float64).reshape(n, self.particles, DIMENSION)
        rewards = -np.square(x - self.at).sum(-1).mean(1)
        return {
            "distance": np.asarray([self.distance(own, first + i) for i, own in enumerate(x)]),
            "reward": rewards - self.reward,
            "mean_error": np.linalg.norm(x.mean(1) - self.mean, axis=-1),
        }


class Pictures(Problem):
    """Pictures of captions of a task, so many at a time; captions of the development split."""

    batch = 16
    short = (4, 6, 12)
    paired = True
    task: Any
    reward_fn: Any

    def __init__(self, task: str, captions: int) -> None:
        self.task = TASKS[task]
        self.texts = self.task.captions("dev", captions)
        self.flow = self.task.flow(shapes.load_flow())

    def curvature(self, temperature: float) -> float:
        """Halves the pull where x0 has half of the data's variance."""
        return 4.0 * temperature

    def told(self, texts: list[str]) -> Any:
        """What the reward is told, if not what the flow is."""
        return None

    def found(self, images: np.ndarray, texts: list[str]) -> dict[str, np.ndarray]:
        """Further values of pictures."""
        return {}

    def measure(self, way: Way, first: int, n: int) -> dict[str, np.ndarray]:
        """Values of n captions, a multiple of the batch."""
        every: list[dict[str, np.ndarray]] = []
        reward = jax.tree_util.Partial(scaled, self.reward_fn, jnp.float32(way.scale))
        for start in range(first, first + n, self.batch):
            ids = np.arange(start, start + self.batch)
            texts = [self.texts[i] for i in ids]
            cond = stacked("cond", [self.task.encode(text) for text in texts])
            found = fs.run(
                jax.random.key(0), self.flow, way.search, reward, cond=cond,
                reward_cond=self.told(texts), prompt_ids=ids,
            )  # fmt: skip
            rewards = np.asarray(found.reward, np.float64) / way.scale
            every.append({"reward": rewards} | self.found(np.asarray(found.image), texts))
        return {name: np.concatenate([own[name] for own in every]) for name in every[0]}


class Layout(Pictures):
    """Pictures by a sketch."""

    name, score, sign = "layout", "reward", 1.0
    temperatures = (1.0, 0.5, 0.25)
    shares = (0.05, 0.15, 0.4)

    def __init__(self, captions: int) -> None:
        super().__init__("layout", captions)
        self.reward_fn = self.task.load_reward()

    def found(self, images: np.ndarray, texts: list[str]) -> dict[str, np.ndarray]:
        """By the held-out judge."""
        return {"success": self.task.judge(images, texts).success}


class Clip(Pictures):
    """Cosines by a small CLIP of random weights, in their standard deviations over scenes."""

    name, score, sign = "clip", "reward", 1.0
    temperatures = (1.0, 0.5, 0.25, 0.125)
    shares = (0.05, 0.15, 0.4, 0.8)

    def __init__(self, captions: int) -> None:
        super().__init__("counts", captions)
        own: dict[str, Any] = {"width": 64, "depth": 4, "heads": 4, "mlp": 256, "projection": 32}
        config = CLIPConfig(
            text=CLIPTextConfig(vocab=64, positions=16, **own),
            vision=CLIPVisionConfig(image=32, patch=8, **own),
        )
        self.model = CLIP(config, Numerics(), rngs=nnx.Rngs(0))
        # Of right pictures against all captions.
        images = jnp.asarray(data.scenes(0, range(self.batch)).images)
        wanted, score = self.told(self.texts[: self.batch]), clip_score(self.model)
        values = [score(images, jnp.roll(wanted, i, axis=0)) for i in range(self.batch)]
        self.reward_fn = clip_score(self.model, scale=1.0 / float(np.std(values)))

    def told(self, texts: list[str]) -> Any:
        """Embeddings of the captions' tokens."""
        tokens = np.stack([tokenize(parse(text)) for text in texts])
        return text_embeddings(self.model, jnp.asarray(tokens))
