"""The prompts of a command: its words, and the lines of a file."""

from collections.abc import Callable, Sequence
from pathlib import Path

from flowsde._text import names, shown
from flowsde.cli import prompt_files
from flowsde.shapes import captions

Slug = Callable[[str], str]
"""What a prompt means, as the name of a folder; ValueError for what is no prompt of a model."""


def slug(prompt: str) -> str:
    """What a prompt means, as the name of a folder."""
    return captions.caption(captions.parse(prompt)).replace(" ", "-")


def of_words(words: Sequence[str], slug: Slug = slug) -> list[str]:
    """One prompt a word, or one prompt of all words if they make one only together."""
    errors = []
    for word in words:
        try:
            slug(word)
        except ValueError as error:
            errors.append(error)
    if not errors:
        return list(words)
    if len(errors) < len(words):
        raise errors[0]
    slug(" ".join(words))
    return [" ".join(words)]


def of_file(path: Path, slug: Slug = slug) -> list[tuple[str, str]]:
    """(place, prompt) of each prompt of a file, as `flowsde.cli.prompt_files` reads them."""
    lines = [(f"{path}:{i}", prompt) for i, prompt in prompt_files.read(path)]
    if not lines:
        raise ValueError(f"--prompts-file: {path} holds no prompt")
    for place, line in lines:
        try:
            slug(line)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
    return lines


def collect(words: Sequence[str], file: Path | None, slug: Slug = slug) -> list[str]:
    """All prompts, those of the words first.

    Args:
      words: of the command line.
      file: with more.
      slug: of the model; by default, prompts are captions of the embedded one.

    Raises:
      ValueError: naming the word, or the file and the line, that is none or is there twice.
    """
    placed = [("PROMPT", prompt) for prompt in of_words(words, slug)] if words else []
    placed += of_file(file, slug) if file is not None else []
    if not placed:
        raise ValueError(
            "PROMPT is missing, expected e.g. 'three red circles and two blue squares'"
        )
    places: dict[str, str] = {}
    again: list[tuple[str, str, str]] = []
    for place, prompt in placed:
        name = slug(prompt)
        if name in places:
            again.append((place, prompt, places[name]))
        places.setdefault(name, place if place != "PROMPT" else f"PROMPT '{shown(prompt)}'")
    if again:
        (place, prompt, first), *more = again
        said = f"{place}: '{shown(prompt)}' is given twice, first as {first}"
        also = f"; so are {names([where for where, _, _ in more])}" if more else ""
        raise ValueError(f"{said}{also}; another --seed gives other pictures")
    return [prompt for _, prompt in placed]
