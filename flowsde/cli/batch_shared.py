"""`flowsde batch --shared`: several processes, one folder.

Each takes some prompts that nobody has, and more when they are done. One that has nothing left to
take waits for those of the others, and takes them over if they die. All end together, with all
prompts finished or failed.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from flowsde import _own, interrupts
from flowsde._files import HIDDEN
from flowsde.cli.batch_folder import Folder
from flowsde.cli.claims import Claims, are_there
from flowsde.cli.errors import OptionError
from flowsde.runner.arguments import Job
from flowsde.runner.packed.engine import Engine
from flowsde.runner.packed.timed import prompts_of
from flowsde.runner.result import Result

_PAUSE = 0.5
"""Seconds between two looks at what others do."""
_ALONE = ("overwrite", "total_nfe", "seconds")


def check(command: object) -> None:
    """OptionError for an option that is of one process alone."""
    for name in _ALONE:
        value = getattr(command, name)
        if value not in (None, False):
            flag = "--" + name.replace("_", "-")
            raise OptionError(flag, f"{flag} has no effect with --shared, got {value}")


@contextmanager
def alone(out: Path) -> Iterator[Path]:
    """`_own.locked` of a folder; ValueError with a hint if processes share it."""
    with ExitStack() as held:
        try:
            hidden = held.enter_context(_own.locked(out))
        except ValueError as error:
            hint = "; --shared joins those that share it" if are_there(out / HIDDEN) else ""
            raise ValueError(f"{error}{hint}") from None
        yield hidden


def endings(
    job: Job,
    engine: Engine,
    folder: Folder,
    numbers: list[int],
    claims: Claims,
    seen: Callable[[int], Any],
) -> Iterator[tuple[int, Result, Callable[[float], None]]]:
    """As of `flowsde.cli.batch`, of what this process finishes, until nothing is missing anywhere.

    Args:
      job, engine: of all prompts that were missing.
      folder: of the results.
      numbers: in the list, of the job's prompts.
      claims: on them.
      seen: told how many prompts are left, whoever has ended the others, also while this process
        waits for them.
    """
    at = {folder.folders[i].name: k for k, i in enumerate(numbers)}
    while True:
        folder.refresh()
        names = [folder.folders[i].name for i in folder.missing]
        failed = claims.failed()
        left = [name for name in names if name not in failed]
        seen(len(left))
        if not left:
            return
        most = _share(engine.slots_for(len(left)), len(left), claims.workers())
        mine = claims.take(left, lambda name: folder.is_done(numbers[at[name]]), most)
        if not mine:
            interrupts.check()
            time.sleep(_PAUSE)
            continue
        for number, result in engine.run(prompts_of(job, [at[name] for name in mine])):
            yield numbers[number], result, partial(folder.end, numbers[number], result)


def asked_for(folder: Folder) -> dict[str, Any]:
    """What all processes must have been asked for alike, by what it is called."""
    first = folder.abouts[0]
    same = {f"--{name}": first[name] for name in ("method", "seed")}
    prompts = [about["prompt"] for about in folder.abouts]
    ids = [*folder.ids]
    return same | {
        "version": first["version"], "settings": first["settings"], "prompts": prompts, "ids": ids
    }  # fmt: skip


def joined(folder: Folder, claims: Claims) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """What the others have done: their entries of batch.json, and what has failed, by number.

    In `Claims.alone`; `folder` knows then what they have finished.
    """
    folder.refresh()
    failed = claims.failed()
    numbers = [i for i in folder.missing if folder.folders[i].name in failed]
    others = [run for run in folder.runs() if run.get("worker") != claims.id]
    return others, {i: failed[folder.folders[i].name] for i in numbers}


def _share(slots: int, left: int, workers: int) -> int:
    """Prompts to take at once: enough to fill the slots twice, while there are as many for all.

    A power of two, since lists of other lengths may have other shapes to compile.
    """
    wanted = min(2 * slots, -(-left // workers))
    return 1 << (wanted.bit_length() - 1)
