"""Stable Diffusion 3: a transformer over text and image tokens (Esser et al., 2024, 2403.03206).

Each block has weights of its own for text and for image, which meet in attention. Global
conditions (time and pooled text) enter by adaptive layer norm; positions are a table, of which an
image takes the middle. In 3.5 queries and keys are normalised, and the first blocks of 3.5-medium
have a second attention, of the image to itself. The last block gives the image alone. Time and
output are ours already: t = 1 is noise, the output noise - data.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from flowsde.models.common.layers import (
    FLOAT32,
    Numerics,
    QKNorm,
    attention,
    outputs,
    parameter,
    scan,
    stack,
)
from flowsde.models.common.modulation import (
    SINUSOIDS,
    Embedding,
    Modulation,
    adaptive_norm,
    add_gated,
    sinusoids,
)
from flowsde.models.common.patches import pack, unpack
from flowsde.models.common.sequence import Split
from flowsde.models.family import Family

PATCH = 2
_TIME_SCALE = 1000.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class SD3Config:
    """Sizes of `SD3`; those of SD3-medium by default.

    Attributes:
      channels: of the latents.
      heads: of attention.
      head: features of one.
      depth: blocks.
      dual: of them, from the first, with a second attention; the last never has one.
      qk_norm: whether queries and keys are normalised.
      mlp: hidden features of the MLPs.
      text: features of a text token.
      pooled: features of the pooled text.
      side: rows, and columns, of the table of positions, in patches.
    """

    channels: int = 16
    heads: int = 24
    head: int = 64
    depth: int = 24
    dual: int = 0
    qk_norm: bool = False
    mlp: int = 6144
    text: int = 4096
    pooled: int = 2048
    side: int = 192

    def __post_init__(self) -> None:
        if not 0 <= self.dual < self.depth:
            raise ValueError(
                f"dual must be from 0 to {self.depth - 1}, fewer than the blocks, got {self.dual}"
            )

    @classmethod
    def medium(cls) -> "SD3Config":
        """SD3-medium: 2.03 billion parameters besides the table of positions."""
        return cls()

    @classmethod
    def medium_3_5(cls) -> "SD3Config":
        """SD3.5-medium: 2.24 billion parameters besides the table of positions."""
        return cls(dual=13, qk_norm=True, side=384)

    @classmethod
    def large_3_5(cls) -> "SD3Config":
        """SD3.5-large: 8.06 billion parameters besides the table of positions."""
        return cls(heads=38, depth=38, qk_norm=True, mlp=9728)

    @property
    def width(self) -> int:
        """Features of a token in the blocks."""
        return self.heads * self.head

    @property
    def plain(self) -> int:
        """Blocks between those with a second attention and the last."""
        return self.depth - 1 - self.dual


class SD3Cond(NamedTuple):
    """What an image is asked to be.

    Attributes:
      text: states [n, tokens, text features]: CLIP's, then T5's, padding included.
      pooled: both CLIPs' projected states [n, pooled features].
    """

    text: jax.Array
    pooled: jax.Array


class Tokens(nnx.Module):
    """Into and out of attention, for the tokens of one kind; `out` only if they are kept."""

    def __init__(self, config: SD3Config, numerics: Numerics, rngs: nnx.Rngs, kept: bool = True):
        width, self.heads = config.width, config.heads
        self.qkv = numerics.linear(width, 3 * width, ("embed", "heads"), rngs=rngs)
        self.norm = QKNorm(config.head, numerics, rngs) if config.qk_norm else None
        self.out = numerics.linear(width, width, ("heads", "embed"), rngs=rngs) if kept else None

    def read(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values [n, tokens, heads, d]."""
        parts = outputs(self.qkv, x, [x.shape[-1]] * 3)
        q, k, v = (a.reshape(*a.shape[:2], self.heads, -1) for a in parts)
        if self.norm is None:
            return q, k, v
        q, k = self.norm(q, k)
        return q.astype(v.dtype), k.astype(v.dtype), v


class MLP(nnx.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, config: SD3Config, numerics: Numerics, rngs: nnx.Rngs):
        self.up = numerics.linear(config.width, config.mlp, ("embed", "mlp"), rngs=rngs)
        self.down = numerics.linear(config.mlp, config.width, ("mlp", "embed"), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(jax.nn.gelu(self.up(x), approximate=True))


class JointBlock(nnx.Module):
    """Image and text tokens, each by weights of their own, in one attention.

    Args:
      config: of the model.
      numerics: of the model.
      rngs: of the weights.
      dual: whether the image has a second attention, to itself.
      last: whether the text ends here, of which then only keys and values are used.
    """

    def __init__(
        self,
        config: SD3Config,
        numerics: Numerics,
        rngs: nnx.Rngs,
        *,
        dual: bool = False,
        last: bool = False,
    ):
        width, self.numerics = config.width, numerics
        self.image_modulation = Modulation(width, 9 if dual else 6, numerics, rngs)
        self.text_modulation = Modulation(width, 2 if last else 6, numerics, rngs)
        self.image = Tokens(config, numerics, rngs)
        self.text = Tokens(config, numerics, rngs, kept=not last)
        self.second = Tokens(config, numerics, rngs) if dual else None
        self.image_mlp = MLP(config, numerics, rngs)
        self.text_mlp = None if last else MLP(config, numerics, rngs)

    def __call__(
        self,
        text: jax.Array,
        image: jax.Array,
        c: jax.Array,
        seen: jax.Array | None = None,
        image_seen: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Text and image tokens [n, tokens, width]; c: float32 [n, width], activated.

        Of tokens that are split over devices, seen are all and image_seen the image's, of `Split`.
        The last block gives the text as it was.
        """
        of_image, of_text = self.image_modulation(c), self.text_modulation(c)
        parts = [
            self.image.read(adaptive_norm(image, *of_image[:2])),
            self.text.read(adaptive_norm(text, *of_text[:2])),
        ]
        split, attend = Split.of(self.numerics.rules), partial(attention, numerics=self.numerics)
        qs, *kv = zip(*parts, strict=True)
        k, v = (split.join(both) for both in kv)
        sizes = [image.shape[1], text.shape[1]]
        if self.text.out is None:
            qs, sizes = qs[:1], sizes[:1]
        attended = attend(split.join(qs), k, v, mask=seen, split=True)
        looks = split.part(attended, sizes)

        assert self.image.out is not None
        made = add_gated(image, of_image[2], self.image.out(looks[0]))
        if self.second is not None:
            # Of the image before the first attention.
            own = self.second.read(adaptive_norm(image, *of_image[6:8]))
            assert self.second.out is not None
            again = self.second.out(attend(*own, mask=image_seen, split=True))
            made = add_gated(made, of_image[8], again)
        made = _mixed(self.image_mlp, made, of_image)
        if self.text.out is None or self.text_mlp is None:
            return text, made
        text = add_gated(text, of_text[2], self.text.out(looks[1]))
        return _mixed(self.text_mlp, text, of_text), made


def _mixed(mlp: MLP, x: jax.Array, m: Sequence[jax.Array]) -> jax.Array:
    """x after an MLP, by the fourth to sixth of a modulation."""
    return add_gated(x, m[5], mlp(adaptive_norm(x, m[3], m[4])))


class SD3(nnx.Module):
    """Velocity of a Stable Diffusion 3, `model(x, t, cond)`."""

    def __init__(self, config: SD3Config, numerics: Numerics = FLOAT32, *, rngs: nnx.Rngs):
        self.config, self.numerics = config, numerics
        width, values = config.width, PATCH**2 * config.channels
        self.latents_in = numerics.linear(values, width, (None, "embed"), rngs=rngs)
        table = (config.side, config.side, width)
        self.positions = parameter(table, (None, None, "embed"), numerics, rngs)
        self.text_in = numerics.linear(config.text, width, (None, "embed"), rngs=rngs)
        self.time = Embedding(SINUSOIDS, width, numerics, rngs)
        self.pooled = Embedding(config.pooled, width, numerics, rngs)

        def blocks(count: int, dual: bool) -> JointBlock | None:
            if not count:
                return None
            return stack(lambda r: JointBlock(config, numerics, r, dual=dual), count, rngs)

        self.dual, self.plain = blocks(config.dual, True), blocks(config.plain, False)
        self.last = JointBlock(config, numerics, rngs, last=True)
        self.modulation = Modulation(width, 2, numerics, rngs)
        self.out = numerics.linear(width, values, ("embed", None), rngs=rngs)

    def __call__(self, x: jax.Array, t: jax.Array, cond: SD3Cond) -> jax.Array:
        """Velocity, noise - data, float32 and shaped as x.

        Args:
          x: latents [n, H, W, channels], H and W even.
          t: times [n] in [0, 1].
          cond: the text.

        Raises:
          ValueError: when x or cond do not fit the configuration.
        """
        return self.without((), x, t, cond)

    def without(
        self, skipped: Sequence[int], x: jax.Array, t: jax.Array, cond: SD3Cond
    ) -> jax.Array:
        """As a call, but the blocks of these numbers, which leave everything as it is."""
        self._check(x, cond)
        c, dtype = self.config, self.numerics.dtype
        image = self.latents_in(pack(x, PATCH, "channels_first").astype(dtype))
        image = image + self.positions_of(*x.shape[1:3]).astype(dtype)[None]
        time = self.time(sinusoids(_TIME_SCALE * t.astype(jnp.float32)))
        activated = jax.nn.silu(time + self.pooled(cond.pooled.astype(jnp.float32)))
        text, tokens = self.text_in(cond.text.astype(dtype)), image.shape[1]
        split = Split.of(self.numerics.rules)
        seen = split.seen(tokens, text.shape[1]), split.seen(tokens)
        both: Any = split.keep((split.fill(text), split.fill(image)))

        def step(block: JointBlock, both: Any) -> Any:
            text, image = both
            return split.keep(block(text, image, activated, *seen))

        for blocks, first, count in ((self.dual, 0, c.dual), (self.plain, c.dual, c.plain)):
            if blocks is not None:
                kept = [i for i in range(count) if first + i not in skipped]
                both = _through(blocks, count, kept, step, both)
        if c.depth - 1 not in skipped:
            both = step(self.last, both)

        shift, scale = self.modulation(activated)
        made = self.out(adaptive_norm(both[1], shift, scale))[:, :tokens].astype(jnp.float32)
        return unpack(made, x.shape[1], x.shape[2], PATCH, "channels_last")

    def positions_of(self, height: int, width: int) -> jax.Array:
        """The middle of the table [tokens, width], for latents of so many rows and columns."""
        tall, wide = height // PATCH, width // PATCH
        top, left = (self.config.side - tall) // 2, (self.config.side - wide) // 2
        return self.positions[top : top + tall, left : left + wide].reshape(tall * wide, -1)

    def _check(self, x: jax.Array, cond: SD3Cond) -> None:
        c = self.config
        if x.ndim != 4 or x.shape[-1] != c.channels:
            raise ValueError(f"x must have shape (n, H, W, {c.channels}), got {x.shape}")
        if max(x.shape[1:3]) > PATCH * c.side:
            raise ValueError(
                f"x must have at most {PATCH * c.side} rows and columns, for which there are "
                f"positions, got {x.shape}"
            )
        if cond.text.ndim != 3 or cond.text.shape[-1] != c.text:
            raise ValueError(f"text must have shape (n, tokens, {c.text}), got {cond.text.shape}")
        if cond.pooled.shape[1:] != (c.pooled,):
            raise ValueError(f"pooled must have shape (n, {c.pooled}), got {cond.pooled.shape}")


def _through(
    stacked: nnx.Module,
    count: int,
    kept: Sequence[int],
    step: Callable[[Any, Any], Any],
    carry: Any,
) -> Any:
    """`scan` over some of `count` stacked blocks, whose weights are not copied."""
    if len(kept) == count:
        return scan(stacked, step, carry)
    graph, state = nnx.split(stacked)

    def body(carry: Any, i: jax.Array) -> tuple[Any, None]:
        block = jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, i, keepdims=False), state)
        return step(nnx.merge(graph, block), carry), None

    return jax.lax.scan(body, carry, jnp.asarray(kept, jnp.int32))[0]


FAMILY = Family(name="sd3", config=SD3Config, build=SD3)
