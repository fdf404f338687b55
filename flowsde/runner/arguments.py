"""The arguments of a run, checked before any work."""

import dataclasses
import reprlib
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from flowsde._checks import MOST, check_integers
from flowsde._explain import name_of, noted
from flowsde._keys import as_key
from flowsde._static import check_static
from flowsde.changed import warn_if_changed
from flowsde.classifier_free import with_own_nulls
from flowsde.conds import Cond, Held, Told, as_host_arrays, for_model, for_reward, of_each_prompt
from flowsde.flow import Flow, check_flow
from flowsde.flow import exact as exact_flow
from flowsde.fresh import warn_if_written_anew
from flowsde.rewards.base import (
    DeviceReward,
    HostReward,
    PartNames,
    Reward,
    as_float32,
    as_reward,
    told,
)
from flowsde.rewards.base import exact as exact_reward
from flowsde.runner.clock import check_seconds
from flowsde.runner.contract import check_members, check_search
from flowsde.runner.drafts import check_draft
from flowsde.runner.evaluate import decode, means, of_prompts, shown, verify
from flowsde.runner.explain import cond_note
from flowsde.runner.identity import of_run
from flowsde.runner.mesh import EVERYWHERE, Placement, committed_to
from flowsde.runner.records import Model, Program, Sizes
from flowsde.runner.result import Result
from flowsde.runner.sizes import check_size, sizes_of
from flowsde.runner.tokens import check_tokens
from flowsde.search.protocol import Search, inner_kernel
from flowsde.search.starting import check_start
from flowsde.sharding import ShardingRules, automatic, place
from flowsde.start import Start, as_start

AT_ONCE = 32
"""Rows of a chunk for a budget in seconds: a round of fewer candidates takes less time."""


class Job(NamedTuple):
    """Checked arguments of a run.

    On a mesh there may be more keys, cond and budgets than `ids`: those that are not `live`.

    Attributes:
      keys: of each prompt.
      model, program, sizes: what compiled rounds are given.
      reward: of any kind; the model has it if it is a function of JAX.
      target: float32.
      nfe: int32, budget of each prompt in model evaluations.
      ids: of the prompts.
      single: whether there is one prompt, without an axis.
      invalid, resume: as for `flowsde.run`.
      live: bool, which prompts are no padding; None without a mesh.
      run: uint32, of each prompt, as `flowsde.Result.run`.
      start: what each prompt begins from; None without.
      seconds: budget of the run; None without.
    """

    keys: jax.Array
    model: Model
    program: Program
    sizes: Sizes
    reward: Reward
    target: jax.Array
    nfe: jax.Array
    ids: np.ndarray
    single: bool
    invalid: str
    resume: Result | None
    live: jax.Array | None
    run: np.ndarray | None
    start: Start | None
    seconds: float | None = None

    @property
    def flow(self) -> Flow:
        return self.model.flow

    @property
    def search(self) -> Search:
        return self.program.search

    @property
    def placement(self) -> Placement:
        return self.program.placement

    @property
    def parts(self) -> PartNames:
        """Names of those of a combined reward."""
        own = self.reward.combination
        return PartNames() if own is None else PartNames(own.names, own.unasked)

    def trim(self, tree: Any, axis: int = 0) -> Any:
        """What concerns the job's own prompts; of a single one, without their axis."""
        if self.placement.mesh is None:
            return tree
        lead = (slice(None),) * axis
        if self.single:
            return jax.tree.map(lambda a: a[*lead, 0], tree)
        n = self.ids.size
        return jax.tree.map(lambda a: a if a.shape[axis] == n else a[*lead, :n], tree)


def prepare(
    key: jax.Array,
    flow: Flow,
    search: Search,
    reward: Any,
    *,
    cond: Cond = None,
    reward_cond: Any = None,
    prompt_ids: Any = None,
    chunk_size: int | None = None,
    target_reward: float | None = None,
    nfe: Any = None,
    seconds: Any = None,
    invalid: Literal["error", "warn"] = "error",
    resume: Result | None = None,
    mesh: Any = None,
    rules: ShardingRules | None = None,
    start: Any = None,
    mask: Any = None,
    noise: Any = None,
    draft: Flow | None = None,
    packed: bool = False,
) -> Job:
    """Check all; arguments as for `flowsde.run`, and whether prompts are packed into batches.

    Then cond stays on the host, in NumPy, and of a mesh every device holds all else of prompts.
    """
    given = (key, flow, reward, cond, reward_cond, prompt_ids, target_reward, nfe)
    _check_not_traced((*given, start, mask, noise, draft))
    key = as_key(key)
    _check_kinds(flow, search, invalid, resume)
    target = np.float32(np.inf) if target_reward is None else _check_target(target_reward)
    single = prompt_ids is None
    ids = np.zeros(1, np.int64) if single else check_ids(prompt_ids)
    cond = of_each_prompt("cond", cond, ids.size, single, packed)
    flow, cond = with_own_nulls(dataclasses.replace(flow, encode=None), cond)
    draft = check_draft(draft, search, flow, cond)
    axis = "len(prompt_ids)"
    begins, held = as_start(start, mask, noise, flow.shape, ids.size, axis, single)
    check_start(search, begins)
    cond = cond if held is None else Held(cond, *held)
    seconds = check_seconds(seconds, nfe)
    budgets = _budgets(search, ids.size, nfe)
    program = Program.of(search, flow.evaluations)
    if draft is not None:
        program = program.replace(draft=draft.evaluations)
    for budget in np.unique(budgets):
        program.with_budget(int(budget))  # or raises
    verifier = _check_reward(search, as_reward(reward))
    compiled = None if isinstance(verifier, HostReward) else verifier
    version = verifier.version if isinstance(verifier, HostReward) else None
    static = {"flow": flow.velocity_fn, "interpolant": flow.interpolant, "decode": flow.decode}
    static |= {"search": program.search, "reward": compiled}
    if draft is not None:
        static |= {"draft": draft.velocity_fn}
    warn_if_written_anew(4, **static)
    warn_if_changed(4, **static)
    if reward_cond is None:
        run = of_run(program.search, (cond, begins), ids.size, version)
    else:
        each = [reward_cond] if single else reward_cond
        verifier, reward_cond = told(verifier, reward_cond, ids.size, single, for_reward(cond))
        own = of_each_prompt("reward_cond", reward_cond, ids.size, single=False, on_host=packed)
        run = of_run(program.search, (cond, begins), ids.size, version, each)
        cond = Told(cond, own)
    keys = jax.vmap(partial(jax.random.fold_in, key))(jax.device_put(ids.astype(np.uint32)))
    if mesh is not None:
        placement, flow, draft, verifier = _on_mesh(automatic(mesh), rules, flow, draft, verifier)
    elif rules is not None:
        raise ValueError("rules say how to split over a mesh, expected a mesh with them")
    else:
        placement = Placement(device=_device_of((flow, draft, verifier), (keys, cond, begins)))
    placement = placement.of_rows if packed else placement
    program = program.replace(placement=placement)
    live, numbers = None, jax.device_put(budgets)
    if packed:
        keys, numbers, begins = placement.put((keys, numbers, begins), EVERYWHERE)
        cond = as_host_arrays("cond", cond)  # null conditions and masks, too
    else:
        every = (keys, cond, numbers, begins)
        (keys, cond, numbers, begins), live = _filled_up(placement, ids.size, every)
    rows = -(-keys.size // placement.prompts) * program.search.n_candidates
    rows = -(-rows // placement.particles)
    if seconds is not None and chunk_size is None:
        chunk_size = AT_ONCE
    # Batches are filled up, however few the prompts are.
    most = chunk_size if packed and chunk_size is not None else rows
    sizes = sizes_of(flow, most, chunk_size, verifier.minibatch)
    check_size(program, flow, sizes.model * placement.groups if sizes.model < rows else 0)
    check_search(program, flow.shape)
    told_of = for_model(cond), search.interpolant
    flow, draft = exact_flow(flow, *told_of), draft and exact_flow(draft, *told_of)
    on_device = None
    if isinstance(verifier, DeviceReward):
        on_device = verifier = exact_reward(verifier, cond)
    job = Job(
        keys=keys,
        model=Model(flow, on_device, cond, draft),
        program=program,
        sizes=sizes,
        reward=verifier,
        target=placement.put(jax.device_put(target), EVERYWHERE),
        nfe=numbers,
        ids=ids,
        single=single,
        invalid=invalid,
        resume=resume,
        live=live,
        run=run,
        start=begins,
        seconds=seconds,
    )
    with placement.around_model():
        _trace(job)
    return job


def _check_kinds(flow: Any, search: Any, invalid: Any, resume: Any) -> None:
    """TypeError or ValueError for arguments that are something else."""
    if not isinstance(flow, Flow):
        raise TypeError(f"flow must be a flowsde.Flow, got {type(flow).__name__}")
    check_members(search)
    kernel = inner_kernel(search)
    if kernel is not None and not getattr(search, "charges_moves", False):
        raise ValueError(
            f"search {type(search).__name__} does not say that it charges the evaluations between "
            f"two times, which kernel {kernel} takes: expected charges_moves, charges of "
            f"GridSearch.costs, and this kernel, or another kernel"
        )
    check_flow(flow)
    check_static("search", search)
    if invalid not in ("error", "warn"):
        raise ValueError(f"invalid must be 'error' or 'warn', got {invalid!r}")
    if resume is not None and not isinstance(resume, Result):
        raise TypeError(f"resume must be a flowsde.Result, got {type(resume).__name__}")


def _check_reward(search: Search, reward: Reward) -> Reward:
    """The reward, if the search can use it."""
    if isinstance(reward, DeviceReward):
        check_static("reward", reward.fn)
    elif search.uses_gradient:
        raise TypeError(
            f"reward {reward.name!r} runs outside JAX and has no gradient, which the search's "
            f"guided kernel wants; expected a JAX function"
        )
    return reward


def check_ids(prompt_ids: Any) -> np.ndarray:
    """Prompt ids, int64 [P]: those that a key folds in without wrapping."""
    ids = np.asarray(prompt_ids)
    if ids.ndim != 1 or ids.size == 0:
        raise ValueError(
            f"prompt_ids must be at least one integer in a row, got {reprlib.repr(prompt_ids)}"
        )
    return check_integers("prompt_ids", prompt_ids, 0, 2**32 - 1)


def _check_not_traced(arguments: Any) -> None:
    # Within a compiled function that gives the run nothing of its own, arrays are traced too.
    leaves = [*jax.tree.leaves(arguments), jax.device_put(np.uint32(0))]
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        raise TypeError(
            "a search compiles programs of its own and cannot be run inside jax.jit, vmap or grad; "
            "call it directly, for many prompts together with prompt_ids"
        )


def _filled_up(placement: Placement, n: int, each: Any) -> tuple[Any, jax.Array | None]:
    """Arrays of n prompts on the mesh, with as many more as parts of it come out even with.

    Returns:
      The arrays, in which what is more is the first prompt again; and which are not, bool.
      Without a mesh, the arrays, where they belong, and None.
    """
    if placement.mesh is None:
        return placement.put(each, EVERYWHERE), None
    places = jnp.arange(-(-n // placement.prompts) * placement.prompts, dtype=jnp.int32)
    live = places < n
    at = jnp.where(live, places, 0)
    filled = jax.tree.map(lambda a: a[at], each)
    return placement.put((filled, live), placement.by_prompt)


def _device_of(models: tuple[Any, ...], told: Any) -> jax.Device | None:
    """The device that models, or else what they are told, are committed to; None for none, or for
    several together."""
    found = committed_to([one for one in models if not isinstance(one, HostReward)])
    if len(found) > 1:
        places = " and ".join(", ".join(sorted(map(str, one))) for one in found)
        raise ValueError(
            f"parameters of the flow and the reward are committed to different devices, {places}: "
            f"expected one device, or a mesh of several"
        )
    found = found or committed_to(told)
    alone = len(found) == 1 and len(found[0]) == 1
    return next(iter(found[0])) if alone else None


def _on_mesh(
    mesh: Mesh, rules: ShardingRules | None, flow: Flow, draft: Flow | None, reward: Reward
) -> tuple[Placement, Flow, Flow | None, Reward]:
    """How the run lies on a mesh, with the parameters of the models and the reward there."""
    if not isinstance(rules, ShardingRules | None):
        raise TypeError(f"rules must be flowsde.ShardingRules, got {type(rules).__name__}")
    rules = (rules or ShardingRules()).on(mesh)
    placement = Placement(mesh, *map(rules.mesh_axes, ("prompt", "particle", "token")))
    if both := set(placement.prompt) & set(placement.particle):
        raise ValueError(
            f"rules split both prompts and particles over mesh axis {both.pop()!r}, expected "
            f"different ones"
        )
    flow, draft = place(flow, mesh, rules), draft and place(draft, mesh, rules)
    if isinstance(reward, HostReward):
        if jax.process_count() > 1:
            raise ValueError(f"reward {reward.name!r} runs outside JAX, expected a single process")
    else:
        reward = place(reward, mesh, rules)
    used = {*placement.prompt, *placement.particle, *placement.token}
    also = reward if isinstance(reward, DeviceReward) else None
    for leaf in jax.tree.leaves((flow, draft, also)):
        for axes in leaf.sharding.spec:
            used |= {axes} if isinstance(axes, str) else set(axes or ())
    idle = [axis for axis, size in mesh.shape.items() if size > 1 and axis not in used]
    if idle:
        raise ValueError(
            f"mesh axis {idle[0]!r} of {mesh.shape[idle[0]]} devices splits neither prompts, nor "
            f"particles, nor any parameter: its devices would all do the same"
        )
    return placement, flow, draft, reward


def _check_target(target_reward: Any) -> np.float32:
    try:
        target = np.asarray(target_reward, np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"target_reward must be a number, got {target_reward!r}") from None
    # Every reward reaches -inf, that of a NaN too.
    if np.ndim(target) != 0 or not target > -np.inf:
        raise ValueError(f"target_reward must be one number above -inf, got {target_reward!r}")
    return np.float32(np.inf) if np.isposinf(target) else as_float32(target, np)[()]


def _budgets(search: Search, prompts: int, nfe: Any) -> np.ndarray:
    """Model evaluations of each prompt, int32 [prompts]."""
    given = np.asarray(search.nfe if nfe is None else nfe)
    if given.dtype.kind not in "iuO" or given.shape not in ((), (prompts,)):
        raise ValueError(
            f"nfe must be an integer or one for each of {prompts} prompts, got {nfe!r}"
        )
    given = check_integers("nfe", given, 1, MOST)
    if given.max() > search.nfe:
        raise ValueError(f"nfe must be at most that of the search, {search.nfe}, got {given.max()}")
    return np.broadcast_to(given, (prompts,)).astype(np.int32)


def _trace(job: Job) -> None:
    """Trace the model and the reward on shapes alone: their errors come before any work."""

    def shapes(n: int) -> tuple[Any, Any, Any]:
        n *= job.placement.groups
        own = jax.eval_shape(lambda c: of_prompts(c, jnp.zeros(n, jnp.int32)), job.model.cond)
        x = jax.ShapeDtypeStruct((n, *job.flow.shape), jnp.float32)
        return job.placement.shapes((x, jax.ShapeDtypeStruct((n,), jnp.float32), own))

    with noted(partial(cond_note, job.model.cond, job.single)):
        x, t, cond = shapes(job.sizes.model)
        for flow in (job.flow, job.model.draft):
            if flow is not None:
                means.eval_shape(flow, x, t, cond, interpolant=job.search.interpolant)
        if job.placement.token:
            traced = means.trace(job.flow, x, t, cond, interpolant=job.search.interpolant)
            check_tokens(job.placement, name_of(job.flow.velocity_fn), traced.jaxpr)
        if job.reward.latents:  # else it is decoded for the reward
            decode.eval_shape(job.flow, shapes(2)[0])
        if isinstance(job.reward, HostReward):
            shown.eval_shape(job.flow, shapes(job.sizes.reward)[0], latents=job.reward.latents)
            return
        # A guided search takes rewards with the model's chunks as well.
        for n in {job.sizes.reward, *([job.sizes.model] if job.search.uses_gradient else [])}:
            x, _, cond = shapes(n)
            verify.eval_shape(job.flow, job.reward, x, cond)
