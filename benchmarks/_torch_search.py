"""Best-of-N, SMC, SVDD and RBF as one writes them in PyTorch today: eager loops over batches.

The methods, kernel, grid, reward and budget are those of `flowsde sample` with recommended
settings on the embedded model. What goes into a batch is what such code has there: for Best-of-N
samples, for SMC all particles, for SVDD all children of all chains, and for RBF one child of each
chain, since whether another is drawn depends on its reward. Coefficients are Python numbers, worked
out once a step; rewards come to the host once a batch.

A draw of noise is asked for by what it is for, (chain, step, draw) or (particle, step): PyTorch's
generator does not care, a check against flowsde does.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple, Protocol

import torch
from _torch_shapes import TorchScorer, TorchShapes, log_likelihood

from flowsde.cli.settings import Settings

SHAPE = (3, 32, 32)
_BETA_MIN, _BETA_MAX = 0.1, 20.0


class Noise(Protocol):
    """Where random numbers come from."""

    def normal(self, ids: Sequence[tuple[int, ...]]) -> torch.Tensor:
        """Standard normal [len(ids), 3, 32, 32]."""
        ...

    def uniform(self, step: int) -> float:
        """From [0, 1), for resampling after a step."""
        ...


class Generated:
    """`Noise` of PyTorch's generator."""

    def __init__(self, seed: int, device: str):
        self._device = device
        self._generator = torch.Generator(device).manual_seed(seed)

    def normal(self, ids: Sequence[tuple[int, ...]]) -> torch.Tensor:
        return torch.randn((len(ids), *SHAPE), generator=self._generator, device=self._device)

    def uniform(self, step: int) -> float:
        return torch.rand((), generator=self._generator, device=self._device).item()


class Particles(NamedTuple):
    """Evaluated points, all [n, …]; rewards on the host, none where none was asked for."""

    x: torch.Tensor
    x0: torch.Tensor
    x1: torch.Tensor
    rewards: list[float]

    def row(self, i: int) -> "Particles":
        """One of them."""
        rewards = self.rewards[i : i + 1]
        return Particles(self.x[i : i + 1], self.x0[i : i + 1], self.x1[i : i + 1], rewards)


def vp(t: float) -> tuple[float, float]:
    """(alpha, sigma) of the variance-preserving interpolant."""
    integral = (0.5 * (_BETA_MAX - _BETA_MIN) * t + _BETA_MIN) * t
    return math.exp(-0.5 * integral), math.sqrt(-math.expm1(-integral))


def line(t: float) -> tuple[float, float]:
    """(alpha, sigma) of the linear interpolant, the model's own."""
    return 1.0 - t, t


Path = Callable[[float], tuple[float, float]]


@cache
def ddim(t: float, s: float, eta: float, variance: float) -> tuple[float, float, float]:
    """x_s = a x0 + b x1 + c noise under `vp`, with data of some variance around x0."""
    (alpha_t, sigma_t), (alpha, sigma) = vp(t), vp(s)
    ratio = alpha_t * sigma / (alpha * sigma_t)
    share = eta * math.sqrt((1.0 - ratio) * (1.0 + ratio))
    rho = sigma * math.sqrt((1.0 - share) * (1.0 + share))
    weight = alpha - rho * alpha_t / sigma_t
    spread = variance * sigma_t**2 / (alpha_t**2 * variance + sigma_t**2)
    return alpha, rho, math.sqrt((sigma * share) ** 2 + weight**2 * spread)


class Problem:
    """A prompt, the model and the reward; counts evaluations."""

    def __init__(
        self, model: TorchShapes, scorer: TorchScorer, tokens: torch.Tensor, wanted: torch.Tensor
    ):
        self._model, self._scorer, self._tokens, self._wanted = model, scorer, tokens, wanted
        self.nfe = 0

    def evaluate(
        self, x: torch.Tensor, times: list[float], path: Path = vp, reward: bool = True
    ) -> Particles:
        """Posterior means, and rewards of the data's, of points [n, …] of a path at n times."""
        n = len(x)
        self.nfe += n
        scales = [path(t) for t in times]
        t = torch.tensor([sigma / (alpha + sigma) for alpha, sigma in scales], device=x.device)
        scale = torch.tensor([1.0 / (alpha + sigma) for alpha, sigma in scales], device=x.device)
        point = x * column(scale)
        velocity = self._model(point, t, self._tokens.expand(n, -1))
        x0 = point - column(t) * velocity
        x1 = x0 + velocity
        rewards = log_likelihood(self._scorer(x0), self._wanted).tolist() if reward else []
        return Particles(x, x0, x1, rewards)


def column(a: torch.Tensor) -> torch.Tensor:
    """[n] as [n, 1, 1, 1]."""
    return a[:, None, None, None]


@dataclasses.dataclass(frozen=True)
class Kernel:
    """DDIM under `vp`."""

    eta: float
    variance: float

    def __call__(
        self, at: Particles, times: list[float], to: list[float], noise: torch.Tensor
    ) -> torch.Tensor:
        """Points at `to` from particles at `times`."""
        rows = [ddim(t, s, self.eta, self.variance) for t, s in zip(times, to, strict=True)]
        if len(set(rows)) == 1:
            a, b, c = rows[0]
            return a * at.x0 + b * at.x1 + c * noise
        a, b, c = (
            column(torch.tensor(part, device=noise.device)) for part in zip(*rows, strict=True)
        )
        return a * at.x0 + b * at.x1 + c * noise


def together(parts: Sequence[Particles]) -> Particles:
    """Particles as one batch."""
    x, x0, x1, rewards = zip(*parts, strict=True)
    return Particles(
        torch.cat(x), torch.cat(x0), torch.cat(x1), [r for own in rewards for r in own]
    )


def shared(total: int, parts: int) -> list[int]:
    """A budget in parts that differ by at most one, the larger ones first."""
    return [total // parts + (i < total % parts) for i in range(parts)]


def best_of(parts: Sequence[Particles]) -> tuple[int, float]:
    """The first of single particles with the highest reward."""
    i = max(range(len(parts)), key=lambda i: parts[i].rewards[0])
    return i, parts[i].rewards[0]


END = 0.07
"""Linear time at which finishing ends."""


def finish(problem: Problem, best: Particles, t: float, steps: int) -> Particles:
    """Follow the linear ODE from a particle towards t = 0; the better of the two."""
    alpha, sigma = vp(t)
    start, particle = sigma / (alpha + sigma), best
    end = END if start > END else start / (steps + 1)
    for k in range(1, steps + 1):
        s = start + (end - start) * k / steps
        x = (1.0 - s) * particle.x0 + s * particle.x1
        particle = problem.evaluate(x, [s], path=line, reward=k == steps)
    return particle if particle.rewards[0] >= best.rewards[0] else best


def bon(problem: Problem, noise: Noise, s: Settings) -> Particles:
    """Samples of the linear ODE, in batches; the best is kept."""
    assert s.nfe and s.steps and s.width
    grid = [1.0 - i / s.steps for i in range(s.steps + 1)]
    best: Particles | None = None
    samples = s.nfe // s.steps
    for first in range(0, samples, s.width):
        numbers = range(first, min(first + s.width, samples))
        x = noise.normal([(i, 0) for i in numbers])
        for step, t in enumerate(grid[:-1]):
            last = step == s.steps - 1
            found = problem.evaluate(x, [t] * len(x), path=line, reward=last)
            x = x + (grid[step + 1] - t) * (found.x1 - found.x0)
        rows = [found.row(i) for i in range(len(numbers))]
        i, reward = best_of(rows)
        if best is None or reward > best.rewards[0]:
            best = rows[i]
    assert best is not None
    return best


def svdd(problem: Problem, noise: Noise, s: Settings) -> Particles:
    """All children of all chains in one batch a step; each chain goes on from its best."""
    grid, kernel, budget = _setting(s)
    assert s.chains and s.finish_steps
    moves = len(grid) - 2
    totals = shared(budget, s.chains)
    children = [[1, *shared(total - 1, moves)] for total in totals]
    parents: list[Particles] = []
    rows: list[Particles] = []
    for step, t in enumerate(grid[:-1]):
        owner = [c for c in range(s.chains) for _ in range(children[c][step])]
        ids = [(c, step, k) for c in range(s.chains) for k in range(children[c][step])]
        x = noise.normal(ids)
        if step:
            origin = together([parents[c] for c in owner])
            x = kernel(origin, [grid[step - 1]] * len(x), [t] * len(x), x)
        found = problem.evaluate(x, [t] * len(x))
        rows = [found.row(i) for i in range(len(x))]
        own = [[row for row, c in zip(rows, owner, strict=True) if c == k] for k in range(s.chains)]
        parents = [of_chain[best_of(of_chain)[0]] for of_chain in own]
    return finish(problem, rows[best_of(rows)[0]], grid[-2], s.finish_steps)


def smc(problem: Problem, noise: Noise, s: Settings) -> Particles:
    """All particles in one batch a step, resampled where few of them carry the weight."""
    grid, kernel, budget = _setting(s)
    assert s.temperature and s.threshold and s.finish_steps
    n = budget // (len(grid) - 1)
    log_weights = torch.zeros(n, dtype=torch.float64)
    before = torch.zeros(n, dtype=torch.float64)
    particles: Particles | None = None
    for step, t in enumerate(grid[:-1]):
        x = noise.normal([(i, step) for i in range(n)])
        if particles is not None:
            x = kernel(particles, [grid[step - 1]] * n, [t] * n, x)
        particles = problem.evaluate(x, [t] * n)
        scaled = torch.tensor(particles.rewards, dtype=torch.float64) / s.temperature
        log_weights, before = log_weights + scaled - before, scaled
        weights = log_weights.softmax(0)
        if step < len(grid) - 2 and 1.0 / weights.square().sum() <= s.threshold * n:
            points = (torch.arange(n, dtype=torch.float64) + noise.uniform(step)) / n
            share = weights.cumsum(0) / weights.sum()
            index = torch.searchsorted(share, points, right=True).clamp(max=n - 1)
            particles = together([particles.row(i) for i in index.tolist()])
            log_weights, before = torch.zeros(n, dtype=torch.float64), before[index]
    assert particles is not None
    i = max(range(n), key=particles.rewards.__getitem__)
    return finish(problem, particles.row(i), grid[-2], s.finish_steps)


@dataclasses.dataclass
class Chain:
    """Where a chain of RBF is; `drawn` of a `quota` of children at a `stage` of the grid."""

    quotas: list[int]
    stage: int = 0
    quota: int = 0
    drawn: int = 0
    threshold: float = -math.inf
    parent: Particles | None = None
    child: Particles | None = None

    def __post_init__(self) -> None:
        self.quota = self.quotas[0]

    @property
    def active(self) -> bool:
        """Whether it draws on."""
        return self.stage < len(self.quotas)

    def read(self, new: Particles) -> None:
        """Accept a child that improves on the best so far, or the stage's best at its end."""
        reward = new.rewards[0]
        self.drawn += 1
        if self.child is None or reward > self.child.rewards[0]:
            self.child = new
        exhausts = self.stage in (0, len(self.quotas) - 1)
        if (reward > self.threshold and not exhausts) or self.drawn == self.quota:
            self.threshold = max(self.threshold, self.child.rewards[0])
            self.parent, self.child = self.child, None
            self.stage += 1
            left = self.quota - self.drawn
            self.quota = left + (self.quotas[self.stage] if self.active else 0)
            self.drawn = 0


def rbf(problem: Problem, noise: Noise, s: Settings) -> Particles:
    """One child of each chain at a time, until it improves or the quota is spent."""
    grid, kernel, budget = _setting(s)
    assert s.chains and s.seeds and s.finish_steps
    chains = [
        Chain([s.seeds, *shared(total - s.seeds, len(grid) - 2)])
        for total in shared(budget, s.chains)
    ]
    while active := [(c, chain) for c, chain in enumerate(chains) if chain.active]:
        noises = noise.normal([(c, chain.stage, chain.drawn) for c, chain in active])
        points = []
        for row, (_, chain) in enumerate(active):
            x = noises[row : row + 1]
            if chain.parent is not None:
                t, to = grid[chain.stage - 1], grid[chain.stage]
                x = kernel(chain.parent, [t], [to], x)
            points.append(x)
        found = problem.evaluate(torch.cat(points), [grid[chain.stage] for _, chain in active])
        for row, (_, chain) in enumerate(active):
            chain.read(found.row(row))
    last = [chain.parent for chain in chains if chain.parent is not None]
    return finish(problem, last[best_of(last)[0]], grid[-2], s.finish_steps)


def _setting(s: Settings) -> tuple[list[float], Kernel, int]:
    """Grid, kernel, and the budget without finishing."""
    assert (s.interpolant, s.kernel, s.grid, s.finish) == ("vp", "ddim", "uniform", "complete")
    assert s.nfe and s.steps and s.finish_steps
    assert s.eta is not None and s.data_variance is not None
    grid = [1.0 - i / s.steps for i in range(s.steps + 1)]
    return grid, Kernel(s.eta, s.data_variance), s.nfe - s.finish_steps


METHODS = {"rbf": rbf, "svdd": svdd, "smc": smc, "bon": bon}
