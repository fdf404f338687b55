"""Qwen3-VL, dense: Qwen3 with an image before the text.

Qwen Team, 2025 (arXiv 2511.21631). A position has three axes, of time, row and column (M-RoPE),
which take turns at the pairs of a head's features: text counts alike on all three, an image's
tokens stand still in time, and what follows goes on behind its longer side. After the first blocks
the image's deeper features are added to its tokens.

A text of which several are asked is read on its own: what it looks at of the image and of what
stands before that, keys and values, is made once (`prefix`), for all texts that follow (`after`).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from flowsde.models.common.layers import FLOAT32, Numerics, scan_some
from flowsde.models.common.rope import interleaved_angles
from flowsde.models.family import Family
from flowsde.models.qwen3.model import KeysValues, Qwen3, Qwen3Block, Qwen3Config
from flowsde.models.qwen3_vl.vision import Qwen3VLVision, Qwen3VLVisionConfig, tokens_of

_TEXT: dict[str, Any] = {"heads": 32, "shared": 8, "head": 128, "theta": 5e6}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen3VLConfig:
    """Sizes of `Qwen3VL`; those of Qwen3-VL-8B by default.

    Attributes:
      vision: of the image tower.
      text: of the language model.
      sections: pairs of a head's features that turn with time, row and column.
      tied: whether the head is the token table.
    """

    vision: Qwen3VLVisionConfig = Qwen3VLVisionConfig()
    text: Qwen3Config = Qwen3Config(width=4096, depth=36, mlp=12288, **_TEXT)
    sections: tuple[int, int, int] = (24, 20, 20)
    tied: bool = False

    def __post_init__(self) -> None:
        # A list when it comes from JSON, which would not hash.
        object.__setattr__(self, "sections", tuple(self.sections))
        pairs, s = self.text.head // 2, self.sections
        if len(s) != 3 or sum(s) != pairs or min(s) < 0 or 3 * max(s[1:]) > pairs:
            raise ValueError(
                f"sections must be three that make up the {pairs} pairs of a head, rows and "
                f"columns at most a third of them each, got {s}"
            )
        if len(self.vision.deep) > self.text.depth:
            raise ValueError(
                f"deep must be of at most the {self.text.depth} blocks of the text, "
                f"got {self.vision.deep}"
            )


QWEN3_VL_8B = Qwen3VLConfig()
"""8.77 billion parameters."""
QWEN3_VL_4B = Qwen3VLConfig(
    vision=Qwen3VLVisionConfig(width=1024, depth=24, mlp=4096, deep=(5, 11, 17)),
    text=Qwen3Config(width=2560, depth=36, mlp=9728, **_TEXT),
    tied=True,
)
"""4.44 billion."""


class Qwen3VL(nnx.Module):
    """The image tower, the language model and its head."""

    def __init__(self, config: Qwen3VLConfig, numerics: Numerics = FLOAT32, *, rngs: nnx.Rngs):
        self.config, self.numerics = config, numerics
        width = config.text.width
        self.vision = Qwen3VLVision(config.vision, width, numerics, rngs=rngs)
        self.text = Qwen3(config.text, numerics, rngs=rngs)
        if not config.tied:
            self.head = numerics.linear(
                width, config.text.vocab, ("embed", "vocab"), bias=False, rngs=rngs
            )

    def __call__(
        self, images: jax.Array, before: jax.Array, texts: jax.Array, last: jax.Array
    ) -> jax.Array:
        """Logits float32 [n, texts, vocab] of what follows each text on an image.

        Args:
          images: [n, height, width, 3] in [-1, 1], of a size that the tower takes.
          before: tokens [n, some] of what stands before the image.
          texts: tokens [n, texts, length], each after the image and not after each other; what is
            behind the end of one is not read.
          last: place of the last token of each text, int32 [n, texts].

        Raises:
          ValueError: images of another shape.
        """
        past = self.prefix(images, before)
        return self.after(past, before.shape[1], images.shape[1:3], texts, last)

    def prefix(self, images: jax.Array, before: jax.Array) -> KeysValues:
        """Keys and values [blocks, n, tokens, shared, head] of tokens and the image behind them.

        Args:
          images, before: as of a call.

        Raises:
          ValueError: images of another shape.
        """
        seen, first = self.vision(images), before.shape[1]
        x = jnp.concatenate([self._embedded(before), seen.tokens], axis=1)
        places, _ = places_of(first, tokens_of(self.config.vision, images.shape[1:3]))
        turn = interleaved_angles(jnp.asarray(places), self.config.sections, self.config.text.theta)

        def step(
            block: Qwen3Block, x: jax.Array, own: jax.Array | None
        ) -> tuple[jax.Array, KeysValues]:
            x, kept = block.keeping(x, turn)
            return (x if own is None else x.at[:, first:].add(own)), kept

        deep, blocks = len(seen.deep), self.text.blocks
        x, early = scan_some(blocks, step, x, (0, deep), seen.deep)
        _, late = scan_some(blocks, step, x, (deep, self.config.text.depth))
        return jax.tree.map(lambda *both: jnp.concatenate(both), early, late)

    def after(
        self,
        past: KeysValues,
        before: int,
        size: tuple[int, ...],
        texts: jax.Array,
        last: jax.Array,
    ) -> jax.Array:
        """Logits float32 [n, texts, vocab] of what follows each text.

        Args:
          past: of `prefix`.
          before: tokens before the image.
          size: of the image, height and width.
          texts, last: as of a call.
        """
        n, count, length = texts.shape
        c = self.config
        image, start = places_of(before, tokens_of(c.vision, size))
        places = start + np.tile(np.arange(length), count)
        turn = interleaved_angles(
            jnp.asarray(np.stack([places] * 3, axis=-1)), c.sections, c.text.theta
        )
        mask = jnp.asarray(_looks_at(len(image), count, length))[None, None]
        x = self._embedded(texts.reshape(n, count * length))

        def step(block: Qwen3Block, x: jax.Array, own: KeysValues) -> tuple[jax.Array, None]:
            return block.keeping(x, turn, mask, own)[0], None

        x, _ = scan_some(self.text.blocks, step, x, (0, c.text.depth), past)
        x = x.reshape(n, count, length, -1)
        x = jnp.take_along_axis(x, last[:, :, None, None], axis=2)[:, :, 0]
        return self._logits(self.text.norm(x).astype(self.numerics.dtype))

    def _embedded(self, tokens: jax.Array) -> jax.Array:
        return self.text.tokens[tokens].astype(self.numerics.dtype)

    def _logits(self, x: jax.Array) -> jax.Array:
        table = self.text.tokens.get_value().T if self.config.tied else self.head.kernel.get_value()
        return jnp.matmul(x, table.astype(x.dtype), preferred_element_type=jnp.float32)


def places_of(before: int, grid: tuple[int, int]) -> tuple[np.ndarray, int]:
    """Positions int32 [before + image, 3] of tokens and the image behind, and that of what follows.

    Args:
      before: tokens before the image.
      grid: rows and columns of the image's tokens.
    """
    text = np.stack([np.arange(before)] * 3, axis=-1)
    rows, columns = (a.reshape(-1) for a in np.indices(grid))
    image = before + np.stack([np.zeros_like(rows), rows, columns], axis=-1)
    return np.concatenate([text, image]).astype(np.int32), before + max(grid)


def _looks_at(past: int, count: int, length: int) -> np.ndarray:
    """Where a text's token looks: all of the past, itself, and those before it in the same text.

    Returns:
      Bool [count length, past + count length].
    """
    text, place = (a.reshape(-1) for a in np.indices((count, length)))
    own = (text[:, None] == text[None]) & (place[:, None] >= place[None])
    return np.concatenate([np.ones((len(own), past), bool), own], axis=1)


FAMILY = Family(name="qwen3_vl", config=Qwen3VLConfig, build=Qwen3VL)
