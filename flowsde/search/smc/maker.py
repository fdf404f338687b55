"""The maker of sequential Monte Carlo."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from flowsde._checks import check_count, check_non_negative, check_positive
from flowsde.grids import as_grid
from flowsde.kernels import Kernel
from flowsde.search.branching import as_position, as_steps
from flowsde.search.complete import Finish, finished
from flowsde.search.protocol import Search
from flowsde.search.resampling import SCHEMES
from flowsde.search.smc.masses import MASSES
from flowsde.search.smc.policy import SMC
from flowsde.search.smc.potentials import POTENTIALS
from flowsde.search.smc.restarts import Pass, Restarts
from flowsde.search.smc.tempering import TEMPERINGS, shares
from flowsde.search.value import Value, as_value

_PARTICLES = 4
"""Of a pass, where there are several."""


def smc(
    *,
    nfe: int,
    kernel: Kernel,
    grid: Any,
    temperature: float | Any = 0.1,
    potential: Literal["difference", "current", "max", "sum", "final"] = "difference",
    tempering: Literal["none", "exponential", "polynomial", "adaptive"] = "none",
    tempering_rate: float | None = None,
    scheme: Literal["multinomial", "stratified", "systematic", "residual", "ssp"] = "systematic",
    threshold: float = 0.5,
    interval: int = 1,
    resample_from: int | None = None,
    resample_until: int | None = None,
    funnel: float = 1.0,
    branch_at: int | Sequence[float] | None = None,
    restart_at: float = 0.0,
    particles: int | None = None,
    value: Value = "mean",
    value_steps: int = 4,
    value_samples: int = 4,
    mass: Literal["value", "variance"] = "value",
    finish: Finish = "complete",
    finish_steps: int | None = None,
) -> Search:
    """Sequential Monte Carlo with as many particles as the budget has trajectories, or restarts.

    Args:
      nfe: budget in model evaluations, finishing included; a hard cap.
      kernel: a stochastic one, unless the potential is "final". One that is guided by the reward's
        gradient proposes, weights put that right, and the target stays that of the kernel that it
        guides; its temperature is best that of the search (TDS; with tempering, DAS).
      grid: times falling from 1 to 0. Particles are evaluated at all but the last.
      temperature: beta > 0, in units of the reward: samples are weighed by exp(reward / beta). A
        sequence with an entry for each evaluated time tempers; the target is that of its last.
      potential: what particles are weighed by at a step: the "difference" of their rewards to those
        of the step before, the "current" ones, the "max" or the "sum" of their rewards so far, or
        nothing but the "final" reward.
      tempering: how the share of the reward that particles are weighed and guided by rises to all
        of it: exponentially, as a power of the step, or as far as the effective sample size stays
        at the threshold ("adaptive", whose gradients have the share of the step before).
      tempering_rate: step i, counted from 0, has the share (1 + rate)^i - 1, at most 1
        ("exponential"), or (i / last)^rate ("polynomial"). By default the first reaches 1 at the
        last step, and the second is a square.
      scheme: how particles are resampled, see `flowsde.search.resampling`.
      threshold: resample when the effective sample size is at most this share of N, 0 to 1; 1
        resamples always.
      interval: least number of steps from one resampling to the next, the first being
        `resample_from` if given.
      resample_from: first position in the grid, from 1, at which particles may be resampled. By
        default any.
      resample_until: last one. By default any.
      funnel: share of the particles that is left at the last step, 0 to 1. They fall geometrically,
        where they may be resampled, and more begin with the same budget.
      branch_at: steps at which particles are weighed and may be resampled, besides the last, where
        they are weighed: so many spread evenly, or in Python a tuple of positions in the grid or of
        times. By default all. Not with potential "final".
      restart_at: time up to which the best particle is noised where a pass down the grid has
        ended; the nearest one between the first and the last that is evaluated. Copies of it are
        the particles of the next pass, as long as the budget lasts. 0 is for one pass of as many
        particles as the budget pays for; only that has a weighted sample.
      particles: of a pass, with restarts; by default 4.
      value: of a particle before the last time: the reward of its posterior mean, of the end of an
        ODE from there ("ode"), or of samples from there beta log mean exp(reward / beta), at the
        last beta ("samples").
      value_steps: evaluations of an ODE or of a sample, part of `nfe`.
      value_samples: samples of a particle.
      mass: what particles are resampled by: their "value", or the root mean square of exp(reward /
        beta) over the samples from there, with which log Z has the least "variance". That needs
        value "samples", two or more, and potential "difference".
      finish: "complete" follows the ODE from the best particle towards t = 0 by Euler steps, "heun"
        by Heun's, "adams" by `ode_adams`'s, scores the final image, and returns the better of the
        two by reward; "mean" returns the posterior mean of the best particle.
      finish_steps: evaluations of finishing, part of `nfe`; a Heun step takes two. By default half
        as many as the grid has steps, and none where its last time is small already.

    Raises:
      ValueError, TypeError: naming the argument.

    Example:
      >>> flow = fs.analytic.gaussian([0.0, 0.0], 1.0).flow()
      >>> reward = lambda images, cond: images[:, 0]  # of a sample: 0, give or take 1
      >>> budget = {"nfe": 40, "kernel": fs.kernels.ddim(flow.interpolant)}
      >>> search = fs.search.smc(grid=fs.grids.uniform(8), temperature=0.5, **budget)
      >>> result = fs.run(jax.random.key(1), flow, search, reward)
      >>> bool(result.reward > 0), bool(result.nfe <= 40)
      (True, True)
    """
    for name, word, known in (
        ("potential", potential, POTENTIALS),
        ("mass", mass, MASSES),
        ("tempering", tempering, TEMPERINGS),
        ("scheme", scheme, tuple(SCHEMES)),
    ):
        if word not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {word!r}")
    check_non_negative("threshold", threshold)
    if threshold > 1.0:
        raise ValueError(f"threshold is a share of the particles, 0 to 1, got {threshold}")
    if not 0.0 < funnel <= 1.0:
        raise ValueError(f"funnel must be above 0 and at most 1, got {funnel}")
    times = as_grid("grid", grid)
    betas = _schedule(temperature, len(times) - 1)
    if mass == "variance":
        _check_mass(potential, value, value_samples)
    _check_tempering(tempering, tempering_rate, threshold, temperature)
    if potential == "final":
        _check_final(
            branch_at=branch_at is not None,
            value=value != "mean",
            tempering=tempering != "none",
            resample_from=resample_from is not None,
            resample_until=resample_until is not None,
            funnel=funnel < 1.0,
        )
    first, until = (
        None if at is None else check_count(name, at, most=max(len(times) - 3, 1))
        for name, at in (("resample_from", resample_from), ("resample_until", resample_until))
    )
    restarts = restart_at != 0.0 or isinstance(restart_at, bool)
    if particles is not None and not restarts:
        raise ValueError(
            f"particles has no effect without restart_at: all that the budget pays for pass down "
            f"the grid once, got {particles}"
        )
    make: Callable[..., Search] = SMC
    if restarts:
        if funnel < 1.0 or potential == "final":
            other = f"funnel {funnel}" if funnel < 1.0 else "potential 'final'"
            raise ValueError(
                f"restart_at has no effect with {other}: expected passes of as many particles "
                f"everywhere, weighed on their way"
            )
        at = as_position(restart_at, times, "restart_at")
        wide = check_count("particles", _PARTICLES if particles is None else particles)

        def make(**options: Any) -> Search:
            return Restarts(Pass(**options), wide, at)

    return finished(
        make,
        nfe,
        finish,
        finish_steps,
        kernel=kernel,
        grid=times,
        value=as_value(value, value_steps, value_samples, times, betas[-1] / MASSES[mass]),
        branch_at=as_steps(branch_at, times),
        temperatures=betas,
        potential=potential,
        scheme=scheme,
        threshold=threshold,
        interval=check_count("interval", interval),
        resample_from=first,
        resample_until=until,
        funnel=None if funnel == 1.0 else float(funnel),
        shares=shares(tempering, tempering_rate, len(times) - 1),
        adaptive=True if tempering == "adaptive" else None,
    )


def _schedule(temperature: Any, steps: int) -> tuple[float, ...]:
    betas = np.asarray(temperature, np.float64)
    if betas.shape not in ((), (steps,)):
        raise ValueError(
            f"temperature must be one number or one for each of {steps} times, got shape "
            f"{betas.shape}"
        )
    for beta in betas.reshape(-1):
        check_positive("temperature", float(beta))
    return tuple(np.broadcast_to(betas, (steps,)).tolist())


def _check_tempering(kind: str, rate: float | None, threshold: float, temperature: Any) -> None:
    if kind != "none" and np.ndim(temperature):
        raise ValueError(
            f"temperature tempers as a sequence, and so does tempering {kind!r}; expected one "
            f"number, or tempering 'none'"
        )
    if rate is not None:
        if kind not in ("exponential", "polynomial"):
            raise ValueError(f"tempering_rate has no effect with tempering {kind!r}, got {rate}")
        check_positive("tempering_rate", rate)
    if kind == "adaptive" and not 0.0 < threshold < 1.0:
        raise ValueError(
            f"threshold must be above 0 and below 1 with tempering 'adaptive', which keeps the "
            f"effective sample size there, got {threshold}"
        )


def _check_mass(potential: str, value: str, samples: int) -> None:
    if potential != "difference":
        raise ValueError(
            f"mass 'variance' is what particles are resampled by with potential 'difference' "
            f"alone, got {potential!r}"
        )
    if value != "samples" or samples < 2:
        raise ValueError(
            f"mass 'variance' is of how rewards differ from one particle on; expected value "
            f"'samples' and value_samples of at least 2, got {value!r} and {samples}"
        )


def _check_final(**given: bool) -> None:
    for name, one in given.items():
        if one:
            raise ValueError(
                f"{name} has no effect with potential 'final', which weighs particles at the "
                f"last time alone; expected another potential"
            )
