"""Random numbers belong to particles: each draw is the same, bit for bit, however a search is run.

With a kernel whose child is its noise and a flow whose velocity is 0, what the model is asked about
are the draws themselves (for Search over Paths, sums of them).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import GRID, batch, reward, row

import flowsde as fs

KEY = jax.random.key(8)
PROMPTS = 8


@dataclasses.dataclass(frozen=True)
class PureNoise(fs.kernels.Kernel):
    def moments(self, x, x0, x1, t, s):
        return jnp.zeros_like(x), jnp.ones((), jnp.float32)


OPTIONS = {"nfe": 30, "grid": GRID, "kernel": PureNoise(fs.interpolants.linear())}
METHODS = {
    "bon": fs.search.bon(width=3, **OPTIONS),
    "halving": fs.search.halving(factor=2, draft_steps=2, **OPTIONS),
    "lidar": fs.search.lidar(draft_steps=2, trajectories=1, **OPTIONS),
    "rbf": fs.search.rbf(chains=2, width=3, finish="mean", **OPTIONS),
    "svdd": fs.search.svdd(finish="mean", **OPTIONS),
    "code": fs.search.code(block=2, finish="mean", **OPTIONS),
    "smc": fs.search.smc(temperature=0.2, finish="mean", **OPTIONS),
    "zero_order": fs.search.zero_order(neighbours=2, **OPTIONS),
    "epsilon_greedy": fs.search.epsilon_greedy(neighbours=2, finish="mean", **OPTIONS),
    "dfs": fs.search.dfs(check_at=(2,), finish="mean", **OPTIONS),
    "dts": fs.search.dts(exponent=0.5, width=2, **OPTIONS),
    "psi": fs.search.psi(temperature=0.2, chains=2, finish="mean", **OPTIONS),
    "evolution": fs.search.evolution(children=3, **OPTIONS),
    "sop": fs.search.sop(start=1, forward=1, backward=2, finish="mean", **OPTIONS),
}


@pytest.fixture(scope="module", params=METHODS.values(), ids=METHODS)
def search(request):
    return request.param


class Asked:
    """A flow that notes the (prompt, time, point) of every row its model computes."""

    def __init__(self):
        self.rows = set()
        self.flow = fs.Flow.from_callable(self.velocity, {}, (2,))

    def velocity(self, params, x, t, cond):
        jax.debug.callback(self.note, x, t, cond["phase"])
        return jnp.zeros_like(x)

    def note(self, x, t, prompt):
        for one in zip(np.asarray(prompt), np.asarray(t), np.asarray(x), strict=True):
            self.rows.add(tuple(part.tobytes() for part in one))


def asked(search, go=fs.run, some=slice(None), **options):
    ids, cond = batch(PROMPTS)
    model = Asked()
    result = go(KEY, model.flow, search, reward, cond=row(cond, some),
                prompt_ids=ids[some], **options)  # fmt: skip
    if go is fs.iterate:
        *_, result = result
    jax.effects_barrier()
    return model.rows, result


@pytest.mark.slow
def test_draws_are_the_same_bits_however_a_search_is_run(search):
    # In chunks of one row, the model sees what is asked of it and nothing else.
    draws, result = asked(search, chunk_size=1)
    assert len(draws) == np.sum(result.evaluations) > PROMPTS * len(GRID)
    meshes = [
        jax.make_mesh(sizes, ("prompt", "particle"), (jax.sharding.AxisType.Auto,) * 2)
        for sizes in ((4, 1), (2, 2))
    ]
    for rows, _ in (
        asked(search, go=fs.iterate, chunk_size=7),
        *(asked(search, mesh=mesh) for mesh in meshes),
    ):
        assert draws <= rows
    _, cond = batch(PROMPTS)
    for some in (slice(2, 3), slice(0, 7)):
        own = {np.asarray(phase).tobytes() for phase in cond["phase"][some]}
        rows, _ = asked(search, some=some)
        assert {draw for draw in draws if draw[0] in own} <= rows
