"""A command that is given wrong arguments."""

import pytest

from flowsde.cli import main as cli


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """The one line that it prints, before any work."""
    with pytest.raises(SystemExit) as stop:
        cli.main(args)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1 and captured.err.startswith("flowsde")
    return captured.err
