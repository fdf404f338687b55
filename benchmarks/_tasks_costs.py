"""Seconds: of a network evaluation, of a task's own reward, and of what a search adds itself.

Each is the least of several repetitions on this machine, packed into batches as the rows are: for
the search of a network and a reward that do nothing, whose run is all overhead. A row then takes

    charged (network + overhead) + verifier_calls verifier

seconds a search, with a verifier that costs so many seconds: the task's own, or 0, 1 or 5 network
evaluations.
"""

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


def least(run: Callable[[], Any], repetitions: int) -> float:
    """Seconds of the quickest of several runs, after one that compiles."""
    jax.block_until_ready(run())
    found = []
    for _ in range(repetitions):
        began = time.perf_counter()
        jax.block_until_ready(run())
        found.append(time.perf_counter() - began)
    return min(found)


def network(model: str, repetitions: int = 10) -> float:
    """Seconds of one evaluation."""
    flow, cond = load_flow(model), conds(TASKS["counts"].captions("dev", BATCH), "counts", 1)
    x, t = jnp.zeros((BATCH, *flow.shape)), jnp.full(BATCH, 0.5)
    means = jax.jit(lambda flow, x, t, cond: flow.means(x, t, cond, flow.interpolant))
    return least(lambda: means(flow, x, t, cond), repetitions) / BATCH


def reward(task: str, repetitions: int = 10) -> float:
    """Seconds of one reward of a task's own."""
    scored, cond = (
        TASKS[task].load_reward(),
        conds(TASKS[task].captions("dev", BATCH), task, 1),
    )
    images = jnp.zeros((BATCH, *load_flow("shapes").shape))
    score = jax.jit(lambda scored, images, cond: scored(images, cond))
    return least(lambda: score(scored, images, cond), repetitions) / BATCH


def _still(params: Any, x: jax.Array, t: jax.Array, cond: Any) -> jax.Array:
    return jnp.zeros_like(x)


def _indifferent(images: jax.Array, cond: Any) -> jax.Array:
    # A little different, so that searches have something to prefer.
    return images[:, 0, 0, 0]


def overhead(setting: Setting, repetitions: int = 3) -> float:
    """Seconds that a search adds to one evaluation."""
    flow = fs.Flow.from_callable(_still, None, load_flow("shapes").shape)
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


def fill(table: Table, models: Sequence[str], tasks: Sequence[str]) -> None:
    """Costs of networks and rewards that the table has not yet."""
    known = table.costs
    for kind, names, cost in (("network", models, network), ("reward", tasks, reward)):
        entries = known.setdefault(kind, {})
        entries |= {name: cost(name) for name in names if name not in entries}
    known.setdefault("overhead", {})
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
        row["seconds"] = _seconds(row, table.costs, table.costs["reward"][row["task"]])
        for evaluations in VERIFIERS:
            row[f"seconds_{evaluations}"] = _seconds(row, table.costs, evaluations * cost)


def _seconds(row: Row, costs: dict[str, Any], verifier: float) -> float:
    """Of one search."""
    own = costs["overhead"].get(row["setting"], 0.0)
    each = costs["network"][row["model"]] + own
    return row["charged"] * each + row["verifier_calls"] * verifier


def affordable(row: Row, costs: dict[str, Any], verifier: int, seconds: float) -> int:
    """The budget with which a row's setting takes at most so many seconds, as the row did."""
    taken = _seconds(row, costs, verifier * costs["network"][row["model"]])
    return int(np.floor(seconds / taken * row["charged"]))
