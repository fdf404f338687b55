"""`flowsde.tune`."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flowsde._checks import check_count
from flowsde._keys import as_key
from flowsde._version import __version__
from flowsde.conds import Cond, check_arrays, check_cond
from flowsde.flow import Flow
from flowsde.runner.arguments import AT_ONCE
from flowsde.runner.clock import check_seconds
from flowsde.runner.identity import of_run
from flowsde.tuning.carry_out import Plan, beforehand, carry_out
from flowsde.tuning.ledger import Ledger
from flowsde.tuning.measure import Heldout, Subject, probe
from flowsde.tuning.prices import MOST, Timed
from flowsde.tuning.progress import Progress, Tell, quiet
from flowsde.tuning.settings import Setting
from flowsde.tuning.space import BASELINE, declared, unique
from flowsde.tuning.split import split
from flowsde.tuning.tuned import Tuned


def tune(
    key: jax.Array,
    flow: Flow,
    reward: Any,
    *,
    nfe: int | None = None,
    seconds: float | None = None,
    cond: Cond = None,
    reward_cond: Any = None,
    prompts: Sequence[str] | None = None,
    seeds: int | None = None,
    methods: Sequence[str] | None = None,
    settings: Sequence[Setting] | None = None,
    diagnose: bool = True,
    target_reward: float | None = None,
    heldout: Heldout | None = None,
    chunk_size: int | None = None,
    save: str | Path | None = None,
    tell: Tell = quiet,
) -> Tuned:
    """Which search for this model, this reward, these prompts and this budget?

    Settings (method, kernel, interpolant, grid, steps, chains, rule of acceptance, value,
    temperature) race each other by successive halving on one half of prompts x seeds; what a
    diagnosis says cannot help does not race. The best, what is recommended where nothing was tuned
    and the best of several Best-of-N are then compared on the other half. What is not surely better
    there than what is recommended does not take its place, and what is not surely better than
    Best-of-N is not used. `flowsde.tuning.split` says which half is which.

    Args:
      key: a JAX random key; see `flowsde.run`.
      flow: the model.
      reward: as for `flowsde.run`, in JAX or outside.
      nfe: budget of each search, in model evaluations.
      seconds: budget of each search instead, verifier included, run by itself on this device. What
        settings take is timed first, as `flowsde.run` times it, and turned into evaluations, at
        most 2000, with which they race: see `flowsde.tuning.prices`.
      cond: with leading axis P, the prompts; None for one prompt that is told nothing.
      reward_cond: what the reward is told instead, with leading axis P, or a list of P objects.
      prompts: P texts, by which the file knows the prompts again beside their cond.
      seeds: searches of each prompt in a half; as many as make 24 in all by default.
      methods: that race beside Best-of-N, by name; all by default.
      settings: that race instead of `flowsde.tuning.space.declared`; Best-of-N's are added if
        there are none.
      diagnose: whether to leave out what a diagnosis says cannot help.
      target_reward: compare shares of searches that reach this reward, at which a search stops,
        instead of mean rewards.
      heldout: ``heldout(images, prompts) -> [n]``, a score of pictures, NumPy, and their prompts'
        numbers: asked in the final comparison, reported, and nothing is chosen by it.
      chunk_size: candidates evaluated at once; see `flowsde.run`. Searches by themselves are timed
        with 32 at most.
      save: file of what is measured, written after every block; the same call again goes on.
      tell: called with a `flowsde.tuning.progress.Progress` before any work, which says how many
        settings race and what that takes at most, and around each block of searches.

    Returns:
      A `flowsde.tuning.tuned.Tuned`: the search, `save_preset`, `report` and `figure`.

    Raises:
      ValueError, TypeError: naming the argument, before any work; the file is of another tuning;
        the budget is too small for Best-of-N (of seconds, once that was timed); no setting has a
        finite reward.
      RewardError: a reward outside JAX failed.

    Example:
      >>> from flowsde.tuning.settings import Setting
      >>> flow = fs.analytic.gaussian([0.0, 0.0], 1.0).flow()
      >>> reward = lambda images, cond: images[:, 0]
      >>> path = {"interpolant": "linear", "kernel": "ode_euler", "grid": "uniform"}
      >>> # Without `settings` all methods race, for minutes.
      >>> settings = [Setting.of("bon", **path, steps=steps) for steps in (2, 4)]
      >>> tuned = fs.tune(jax.random.key(0), flow, reward, nfe=16, settings=settings)
      >>> tuned.setting.method, tuned.search.nfe
      ('bon', 16)
    """
    key, seconds = as_key(key), check_seconds(seconds, nfe)
    if seconds is None:
        if nfe is None:
            raise TypeError("a budget is missing, expected nfe or seconds")
        nfe = check_count("nfe", nfe)
    many = _many(cond, reward_cond, prompts)
    halves = split(many, seeds)
    tried = _tried(methods, settings)
    if target_reward is not None and not math.isfinite(target_reward):
        raise ValueError(f"target_reward must be a finite number, got {target_reward}")
    subject = Subject(
        key, flow, reward, cond, reward_cond, many, chunk_size, target_reward, heldout
    )  # fmt: skip
    plan = Plan(
        subject=subject,
        split=halves,
        nfe=nfe,
        methods=methods,
        settings=None if settings is None else tried,
        search_of=Setting.search,
        diagnose=diagnose,
        timed=None if seconds is None else _timed(seconds, chunk_size),
    )
    about = {
        "budget": plan.budget,
        "prompts": list(prompts) if prompts is not None else many,
        "seeds": halves.seeds,
        "methods": sorted({setting.method for setting in tried}),
        "settings": [setting.name for setting in tried],
        "target_reward": target_reward,
        "diagnose": diagnose,
        **identity(subject),
    }
    ledger = Ledger(None if save is None else Path(save), about, probe(subject))
    tell(Progress(0, 0, beforehand(plan), math.nan))
    try:
        return carry_out(plan, ledger, tell)
    finally:
        # The programs of a race fill most of what a process may map: another would have no room.
        jax.clear_caches()


def _timed(seconds: float, chunk_size: int | None) -> Timed:
    """Searches by themselves, as a run with seconds has them, or of fewer candidates at once."""
    at_once = AT_ONCE if chunk_size is None else min(check_count("chunk_size", chunk_size), AT_ONCE)
    return Timed(seconds, lambda setting: setting.search(MOST), at_once)


def identity(subject: Subject) -> dict[str, Any]:
    """What a ledger knows a subject by, beside the numbers of its probe."""
    sums = of_run(declared(())[0].search(100), subject.cond, subject.prompts)
    return {
        "cond": None if sums is None else sums.tolist(),
        "key": np.asarray(jax.random.key_data(subject.key)).tolist(),
        "version": __version__,
    }


def _tried(methods: Any, settings: Sequence[Setting] | None) -> tuple[Setting, ...]:
    """All settings but for their temperatures."""
    if settings is None:
        return declared(methods)
    if methods is not None:
        raise ValueError(f"methods has no effect with settings, got {methods!r}")
    for setting in settings:
        if not isinstance(setting, Setting):
            raise TypeError(f"settings must be flowsde.tuning Settings, got {setting!r}")
    unique(settings)
    baseline = () if any(s.method == BASELINE for s in settings) else declared(())
    return (*baseline, *settings)


def _many(cond: Cond, reward_cond: Any, prompts: Sequence[str] | None) -> int:
    """The number of prompts, if all say the same."""
    check_arrays("cond", cond)
    leaves = jax.tree.leaves(cond)
    first: Callable[[Any], int] = lambda a: np.shape(a)[0] if np.ndim(a) else 1  # noqa: E731
    if prompts is not None:
        many = len(prompts)
    elif leaves:
        many = first(leaves[0])
    elif isinstance(reward_cond, list):
        many = len(reward_cond)
    else:
        told = jax.tree.leaves(reward_cond)
        many = first(told[0]) if told else 1
    check_count("the number of prompts", many)
    check_cond(cond, many, "prompts")
    if isinstance(reward_cond, list):
        if len(reward_cond) != many:
            raise ValueError(f"reward_cond is a list of {len(reward_cond)}, expected {many}")
    elif reward_cond is not None:
        check_cond(reward_cond, many, "prompts", "reward_cond")
    return many
