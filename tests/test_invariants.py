"""`check_search` names what a search does not keep; those of the package keep it by other tests."""

import dataclasses

import jax.numpy as jnp
import pytest

import flowsde as fs
from flowsde import invariants


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wrong(fs.search.BestOfN):
    """Has its whole budget whatever a prompt's is, and says that its answer is worth more."""

    def init(self, key, shape, target_reward, nfe):
        return super().init(key, shape, target_reward, jnp.int32(self.nfe))

    def best(self, state):
        found = super().best(state)
        return found._replace(reward=found.reward + 1.0)


@pytest.mark.slow
def test_what_does_not_hold_is_named():
    kernel, grid = fs.kernels.ode_euler(fs.interpolants.linear()), fs.grids.uniform(4)
    right = fs.search.bon(nfe=24, kernel=kernel, grid=grid)
    fields = {field.name: getattr(right, field.name) for field in dataclasses.fields(right)}
    told = []
    checked = fs.check_search(Wrong(**fields), tell=told.append)
    assert "\n".join(told) == str(checked)
    assert set(checked.failed) == {
        "the answer is worth its reward",
        "a prompt of a smaller budget is a smaller search",
    }
    assert "FAILS  the answer is worth its reward: reward is [" in str(checked)
    assert "holds  chunks change nothing" in str(checked)


def of(kind, nfe=24):
    kernel, grid = fs.kernels.ode_euler(fs.interpolants.linear()), fs.grids.uniform(4)
    right = fs.search.bon(nfe=nfe, kernel=kernel, grid=grid)
    return kind(**{field.name: getattr(right, field.name) for field in dataclasses.fields(right)})


def checked_for(monkeypatch, names, search):
    """Of some properties alone: each is of programs of its own."""
    chosen = {name: check for name, check in invariants._CHECKS.items() if name in names}
    assert len(chosen) == len(names)
    monkeypatch.setattr(invariants, "_CHECKS", chosen)
    return fs.check_search(search, prompts=2, tell=None)


TARGET = "a target that is reached ends the search"
SVDD = fs.search.svdd(
    nfe=24, kernel=fs.kernels.ddim(fs.interpolants.linear()), grid=fs.grids.uniform(4),
    finish="mean",
)  # fmt: skip


class Deaf(fs.search.BestOfN):
    """Goes on for its whole budget, whatever is reached."""

    def init(self, key, shape, target_reward, nfe):
        return super().init(key, shape, jnp.float32(jnp.inf), nfe)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "wrong"), [(Deaf, [TARGET]), (fs.search.BestOfN, [])])
def test_a_search_that_ignores_its_target(monkeypatch, kind, wrong):
    search = of(kind).replace(width=1)
    checked = checked_for(monkeypatch, [TARGET], search)
    assert list(checked.failed) == wrong
    if wrong:  # 6 samples of 4 evaluations, and the first has the reward
        assert "expected at most [" in checked.failed[TARGET]
        assert checked.failed[TARGET].startswith("[24, 24] evaluations are charged")


class Hasty(type(SVDD)):
    """Ends with any mean that reaches the target."""

    def done(self, state):
        return super().done(state) | (state.champion.reward >= state.target)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "early", "wrong"),
    [(Hasty, False, [TARGET]), (Hasty, True, []), (type(SVDD), False, [])],
)
def test_a_search_that_ends_with_a_mean(monkeypatch, kind, early, wrong):
    fields = {field.name: getattr(SVDD, field.name) for field in dataclasses.fields(SVDD)}
    search = kind(**fields | {"early_answers": early})
    checked = checked_for(monkeypatch, [TARGET], search)
    assert list(checked.failed) == wrong
    if wrong:
        assert "above the grid's last time, 0.25" in checked.failed[TARGET]


class Raising(fs.search.BestOfN):
    def ask(self, state):
        raise KeyError("own")


class Uncounted(fs.search.BestOfN):
    """Charges a round twice as much as it counts."""

    def tell(self, state, candidates, evals):
        state, info = super().tell(state, candidates, evals)
        return state, info._replace(charged=2 * info.charged)


@pytest.mark.slow_but_one
@pytest.mark.parametrize("kind", [Raising, Uncounted])
def test_what_is_wrong_with_the_plain_run_is_said_once(kind):
    told = []
    checked = fs.check_search(of(kind), prompts=2, tell=told.append)
    (said,) = checked.failed.values()
    assert said == "KeyError: 'own'" if kind is Raising else "charge" in said
    assert set(checked.found) == set(checked.failed)
    assert TARGET in checked.untried
    assert told == str(checked).splitlines()
    assert told[0].startswith("FAILS  ") and told[1] == f"not tried  {TARGET}"
    assert not any(line.startswith("holds") for line in told)


@pytest.mark.slow
def test_that_rewards_are_nan_is_no_news(monkeypatch, recwarn):
    def nothing(points, place):
        return jnp.full(points.shape[0], jnp.nan)

    monkeypatch.setattr(invariants, "_with_holes", nothing)
    checked = checked_for(monkeypatch, ["NaN is no reward"], of(fs.search.BestOfN))
    assert not checked.failed
    assert not recwarn.list


def test_one_prompt_has_no_others():
    kernel, grid = fs.kernels.ode_euler(fs.interpolants.linear()), fs.grids.uniform(4)
    with pytest.raises(ValueError, match="prompts must be"):
        fs.check_search(fs.search.bon(nfe=24, kernel=kernel, grid=grid), prompts=1)
