"""A search of one's own: it runs, batches and resumes as any other, or is told what is wrong."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

import flowsde as fs
from flowsde.runner import traced
from flowsde.search import Candidates, Evaluation, Info, Particle, SearchBase

KEY = jax.random.key(8)
LINEAR = fs.interpolants.linear()
DIMENSION = 2
IDS = [5, 3, 8]


def velocity(params, x, t, cond):
    """Under the linear interpolant x0 = x - t v: half of x at t = 1."""
    return 0.5 * x


FLOW = fs.Flow.from_callable(velocity, None, (DIMENSION,))


def reward(images, cond):
    return jnp.sin(3.0 * images[:, 0]) - jnp.square(images[:, 1])


@dataclasses.dataclass(frozen=True)
class Noises(SearchBase):
    """The best of `nfe` draws of noise, `width` at once; its state is one array.

    A row a draw: x, x0, x1, its reward, and whether it is settled.
    """

    nfe: int
    width: int
    interpolant = LINEAR

    @property
    def n_candidates(self):
        return self.width

    @property
    def max_rounds(self):
        return -(-self.nfe // self.width)

    def init(self, key, shape, target_reward, nfe):
        state = jnp.zeros((self.nfe, 3 * DIMENSION + 2), jnp.float32)
        state = state.at[:, :DIMENSION].set(jax.random.normal(key, (self.nfe, DIMENSION)))
        spare = jnp.arange(self.nfe) >= nfe
        return state.at[:, -2].set(-jnp.inf).at[:, -1].set(spare.astype(jnp.float32))

    def _rows(self, state):
        """Of the next draws, and which of them are to be made."""
        first = jnp.argmin(state[:, -1]).astype(jnp.int32)
        rows = first + jnp.arange(self.width, dtype=jnp.int32)
        at = jnp.minimum(rows, self.nfe - 1)
        return at, (rows < self.nfe) & (state[at, -1] == 0.0)

    def ask(self, state):
        at, valid = self._rows(state)
        no = jnp.zeros_like(valid)
        t = jnp.ones(self.width, jnp.float32)
        return state, Candidates(state[at, :DIMENSION], t, valid, no, valid)

    def tell(self, state, candidates, evals):
        at, valid = self._rows(state)
        told = jnp.concatenate(
            [candidates.x, evals.x0, evals.x1, evals.reward[:, None], jnp.ones((self.width, 1))], 1
        ).astype(jnp.float32)
        new = state.at[jnp.where(valid, at, self.nfe)].set(told, mode="drop")
        best = self.best(new)
        return new, Info(
            time=candidates.t,
            reward=jnp.where(valid, evals.reward, -jnp.inf),
            counted=valid,
            accepted=valid & (evals.reward == best.reward),
            ancestors=jnp.argmax(new[:, -2])[None].astype(jnp.int32),
            ess=jnp.ones((), jnp.float32),
            charged=jnp.sum(valid, dtype=jnp.int32),
            best_reward=best.reward,
            path_time=best.t[None],
            path_reward=best.reward[None],
        )

    def done(self, state):
        return jnp.all(state[:, -1] == 1.0)

    def best(self, state):
        row = state[jnp.argmax(state[:, -2])]
        x, x0, x1 = row[: 3 * DIMENSION].reshape(3, DIMENSION)
        return Particle(x, jnp.ones((), jnp.float32), x0, x1, row[-2])

    def path(self, state):
        return jax.tree.map(lambda a: a[None], self.best(state))


SEARCH = Noises(nfe=14, width=4)
OPTIONS: dict[str, Any] = {"prompt_ids": IDS, "nfe": [14, 9, 10]}


def expected():
    """The best reward of each prompt, from draws made here."""
    best = []
    for i, budget in zip(IDS, OPTIONS["nfe"], strict=True):
        x0 = 0.5 * jax.random.normal(jax.random.fold_in(KEY, i), (14, DIMENSION))[:budget]
        best.append(float(jnp.max(reward(x0, None))))
    return best


TRACED = []


class Knob:
    """Compared by identity."""

    turned = 1.0


@dataclasses.dataclass(frozen=True)
class Tuned(Noises):
    """Scales its draws by what an object of its own says."""

    knob: Any

    def ask(self, state):
        TRACED.append(("ask", self.knob.turned))
        state, candidates = super().ask(state)
        return state, candidates._replace(x=self.knob.turned * candidates.x)

    def tell(self, state, candidates, evals):
        TRACED.append(("tell", self.knob.turned))
        return super().tell(state, candidates, evals)


def test_a_search_is_traced_once_for_what_it_is():
    """An object that has changed makes it another, though it is the same and equal to itself."""
    search = Tuned(nfe=4, width=4, knob=Knob())
    state = search.init(KEY, (DIMENSION,), jnp.float32(0.0), jnp.int32(4))
    for turned in (1.0, 0.5):
        search.knob.turned = turned
        for _ in range(2):
            asked = traced.ask(search, state, None)[1]
            np.testing.assert_allclose(asked.x, turned * state[:, :DIMENSION], rtol=1e-6)
            traced.tell(search, state, asked, Evaluation(asked.x, asked.x, jnp.zeros(4)))
    assert TRACED == [(name, turned) for turned in (1.0, 0.5) for name in ("ask", "tell")]


@pytest.mark.slow
def test_it_runs_and_resumes_from_one_bare_array(tmp_path):
    whole = fs.run(KEY, FLOW, SEARCH, reward, **OPTIONS)
    np.testing.assert_allclose(whole.reward, expected(), rtol=1e-5)
    np.testing.assert_array_equal(whole.nfe, OPTIONS["nfe"])
    results = list(fs.iterate(KEY, FLOW, SEARCH, reward, **OPTIONS))
    assert len(results) == 4 and isinstance(results[0].state, jax.Array)
    fs.save_search(tmp_path, SEARCH, results[1])
    saved = fs.restore_search(tmp_path, SEARCH)
    resumed = fs.run(KEY, FLOW, SEARCH, reward, resume=saved, **OPTIONS)
    for result in (results[-1], resumed):
        np.testing.assert_array_equal(result.state, whole.state)
        np.testing.assert_array_equal(result.nfe, whole.nfe)
        np.testing.assert_array_equal(result.info.reward, whole.info.reward)
    with pytest.raises(ValueError, match="resume was begun with another nfe"):
        fs.run(KEY, FLOW, SEARCH, reward, resume=saved, **OPTIONS | {"nfe": 14})
    with pytest.raises(ValueError, match="resume was begun with another key"):
        fs.run(jax.random.key(1), FLOW, SEARCH, reward, resume=saved, **OPTIONS)


@pytest.mark.slow
def test_it_is_packed_and_split():
    found = dict(fs.batch(KEY, FLOW, SEARCH, reward, batch_size=8, **OPTIONS))
    np.testing.assert_allclose([found[i].reward for i in IDS], expected(), rtol=1e-5)
    mesh = jax.make_mesh((1, 2), ("prompt", "particle"), (AxisType.Auto,) * 2)
    split = fs.run(KEY, FLOW, SEARCH, reward, mesh=mesh, **OPTIONS)
    np.testing.assert_allclose(split.reward, expected(), rtol=1e-5)


@dataclasses.dataclass(frozen=True)
class Steady(SearchBase):
    """Asks for all its rows, round after round, and counts the rounds."""

    nfe: int = 40
    rounds: int = 5
    ends: int = 5
    rows: int = 8
    interpolant = LINEAR

    n_candidates = 8

    @property
    def max_rounds(self):
        return self.rounds

    def init(self, key, shape, target_reward, nfe):
        return jnp.zeros((), jnp.int32)

    def ask(self, state):
        every = jnp.ones(self.rows, jnp.bool)
        x, t = jnp.zeros((self.rows, DIMENSION), jnp.float32), jnp.ones(self.rows, jnp.float32)
        return state, Candidates(x, t, every, ~every, every)

    def tell(self, state, candidates, evals):
        n, one = self.rows, jnp.ones((), jnp.float32)
        return state + 1, Info(
            time=candidates.t,
            reward=evals.reward,
            counted=candidates.valid,
            accepted=candidates.valid,
            ancestors=jnp.zeros(1, jnp.int32),
            ess=one,
            charged=jnp.int32(n),
            best_reward=one,
            path_time=one[None],
            path_reward=one[None],
        )

    def done(self, state):
        return state >= self.ends

    def best(self, state):
        x, one = jnp.zeros(DIMENSION, jnp.float32), jnp.ones((), jnp.float32)
        return Particle(x, one, x, x, one)

    def path(self, state):
        return jax.tree.map(lambda a: a[None], self.best(state))


class ToldAlone(Steady):
    def tell(self, state, candidates, evals):
        return state + 1


class AnotherState(Steady):
    def tell(self, state, candidates, evals):
        new, info = super().tell(state, candidates, evals)
        return new.astype(jnp.float32), info


class WordyDone(Steady):
    def done(self, state):
        return state


class Tuples(Steady):
    def ask(self, state):
        state, asked = super().ask(state)
        return state, tuple(asked)


class NoInfo(Steady):
    def tell(self, state, candidates, evals):
        new, info = super().tell(state, candidates, evals)
        return new, info._replace(ess=None)


@dataclasses.dataclass(frozen=True)
class Lacking:
    nfe: int = 3
    interpolant = LINEAR
    uses_gradient = False

    def ask(self, state):
        return state


def hosted(images, cond):
    return np.zeros(len(images), np.float32)


def last(results):
    *_, result = results
    return result


def packed(*args):
    ((_, result),) = fs.batch(*args, prompt_ids=[0], batch_size=8)
    return result


WAYS = {
    "run": fs.run,
    "iterate": lambda *args: last(fs.iterate(*args)),
    "batch": packed,
    "hosted": lambda *args: fs.run(*args[:3], fs.rewards.host(hosted)),
}


@pytest.mark.slow_but_one
@pytest.mark.parametrize("go", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize(
    ("search", "message"),
    [
        (Steady(ends=8, rounds=20), "search Steady charged (48|64) evaluations for a budget of 40"),
        (Steady(ends=2**30), "search Steady is not done after 5 rounds, and its max_rounds is 5"),
        (Steady(rounds=3), "search Steady is not done after 3 rounds, and its max_rounds is 3"),
        (
            Steady(rows=4),
            r"search Steady: what ask returns .*\.x of float32\[8, 2\], got float32\[4",
        ),
        (Steady(rounds=0), "search Steady: max_rounds must be an integer of at least 1, got 0"),
        (ToldAlone(), r"search ToldAlone: tell must return \(state, Info\), got int32\[\]"),
        (AnotherState(), r"search AnotherState: the state that tell .*int32\[\], got float32\[\]"),
        (WordyDone(), r"search WordyDone: what done returns .*bool\[\], got int32\[\]"),
        (Tuples(), "search Tuples: what ask returns must be Candidates, got a tuple of 7"),
        (NoInfo(), "search NoInfo: what tell returns must be Info .*, got Info without ess"),
        (
            Lacking(),
            "search must be .*Search, got Lacking, which lacks n_candidates, max_rounds, "
            "path_name, with_nfe, with_width, init, tell, done, finishing, best, path, lines",
        ),
    ],
)
def test_what_is_wrong_with_it_is_said(go, search, message):
    with pytest.raises((TypeError, ValueError), match=message):
        go(KEY, FLOW, search, reward)


class Wordy(Steady):
    def ask(self, state):
        state, asked = super().ask(state)
        return state, asked._replace(x="x")


def test_what_asks_for_no_arrays_is_named():
    with pytest.raises(TypeError, match=r"(?s)function ask at .*test_own_search.py.*'str'>"):
        fs.run(KEY, FLOW, Wordy(), reward)


class Misspelt(Steady):
    @property
    def path_name(self):
        return self.nmae


def test_a_member_that_raises_is_not_said_to_lack():
    with pytest.raises(TypeError, match="search Misspelt: its path_name raised .* no .* 'nmae'"):
        fs.run(KEY, FLOW, Misspelt(), reward)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoStage(fs.search.GridSearch):
    pass


def test_a_kernel_that_it_cannot_follow_is_named():
    kernel = fs.kernels.ode_adams(LINEAR)
    search = TwoStage(nfe=8, kernel=kernel, grid=tuple(fs.grids.uniform(4)))
    with pytest.raises(ValueError, match="a particle that has no step before, got ODEAdams"):
        fs.run(KEY, FLOW, search, reward)


@pytest.mark.slow_but_one
@pytest.mark.parametrize("go", WAYS.values(), ids=WAYS)
def test_what_keeps_its_bounds_is_let_be(go):
    assert go(KEY, FLOW, Steady(), reward).nfe == 40


@pytest.mark.slow
def test_a_resumed_search_keeps_its_bounds_too():
    search = Steady(ends=7)
    first = next(fs.iterate(KEY, FLOW, search, reward))
    over = functools.partial(fs.run, KEY, FLOW, search, reward)
    with pytest.raises(ValueError, match="charged .* for a budget of 40|not done after"):
        over(resume=first)
