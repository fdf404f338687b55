"""Searches that begin from something given, see `flowsde.start`.

One whose grid may begin below t = 1 says so (`first_time`), and gives itself bound to what a prompt
begins from (`beginning`): `flowsde.search.GridSearch` does both, for searches that draw by its
`extend` or `move`. One that makes its first x itself has `beginning = None`, and is refused.
"""

from typing import Any

from flowsde.start import Start, check_first_time


def first_time(search: Any) -> float:
    """At which its particles begin."""
    return getattr(search, "first_time", 1.0)


def beginning(search: Any, start: Start | None) -> Any:
    """The search of a prompt with something given; itself without."""
    return search if start is None else search.beginning(start)


def check_start(search: Any, start: Start | None) -> None:
    """Raise unless a search can begin from what is given, and needs no more."""
    check_first_time("grid of the search", first_time(search), start)
    inner = search
    while hasattr(inner, "inner"):
        inner = inner.inner
    if start is None:
        return
    if getattr(inner, "beginning", None) is None:
        raise TypeError(
            f"search {type(inner).__name__} draws its own noise and cannot begin from start or "
            f"noise; expected one that extends flowsde.search.GridSearch"
        )
    if start.noise is not None and getattr(inner, "repeats_noise", False):
        raise ValueError(
            f"noise makes all first draws of search {type(inner).__name__} the same, and so all "
            f"that follows by {inner.kernel}, which draws none: expected a stochastic kernel"
        )
