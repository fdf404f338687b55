"""Prompts to the tokens that CLIP and T5 were trained on, from the files of a model's folder.

CLIP: start, the text's tokens, end, then padding, of 77. T5: the text's tokens, end, padding, of
as many as the model was trained with. A longer text loses its last tokens, never the end.
"""

import dataclasses
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

# CLIP's own rule of what a word is (Radford et al., 2021).
_CLIP_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


class Tokens(NamedTuple):
    """Tokens of prompts.

    Attributes:
      ids: int32 [n, length].
      mask: bool [n, length], False at padding.
    """

    ids: np.ndarray
    mask: np.ndarray


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A tokenizer of one length; `clip_tokenizer` and `t5_tokenizer` read one from a folder.

    Attributes:
      backend: which splits a text into tokens.
      length: tokens of a prompt, with the special ones and padding.
      start: the token before a text, if any.
      end: the token after it.
      pad: the token of padding.
    """

    backend: tokenizers.Tokenizer
    length: int
    start: int | None
    end: int
    pad: int

    def __post_init__(self) -> None:
        if self.length < len(self._special) + 1:
            raise ValueError(f"length must be at least {len(self._special) + 1}, got {self.length}")

    @property
    def _special(self) -> tuple[int, ...]:
        return (self.end,) if self.start is None else (self.start, self.end)

    def __call__(self, prompts: Sequence[str]) -> Tokens:
        """Tokens of prompts; warns of each that is cut, with what is left out.

        Raises:
          ValueError: one string instead of several.
        """
        if isinstance(prompts, str):
            raise ValueError(f"prompts must be a sequence of strings, got the string {prompts!r}")
        ids = np.full((len(prompts), self.length), self.pad, np.int32)
        mask = np.zeros(ids.shape, bool)
        for row, seen, prompt in zip(ids, mask, prompts, strict=True):
            tokens = self._of(prompt)
            row[: len(tokens)], seen[: len(tokens)] = tokens, True
        return Tokens(ids, mask)

    def _of(self, prompt: str) -> list[int]:
        encoding = self.backend.encode(prompt, add_special_tokens=False)
        room = self.length - len(self._special)
        if len(encoding.ids) > room:
            rest = prompt[encoding.offsets[room][0] :]
            warnings.warn(
                f"a prompt has {len(encoding.ids)} tokens, of which {room} are used; "
                f"left out: {rest!r}",
                stacklevel=3,
            )
        start = [] if self.start is None else [self.start]
        return [*start, *encoding.ids[:room], self.end]


def clip_tokenizer(folder: str | Path, *, length: int = 77) -> Tokenizer:
    """CLIP's, from a folder's tokenizer.json, or its vocab.json and merges.txt.

    Padding is with the folder's `pad_token`, or else the end token.

    Raises:
      ValueError: the folder has neither, or a special token is not in the vocabulary.
    """
    folder = Path(folder)
    settings = _settings(folder)
    start = settings.get("bos_token", "<|startoftext|>")
    end = settings.get("eos_token", "<|endoftext|>")
    pad = settings.get("pad_token", end)
    if (folder / "tokenizer.json").is_file():
        backend = _read(folder / "tokenizer.json")
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        backend = _clip_backend(folder, settings.get("unk_token", end))
        backend.add_special_tokens(list(dict.fromkeys([start, end, pad])))
    else:
        raise ValueError(
            f"{folder} must have a tokenizer.json or a vocab.json and a merges.txt, "
            f"got {_names(folder)}"
        )
    return Tokenizer(backend, length, _id(backend, start), _id(backend, end), _id(backend, pad))


def t5_tokenizer(folder: str | Path, *, length: int = 512) -> Tokenizer:
    """T5's, from a folder's tokenizer.json.

    Raises:
      ValueError: the folder has none, or a special token is not in the vocabulary.
    """
    folder = Path(folder)
    if not (folder / "tokenizer.json").is_file():
        hint = ""
        if (folder / "spiece.model").is_file():
            hint = (
                "; save one from its spiece.model: transformers.AutoTokenizer"
                f".from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
            )
        raise ValueError(f"{folder} must have a tokenizer.json, got {_names(folder)}{hint}")
    backend, settings = _read(folder / "tokenizer.json"), _settings(folder)
    end = _id(backend, settings.get("eos_token", "</s>"))
    return Tokenizer(backend, length, None, end, _id(backend, settings.get("pad_token", "<pad>")))


def _clip_backend(folder: Path, unknown: str) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(
        models.BPE.from_file(
            str(folder / "vocab.json"),
            str(folder / "merges.txt"),
            unk_token=unknown,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            fuse_unk=False,
        )
    )
    space = normalizers.Replace(tokenizers.Regex(r"\s+"), " ")
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), space, normalizers.Lowercase()])
    words = pre_tokenizers.Split(tokenizers.Regex(_CLIP_WORDS), behavior="removed", invert=True)
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, as_bytes])
    return backend


def _read(path: Path) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer.from_file(str(path))
    # A file may hold the settings of whoever saved it.
    backend.no_padding()
    backend.no_truncation()
    return backend


def _settings(folder: Path) -> Mapping[str, str]:
    """Special tokens by name, from the files that say them."""
    named: dict[str, str] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        if not (folder / file).is_file():
            continue
        for name, token in json.loads((folder / file).read_text(encoding="utf-8")).items():
            token = token.get("content") if isinstance(token, dict) else token
            if name.endswith("_token") and isinstance(token, str):
                named[name] = token
    return named


def _id(backend: tokenizers.Tokenizer, token: str) -> int:
    found = backend.token_to_id(token)
    if found is None:
        raise ValueError(f"the special token {token!r} is not in the tokenizer's vocabulary")
    return found


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
