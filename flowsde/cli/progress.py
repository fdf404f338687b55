"""Progress bars, whose clock moves also while the main thread compiles or waits for the device."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

_EVERY = 1.0
"""Seconds between refreshes of a terminal's bar."""


@contextmanager
def bar(**options: Any) -> Iterator[tqdm]:
    """A tqdm bar with these options; on a terminal a thread refreshes it every second."""
    # Each update may redraw it: rounds and batches take long.
    with tqdm(mininterval=0.3, miniters=0, **options) as made:
        if made.disable or not getattr(made.fp, "isatty", lambda: False)():
            yield made
            return
        over = threading.Event()
        ticker = threading.Thread(target=_tick, args=(made, over), name="progress", daemon=True)
        ticker.start()
        try:
            yield made
        finally:
            over.set()
            ticker.join()


def _tick(shown: tqdm, over: threading.Event) -> None:
    while not over.wait(_EVERY):
        shown.refresh()
