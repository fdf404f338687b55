"""A search asked and told, each in a compiled function of its own.

So each is traced once for all that calls it: the check before a run, and the programs of a round.
"""

from functools import partial
from typing import Any

import jax

from flowsde._exact import Now
from flowsde.search.protocol import Candidates, Evaluation, Info, Search
from flowsde.search.starting import beginning
from flowsde.start import Start


def ask(search: Search, state: Any, start: Start | None) -> tuple[Any, Candidates]:
    """`Search.ask` of one prompt, which may begin from something given."""
    return _ask(Now(search), state, start)


def tell(search: Search, state: Any, candidates: Candidates, evals: Evaluation) -> tuple[Any, Info]:
    """`Search.tell` of one prompt."""
    return _tell(Now(search), state, candidates, evals)


@partial(jax.jit, static_argnames=("now",))
def _ask(now: Now, state: Any, start: Start | None) -> tuple[Any, Candidates]:
    return beginning(now.value, start).ask(state)


@partial(jax.jit, static_argnames=("now",))
def _tell(now: Now, state: Any, candidates: Candidates, evals: Evaluation) -> tuple[Any, Info]:
    return now.value.tell(state, candidates, evals)
