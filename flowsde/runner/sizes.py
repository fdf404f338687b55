"""How many rows are computed at once, and whether all that a run may ask for fits."""

import math

from flowsde._checks import MOST, check_count
from flowsde.flow import Flow
from flowsde.runner.chunks import FEW, even_size, least_of
from flowsde.runner.mesh import memory
from flowsde.runner.records import Program, Sizes


def check_size(program: Program, flow: Flow, padding: int) -> None:
    """ValueError if a round has more candidates than fit, or all rounds more than are counted.

    Args:
      padding: rows of a round that may be computed for a prompt besides its candidates.
    """
    search, placement = program.search, program.placement
    width = search.n_candidates
    # x, x0 and x1 of every one, at least.
    needed = 12 * -(-width // placement.particles) * math.prod(flow.shape)
    there = memory(placement.mesh)
    if needed > there:
        raise ValueError(
            f"nfe = {search.nfe} makes rounds of {width} candidates, at least "
            f"{needed / 1e9:.3g} GB of {there / 1e9:.3g} GB: nfe, or the width, is too large"
        )
    value = program.kind.value
    each = flow.evaluations * (1 + program.kind.inner + (0 if value is None else value.cost))
    each = max(each, program.draft)
    most = each * search.max_rounds * (width + padding)
    if most > MOST:
        raise ValueError(
            f"nfe = {search.nfe} may take {most} evaluations, surplus and padding included, and no "
            f"more than {MOST} are counted: nfe, the width or chunk_size is too large"
        )


def sizes_of(flow: Flow, most: int, chunk_size: int | None, minibatch: int | None) -> Sizes:
    """Rows computed at once, of `most` that a round has."""
    size = most if chunk_size is None else min(most, check_count("chunk_size", chunk_size))
    least = least_of(flow, size, most)
    model = even_size(most, size, FEW if least < size else 0)
    reward = model if minibatch is None else min(most, minibatch)
    return Sizes(model, reward, min(least, model))
