"""Seconds: of a network evaluation, of a task's own reward, and of what a search adds itself.

Each is the least of several repetitions on this machine, packed into batches as the rows are: for
the search of a network and a reward that do nothing, whose run is all overhead. A row then takes

    charged (network + overhead) + verifier_calls verifier
        + backward_passes (b network + v verifier)

seconds a search, with a verifier that costs so many seconds: the task's own, or 0, 1 or 5 network
evaluations. A gradient is that of the reward of the posterior mean, through both: b and v are the
seconds that differentiating adds to those of the forward pass, as shares of them. v is measured of
the task's own reward; other verifiers are taken to be like the network.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _tasks_measure import BATCH, conds, load_flow, numbers
from _tasks_rows import Row, Table
from _tasks_settings import Setting

import flowsde as fs
from flowsde.shapes.tasks import TASKS

VERIFIERS = (0, 1, 5)
"""Network evaluations that a verifier costs."""
_NFE, _PROMPTS = 100, 16


def each(run: Callable[[], Any], repetitions: int) -> list[float]:
    """Seconds of several runs, after one that compiles."""
    jax.block_until_ready(run())
    found = []
    for _ in range(repetitions):
        began = time.perf_counter()
        jax.block_until_ready(run())
        found.append(time.perf_counter() - began)
    return found


def least(run: Callable[[], Any], repetitions: int) -> float:
    """Seconds of the quickest of them."""
    return min(each(run, repetitions))


def _network(model: str) -> tuple[Callable[..., Any], Any, jax.Array]:
    """(x0 of rows given the others, these, rows)."""
    flow, cond = load_flow(model), conds(TASKS["counts"].captions("dev", BATCH), "counts", 1)
    t = jnp.full(BATCH, 0.5)

    def x0(given: Any, x: jax.Array) -> jax.Array:
        flow, cond = given
        return flow.means(x, t, cond, flow.interpolant)[0]

    return x0, (flow, cond), jnp.zeros((BATCH, *flow.shape))


def _reward(task: str) -> tuple[Callable[..., Any], Any, jax.Array]:
    """Likewise of a task's own reward."""
    cond = conds(TASKS[task].captions("dev", BATCH), task, 1)
    given = TASKS[task].load_reward(), cond
    return lambda given, x: given[0](x, given[1]), given, jnp.zeros((BATCH, *_shape()))


def _shape() -> tuple[int, ...]:
    return load_flow("shapes").shape


_FUNCTIONS: dict[str, Callable[[str], tuple[Callable[..., Any], Any, jax.Array]]] = {
    "network": _network,
    "reward": _reward,
}


def forward_each(kind: str, name: str, repetitions: int = 10) -> list[float]:
    """Seconds of one evaluation of a network or of a task's reward, in several batches."""
    f, given, x = _FUNCTIONS[kind](name)
    evaluate = jax.jit(f)
    return [seconds / BATCH for seconds in each(lambda: evaluate(given, x), repetitions)]


def forward(kind: str, name: str, repetitions: int = 10) -> float:
    """The least of them."""
    return min(forward_each(kind, name, repetitions))


def backward(kind: str, name: str, repetitions: int = 10) -> float:
    """Seconds that differentiating adds to an evaluation, by those of it: at least 0."""
    f, given, x = _FUNCTIONS[kind](name)
    evaluate = jax.jit(f)

    @jax.jit
    def differentiate(given: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        value, pull = jax.vjp(lambda x: f(given, x), x)
        return value, pull(jnp.ones_like(value))[0]

    # In turns, so that both see the machine at its best.
    both, alone = math.inf, math.inf
    for _ in range(repetitions):
        both = min(both, least(lambda: differentiate(given, x), 1))
        alone = min(alone, least(lambda: evaluate(given, x), 1))
    return max(both / alone - 1.0, 0.0)


def _still(params: Any, x: jax.Array, t: jax.Array, cond: Any) -> jax.Array:
    return jnp.zeros_like(x)


def _indifferent(images: jax.Array, cond: Any) -> jax.Array:
    # A little different, so that searches have something to prefer.
    return images[:, 0, 0, 0]


def overhead(setting: Setting, repetitions: int = 3) -> float:
    """Seconds that a search adds to one evaluation."""
    flow = fs.Flow.from_callable(_still, None, _shape())
    cond = conds(TASKS["counts"].captions("dev", _PROMPTS), "counts", 1)
    search = setting.search(_NFE)
    charged = 0

    def run() -> list[Any]:
        nonlocal charged
        found = fs.batch(
            jax.random.key(0), flow, search, _indifferent, cond=cond,
            prompt_ids=numbers(_PROMPTS, 1), batch_size=BATCH,
        )  # fmt: skip
        images = [result.image for _, result in found]
        charged = found.totals.nfe
        return images

    return least(run, repetitions) / charged


def fill(table: Table, models: Sequence[str], tasks: Sequence[str], guided: bool = False) -> None:
    """Costs of networks and rewards that the table has not yet; of gradients too, if `guided`."""
    wanted = [("network", "network", models, forward), ("reward", "reward", tasks, forward)]
    if guided or any(map(_backward_passes, table.rows.values())):
        wanted.append(("backward", "network", models, backward))
        wanted.append(("reward_backward", "reward", tasks, backward))
    for cost, kind, names, measured in wanted:
        entries = table.costs.setdefault(cost, {})
        entries |= {name: measured(kind, name) for name in names if name not in entries}
    table.costs.setdefault("overhead", {})
    price(table)


def fill_overheads(table: Table, settings: Sequence[Setting]) -> None:
    """What searches add, of those that the table has rows of, again; the table is saved."""
    measured = {row["setting"] for row in table.rows.values()}
    for setting in settings:
        if setting.name in measured and setting.fits(_NFE):
            table.costs["overhead"][setting.name] = overhead(setting)
            price(table)
            table.save()


def price(table: Table) -> None:
    """`seconds` of every row, with the task's reward, and `seconds_V` with one that costs V."""
    for row in table.rows.values():
        cost = table.costs["network"][row["model"]]
        own = table.costs.get("reward_backward", {}).get(row["task"])
        row["seconds"] = _seconds(row, table.costs, table.costs["reward"][row["task"]], own)
        for evaluations in VERIFIERS:
            row[f"seconds_{evaluations}"] = _seconds(row, table.costs, evaluations * cost)


def _backward_passes(row: Row) -> float:
    """Of one search; rows of earlier versions had none, and do not say so."""
    return row.get("backward_passes", 0.0)


def _seconds(
    row: Row, costs: dict[str, Any], verifier: float, share: float | None = None
) -> float:  # fmt: skip
    """Of one search.

    Args:
      row: of it.
      costs: of the table.
      verifier: seconds of one reward.
      share: of these, what its gradient adds; that of the network by default.
    """
    network, own = costs["network"][row["model"]], costs["overhead"].get(row["setting"], 0.0)
    seconds = row["charged"] * (network + own) + row["verifier_calls"] * verifier
    if passes := _backward_passes(row):
        of_network = costs["backward"][row["model"]]
        share = of_network if share is None else share
        seconds += passes * (of_network * network + share * verifier)
    return seconds


def affordable(row: Row, costs: dict[str, Any], verifier: int, seconds: float) -> int:
    """The budget with which a row's setting takes at most so many seconds, as the row did."""
    taken = _seconds(row, costs, verifier * costs["network"][row["model"]])
    return int(np.floor(seconds / taken * row["charged"]))
