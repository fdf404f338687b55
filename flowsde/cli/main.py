"""The `flowsde` command: `flowsde.cli.COMMANDS` lists what it does.

Exit codes:

    0     the work is complete; a plot of the search that could not be drawn is a line on stderr
    1     work that had begun failed, in one line: with the command that resumes it where that
          helps, which it does not for a prompt without a finite reward or a model that gives NaN;
          the prompts after such a one are searched. Or stdout could not be written, see below
    2     wrong values, in one line, before any work
    129, 130, 143   SIGHUP, Ctrl-C, SIGTERM: after the current round, with the command that resumes;
          at a second signal at once (`flowsde.interrupts`)
    141   the work is complete, and the reader of stdout had gone

A lost stdout or stderr does not end the work, whose results are files: what is left to be printed
is dropped, and the exit code says so at the end. Where a reward outside JAX is still running then,
the process does not wait for it.

`flowsde.cli.resume` says what a run keeps to be resumed, `flowsde.cli.compile_cache` what all of
them keep of compiled programs.

Signals are noted before anything large is imported, and JAX is imported once there is work to do:
help and mistakes are answered without it.
"""

import atexit
import contextlib
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

from flowsde import interrupts
from flowsde._version import __version__
from flowsde.cli import COMMANDS, streams
from flowsde.cli.errors import CommandError
from flowsde.cli.lines import complain, of_path, resume_with


def _kind(name: str) -> Any:
    """The class of a command's options; those of `sample` do without JAX."""
    if name == "sample":
        from flowsde.cli.options import Sample

        return Sample
    if name == "batch":
        from flowsde.cli.batch import Batch

        return Batch
    if name == "compare":
        from flowsde.cli.compare.command import Compare

        return Compare
    if name == "diagnose":
        from flowsde.cli.diagnose import Diagnose

        return Diagnose
    if name == "tune":
        from flowsde.cli.tune import Tune

        return Tune
    if name == "score":
        from flowsde.cli.score import Score

        return Score
    if name == "rewards":
        from flowsde.cli.rewards import Rewards

        return Rewards
    if name == "train":
        from flowsde.cli.train import Train

        return Train
    if name == "serve-reward":
        from flowsde.cli.serve_reward import ServeReward

        return ServeReward
    from flowsde.cli.convert import Convert

    return Convert


def _parse(args: list[str]) -> Any:
    """The options of a command; imports NumPy and tyro."""
    from flowsde.cli.parse import parse

    return parse(args, _kind)


def _name(args: list[str]) -> str:
    """What the command calls itself in messages."""
    return f"flowsde {args[0]}" if args and args[0] in COMMANDS else "flowsde"


def _do(args: list[str]) -> int:
    """Parse, prepare and run; the exit code."""
    # What is wrong with a checkpoint is a list.
    between = "\n  " if args[:1] == ["convert"] else " "
    try:
        try:
            command = _parse(args)
            interrupts.check()
            work = _prepared(command, args)
        except OSError as error:
            complain(_name(args), of_path(args, error), between)
            return 2
        except (ValueError, TypeError, ImportError) as error:
            complain(_name(args), str(error), between)
            return 2
        if "--resume" in args[1:]:
            # Until it is no option any more.
            complain(_name(args), "--resume is no longer needed: the same command resumes")
        return work()
    except CommandError as error:
        how = "" if error.permanent else f"; {resume_with(args)}"
        complain(_name(args), f"{error}{how}")
        return 1
    except KeyboardInterrupt as stop:
        how = "nothing was written" if args[:1] == ["convert"] else resume_with(args)
        print(f"\n{_name(args)}: {str(stop) or 'interrupted'}; {how}", file=sys.stderr)
        return 128 + getattr(stop, "number", signal.SIGINT)


def _prepared(command: Any, args: list[str]) -> Callable[[], int]:
    """What is left to do once all is checked; it returns the exit code."""
    if args[0] == "serve-reward":
        # Without JAX, which its environment may lack.
        return command.prepare()
    from flowsde.cli import compile_cache, sample

    compile_cache.enable()
    if args[0] == "sample":
        return partial(sample.run_all, sample.prepare(command))
    # Their checks and their work are one.
    code = command.run() or 0
    return lambda: code


def _is_alone(args: list[str]) -> bool:
    """Whether nothing but this command runs in the process: no function of the user's, which may
    have files open that are written when they are freed, and no profiler or script around `main`.
    """
    callers, frame = [], sys._getframe(1).f_back
    while frame is not None:
        callers.append(frame.f_code.co_name)
        frame = frame.f_back
    programs = (["<module>"], ["<module>", "_run_code", "_run_module_as_main"])
    return callers in programs and not any(":" in word for word in args)


def _spare_jax() -> None:
    """Have JAX's own exit function left out where all that it does is to free its programs.

    That takes a twentieth of a second. Another device than a CPU may have to be given back, and
    other processes may wait.
    """
    names = ("jax", "jax._src.api", "jax._src.xla_bridge")
    jax, inside, bridge = (cast(Any, sys.modules.get(name)) for name in names)
    # Not public: where a version of JAX has other names, its exit function is run.
    with contextlib.suppress(AttributeError, TypeError):
        if {*bridge._backends} <= {"cpu"} and not jax.distributed.is_initialized():
            atexit.unregister(inside.clean_up)


def _leave(code: int, alone: bool = True) -> None:
    """End the process; as Python would, unless it is `_is_alone`."""
    for number in interrupts.SIGNALS:
        if signal.getsignal(number) is signal.default_int_handler:
            # There is nothing left to tidy up.
            signal.signal(number, signal.SIG_DFL)
    threads = sys.modules.get("flowsde._threads")
    # A thread that is in JAX when the interpreter goes away aborts the process.
    given_up = threads is not None and threads.given_up()
    others = {t for t in threading.enumerate() if not t.daemon} - {threading.main_thread()}
    if (others or not alone) and not given_up:
        raise SystemExit(code)  # which waits for them
    if not given_up:
        _spare_jax()
        with contextlib.suppress(Exception):
            atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    # The interpreter would free all that there is, object by object, for most of a second.
    os._exit(code)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; exits with the codes above.

    Args:
      argv: arguments; those of the process, which then ends here, by default.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        streams.keep_numbers()
        # Nearly all that imports and traces make is kept: looking for the rest so often takes a
        # twentieth of a short command.
        gc.set_threshold(1_000_000, 50, 50)
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
        _leave(code, _is_alone(args))
    if code or helped:
        raise SystemExit(code)


if __name__ == "__main__":
    main()
