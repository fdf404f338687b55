"""Requests of one call, several at once, of which nothing goes on when one has failed."""

from collections.abc import Callable, Sequence
from typing import Any

from flowsde import _threads
from flowsde.remote.connection import Call
from flowsde.remote.problems import RemoteError


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
    if len(each) == 1:
        return [fn(*each[0], call)]
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
        return [_threads.wait(future) for future in under_way]
    except RemoteError:
        raise failed[0] from None
    finally:
        call.stop()
        for line in lines:
            line.close()
