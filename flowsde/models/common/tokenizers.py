"""Prompts to the tokens that models were trained on, from the files of a model's folder.

CLIP and BERT: start, the text's tokens, end, then padding, of 77 and of as many as one likes. T5:
the text's tokens, end, padding, of as many as the model was trained with. A longer text loses its
last tokens, never the end. Qwen3: a chat in which a user says the text and the assistant is to
answer, then padding; there a longer text loses the rest of the chat, as in published pipelines.
"""

import dataclasses
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from flowsde import _schema
from flowsde._files import read_json
from flowsde._text import shown
from flowsde.models.clip.model import CLIPTextConfig

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
    """A tokenizer of one length, which `clip_tokenizer` and the others read from a folder.

    Attributes:
      backend: which splits a text into tokens.
      length: tokens of a prompt, with the special ones and padding.
      start: the token before a text, if any.
      end: the token after it, if any.
      pad: the token of padding.
      around: texts that a prompt is put between.
    """

    backend: tokenizers.Tokenizer
    length: int
    start: int | None
    end: int | None
    pad: int
    around: tuple[str, str] = ("", "")

    def __post_init__(self) -> None:
        if self.length < len(self._special) + 1:
            raise ValueError(f"length must be at least {len(self._special) + 1}, got {self.length}")

    @property
    def _special(self) -> tuple[int, ...]:
        return tuple(token for token in (self.start, self.end) if token is not None)

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

    def whole(self, text: str) -> list[int]:
        """Tokens of a text between the special ones, however many; no padding."""
        return self._between(self._split(text).ids)

    def _of(self, prompt: str) -> list[int]:
        before, after = self.around
        prompt = f"{before}{prompt}{after}"
        encoding = self._split(prompt)
        room = self.length - len(self._special)
        if len(encoding.ids) > room:
            rest = prompt[encoding.offsets[room][0] :]
            warnings.warn(
                f"a prompt has {len(encoding.ids)} tokens, of which {room} are used; "
                f"left out: {rest!r}",
                stacklevel=3,
            )
        return self._between(encoding.ids[:room])

    def _split(self, text: str) -> tokenizers.Encoding:
        with _named("a prompt cannot be split into tokens"):
            return self.backend.encode(text, add_special_tokens=False)

    def _between(self, ids: list[int]) -> list[int]:
        start, end = ([] if token is None else [token] for token in (self.start, self.end))
        return [*start, *ids, *end]


def clip_tokenizer(
    folder: str | Path, *, length: int = 77, config: CLIPTextConfig | None = None
) -> Tokenizer:
    """CLIP's, from a folder's tokenizer.json, or its vocab.json and merges.txt.

    Padding is with the folder's `pad_token`, or else the end token.

    Args:
      folder: with the files.
      length: tokens of a prompt.
      config: of the model that is to read the tokens.

    Raises:
      ValueError: the folder has neither, or they cannot be read; a special token is not in the
        vocabulary; or that is not the model's.
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
    else:
        raise ValueError(
            f"{folder} must have a tokenizer.json or a vocab.json and a merges.txt, got "
            f"{_found(folder)}"
        )
    start_id, end_id, pad_id = (_id(folder, backend, token) for token in (start, end, pad))
    if not (folder / "tokenizer.json").is_file():
        # They are in the vocabulary: this adds none, but finds them in a text.
        backend.add_special_tokens(list(dict.fromkeys([start, end, pad])))
    if config is not None:
        highest = _check_vocabulary(folder, backend, config.vocab)
        # Where the model looks for the end of a text.
        wanted = highest if config.eos is None else config.eos
        if end_id != wanted:
            raise ValueError(
                f"{folder} is not the tokenizer of this model: it ends a text by the token "
                f"{end_id}, expected {wanted}"
            )
    return Tokenizer(backend, length, start_id, end_id, pad_id)


def t5_tokenizer(folder: str | Path, *, length: int = 512, vocab: int | None = None) -> Tokenizer:
    """T5's, from a folder's tokenizer.json.

    Args:
      folder: with the files.
      length: tokens of a prompt.
      vocab: rows of the token table of the model that is to read the tokens.

    Raises:
      ValueError: the folder has none, or it cannot be read; a special token is not in the
        vocabulary; or that is not the model's.
    """
    folder = Path(folder)
    if not (folder / "tokenizer.json").is_file():
        hint = ""
        if (folder / "spiece.model").is_file():
            hint = (
                "; save one of the source's spiece.model, and convert again: "
                "transformers.AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
            )
        raise ValueError(f"{folder} must have a tokenizer.json, got {_found(folder)}{hint}")
    settings, backend = _settings(folder), _read(folder / "tokenizer.json")
    end = _id(folder, backend, settings.get("eos_token", "</s>"))
    pad = _id(folder, backend, settings.get("pad_token", "<pad>"))
    if vocab is not None:
        _check_vocabulary(folder, backend, vocab)
    return Tokenizer(backend, length, None, end, pad)


def bert_tokenizer(folder: str | Path, *, length: int, vocab: int, pad: int = 0) -> Tokenizer:
    """BERT's, from a folder's tokenizer.json.

    Args:
      folder: with the file.
      length: tokens of a prompt.
      vocab: rows of the token table of the model that is to read the tokens.
      pad: the token that the model takes for padding.

    Raises:
      ValueError: the folder has none, or it cannot be read; a special token is not in the
        vocabulary; or that is not the model's.
    """
    folder = Path(folder)
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(f"{folder} must have a tokenizer.json, got {_found(folder)}")
    backend = _read(folder / "tokenizer.json")
    start, end, own = (_id(folder, backend, token) for token in ("[CLS]", "[SEP]", "[PAD]"))
    _check_vocabulary(folder, backend, vocab)
    if own != pad:
        raise ValueError(
            f"{folder} is not the tokenizer of this model: it pads by the token {own}, "
            f"expected {pad}"
        )
    return Tokenizer(backend, length, start, end, pad)


def qwen3_tokenizer(
    folder: str | Path, *, length: int, vocab: int, thinking: bool = True
) -> Tokenizer:
    """Qwen3's, of chats, from a folder's tokenizer.json.

    Args:
      folder: with the files.
      length: tokens of a chat.
      vocab: rows of the token table of the model that is to read the tokens.
      thinking: whether the assistant may think before it answers; otherwise the chat goes on with
        a thought that is empty.

    Raises:
      ValueError: as of `t5_tokenizer`.
    """
    folder = Path(folder)
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(f"{folder} must have a tokenizer.json, got {_found(folder)}")
    settings, backend = _settings(folder), _read(folder / "tokenizer.json")
    begin, end = "<|im_start|>", "<|im_end|>"
    for token in (begin, end):
        _id(folder, backend, token)
    pad = _id(folder, backend, settings.get("pad_token", "<|endoftext|>"))
    _check_vocabulary(folder, backend, vocab)
    thought = "" if thinking else "<think>\n\n</think>\n\n"
    around = f"{begin}user\n", f"{end}\n{begin}assistant\n{thought}"
    return Tokenizer(backend, length, None, None, pad, around)


def _check_vocabulary(folder: Path, backend: tokenizers.Tokenizer, rows: int) -> int:
    """The highest id; ValueError unless a model with so many tokens knows all."""
    ids = backend.get_vocab(with_added_tokens=True).values()
    highest = max(ids)
    if highest >= rows:
        raise ValueError(
            f"{folder} is not the tokenizer of this model: its ids go to {highest}, expected at "
            f"most {rows - 1}"
        )
    return highest


def _clip_backend(folder: Path, unknown: str) -> tokenizers.Tokenizer:
    path = folder / "vocab.json"
    vocab = _schema.table(_schema.whole())(read_json(path), str(path))
    if len(set(vocab.values())) < len(vocab):
        raise ValueError(f"{path} has two tokens of one id")
    if unknown not in vocab:
        raise _unknown(folder, unknown)
    with _named(f"{folder}: vocab.json and merges.txt cannot be read"):
        backend = tokenizers.Tokenizer(
            models.BPE.from_file(
                str(path),
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
    with _named(f"{path} cannot be read"):
        backend = tokenizers.Tokenizer.from_file(str(path))
        # A file may hold the settings of whoever saved it.
        backend.no_padding()
        backend.no_truncation()
    return backend


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Errors of the library, which says neither file nor kind, as ValueError."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # A panic of Rust is no Exception.
        raise ValueError(f"{what}: {shown(error)}") from None


def _settings(folder: Path) -> Mapping[str, str]:
    """Special tokens by name, from the files that say them."""
    named: dict[str, str] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        path = folder / file
        if path.is_file():
            says = _schema.fields(dict.fromkeys(_SPECIAL, _token))(read_json(path), str(path))
            named |= {name: says[name] for name in _SPECIAL if says.get(name) is not None}
    return named


_MOST = 12
"""Names in a message."""
_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
_content = _schema.fields(content=_schema.text)


def _token(value: Any, where: str) -> str | None:
    """A token is its text, or an object that has more to say of it."""
    if isinstance(value, dict):
        return _content(value, where)["content"]
    return _schema.maybe(_schema.text)(value, where)


def _id(folder: Path, backend: tokenizers.Tokenizer, token: str) -> int:
    found = backend.token_to_id(token)
    if found is None:
        raise _unknown(folder, token)
    return found


def _unknown(folder: Path, token: str) -> ValueError:
    return ValueError(
        f"{folder}: the special token {shown(repr(token))} is not in the tokenizer's vocabulary"
    )


def _found(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())[:_MOST] if folder.is_dir() else []
