"""Requests of one call, several at once, of which nothing goes on when one has failed."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from flowsde import _threads
from flowsde.remote.connection import Call
from flowsde.remote.problems import RemoteError

_GRACE = 1.0
"""Seconds after a call's end in which a request may say itself why it failed."""


def side_by_side(
    name: str, fn: Callable[..., Any], each: Sequence[tuple[Any, ...]], most: int, call: Call
) -> list[Any]:
    """``fn(*args, call)`` of each args, in their order.

    Args:
      name: of the threads.
      fn: makes a request of the call.
      each: args.
      most: at once.
      call: stopped when this returns, or raises what the first that failed did.
    """
    failed: list[BaseException] = []

    def one(*args: Any) -> Any:
        try:
            return fn(*args, call)
        except BaseException as error:
            failed.append(error)
            call.stop()  # the others are not waited for
            raise

    lines = [_threads.Line(name) for _ in range(min(len(each), most))]
    try:
        under_way = [lines[i % len(lines)].submit(one, *args) for i, args in enumerate(each)]
        return [_threads.wait(future, _left(call)) for future in under_way]
    except _threads.Late:
        # An answer that trickles keeps to every timeout of a socket.
        raise RemoteError("the answers were not complete in time (no time is left)") from None
    except RemoteError:
        raise failed[0] from None
    finally:
        call.stop()
        for line in lines:
            line.close()


def _left(call: Call) -> float:
    return max(call.end - time.monotonic(), 0.0) + _GRACE
