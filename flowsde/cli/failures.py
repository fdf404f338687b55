"""How a command's work fails: in one line."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import jax

from flowsde._text import shown
from flowsde.cli.errors import CommandError
from flowsde.rewards import RewardError
from flowsde.runner.found import NoAnswer

_PERMANENT = (ValueError, FloatingPointError)
"""What the same command would meet again: no finite reward, a model that gives NaN."""
EXPECTED = (*_PERMANENT, RewardError, OSError, MemoryError, jax.errors.JaxRuntimeError)
"""Reported in one line. Anything else is a bug of ours and keeps its traceback."""
_REASON = 1000


def failed(what: str, error: BaseException) -> CommandError:
    """The error `what: reason`."""
    return CommandError(f"{what}: {reason(error)}", isinstance(error, _PERMANENT))


@contextmanager
def one_line(what: str) -> Iterator[None]:
    """Raise failures that are expected in the block as `CommandError`."""
    try:
        yield
    except EXPECTED as error:
        raise failed(what, error) from error


def reason(error: BaseException) -> str:
    """An exception in one line, with the place that raised it if a reward did."""
    # A command names prompts itself, and knows them by no id.
    text = " ".join((error.why if isinstance(error, NoAnswer) else str(error)).split())
    if isinstance(error, OSError) and error.strerror:
        text = " ".join([error.strerror, *([f"({error.filename})"] if error.filename else [])])
    elif not isinstance(error, (*_PERMANENT, RewardError)):
        text = f"{type(error).__name__} {text}"
    where = ""
    if isinstance(error, RewardError) and error.__cause__ is not None:
        where = _place(error.__cause__.__traceback__)
    return shown(text, _REASON) + where


def _place(frames: TracebackType | None) -> str:
    """The file and line that raised."""
    last = traceback.extract_tb(frames)[-1:]
    return "".join(f" ({shown(frame.filename)}:{frame.lineno})" for frame in last)
