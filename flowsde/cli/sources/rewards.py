"""What `--reward` may be.

    NAME               one of `flowsde.cli.sources.known`, which converted models serve, or none
    MODULE:FUNCTION    a function, or URL#MODEL, a judge: `flowsde.cli.sources.outside`

Making a `RewardSource` checks the options and imports the function; `load` reads weights.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowsde._text import shown
from flowsde.cli.sources.base import RewardSource
from flowsde.cli.sources.known import KNOWN
from flowsde.cli.sources.outside import HostFunction, is_outside
from flowsde.models.owlv2.counts import CountsError
from flowsde.models.qwen3_vl.atoms import AtomsError, read_atoms


def reads_text(name: str) -> bool:
    """Whether a reward looks at the prompt; one that nobody knows does not."""
    return ":" in name or (name in KNOWN and KNOWN[name].reads_text)


def folders(name: str) -> int:
    """Converted models that a reward needs."""
    return len(KNOWN[name].folders) if name in KNOWN else 0


def counts(name: str) -> bool:
    """Whether a reward counts what a text says."""
    return name in KNOWN and KNOWN[name].counts


def asks(name: str) -> bool:
    """Whether a reward asks questions that a file says."""
    return name in KNOWN and KNOWN[name].asks


def reward_source(
    name: str,
    folders: Sequence[Path],
    timeout: float | None = None,
    fps: float | None = None,
    option: str = "--reward",
    counts: str | None = None,
    questions: Path | None = None,
) -> RewardSource:
    """A reward by name.

    Args:
      name: as above.
      folders: of --reward-model, as many as it needs.
      timeout: of --reward-timeout, seconds, for a function; an hour by default.
      fps: of videos, for a function; None for pictures.
      option: that names it; its folders are those of the same with -model behind.
      counts: of --reward-counts, for a reward that counts; what the prompt says by default.
      questions: of --reward-questions, for a reward that asks them.

    Raises:
      ValueError, FileNotFoundError: naming the option that is wrong.
    """
    outside = is_outside(name)
    if not outside and name not in KNOWN:
        raise ValueError(
            f"{option} must be one of {', '.join(KNOWN)}, URL#MODEL or MODULE:FUNCTION, "
            f"got '{shown(name)}'"
        )
    if not outside and KNOWN[name].videos and fps is None:
        raise ValueError(
            f"{option} {name} is a reward of videos, and what it is given are pictures"
        )
    if timeout is not None and not outside:
        raise ValueError(f"--reward-timeout has no effect with --reward {name}, got {timeout}")
    if counts is not None and (outside or not KNOWN[name].counts):
        raise ValueError(
            f"{option}-counts has no effect with {option} {name}, got '{shown(counts)}'"
        )
    _check_questions(name, questions, option)
    wanted = () if outside else KNOWN[name].folders
    if len(folders) != len(wanted):
        what = " and then ".join(wanted) or "no folder"
        got = " and ".join(map(str, folders)) or "none"
        raise ValueError(f"{option}-model must be {what} for {option} {name}, got {got}")
    if outside:
        return HostFunction(name, timeout, fps, option)
    told: list[Any] = [counts] if counts is not None else []
    if questions is not None:
        try:
            told = [read_atoms(questions)]
        except (ValueError, OSError) as error:
            raise ValueError(f"{option}-questions: {error}") from None
    try:
        return KNOWN[name].make(*folders, *told)
    except CountsError as error:
        raise ValueError(f"{option}-counts: {error}") from None
    except AtomsError as error:
        raise ValueError(f"{option}-questions: {error}") from None


def _check_questions(name: str, questions: Path | None, option: str) -> None:
    if questions is not None and not asks(name):
        raise ValueError(
            f"{option}-questions has no effect with {option} {shown(name)}, got {questions}"
        )
    if questions is None and asks(name):
        raise ValueError(
            f"{option}-questions is missing for {option} {name}, expected a JSON file of questions"
            if option == "--reward"
            else f"{option} cannot be {name}, which asks what --reward-questions says"
        )
