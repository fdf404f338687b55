"""The `flowsde` command: `sample`, `batch`, `compare`, `train {shapes,scorer}` and `convert`.

Exit codes:

    0     all was done; a picture of the search that could not be drawn is a line on stderr
    1     work that had begun failed, in one line: with the command to go on with where that helps,
          which is not so of a prompt without a finite reward or of a model that gives NaN; the
          prompts after such a one are searched. Or stdout could not be written, see below
    2     wrong values, in one line, before any work
    129, 130, 143   SIGHUP, Ctrl-C, SIGTERM: after the round that is under way, with the command to
          go on with; at a second signal at once (`flowsde.interrupts`)
    141   all was done, and the reader of stdout had gone

A lost stdout or stderr does not end the work, whose results are files: what is left to be printed
is dropped, and the exit code says so at the end. Where a reward outside JAX is still running then,
the process does not wait for it.

What a run keeps to go on with is in `flowsde.cli.resume`, what all of them keep of compiled
programs in `flowsde.cli.compile_cache`.

JAX is imported once there is something to do: help and mistakes are answered without it.
"""

import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import tyro

from flowsde import _threads, interrupts
from flowsde._text import shown
from flowsde._version import __version__
from flowsde.cli import streams
from flowsde.cli.lines import Failed, again_with, complain, of_path
from flowsde.cli.options import Sample, check_paths

_COMMANDS = {
    "sample": "search for a picture of a prompt",
    "batch": "search for pictures of a long list of prompts, in full batches",
    "compare": "compare methods on the same prompts and seeds",
    "train": "train the embedded networks",
    "convert": "convert a PyTorch checkpoint, or a converted one back",
}


def _one_line(box: str) -> str:
    """The message inside a box of tyro's, drawn in Unicode or in ASCII: up to its first rule."""
    lines = [line.strip("│╭╮╰╯ ") for line in box.splitlines()]
    lines = [line for line in lines if line]
    framed = box.startswith("╭")
    body = lines[1 if framed else 2 :]
    rules = [i for i, line in enumerate(body) if set(line) <= {"─", "-"}]
    message = " ".join(body[: rules[0] if rules else None])
    return message.removeprefix("Error parsing ")


def _help() -> str:
    every = "\n".join(f"  {name:8} {said}" for name, said in _COMMANDS.items())
    return (
        f"usage: flowsde {{{','.join(_COMMANDS)}}} ...\n\n"
        f"Inference-time scaling of flow models in JAX.\n\n{every}\n\n"
        f"flowsde COMMAND --help has a command's options, flowsde --version the version."
    )


def _command(name: str) -> Any:
    """The class of a command's options."""
    if name == "sample":
        return Sample
    if name == "batch":
        from flowsde.cli.batch import Batch

        return Batch
    if name == "compare":
        from flowsde.cli.compare.command import Compare

        return Compare
    if name == "train":
        from flowsde.cli.train import Train

        return Train
    from flowsde.cli.convert import Convert

    return Convert


def _parse(argv: list[str]) -> Any:
    """The command; SystemExit after help, ValueError in one line for what is wrong."""
    name = argv[0] if argv else "--help"
    if name in ("--help", "-h"):
        print(_help())
        raise SystemExit
    if name not in _COMMANDS:
        known = ", ".join(_COMMANDS)
        raise ValueError(f"COMMAND must be one of {known}, got '{shown(name)}'")
    config = (tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone)
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(_command(name), prog=f"flowsde {name}", args=argv[1:], config=config)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(_one_line(errors.getvalue())) from None


def _name(args: list[str]) -> str:
    return f"flowsde {args[0]}" if args and args[0] in _COMMANDS else "flowsde"


def _do(args: list[str]) -> int:
    """Parse, prepare and run; the exit code."""
    # What is wrong with a checkpoint is a list.
    between = "\n  " if args[:1] == ["convert"] else " "
    try:
        try:
            command = _parse(args)
            check_paths(command)
            interrupts.check()
            work = _prepared(command, args)
        except OSError as error:
            complain(_name(args), of_path(args, error), between)
            return 2
        except (ValueError, TypeError, ImportError) as error:
            complain(_name(args), str(error), between)
            return 2
        code = work()
        interrupts.check()
        return code
    except Failed as failure:
        complain(_name(args), str(failure))
        return 1
    except KeyboardInterrupt as stop:
        said = str(stop) or "interrupted"
        if args[:1] == ["convert"]:
            said += "; nothing was written"
        elif args and "go on with" not in said:
            said += f"; go on with: {again_with(args)}"
        print(f"\n{_name(args)}: {said}", file=sys.stderr)
        return 128 + getattr(stop, "number", signal.SIGINT)


def _prepared(command: Any, args: list[str]) -> Callable[[], int]:
    """What is left to do once all is checked; it returns the exit code."""
    from flowsde.cli import compile_cache, sample

    compile_cache.keep()
    if isinstance(command, Sample):
        jobs = sample.prepare(command)
        return partial(sample.run_all, jobs, command.resume, again_with(args))
    # Their checks and their work are one.
    code = command.run() or 0
    return lambda: code


def _leave(code: int) -> None:
    """End the process."""
    for number in interrupts.SIGNALS:
        if signal.getsignal(number) is signal.default_int_handler:
            # There is nothing left to tidy up.
            signal.signal(number, signal.SIG_DFL)
    if _threads.given_up():
        # A thread that is in JAX when the interpreter goes away aborts the process.
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(code)
    raise SystemExit(code)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; exits with the codes above.

    Args:
      argv: arguments; those of the process, which then ends here, by default.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        streams.keep_numbers()
    helped = False
    with streams.guarded() as (out, err), interrupts.handling():
        if args == ["--version"]:
            print(f"flowsde {__version__}")
            code = 0
        else:
            try:
                code = _do(args)
            except SystemExit:
                code, helped = 0, True
        out.flush()
        if out.error is not None and out.code == 1:
            complain(_name(args), f"stdout cannot be written: {out.error.strerror or out.error}")
        err.flush()
    code = code or out.code
    if argv is None:
        _leave(code)
    if code or helped:
        raise SystemExit(code)


if __name__ == "__main__":
    main()
