"""The draft flow of a run: a second, cheaper one, for searches that take drafts of it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from flowsde.classifier_free import with_own_nulls
from flowsde.conds import Cond, WithNull
from flowsde.flow import Flow, check_flow
from flowsde.runner.records import Program
from flowsde.search.drafts import draft_cost_of, price
from flowsde.search.protocol import Candidates, Search, inner_kernel
from flowsde.search.value import value_of


def check_draft(draft: Any, search: Search, flow: Flow, cond: Cond) -> Flow | None:
    """The draft flow of a search, without what no search computes.

    Args:
      draft: as it was given, or None.
      search, flow: of the run.
      cond: with a leading axis of prompts, as the flow is given it.

    Raises:
      ValueError, TypeError: naming the argument.
    """
    cost, own = draft_cost_of(search), type(search).__name__
    if draft is None and cost is None:
        return None
    if cost is None:
        raise ValueError(
            f"draft was given, and search {own} takes no drafts of another flow: expected one with "
            f"a draft_cost, of flowsde.search.halving"
        )
    if draft is None:
        raise ValueError(
            f"draft is missing: search {own} with draft_cost = {cost} takes drafts of another "
            f"flow, expected that as draft"
        )
    if not isinstance(draft, Flow):
        raise TypeError(f"draft must be a flowsde.Flow, got {type(draft).__name__}")
    check_flow(draft)
    if draft.shape != flow.shape:
        raise ValueError(f"draft must be of shape {flow.shape}, as flow is, got {draft.shape}")
    if search.uses_gradient or value_of(search) is not None or inner_kernel(search) is not None:
        raise ValueError(
            f"search {own} has a draft_cost, and asks for gradients, looks ahead or moves by inner "
            f"steps, which is not counted of a draft flow: expected none of these"
        )
    draft, known = with_own_nulls(dataclasses.replace(draft, encode=None), cond)
    if isinstance(cond, WithNull) or isinstance(known, WithNull):
        raise ValueError(
            "null_cond of each prompt belongs to one flow, and draft is another: expected one "
            "null_cond for all prompts, in flow and draft"
        )
    return draft


def drafts(asked: Candidates) -> jax.Array:
    """Which candidates the draft flow evaluates, bool shaped as their t."""
    if asked.draft is None:
        return jnp.zeros(asked.t.shape, jnp.bool)
    return asked.valid & asked.draft


def charged(program: Program, draft_evaluations: int | None) -> int:
    """What so many evaluations of the draft flow are charged, in those of the flow."""
    cost = draft_cost_of(program.search)
    if cost is None or draft_evaluations is None:
        return 0
    return program.cost * price(draft_evaluations // program.draft, cost)
