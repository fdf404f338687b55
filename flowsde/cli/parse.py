"""Read the words of a command into its options; mistakes are one short line."""

import contextlib
import dataclasses
import difflib
import io
import os
import re
import shutil
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import tyro

from flowsde._text import shown
from flowsde.cli import COMMANDS, preset_files
from flowsde.cli.described import introduction
from flowsde.cli.errors import OptionError
from flowsde.cli.options import check_paths, check_words

_ELSEWHERE = {
    "--cfg": ("--guidance", ""),
    "--cfg-scale": ("--guidance", ""),
    "--guidance-scale": ("--guidance", ""),
    "--num-inference-steps": ("--steps", ""),
    "--height": ("--size", "did you mean --size WIDTHxHEIGHT?"),
    "--width": ("--size", "did you mean --size WIDTHxHEIGHT?"),
    "--num-images": ("--keep", ""),
    "--lora": ("--model", "adapters are merged as a model is converted: flowsde convert --lora"),
    "--checkpoint": ("--model", ""),
    "--prompt": ("--prompts-file", "PROMPT is given without a name of an option"),
}
"""What other programs call it, the option here, and what to say if it is not only another name."""
_NARROWEST = 40
"""Columns of the help; below a few, tyro lays it out without end."""
_CONFIG = (tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone)


def parse(words: Sequence[str], kind_of: Callable[[str], Any]) -> Any:
    """The options of a command.

    Args:
      words: of the command line.
      kind_of: the class of a command's options, by its name.

    Raises:
      SystemExit: help was asked for, and printed.
      ValueError: a word is wrong; in one line.
    """
    name = words[0] if words else "--help"
    if name in ("--help", "-h"):
        print(_help())
        raise SystemExit
    if name not in COMMANDS:
        known = ", ".join(COMMANDS)
        hint = _hint(name, COMMANDS)
        raise ValueError(f"COMMAND must be one of {known}, got '{shown(name)}'{hint}")
    kind, errors = kind_of(name), io.StringIO()
    given = _without_resume(name, words[1:])
    try:
        with contextlib.redirect_stderr(errors), _wide_enough():
            command = tyro.cli(
                kind,
                prog=f"flowsde {name}",
                description=introduction(kind),
                args=given,
                config=_CONFIG,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(_mistake(kind, given) or _message(errors.getvalue())) from None
    check_paths(command)
    check_words(command)
    _check_rewards(name, command, given)
    named = any(word.partition("=")[0] == "--method" for word in given)
    searches, single = name in ("sample", "batch"), name == "sample"
    return preset_files.with_its_own(command, named, searches, single)


def _check_rewards(name: str, command: Any, given: Sequence[str]) -> None:
    """ValueError if several rewards are given to a command that takes one, as others do not."""
    many = sum(word.partition("=")[0] == "--reward" for word in given)
    if many > 1 and not isinstance(getattr(command, "reward", ()), tuple):
        raise ValueError(f"--reward is given {many} times: {name} takes one")


@contextlib.contextmanager
def _wide_enough() -> Iterator[None]:
    """A terminal of `_NARROWEST` columns at least, in the block."""
    before = os.environ.get("COLUMNS")
    if shutil.get_terminal_size().columns < _NARROWEST:
        os.environ["COLUMNS"] = str(_NARROWEST)
    try:
        yield
    finally:
        os.environ.pop("COLUMNS", None)
        if before is not None:
            os.environ["COLUMNS"] = before


def _help() -> str:
    every = "\n".join(f"  {name:12} {what}" for name, what in COMMANDS.items())
    return (
        f"usage: flowsde {{{','.join(COMMANDS)}}} ...\n\n"
        f"Inference-time scaling of flow models in JAX.\n\n{every}\n\n"
        f"flowsde COMMAND --help lists a command's options; flowsde --version prints the version."
    )


def _without_resume(name: str, words: Sequence[str]) -> list[str]:
    """The words without --resume, which `flowsde.cli.main` says is no longer needed."""
    if name not in ("sample", "compare") or "--resume" not in words:
        return list(words)
    if "--overwrite" in words:
        raise OptionError("--resume", "contradicts --overwrite, which begins anew; give only one")
    return [word for word in words if word != "--resume"]


class _Option(NamedTuple):
    """An option as it is written, or a positional argument; `required` without a default."""

    name: str
    value: str
    required: bool


def _options(kind: Any) -> Iterator[_Option]:
    """All options of a class of options, groups included."""
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        own, marks = typing.get_origin(hint), getattr(hint, "__metadata__", ())
        group = hint.__origin__ if marks else own or hint
        if dataclasses.is_dataclass(group):
            yield from _options(group)
            continue
        metavar = _said(marks, "metavar", "")
        no_default = field.default is field.default_factory is dataclasses.MISSING
        if tyro.conf.Positional in marks:
            yield _Option(metavar, "", no_default and not metavar.endswith("..."))
        else:
            name = _said(marks, "name", field.name).replace("_", "-")
            yield _Option(f"--{name}", metavar, no_default)


def _said(marks: Iterable[Any], what: str, default: str) -> str:
    """What the first of an annotation's marks says of an option's name or metavar."""
    return next((said for mark in marks if (said := getattr(mark, what, None))), default)


def _mistake(kind: Any, words: list[str]) -> str:
    """What is wrong with words that tyro refused, if it is a name; else nothing."""
    options = list(_options(kind))
    flags = [option.name for option in options if option.name.startswith("--")] + ["--help"]
    named = [word.partition("=")[0] for word in words if re.match("--.", word)]
    given = [name.replace("_", "-") for name in named]
    for name in given:
        if name not in flags:
            return f"unknown option {shown(name)}{_hint(name, flags)}"
    if len(flags) > len(options) and words and not words[0].startswith("-"):
        prompts = "; prompts come from --prompts-file" * ("--prompts-file" in flags)
        return f"unexpected argument '{shown(words[0])}'{prompts}"
    missing = [option for option in options if option.required and option.name not in given]
    if [option for option in missing if option.name.startswith("--")]:
        names = " and ".join(f"{one.name} {one.value}".strip() for one in missing)
        return f"{names} {'is' if len(missing) == 1 else 'are'} missing"
    alone = all(word.startswith("-") for word in words)
    return f"{missing[0].name} is missing" if missing and alone else ""


def _hint(word: str, known: Iterable[str]) -> str:
    by_word = {name.strip("-"): name for name in known}
    if elsewhere := _ELSEWHERE.get(word):
        option, words = elsewhere
        if option in by_word.values():
            return f"; {words or f'did you mean {option}?'}"
    close = difflib.get_close_matches(word[:100].strip("-"), by_word, 1)
    return f"; did you mean {by_word[close[0]]}?" if close else ""


def _message(box: str) -> str:
    """The message inside a box of tyro's, drawn in Unicode or in ASCII: up to its first rule."""
    lines = [line.strip("│╭╮╰╯ ") for line in box.splitlines()]
    lines = [line for line in lines if line]
    framed = box.startswith("╭")
    body = lines[1 if framed else 2 :]
    rules = [i for i, line in enumerate(body) if set(line) <= {"─", "-"}]
    message = " ".join(body[: rules[0] if rules else None])
    return message.removeprefix("Error parsing ")
