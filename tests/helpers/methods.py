"""A search of every method, and what it means that two results are the same."""

import functools
import math
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
from problems import GRID, SDE, VP, velocity

import flowsde as fs
from flowsde.search.drafts import draft_cost_of

ODE = fs.kernels.ode_euler(VP)
GLASS = fs.kernels.glass(VP, inner_steps=2)
GUIDED = fs.kernels.guided(SDE, temperature=2.0)
PROMPTS = 8
OPTIONS = {"nfe": 41, "grid": GRID, "finish_steps": 4}

METHODS = {
    "bon": fs.search.bon(nfe=41, kernel=ODE, grid=GRID, width=3),
    "halving": fs.search.halving(nfe=41, kernel=ODE, grid=GRID, draft_steps=3, factor=3),
    "lidar": fs.search.lidar(nfe=41, kernel=ODE, grid=GRID, draft_steps=3),
    "halving, unipc, resumed later": fs.search.halving(
        nfe=41,
        kernel=fs.kernels.uni_pc(VP),
        grid=GRID,
        draft_steps=(1, 3, 4),
        factor=2,
        resume_at=float(GRID[1]),
    ),
    "lidar, adams": fs.search.lidar(
        nfe=41, kernel=fs.kernels.ode_adams(VP), grid=GRID, draft_steps=3
    ),
    "guided lidar": fs.search.lidar(
        nfe=41, kernel=GUIDED, grid=GRID, draft_steps=2, trajectories=1, scale=3.0
    ),
    "rbf": fs.search.rbf(kernel=SDE, chains=2, seeds=2, width=3, **OPTIONS),
    "svdd": fs.search.svdd(kernel=SDE, temperature=0.2, **OPTIONS),
    "code": fs.search.code(kernel=SDE, block=2, **OPTIONS),
    "smc": fs.search.smc(kernel=SDE, temperature=0.2, **OPTIONS),
    "smc, restarts": fs.search.smc(
        kernel=SDE, temperature=0.2, restart_at=0.6, particles=2, **OPTIONS
    ),
    # Not adaptive: the share that a bisection finds is float32, and pulls 1e6 times its rounding
    # where a reward is of that scale.
    "guided smc, tempered, funnel": fs.search.smc(
        kernel=GUIDED, temperature=2.0, tempering="exponential", funnel=0.4, **OPTIONS
    ),
    "sop": fs.search.sop(kernel=ODE, start=1, forward=1, backward=2, **OPTIONS),
    "evolution": fs.search.evolution(
        nfe=41, kernel=ODE, grid=GRID, children=3, parents=2, mutate_at=0.9, mutate_until=0.6
    ),
    "zero order": fs.search.zero_order(nfe=41, kernel=ODE, grid=GRID, neighbours=3),
    "epsilon greedy": fs.search.epsilon_greedy(kernel=SDE, neighbours=3, **OPTIONS),
    "dfs": fs.search.dfs(kernel=ODE, check_at=(2,), bar=0.5, **OPTIONS),
    "dts": fs.search.dts(nfe=41, kernel=SDE, grid=GRID, exponent=0.5, width=3, nodes=9),
    "pcn": fs.search.pcn(nfe=41, kernel=ODE, grid=GRID, chains=3),
    "pcn, langevin": fs.search.pcn(
        nfe=41, kernel=ODE, grid=GRID, chains=2, proposal="langevin", clip=1.0
    ),
    "psi": fs.search.psi(kernel=SDE, temperature=0.2, chains=3, **OPTIONS),
    "guided psi": fs.search.psi(
        kernel=GUIDED, temperature=2.0, chains=2, walk=3, clip=1.0, **OPTIONS
    ),
    "guided rbf, improve, heun": fs.search.rbf(
        kernel=GUIDED, width=2, last="improve", finish="heun", **OPTIONS
    ),
    "rbf, quantile, samples": fs.search.rbf(
        kernel=SDE,
        chains=1,
        width=3,
        accept="quantile",
        value="samples",
        value_steps=1,
        value_samples=2,
        **OPTIONS,
    ),
    "guided svdd at some, adams": fs.search.svdd(
        kernel=GUIDED, chains=1, branch_at=(1, 3), finish="adams", **OPTIONS
    ),
    "guided halving, rungs": fs.search.halving(
        nfe=41, kernel=GUIDED, grid=GRID, draft_steps=2, factor=2, rungs=1
    ),
    "glass rbf": fs.search.rbf(kernel=GLASS, chains=1, seeds=2, width=3, **OPTIONS),
    "noise tilt": fs.search.svdd(kernel=fs.kernels.noise_tilt(SDE, 0.3), chains=1, **OPTIONS),
    "guided svdd": fs.search.svdd(kernel=GUIDED, **OPTIONS),
    "halving, drafts of another flow": fs.search.halving(
        nfe=41, kernel=ODE, grid=GRID, draft_steps=2, factor=3, draft_cost=Fraction(2, 5)
    ),
}


@functools.cache
def cheap():
    """Another flow of the problems' particles, with a decoder that is not used."""
    return fs.Flow.from_callable(velocity, {"scale": jnp.float32(0.8)}, (2,))


def also(search):
    """What a run of a search takes beside it."""
    return {} if draft_cost_of(search) is None else {"draft": cheap()}


def computed(search, result):
    """Evaluations that were computed, those of drafts at their price."""
    cost = draft_cost_of(search)
    if cost is None:
        return result.evaluations
    drafts = [math.ceil(cost * int(n)) for n in result.draft_evaluations]
    return result.evaluations + np.asarray(drafts)


def assert_same(one, other, size):
    """The same draws and decisions exactly; values to float32 rounding of sums."""
    counts = ("nfe", "verifier_calls", "t")
    for name in counts:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    np.testing.assert_allclose(one.x, other.x, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(one.image, other.image, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(one.reward / size, other.reward / size, rtol=1e-5, atol=1e-5)
    for name in ("time", "counted", "accepted", "ancestors", "charged", "path_time"):
        a, b = getattr(one.info, name), getattr(other.info, name)
        np.testing.assert_array_equal(a, b, err_msg=name)
