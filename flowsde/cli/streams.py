"""Standard streams that may be lost: a command's work is in its files, and continues.

A pipe whose reader has gone, a full disk or a terminal that was closed end what is printed, not
the work. A stream that was closed from the start is as /dev/null.
"""

import errno
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


class Stream:
    """A text stream that is abandoned once it cannot be written.

    Attributes:
      error: why it was abandoned; None if it was not.
    """

    def __init__(self, stream: Any, nothing: Any):
        self._stream, self._nothing, self.error = stream or nothing, nothing, None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text; characters that the stream's encoding lacks are escaped."""
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            code = self._stream.encoding or "ascii"
            return self.write(text.encode(code, "backslashreplace").decode(code))
        except (OSError, ValueError) as error:
            self._abandon(error)
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._abandon(error)

    def _abandon(self, error: Any) -> None:
        with suppress(OSError, ValueError):
            # What is left in its buffer is written when the interpreter ends.
            os.dup2(self._nothing.fileno(), self._stream.fileno())
        self._stream, self.error = self._nothing, error

    @property
    def code(self) -> int:
        """Exit code of a command whose work is complete: that of SIGPIPE for a broken pipe."""
        if self.error is None:
            return 0
        broken = getattr(self.error, "errno", None) == errno.EPIPE
        return 128 + signal.SIGPIPE if broken else 1


def keep_numbers() -> None:
    """Open closed file descriptors among 0, 1 and 2, lest a result's file gets one of them."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


@contextmanager
def guarded() -> Iterator[tuple[Stream, Stream]]:
    """Replace stdout and stderr by such streams in the block."""
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w", encoding="utf-8") as nothing:
        out, err = (Stream(stream, nothing) for stream in before)
        sys.stdout, sys.stderr = out, err
        try:
            yield out, err
        finally:
            sys.stdout, sys.stderr = before
