"""Qwen3, dense: the states of a language model, of which other models read texts.

Yang et al., 2025 (arXiv 2505.09388). Each token looks at itself and those before it, so that
padding after a text is not looked at. Several queries share a key and a value; queries and keys
are normalised, then turned by their position. Layers have no biases, and the feed-forward ones are
gated: down(silu(gate(x)) * up(x)).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from flowsde.models.common.layers import (
    FLOAT32,
    Numerics,
    QKNorm,
    attention,
    parameter,
    rms_norm,
    scan,
    scan_some,
    stack,
)
from flowsde.models.common.rope import angles, rotate_halves
from flowsde.models.family import Family


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen3Config:
    """Sizes of `Qwen3`; those of Qwen3-4B by default, 4.02 billion parameters.

    Attributes:
      vocab: rows of the token table.
      width: features of a token.
      depth: blocks.
      heads: of queries.
      shared: heads of keys and values, of which each serves as many queries.
      head: features of one, an even number.
      mlp: hidden features of a block.
      theta: sets the slowest turn of positions.
      epsilon: of the norms.
    """

    vocab: int = 151936
    width: int = 2560
    depth: int = 36
    heads: int = 32
    shared: int = 8
    head: int = 128
    mlp: int = 9728
    theta: float = 1e6
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        if self.head % 2:
            raise ValueError(f"head must be an even number, got {self.head}")
        if self.shared < 1 or self.heads % self.shared:
            raise ValueError(
                f"heads must be a multiple of shared, got {self.heads} and {self.shared}"
            )


class Qwen3States(NamedTuple):
    """States [n, length, width] of tokens.

    Attributes:
      last: after all blocks and the norm.
      penultimate: before the last block, without the norm.
    """

    last: jax.Array
    penultimate: jax.Array


class KeysValues(NamedTuple):
    """What later tokens look at of earlier ones, as far as they see them.

    Attributes:
      key: [n, tokens, shared, head], turned; of all blocks one more axis in front.
      value: as well.
    """

    key: jax.Array
    value: jax.Array


class Qwen3Attention(nnx.Module):
    """Attention to a token and those before it."""

    def __init__(self, config: Qwen3Config, numerics: Numerics, rngs: nnx.Rngs):
        self.config, self.numerics = config, numerics
        width, inner = config.width, config.heads * config.head
        outer, into = config.shared * config.head, ("embed", "heads")
        self.query = numerics.linear(width, inner, into, bias=False, rngs=rngs)
        self.key = numerics.linear(width, outer, into, bias=False, rngs=rngs)
        self.value = numerics.linear(width, outer, into, bias=False, rngs=rngs)
        self.norm = QKNorm(config.head, numerics, rngs, config.epsilon)
        self.out = numerics.linear(inner, width, ("heads", "embed"), bias=False, rngs=rngs)

    def __call__(
        self,
        x: jax.Array,
        turn: jax.Array,
        seen: jax.Array | None = None,
        past: KeysValues | None = None,
    ) -> tuple[jax.Array, KeysValues]:
        """What each token reads, and the keys and values of these tokens.

        Args:
          x: [n, tokens, width].
          turn: [tokens, d / 2].
          seen: bool [n, 1, 1, tokens], False at tokens that no other looks at. With `past` it is
            [n or 1, 1, tokens, tokens of the past and these], and says all that is looked at.
          past: of earlier tokens.
        """
        c = self.config
        q, k, v = (
            layer(x).reshape(*x.shape[:2], -1, c.head)
            for layer in (self.query, self.key, self.value)
        )
        # In float32 until they are turned.
        q, k = (rotate_halves(a, turn).astype(v.dtype) for a in self.norm(q, k))
        own = KeysValues(k, v)
        if past is not None:
            k, v = (jnp.concatenate(both, axis=1) for both in zip(past, own, strict=True))
        k, v = (jnp.repeat(a, c.heads // c.shared, axis=2) for a in (k, v))
        y = attention(q, k, v, numerics=self.numerics, mask=seen, causal=past is None)
        return self.out(y), own


class Qwen3Block(nnx.Module):
    """Attention and a gated layer."""

    def __init__(self, config: Qwen3Config, numerics: Numerics, rngs: nnx.Rngs):
        width, mlp = config.width, config.mlp
        self.norm = rms_norm(width, ("embed",), numerics, rngs, config.epsilon)
        self.attention = Qwen3Attention(config, numerics, rngs)
        self.mlp_norm = rms_norm(width, ("embed",), numerics, rngs, config.epsilon)
        self.gate = numerics.linear(width, mlp, ("embed", "mlp"), bias=False, rngs=rngs)
        self.up = numerics.linear(width, mlp, ("embed", "mlp"), bias=False, rngs=rngs)
        self.down = numerics.linear(mlp, width, ("mlp", "embed"), bias=False, rngs=rngs)

    def __call__(self, x: jax.Array, turn: jax.Array, seen: jax.Array | None = None) -> jax.Array:
        """x, turn, seen: as of the attention."""
        return self.keeping(x, turn, seen)[0]

    def keeping(
        self,
        x: jax.Array,
        turn: jax.Array,
        seen: jax.Array | None = None,
        past: KeysValues | None = None,
    ) -> tuple[jax.Array, KeysValues]:
        """The same after earlier tokens, with what later ones look at, as of the attention."""
        y, own = self.attention(self.norm(x).astype(x.dtype), turn, seen, past)
        x = x + y
        h = self.mlp_norm(x).astype(x.dtype)
        return x + self.down(jax.nn.silu(self.gate(h)) * self.up(h)), own


class Qwen3(nnx.Module):
    """The language model without its head."""

    def __init__(self, config: Qwen3Config, numerics: Numerics = FLOAT32, *, rngs: nnx.Rngs):
        self.config, self.numerics = config, numerics
        self.tokens = parameter(
            (config.vocab, config.width), ("vocab", "embed"), numerics, rngs, scale=1.0
        )
        self.blocks = stack(lambda r: Qwen3Block(config, numerics, r), config.depth, rngs)
        self.norm = rms_norm(config.width, ("embed",), numerics, rngs, config.epsilon)

    def __call__(self, tokens: jax.Array) -> Qwen3States:
        """States of tokens [n, length], integers below `config.vocab`."""
        x, turn = self._begin(tokens)
        last, before = scan(self.blocks, lambda block, xs: (block(xs[0], turn), xs[0]), (x, x))
        return Qwen3States(self.norm(last).astype(self.numerics.dtype), before)

    def after(
        self, tokens: jax.Array, blocks: tuple[int, ...], seen: jax.Array | None = None
    ) -> jax.Array:
        """States [n, length, len(blocks), width] after so many blocks, without the norm.

        Later blocks are not run.

        Args:
          tokens: [n, length], integers below `config.vocab`.
          blocks: numbers of them, each from 1 to `config.depth`.
          seen: bool [n, length], False at tokens that no other looks at; all by default.

        Raises:
          ValueError: a number of blocks that there are not.
        """
        depth = self.config.depth
        if not blocks or not all(1 <= count <= depth for count in blocks):
            raise ValueError(f"blocks must be numbers from 1 to {depth}, got {blocks}")
        x, turn = self._begin(tokens)
        mask = None if seen is None else seen[:, None, None, :]

        def step(block: Qwen3Block, x: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
            x = block(x, turn, mask)
            return x, x

        _, states = scan_some(self.blocks, step, x, (0, max(blocks)))
        return jnp.stack([states[count - 1] for count in blocks], axis=2)

    def _begin(self, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What enters the first block, and the angles of positions."""
        places = jnp.arange(tokens.shape[1])[:, None]
        turn = angles(places, (self.config.head,), self.config.theta)
        return self.tokens[tokens].astype(self.numerics.dtype), turn


FAMILY = Family(name="qwen3", config=Qwen3Config, build=Qwen3)
