"""Questions about prompts in a file: what an image should show, atom by atom (Soft-TIFA).

A JSON object has a list of questions by prompt, a JSON list has those of every prompt:

    {"a red cube on a blue ball": [
        "Is there a cube? Please answer Yes or No.",
        {"question": "What colour is the ball? Answer in one word.", "answers": ["Blue", "blue"]}]}

A text is a question of which "Yes" counts. An object may say the answers that count, words of one
token each whose probabilities are added, and those that count against them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flowsde import _schema
from flowsde._files import read_json
from flowsde._text import names, shown
from flowsde.models.qwen3_vl.questions import Atom

_FIELDS = ("question", "answers", "against")
_words = _schema.items(_schema.text)
_atom = _schema.fields({"answers": _words, "against": _words}, question=_schema.text)


class AtomsError(ValueError):
    """Questions that cannot be asked."""


class Atoms:
    """Those of each prompt.

    Args:
      each: by prompt; of None, of every other prompt.
      where: what they were read from, for errors.

    Raises:
      AtomsError: there are none, of a prompt or at all.
    """

    def __init__(self, each: Mapping[str | None, Sequence[Atom]], where: str = "atoms"):
        self.each, self._where = each, where
        if not each or not all(each.values()):
            raise AtomsError(f"{where} must have at least one question of each prompt")

    def __call__(self, prompt: str) -> Sequence[Atom]:
        """Those of a prompt; errors as of `key`."""
        return self.each[self.key(prompt)]

    def key(self, prompt: str) -> str | None:
        """By what they are in `each`; AtomsError if there are none of a prompt."""
        if prompt in self.each:
            return prompt
        if None not in self.each:
            raise AtomsError(
                f"{self._where} has no questions about '{shown(prompt)}', only about "
                f"{names(list(self.each))}"
            )
        return None


def read_atoms(path: Path) -> Atoms:
    """`Atoms` of a file as above.

    Raises:
      ValueError: it says something else; naming file and field.
      FileNotFoundError: there is none.
    """
    said, where = read_json(path), str(path)
    if isinstance(said, list):
        return Atoms({None: _list(said, where)}, where)
    if not isinstance(said, dict):
        raise _schema.wrong(where, "an object of questions by prompt, or a list of them", said)
    return Atoms(_schema.table(_list)(said, where), where)


def _list(value: Any, where: str) -> list[Atom]:
    return _schema.items(_one)(value, where)


def _one(value: Any, where: str) -> Atom:
    if isinstance(value, str):
        value = {"question": value}
    own = _atom(value, where)
    # A misspelt field would change what is asked without a word.
    if odd := [name for name in own if name not in _FIELDS]:
        raise ValueError(f"{where} has the field {shown(odd[0])}, expected {', '.join(_FIELDS)}")
    if not own["question"].strip():
        raise ValueError(f"{where}: question must have words")
    for name in ("answers", "against"):
        if name in own and not own[name]:
            raise ValueError(f"{where}: {name} must be at least one word")
    question, *words = (own.get(name, getattr(Atom, name, None)) for name in _FIELDS)
    return Atom(question, *map(tuple, words))
