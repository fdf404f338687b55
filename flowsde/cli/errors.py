"""Errors that end a command, each with an exit code; see `flowsde.cli.main`."""


class OptionError(ValueError):
    """An option has a value that it cannot have; nothing was done yet.

    Attributes:
      option: as it is written on the command line.
    """

    def __init__(self, option: str, problem: str):
        super().__init__(f"{option}: {problem}")
        self.option = option


class NoJudge(ValueError):
    """A judge at a URL does not answer; nothing was done yet."""


class CommandError(RuntimeError):
    """Work that had begun failed.

    Attributes:
      permanent: whether the same command would fail again.
    """

    def __init__(self, message: str, permanent: bool = False):
        super().__init__(message)
        self.permanent = permanent
