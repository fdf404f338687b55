"""Sequential Monte Carlo: N weighted particles, resampled by their rewards.

The kernel proposes, potentials G weigh. With log potentials phi_i accumulated up to time i
(`flowsde.search.smc.potentials`), a particle's weight is multiplied by exp(phi_i - phi_{i-1}), and
since phi at the last time is reward / beta whatever happened before, the weighted particles there
target

    p(x0) exp(r(x0) / beta) / Z,    p the law of the kernel's samples,

and E[exp(log_z)] = Z (Del Moral, 2004): what phi is on the way, when resampling takes place, how
many particles go on and what the proposal is may depend on all particles so far. How often each is
resampled is chosen in `flowsde.search.smc.masses`. A kernel guided by the reward's gradient
proposes from q, and the weights are multiplied by p / q (`flowsde.search.smc.weights`): with
potential "difference" that is twisted diffusion sampling (TDS; Wu et al., 2023, arXiv 2306.17775),
and with tempering (`flowsde.search.smc.tempering`) diffusion alignment as sampling (DAS; Kim et
al., 2025, arXiv 2501.05803).

All weights are logarithms. They are carried where resampling is skipped. The answer is the particle
of the highest reward at the last time, not one that resampling kept; `weighted_sample` has all.
With restarts (`flowsde.search.smc.restarts`) only the answer counts.
"""

from flowsde.search.smc.maker import smc
from flowsde.search.smc.policy import SMC, SMCState
from flowsde.search.smc.potentials import POTENTIALS
from flowsde.search.smc.restarts import Restarts, RestartsState
from flowsde.search.smc.sample import WeightedSample, Weights, weighted_sample, weights_of
from flowsde.search.smc.weights import effective_sample_size, log_mean_exp

__all__ = [
    "POTENTIALS",
    "SMC",
    "Restarts",
    "RestartsState",
    "SMCState",
    "WeightedSample",
    "Weights",
    "effective_sample_size",
    "log_mean_exp",
    "smc",
    "weighted_sample",
    "weights_of",
]
