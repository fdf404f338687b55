"""How a command's work fails: in one line, and with or without a way to go on."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import jax

from flowsde._text import shown
from flowsde.cli.lines import Failed
from flowsde.rewards import RewardError

_FOR_GOOD = (ValueError, FloatingPointError)
"""What the same command would find again: no finite reward, a model that gives NaN."""
EXPECTED = (*_FOR_GOOD, RewardError, OSError, MemoryError, jax.errors.JaxRuntimeError)
"""What is said in one line. All else is a mistake of ours, with its traceback."""
_REASON = 1000


def failed(said: str, error: BaseException, way_on: str = "") -> Failed:
    """`said: reason; way_on`, the latter where it helps."""
    for_good = isinstance(error, _FOR_GOOD)
    more = f"; {way_on}" if way_on and not for_good else ""
    failure = Failed(f"{said}: {reason(error)}{more}")
    failure.for_good = for_good
    return failure


@contextmanager
def one_line(said: str, way_on: str = "") -> Iterator[None]:
    """What is expected to fail in the block raises `Failed`."""
    try:
        yield
    except EXPECTED as error:
        raise failed(said, error, way_on) from error


def reason(error: BaseException) -> str:
    """An exception in one line; of a reward's, where it was raised."""
    # A command's prompts are each searched alone, under this id.
    text = " ".join(str(error).split()).removesuffix(" of prompt ids [0]")
    if isinstance(error, OSError) and error.strerror:
        text = " ".join([error.strerror, *([f"({error.filename})"] if error.filename else [])])
    elif not isinstance(error, (*_FOR_GOOD, RewardError)):
        text = f"{type(error).__name__} {text}"
    where = ""
    if isinstance(error, RewardError) and error.__cause__ is not None:
        where = _place(error.__cause__.__traceback__)
    return shown(text, _REASON) + where


def _place(frames: TracebackType | None) -> str:
    """The file and line that raised."""
    last = traceback.extract_tb(frames)[-1:]
    return "".join(f" ({shown(frame.filename)}:{frame.lineno})" for frame in last)
