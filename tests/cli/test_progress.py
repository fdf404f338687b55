"""Progress bars whose clock moves while the main thread is busy."""

import io
import time

import pytest

from flowsde.cli import progress


class _Stream(io.StringIO):
    def __init__(self, terminal: bool):
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@pytest.mark.parametrize("terminal", [True, False])
def test_the_clock_moves_on_a_terminal(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_EVERY", 0.01)
    stream = _Stream(terminal)
    with progress.bar(total=9, file=stream) as bar:
        bar.set_postfix_str("compiling")
        before = stream.getvalue().count("\r")
        time.sleep(0.3)
        drawn = stream.getvalue().count("\r") - before
    assert (drawn > 2) == terminal and (drawn == 0) == (not terminal)
    after = stream.getvalue()
    time.sleep(0.05)
    assert stream.getvalue() == after
