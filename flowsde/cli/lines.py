"""Lines for the terminal: of bounded length, safe to print and to copy into a shell."""

import os
import shlex
import shutil
import sys

from flowsde._text import shown

_LINE, _LINES, _MESSAGE = 1800, 20, 3900
_LONGEST = 1500


def complain(name: str, message: str, between: str = " ") -> None:
    """Print a message of bounded length to stderr, in one line or as a list."""
    lines = [" ".join(line.split()) for line in message.splitlines()]
    said = [shown(line, _LINE) for line in lines[:_LINES]]
    while len(said) > 1 and sum(map(len, said)) > _MESSAGE - 100:
        said.pop()
    more = len(lines) - len(said)
    said += [f"... and {more} more lines"] if more else []
    print(f"{name}: {between.join(said)}", file=sys.stderr)


def of_path(args: list[str], error: OSError) -> str:
    """An error of the system's, with the argument that names its path or a folder above it."""
    if error.strerror is None:
        return str(error)
    path, name, before = str(error.filename), "", args[0] if args else ""
    for word in args[1:]:
        option, _, value = word.partition("=") if word.startswith("--") else ("", "", word)
        if value and f"{path}/".startswith(f"{value}/"):
            name = option or (before if before.startswith("--") else "argument")
        before = word
    at = "" if error.filename is None else f" {shown(path)}"
    return f"{name}{at}: {error.strerror}" if name else f"{error.strerror}{at}"


def _word(word: str) -> str:
    """A word of a command, quoted for a shell whatever is in it."""
    if word.isprintable():
        return shlex.quote(word)
    # As bash reads it.
    return "$'" + "".join(map(_letter, word)) + "'"


def _letter(letter: str) -> str:
    if letter in "\\'":
        return "\\" + letter
    if letter.isprintable():
        return letter
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(letter))


def resume_with(args: list[str]) -> str:
    """How to resume a command that was interrupted: "resume with: flowsde …"."""
    program = ["flowsde"] if shutil.which("flowsde") else [sys.executable, "-m", "flowsde"]
    # The same command resumes; with --overwrite it would begin anew.
    given = [word for word in args if word not in ("--overwrite", "--resume")]
    command = " ".join(map(_word, [*program, *given]))
    if len(command) > _LONGEST:
        command = "the same command" + " without --overwrite" * ("--overwrite" in args)
    return f"resume with: {command}"
