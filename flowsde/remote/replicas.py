"""Several servers of one reward: which is asked next, and which is left alone for a while.

A circuit breaker for each: after `_FAILURES` failures in a row it is left alone for a second, after
each further one twice as long, and then tried with a single request. Where all are left alone, the
one that comes back first is asked all the same: a breaker steers, and fails nothing by itself.
"""

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from flowsde.remote.connection import Connections
from flowsde.remote.problems import RemoteError

_FAILURES = 2
_FIRST_REST, _LONGEST_REST = 1.0, 60.0


class Replica:
    """A server, with what became of the requests to it."""

    def __init__(self, connections: Connections):
        self.connections = connections
        self.outstanding, self.failures, self.until = 0, 0, 0.0

    def resting(self, now: float) -> bool:
        """Whether it is left alone: until its time, and then but for a single request."""
        return self.failures >= _FAILURES and (now < self.until or self.outstanding > 0)


class Replicas:
    """Of one reward; any thread may ask for one.

    Args:
      servers: their connections.
      clock: seconds.
    """

    def __init__(self, servers: Sequence[Connections], clock: Callable[[], float] = time.monotonic):
        self._all = [Replica(one) for one in servers]
        self._clock, self._lock = clock, threading.Lock()

    @contextmanager
    def one(
        self, failed: Mapping[Replica, int] = MappingProxyType({}), never: Collection[Replica] = ()
    ) -> Iterator[Replica]:
        """The one with the fewest requests under way; in the block it has one more.

        Args:
          failed: how often each failed at what it would be asked for: others go before it.
          never: that are taken only if there are no others.
        """

        def order(replica: Replica) -> tuple[Any, ...]:
            resting = replica.resting(now)
            back = replica.until if resting else 0.0
            return replica in never, resting, failed.get(replica, 0), back, replica.outstanding

        with self._lock:
            now = self._clock()
            chosen = min(self._all, key=order)
            chosen.outstanding += 1
        broken = False
        try:
            yield chosen
        except RemoteError:
            broken = True
            raise
        finally:
            with self._lock:
                chosen.outstanding -= 1
                self._note(chosen, broken)

    def _note(self, replica: Replica, failed: bool) -> None:
        if not failed:
            replica.failures = 0
            return
        replica.failures += 1
        rest = _FIRST_REST * 2.0 ** min(replica.failures - _FAILURES, 10)
        replica.until = self._clock() + min(rest, _LONGEST_REST)

    def __len__(self) -> int:
        return len(self._all)

    def connections(self) -> list[Connections]:
        """Of all of them."""
        return [one.connections for one in self._all]
