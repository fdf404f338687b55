"""When a chain of RBF goes on: each rule against plain Python, and its invariances."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from problems import GRID, SDE, accepted_path, batch, flow, reward, row, tools

import flowsde as fs
from flowsde.search.rbf.acceptance import Calibrated, Quantile, Siblings, Step

KEY = jax.random.key(4)
COUNT = 12
EXACT = 2e-5
BARS = (-0.2, 0.1, 0.3, 0.6)
RULES = {
    "calibrated": (("calibrated", None), {"accept": "calibrated"}),
    "quantile": (("quantile", None), {"accept": "quantile"}),
    "median": (("quantile", 0.5), {"accept": "quantile", "quantile": 0.5}),
    "threshold": (("threshold", BARS), {"accept": "threshold", "bar": BARS}),
    "improve at some": (("improve", None), {"branch_at": (1, 3)}),
    "calibrated at some": (("calibrated", None), {"accept": "calibrated", "branch_at": (2, 3)}),
}


def search(options, width=1, nfe=53, last="exhaust"):
    return fs.search.rbf(
        nfe=nfe, kernel=SDE, grid=GRID, chains=2, seeds=2, width=width, last=last, finish="mean",
        **options,
    )  # fmt: skip


@functools.cache
def run(name, width, target=None, last="exhaust"):
    ids, cond = batch(COUNT)
    problem = search(RULES[name][1], width, last=last)
    return fs.run(KEY, flow(), problem, reward, cond=cond, prompt_ids=ids, target_reward=target)


def check_against_reference(name, result, target, last):
    ids, cond = batch(COUNT)
    problem = search(RULES[name][1], last=last)
    for i in range(COUNT):
        best, accepted, charged = reference.rbf(
            problem, KEY, int(ids[i]), row(cond, i), *tools(), np.inf if target is None else target,
            rule=RULES[name][0],
        )  # fmt: skip
        assert int(result.nfe[i]) == charged
        scale = EXACT * cond["size"][i]
        np.testing.assert_allclose(result.reward[i], best.reward, rtol=EXACT, atol=scale)
        np.testing.assert_allclose(result.x[i], best.x, rtol=1e-4, atol=1e-4)
        assert float(result.t[i]) == float(best.t)
        if target is None:
            for c, points in enumerate(accepted):
                path = accepted_path(result.info, i, c)
                assert list(path) == [float(p.t) for p in points]
                expected = [p.reward for p in points]
                np.testing.assert_allclose(list(path.values()), expected, rtol=EXACT, atol=scale)


FAST = ("quantile", "threshold", "calibrated at some")
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in RULES if name not in FAST]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FAST, *SLOW])
def test_equals_the_rule_one_draw_at_a_time(name):
    result = run(name, 3)
    check_against_reference(name, result, None, "exhaust")
    np.testing.assert_array_equal(result.nfe, 53)


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("last", ["exhaust", "improve"])
def test_width_changes_neither_answer_nor_charge(name, last):
    for target in (None, 0.5):
        narrow = run(name, 1, target, last)
        check_against_reference(name, narrow, target, last)
        wide = run(name, 7, target, last)
        np.testing.assert_array_equal(wide.nfe, narrow.nfe)
        np.testing.assert_array_equal(wide.t, narrow.t)
        np.testing.assert_allclose(wide.x, narrow.x, rtol=1e-4, atol=1e-4)
        assert np.all(np.asarray(wide.nfe) <= 53)


@pytest.mark.slow
def test_rules_end_steps_differently():
    """Else the tests above would not tell them apart."""
    draws = {tuple(np.asarray(run(name, 3).info.ancestors).ravel()) for name in RULES}
    assert len(draws) == len(RULES)


def told(rewards):
    siblings = Siblings.none()
    for r in rewards:
        siblings = siblings.add(jnp.float32(r), jnp.asarray(True))
    return siblings


def step(incumbent, parent, quota=10):
    return Step(jnp.int32(1), jnp.int32(quota), jnp.float32(incumbent), jnp.float32(parent))


@pytest.mark.slow
def test_bars_by_hand():
    """Siblings 1, 2, 3 of a parent of 0.5: a gain of 1.5; a normal law of mean 2, deviation 1."""
    siblings = told([1.0, -np.inf, 2.0, 3.0])
    assert Calibrated().bar(step(4.0, 0.5), siblings) == 5.5
    assert Calibrated().bar(step(4.0, 0.5), told([])) == np.inf
    assert Calibrated().bar(step(4.0, -np.inf), siblings) == 4.0
    assert Calibrated().carried(step(4.0, 0.5), siblings) == 5.5
    for quota, z in ((2, 0.0), (40, 1.959964)):  # Phi(1.96) = .975
        bar = Quantile().bar(step(0.0, 0.0, quota), siblings)
        np.testing.assert_allclose(bar, 2.0 + z, rtol=1e-6)
    np.testing.assert_allclose(Quantile(q=0.8413447).bar(step(0, 0), siblings), 3.0, rtol=1e-6)
    assert Quantile().bar(step(0.0, 0.0), told([1.0])) == np.inf


@pytest.mark.slow
def test_a_quantile_of_a_known_law_spends_its_quota():
    """The first of independent draws above the 1 - 1/Q quantile is draw Q on average."""
    quota, rng = 8, np.random.default_rng(0)
    known = told(rng.normal(size=400))
    bar = float(Quantile().bar(step(0.0, 0.0, quota), known))
    draws = rng.normal(size=(20_000, 100)) > bar
    mean = np.where(draws.any(1), draws.argmax(1) + 1, 100).mean()
    assert abs(mean - quota) < 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accept": "best"}, "accept must be one of improve, calibrated, quantile, threshold, got"),
        ({"accept": "threshold"}, "bar is missing"),
        ({"accept": "threshold", "bar": (0.1, 0.2)}, "bar must be one number or one for each of 4"),
        ({"accept": "threshold", "bar": np.nan}, "bar must be a number, got nan"),
        ({"bar": 0.3}, "bar is of accept 'threshold', got 0.3 with 'improve'"),
        ({"accept": "quantile", "quantile": 1.0}, "quantile must lie within 0 and 1, got 1.0"),
        ({"quantile": 0.5}, "quantile is of accept 'quantile', got 0.5 with 'improve'"),
        (
            {"accept": "quantile", "allocation": "reserve"},
            "allocation 'reserve' is the public code's and takes no accept, got 'quantile'",
        ),
    ],
)
def test_what_is_wrong_is_said(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        search(options)
