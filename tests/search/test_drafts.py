"""Drafts of another, cheaper flow: against two stages written out, and their account."""

import dataclasses
import functools
import itertools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from methods import ODE, cheap
from problems import GRID, SDE, VP, batch, flow, host_reward, reward, row, tools

import flowsde as fs
from flowsde.search.drafts import price

KEY = jax.random.key(5)
STEPS = len(GRID) - 1
THIRD = float(GRID[1])


def halving(nfe=31, kernel=ODE, grid=GRID, draft_cost=Fraction(2, 5), **options):
    return fs.search.halving(nfe=nfe, kernel=kernel, grid=grid, draft_cost=draft_cost, **options)


def worth(search, legs, counts):
    """What so many trajectories in each leg cost, exactly."""
    whole = sum(n * len(leg) for n, leg in zip(counts[1:], legs[1:], strict=True))
    return search.draft_cost * counts[0] * len(legs[0]) + whole


def shares(search, legs, nfe):
    """How many there are in each leg, by trying."""

    def numbers(drafts):
        return [math.ceil(Fraction(drafts, search.factor**r)) for r in range(len(legs))]

    fitting = itertools.takewhile(
        lambda n: worth(search, legs, numbers(n)) <= nfe, itertools.count(1)
    )
    counts = numbers(max(fitting))
    while counts[-1] < counts[-2]:
        more = [*counts[:-1], counts[-1] + 1]
        if worth(search, legs, more) > nfe:
            break
        counts = more
    return counts


COSTS = [Fraction(1, 4), Fraction(2, 3), 1, 0.3, Fraction(1, 1000), Fraction(999, 1000)]


@pytest.mark.slow_but_one
@pytest.mark.parametrize("draft_cost", COSTS)
def test_the_number_of_drafts_follows_from_the_budget(draft_cost):
    grid = fs.grids.uniform(6)
    search = halving(99, grid=grid, draft_cost=draft_cost, draft_steps=3, factor=4, rungs=1)
    legs = search._legs
    assert legs == ((0, 3, 5), (0, 1, 2, 3), (4, 5)) and search._lengths == [3, 4, 2]
    budgets = np.arange(search._cost(1), 100, dtype=np.int32)
    for nfe, counts in zip(
        budgets.tolist(), jax.jit(jax.vmap(search.trajectories))(budgets).tolist(), strict=True
    ):
        assert counts == shares(search, legs, nfe)
        assert nfe - worth(search, legs, counts) < search.draft_cost * 3 + 6
    with pytest.raises(ValueError, match="less than one draft and its continuation"):
        search.with_nfe(int(budgets[0]) - 1)


def test_huge_budgets_and_prices_are_exact_in_int32():
    search = halving(2**31 - 1, draft_cost=Fraction(997, 1000), draft_steps=3, factor=3)
    drafts, last = search.drafts, 2**31 - 1
    assert search._cost(drafts) <= last < search._cost(drafts + 1)
    counts = [int(n) for n in search.trajectories(jnp.int32(last))]
    assert counts[0] == drafts and worth(search, search._legs, counts) <= last
    for cost, n in itertools.product(map(Fraction, (1, "1/1000", "2/3")), (0, 1, 7, 2**31 - 1)):
        assert int(price(jnp.int32(n), cost)) == price(n, cost) == math.ceil(n * cost)
    # What no int32 counts, no run would take either.
    assert halving(2**31 - 1, draft_cost=Fraction(1, 1000), draft_steps=1).drafts <= 2**31 - 1


def one_by_one(search, legs, nfe, prompt_id, cond, draft):
    """(what the flow scored, counts), each trajectory on its own."""
    noise, move, evaluate = tools(search.solver or search.kernel)
    # Decoded as the flow's.
    own = dataclasses.replace(draft, decode=flow().decode)
    by_draft = reference.evaluator(own, VP, reward)
    key, counts = jax.random.fold_in(KEY, prompt_id), shares(search, legs, nfe)
    scored, slot, going = [], 0, dict.fromkeys(range(counts[0]))
    for r, leg in enumerate(legs):
        starts, ends = {}, {}
        for j, point in going.items():
            for k, i in enumerate(leg):
                if point is None:
                    x = noise(key, j, 0)
                elif r == 1 and k == 0:
                    x = jnp.array(point.x, copy=True)
                else:
                    x = move(key, point, search.grid[i], j, slot + k)
                point = (by_draft if r == 0 else evaluate)(x, search.grid[i], cond)
                if r == 0 and i == search.resumed:
                    starts[j] = point
            ends[j] = point
        if r > 0:
            scored += ends.values()
        slot += len(leg)
        if r + 1 < len(legs):
            best = sorted(ends, key=lambda j, of=ends: (-of[j].reward, j))[: counts[r + 1]]
            going = {j: starts.get(j, ends[j]) for j in sorted(best)}
    return scored, counts


SLOW = pytest.mark.slow
LATER = {"draft_steps": (1, 3, 4), "resume_at": THIRD, "rungs": (3,), "factor": 2}


@pytest.mark.parametrize(
    ("options", "legs", "draft"),
    [
        # The flow itself at its own price, from the noise.
        pytest.param(
            {"draft_steps": 2, "factor": 3, "draft_cost": 1}, [(0, 4), range(5)], flow, marks=SLOW
        ),
        pytest.param({"draft_steps": 3, "factor": 3}, [(0, 2, 4), range(5)], cheap, marks=SLOW),
        pytest.param(
            {**LATER, "kernel": fs.kernels.uni_pc(VP)},
            [(0, 1, 3, 4), (1, 2, 3), (4,)],
            cheap,
            marks=SLOW,
        ),
        pytest.param({**LATER, "kernel": SDE}, [(0, 1, 3, 4), (1, 2, 3), (4,)], cheap, marks=SLOW),
        pytest.param(
            {"draft_steps": 1, "kernel": fs.kernels.ode_adams(VP)},
            [(0,), range(5)],
            cheap,
            marks=SLOW,
        ),
    ],
    ids=["itself", "another", "unipc, resumed later, rungs", "sde, resumed later", "adams, one"],
)
def test_equals_two_stages_followed_one_by_one(options, legs, draft):
    n = 4
    ids, cond = batch(n)
    search = halving(**options)
    assert [tuple(leg) for leg in legs] == list(search._legs)
    result = fs.run(
        KEY, flow(), search, reward, cond=cond, prompt_ids=ids, invalid="warn", draft=draft(),
        chunk_size=1,
    )  # fmt: skip
    for i in range(n):
        scored, counts = one_by_one(search, legs, search.nfe, int(ids[i]), row(cond, i), draft())
        told = [p for p in scored if p.reward > -np.inf]
        best, size = max(told, key=lambda p: (-p.t, p.reward)), cond["size"][i]
        assert result.nfe[i] == math.ceil(worth(search, legs, counts)) <= search.nfe
        assert result.draft_evaluations[i] == counts[0] * len(legs[0])
        assert result.verifier_calls[i] == sum(counts)
        assert result.t[i] == best.t
        np.testing.assert_allclose(
            result.reward[i] / size, best.reward / size, rtol=2e-5, atol=5e-5
        )
        np.testing.assert_allclose(result.x[i], best.x, rtol=1e-4, atol=1e-4)


def far(params, x, t, cond):
    """Of data at one place, 100 in each dimension."""
    return (x - 100.0) / t[:, None]


def total(images, cond):
    return jnp.sum(images, axis=-1)


def with_far_drafts(search, **options):
    ids, cond = batch(2)
    common = {"cond": cond, "prompt_ids": ids, "draft": fs.Flow.from_callable(far, None, (2,))}
    return (KEY, flow(), search, total), {**common, "target_reward": 300.0, **options}


@pytest.mark.slow
def test_a_draft_is_never_the_answer():
    """Nor enough for a target, though its reward is beyond all others."""
    args, options = with_far_drafts(halving(draft_steps=STEPS, factor=3))
    result = fs.run(*args, **options)
    info = result.info
    assert len(info.time) == 2 * STEPS and np.all(info.reward[STEPS - 1].max(-1) > 300.0)
    assert np.all(np.isneginf(info.best_reward[: 2 * STEPS - 1]))
    np.testing.assert_array_equal(info.draft_evaluations.sum(-1) > 0, np.arange(2 * STEPS) < STEPS)
    np.testing.assert_array_equal(info.evaluations.sum(-1) > 0, np.arange(2 * STEPS) >= STEPS)
    assert np.all(result.reward < 50.0) and np.all(result.t == np.float32(GRID[4]))
    x0, _ = flow().means(result.x, result.t, options["cond"], VP)
    np.testing.assert_allclose(result.x0, x0, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_saved_among_drafts_it_goes_on_to_the_same_answer(tmp_path):
    """None of the drafts is kept beside it."""
    search = fs.search.keep(halving(draft_steps=STEPS, factor=3), 3)
    args, options = with_far_drafts(search)
    rounds = list(fs.iterate(*args, **options))
    kept = rounds[-1].kept.reward
    assert np.all(np.isfinite(kept[:, 0])) and np.all(kept < 50.0)
    for k in (2, STEPS - 1, STEPS + 2):
        fs.save_search(tmp_path / str(k), search, rounds[k])
        saved = fs.restore_search(tmp_path / str(k), search)
        *_, resumed = fs.iterate(*args, **options, resume=saved)
        for name in ("x", "x0", "reward", "nfe", "evaluations", "draft_evaluations"):
            np.testing.assert_array_equal(getattr(resumed, name), getattr(rounds[-1], name), name)
        logs = (r.info._replace(seconds=None) for r in (resumed, rounds[-1]))
        jax.tree.map(np.testing.assert_array_equal, *logs)
    plain = fs.search.keep(fs.search.halving(nfe=31, kernel=ODE, grid=GRID), 3)
    del options["draft"]
    with pytest.raises(ValueError, match="resume is of another search"):
        fs.run(KEY, flow(), plain, total, **options, resume=rounds[2])


@pytest.mark.slow
def test_packed_into_batches_it_is_each_prompt_alone_bit_for_bit():
    """Of both flows in one batch; with rewards outside JAX to rounding."""
    n = 6
    ids, cond = batch(n)
    budgets = np.asarray([31, 19, 25, 31, 22, 29])
    options = {"draft": cheap(), "target_reward": 0.4}
    search = halving(draft_steps=2, factor=3)
    packed = fs.batch(
        KEY, flow(), search, reward, cond=cond, prompt_ids=ids, nfe=budgets, batch_size=8, **options
    )
    found, drafts = dict(packed), 0
    for i in range(n):
        alone = fs.run(
            KEY, flow(), search, reward, cond=row(cond, [i]), prompt_ids=ids[i : i + 1],
            nfe=int(budgets[i]), chunk_size=8, **options,
        )  # fmt: skip
        one = found[int(ids[i])]
        for name in ("x", "x0", "image", "t", "reward", "nfe", "verifier_calls"):
            np.testing.assert_array_equal(getattr(one, name), getattr(alone, name)[0], name)
        charged = price(one.draft_evaluations, search.draft_cost)
        assert one.nfe == one.evaluations + charged
        drafts += charged
    hosted = fs.batch(
        KEY, flow(), search, fs.rewards.host(host_reward), cond=cond, prompt_ids=ids, nfe=budgets,
        batch_size=8, **options,
    )  # fmt: skip
    for i, one in hosted:
        assert (one.nfe, one.draft_evaluations) == (found[i].nfe, found[i].draft_evaluations)
        np.testing.assert_allclose(one.x, found[i].x, rtol=1e-5, atol=1e-5)
    totals = packed.totals
    assert (totals.draft_nfe, totals.surplus) == (drafts, 0)
    assert totals.evaluations + totals.draft_nfe == totals.nfe + totals.padding
    computed = sum(one.draft_evaluations for one in found.values())
    assert totals.draft_evaluations >= computed and totals.occupancy <= 1.0


SEEN = {"flow": 0, "draft": 0}


def counting(who, params, x, t, cond):
    jax.debug.callback(lambda t: SEEN.update({who: SEEN[who] + t.shape[0]}), t)
    return params * x + cond[:, None]


VELOCITY = {who: functools.partial(counting, who) for who in SEEN}


def counted_flow(who, guided):
    inner = fs.Flow.from_callable(VELOCITY[who], jnp.float32(0.7), (2,))
    return fs.guide(inner, 2.0, jnp.float32(0.0)) if guided else inner


def wave(images, cond):
    return jnp.sin(3.0 * jnp.sum(images, axis=-1))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_random_settings_are_charged_what_both_models_see(seed):
    rng = np.random.default_rng(seed)
    steps, q = int(rng.integers(2, 6)), int(rng.integers(2, 13))
    search = halving(
        90, grid=fs.grids.uniform(steps), kernel=(SDE, ODE)[seed % 2],
        draft_cost=Fraction(int(rng.integers(1, q + 1)), q), factor=int(rng.integers(1, 6)),
        draft_steps=int(rng.integers(1, steps + 1)), resume_at=float(rng.choice([1.0, 0.5])),
    )  # fmt: skip
    flow, draft = counted_flow("flow", seed in (1, 3)), counted_flow("draft", seed in (2, 3))
    cost, each, legs = flow.evaluations, draft.evaluations, search._legs
    common = {"cond": np.linspace(-1, 1, 3).astype(np.float32), "prompt_ids": np.arange(3)}
    least = cost * search._cost(1)
    for nfe in [least, 90, *rng.integers(least, 90, 3).tolist()]:
        target = None if nfe % 3 else 0.9
        options = {**common, "nfe": nfe, "target_reward": target, "draft": draft}
        for size in (1, None):
            SEEN.update(flow=0, draft=0)
            result = fs.run(KEY, flow, search, wave, chunk_size=size, **options)
            jax.effects_barrier()
            assert SEEN["flow"] == np.sum(result.evaluations)
            assert SEEN["draft"] == np.sum(result.draft_evaluations)
            np.testing.assert_array_equal(cost * result.info.charged.sum(0), result.nfe)
            computed = result.info.draft_evaluations.sum(0)
            np.testing.assert_array_equal(computed, result.draft_evaluations)
            counts = shares(search, legs, nfe // cost)
            exact = worth(search, legs, counts)
            assert nfe // cost - exact < search.draft_cost * len(legs[0]) + sum(map(len, legs[1:]))
            if target is None:
                np.testing.assert_array_equal(result.nfe, cost * math.ceil(exact))
            if size == 1:
                drafts = np.asarray(result.draft_evaluations) // each
                np.testing.assert_array_equal(drafts, counts[0] * len(legs[0]))
                charged = [cost * price(int(n), search.draft_cost) for n in drafts]
                np.testing.assert_array_equal(result.nfe, result.evaluations + charged)


@functools.cache
def places():
    """Of 16 in eight dimensions, and one to come close to."""
    rng = np.random.default_rng(0)
    means, off = (rng.normal(size=(16, 8)).astype(np.float32) for _ in range(2))
    return means, off, rng.normal(size=8).astype(np.float32)


def close(images, cond):
    return -jnp.sum(jnp.square(images - places()[2][None]), axis=-1)


@pytest.mark.slow
def test_a_biased_flow_at_a_quarter_of_the_cost_beats_others_at_equal_budgets():
    """Places off by 0.15 and a variance twice as large: paired intervals over 600 prompts.

    All were tuned alike on others: Best-of-N had seven numbers of steps, and two were best; drafts
    had four numbers of steps, and three or four shares that go on.
    """
    means, off, _ = places()
    full = fs.analytic.mixture(np.full(16, 1 / 16), means, 0.05).flow()
    draft = fs.analytic.mixture(np.full(16, 1 / 16), means + 0.15 * off, 0.1).flow()
    linear = fs.kernels.ode_euler(fs.interpolants.linear())
    options = {"nfe": 80, "kernel": linear}
    drafts = options | {"grid": fs.grids.uniform(10), "draft_steps": 3, "factor": 30}

    def found(search, **also):
        result = fs.run(KEY, full, search, close, prompt_ids=np.arange(600), **also)
        assert np.all(result.nfe <= 80)
        return np.asarray(result.reward)

    drafted = found(fs.search.halving(**drafts, draft_cost=0.25), draft=draft)
    for other in (
        fs.search.bon(**options, grid=fs.grids.uniform(2)),
        fs.search.halving(**drafts),
    ):
        gain = drafted - found(other)
        assert np.mean(gain) - 1.96 * np.std(gain, ddof=1) / np.sqrt(gain.size) > 0.0, other


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"draft_cost": 0.0}, ValueError, "draft_cost must be a number from 1/1000 to 1, got 0.0"),
        ({"draft_cost": 1.5}, ValueError, "draft_cost must be a number from 1/1000 to 1, got 1.5"),
        ({"draft_cost": float("nan")}, ValueError, "draft_cost must be .*, got nan"),
        ({"draft_cost": "1/4"}, TypeError, "draft_cost must be .*, got '1/4'"),
        ({"draft_cost": True}, TypeError, "draft_cost must be .*, got True"),
        ({"draft_steps": 0}, ValueError, "draft_steps must be an integer of at least 1, got 0"),
        (
            {"kernel": fs.kernels.guided(SDE, temperature=1.0)},
            ValueError,
            "kernel Guided takes more of the model than means, which drafts of another flow",
        ),
        ({"kernel": fs.kernels.glass(VP, 2)}, ValueError, "kernel GLASS takes more of the model"),
        ({"nfe": 6, "draft_steps": 3}, ValueError, "nfe = 6 is .* which take 7 evaluations"),
    ],
)
def test_errors_of_the_search_name_the_argument(options, error, message):
    with pytest.raises(error, match=message):
        halving(**options)
    assert halving(draft_cost=np.float32(0.3)).draft_cost == Fraction(3, 10)
    assert halving(rungs=1).draft == (0, 4)


def test_errors_of_a_run_name_the_argument():
    ids, cond = batch(2)
    bon = fs.search.bon(nfe=31, kernel=ODE, grid=GRID)
    wrong = fs.Flow.from_callable(far, None, (3,))
    null = jax.tree.map(jnp.asarray, cond)
    for search, draft, more, error, message in (
        (
            halving(),
            None,
            {},
            ValueError,
            "draft is missing: search SuccessiveHalving with draft",
        ),
        (bon, cheap(), {}, ValueError, "draft was given, and search BestOfN takes no drafts"),
        (halving(), flow, {}, TypeError, "draft must be a flowsde.Flow, got function"),
        (halving(), wrong, {}, ValueError, r"draft must be of shape \(2,\), as flow is, got \(3,"),
        (halving(), fs.guide(cheap(), 2.0, null), {}, ValueError, "null_cond of each prompt bel"),
    ):
        for go in (fs.run, fs.iterate, fs.batch):
            with pytest.raises(error, match=message):
                go(
                    KEY, flow(), search, reward, cond=cond, prompt_ids=ids, draft=draft, **more
                )  # fmt: skip
