"""Rewards of converted models, by what `--reward` calls them.

    clip               cosine of image and prompt, by a converted CLIP
    pick               PickScore, by its own
    aesthetic          LAION's score, by a converted CLIP and head
    MODULE:FUNCTION    function(images, prompts) -> n floats, outside JAX: images are float32
                       [n, h, w, 3] in [-1, 1], prompts n strings
    none               no reward

Making one checks the options and imports the function; `embed` and `make` read weights.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from flowsde._text import shown
from flowsde.models.clip import rewards
from flowsde.models.common.tokenizers import clip_tokenizer
from flowsde.models.converted.parts import configuration, read
from flowsde.rewards import device, host


class Condition(NamedTuple):
    """What a flow and a reward are given together.

    Attributes:
      model: the flow's cond.
      reward: the prompt's embedding, or its number for a function of texts; None for a reward
        that needs none.
    """

    model: Any
    reward: Any = None


class Verifier(Protocol):
    """A reward, checked and not yet loaded.

    Attributes:
      reads_text: whether it looks at the prompt.
      on_device: whether it has a gradient.
    """

    reads_text: bool
    on_device: bool

    def embed(self, prompts: Sequence[str]) -> list[Any]:
        """For `Condition.reward`, one a prompt."""
        ...

    def make(self, prompt: str) -> Any:
        """A reward of (images, `Condition`)."""
        ...


def _embedding(cond: Condition) -> jax.Array:
    return cond.reward


def _nothing(images: jax.Array, cond: Condition) -> jax.Array:
    return jnp.zeros(images.shape[0], jnp.float32)


class Nothing:
    """No reward: every picture is worth as much."""

    reads_text, on_device = False, True

    def embed(self, prompts: Sequence[str]) -> list[Any]:
        return [None] * len(prompts)

    def make(self, prompt: str) -> Any:
        return device(_nothing, name="none")


@jax.jit
def _embed(model: rewards.CLIP, tokens: jax.Array) -> jax.Array:
    return rewards.text_embeddings(model, tokens)


class Cosine:
    """Of a CLIP, which is read once."""

    reads_text, on_device = True, True

    def __init__(self, folder: Path, score: Callable[..., Any]):
        self._folder, self._score = folder, score
        config = configuration(folder, "clip")
        self._tokenizer = clip_tokenizer(
            folder / "tokenizer", length=config.text.positions, config=config.text
        )
        self._reward: Any = None

    def embed(self, prompts: Sequence[str]) -> list[Any]:
        model = read(self._folder)
        tokens = self._tokenizer(prompts).ids
        # The image tower alone stays.
        self._reward = self._score(model, select=_embedding)
        return [_embed(model, tokens[i : i + 1])[0] for i in range(len(prompts))]

    def make(self, prompt: str) -> Any:
        return self._reward


class Aesthetic:
    """Of a CLIP and a head."""

    reads_text, on_device = False, True

    def __init__(self, tower: Path, head: Path):
        self._tower, self._head = tower, head
        width = configuration(tower, "clip").vision.projection
        wanted = configuration(head, "aesthetic").widths[0]
        if width != wanted:
            raise ValueError(
                f"the head of {head} takes embeddings of {wanted} features, got {width} of {tower}"
            )
        self._reward: Any = None

    def embed(self, prompts: Sequence[str]) -> list[Any]:
        self._reward = rewards.aesthetic(read(self._tower).vision, read(self._head))
        return [None] * len(prompts)

    def make(self, prompt: str) -> Any:
        return self._reward


class Host:
    """A user's function.

    Args:
      name: MODULE:FUNCTION.
      timeout: seconds that a call may take.
    """

    reads_text, on_device = True, False

    def __init__(self, name: str, timeout: float):
        self._name, self._timeout, self._fn = name, timeout, _imported(name)
        self._prompts: list[str] = []

    def embed(self, prompts: Sequence[str]) -> list[Any]:
        # The cond's numbers say which text belongs to which image.
        self._prompts = list(prompts)
        return [np.int32(i) for i in range(len(prompts))]

    def make(self, prompt: str) -> Any:
        def judge(images: np.ndarray, cond: Condition) -> Any:
            return self._fn(images, [self._prompts[i] for i in cond.reward])

        return host(judge, self._name, timeout=self._timeout)


def _imported(name: str) -> Callable[..., Any]:
    module, _, function = name.partition(":")
    before = list(sys.path)
    try:
        # As `python -m` does: a file of the folder in which the command is given.
        sys.path.insert(0, str(Path.cwd()))
        found = getattr(importlib.import_module(module), function)
    except (Exception, SystemExit) as error:
        why = shown(f"{type(error).__name__}: {error}", 400)
        raise ValueError(f"--reward {shown(name)} cannot be imported: {why}") from error
    finally:
        # For what it imports when it is called; last, so that it stands before nothing of ours.
        sys.path[:] = [*before, *[here for here in [str(Path.cwd())] if here not in before]]
    if not callable(found):
        raise ValueError(f"--reward {shown(name)} must be a function, got '{shown(found)}'")
    return found


_HOUR = 3600.0


def verifier(name: str, folders: Sequence[Path], timeout: float | None = None) -> Verifier:
    """A reward by name.

    Args:
      name: as above.
      folders: of --reward-model, as many as it needs.
      timeout: of --reward-timeout, seconds, for a function; an hour by default.

    Raises:
      ValueError, FileNotFoundError: naming the option that is wrong.
    """
    known = {"none": 0, "clip": 1, "pick": 1, "aesthetic": 2}
    if ":" not in name and name not in known:
        raise ValueError(
            f"--reward must be one of {', '.join(known)} or MODULE:FUNCTION, got '{shown(name)}'"
        )
    if timeout is not None and ":" not in name:
        raise ValueError(f"--reward-timeout has no effect with --reward {name}, got {timeout}")
    if timeout is not None and timeout <= 0:
        raise ValueError(f"--reward-timeout must be above 0, got {timeout}")
    needed = known.get(name, 0)
    if len(folders) != needed:
        what = ("no folder", "a converted CLIP", "a converted CLIP and then the head")[needed]
        got = " and ".join(map(str, folders)) or "none"
        raise ValueError(f"--reward-model must be {what} for --reward {name}, got {got}")
    if name == "none":
        return Nothing()
    if name == "aesthetic":
        return Aesthetic(*folders)
    if name in known:
        return Cosine(folders[0], rewards.clip_score if name == "clip" else rewards.pick_score)
    return Host(name, _HOUR if timeout is None else timeout)
