"""Kernels move one particle from time t to time s < t (`renoise`: to s > t).

Each is Gaussian given the model's posterior means x0 and x1 at (x, t):

    x_s ~ N(mean, std^2 I),      kernel(key, x, x0, x1, t, s) -> x_s,

pure, for one particle of any shape and scalar times; `jax.vmap` gives the batch. Deterministic
kernels have std = 0 and ignore the key. Those with two evaluations, `ode_heun` and `sde_heun`,
draw a predicted point in this way, which `correct` then moves, given the means there. `glass`
draws a point from which x_s is some evaluations away, `arrive`. Multistep solvers, `ode_adams`,
`dpm_solver_2m` and `uni_pc`, also take what the step before left; see `Multistep`.

`ode_euler`, `ode_heun`, `euler_maruyama`, `sde_heun` discretise the flow's ODE or SDE in t. `ddim`,
`cps`, `exact` and `correlated` instead recombine the means, x_s = alpha_s x0 + rho x1 + zeta eps
with rho^2 + zeta^2 = sigma_s^2, so that the noise level is right at any step size. They still lose
x0's posterior spread: with ``data_variance`` = v they draw x0 with the covariance that isotropic
Gaussian data of variance v would have, v sigma_t^2 / (alpha_t^2 v + sigma_t^2), instead of using
its mean (the idea of Analytic-DPM, Bao et al., 2022, arXiv 2201.06503), which is exact for such
data at any step size.

Ends: all are finite on [0, 1]. Where alpha', sigma' or g is infinite at an end of [0, 1], the
step uses the secant slope of alpha and sigma, and g at its middle; where sigma_t = 0 there is no
noise to remove and the score term is dropped. Being finite is not being accurate: on a grid from
t = 1 a coefficient that is infinite there lowers the order of the kernels of the ODE and SDE,
g^2 ~ c / (1 - t) to at most c (.49 for `flow_grpo` at scale .7, 2 for `forward` under the linear
interpolant), alpha' ~ (1 - t)^-1/2 (linear-VP) to 1/2.
"""

import inspect
from collections.abc import Callable

from flowsde.kernels import makers
from flowsde.kernels.base import Kernel
from flowsde.kernels.correlated import Correlated, Exact, correlated, exact
from flowsde.kernels.euler import (
    EulerMaruyama,
    ODEEuler,
    ODEHeun,
    SDEHeun,
    euler_maruyama,
    ode_euler,
    ode_heun,
    sde_heun,
)
from flowsde.kernels.glass import GLASS, glass
from flowsde.kernels.gradient import Guided, guided, reward_gradient
from flowsde.kernels.multistep import (
    Before,
    DPMSolver2M,
    Multistep,
    ODEAdams,
    UniPC,
    dpm_solver_2m,
    ode_adams,
    uni_pc,
)
from flowsde.kernels.noise_tilt import NoiseTilt, noise_tilt
from flowsde.kernels.posterior import CPS, DDIM, cps, ddim
from flowsde.kernels.renoise import Renoise, renoise

KERNELS: dict[str, Callable[..., Kernel | Multistep]] = {
    name: maker for name, maker in vars(makers).items() if inspect.isfunction(maker)
}
"""The maker of each kernel, or solver, that searches can use; it makes the command's options."""

__all__ = [
    "CPS",
    "DDIM",
    "GLASS",
    "KERNELS",
    "Before",
    "Correlated",
    "DPMSolver2M",
    "EulerMaruyama",
    "Exact",
    "Guided",
    "Kernel",
    "Multistep",
    "NoiseTilt",
    "ODEAdams",
    "ODEEuler",
    "ODEHeun",
    "Renoise",
    "SDEHeun",
    "UniPC",
    "correlated",
    "cps",
    "ddim",
    "dpm_solver_2m",
    "euler_maruyama",
    "exact",
    "glass",
    "guided",
    "noise_tilt",
    "ode_adams",
    "ode_euler",
    "ode_heun",
    "renoise",
    "reward_gradient",
    "sde_heun",
    "uni_pc",
]
