"""What a run did with its arguments, for the errors of the functions that it was given."""

import jax

from flowsde._explain import shapes
from flowsde.conds import Cond


def cond_note(cond: Cond, single: bool, error: Exception) -> str | None:
    """How a prompt's cond came by its batch axis.

    Args:
      cond: leading axis of prompts.
      single: whether it was given without that axis.
      error: of the model or the reward.
    """
    given = jax.tree.map(lambda a: a[0], cond)
    if not single or not any(leaf.ndim for leaf in jax.tree.leaves(given)):
        return None
    return (
        f"cond was given as {shapes(given)}, of one prompt: without prompt_ids it has no batch "
        f"axis, and is given one; for P prompts, whose axis it begins with, pass prompt_ids=, such "
        f"as range(P)"
    )
