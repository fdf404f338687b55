"""SiT: a transformer over latents of ImageNet classes (Ma et al., 2024, arXiv 2401.08740).

Patches of the latents are tokens; class and time enter by adaptive layer norm. SiT's own time is
tau = 1 - t and its output is data - noise; here both are ours, t = 0 data, noise - data. Latents
are those of the sd-vae-ft-ema autoencoder times 0.18215.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from flowsde._checks import check_count
from flowsde.flow import Flow
from flowsde.models.common.layers import (
    FLOAT32,
    Numerics,
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

SIZES = {"S/2": (384, 12, 6), "B/2": (768, 12, 12), "L/2": (1024, 24, 16), "XL/2": (1152, 28, 16)}
"""Width, depth and heads of the published models."""
GUIDED_CHANNELS = 3

_MOST = {"width": 2**14, "depth": 2**10, "heads": 2**10, "size": 2**10, "patch": 2**10,
         "channels": 2**10, "classes": 2**24}  # fmt: skip
"""Ten times the published sizes and more: positions are computed before any weight is read."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SiTConfig:
    """Sizes of `SiT`; those of XL/2 at 256 pixels by default.

    Attributes:
      width: features of a token; a multiple of 4.
      depth: blocks.
      heads: of attention; divides `width`.
      size: side of the latents; 32 for images of 256 pixels.
      patch: latents a patch side; divides `size`.
      channels: of the latents.
      classes: labels.
      unlabelled: whether one more label, the last, stands for none. A model that was trained
        without dropping labels has none, and cannot be guided.
      learn_sigma: whether the last layer gives as many channels again, which are not used.
    """

    width: int = 1152
    depth: int = 28
    heads: int = 16
    size: int = 32
    patch: int = 2
    channels: int = 4
    classes: int = 1000
    unlabelled: bool = True
    learn_sigma: bool = True

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            check_count(name, getattr(self, name), most=most)
        if self.width % self.heads or self.width % 4:
            raise ValueError(
                f"width must be a multiple of 4 and of heads, got width {self.width} and "
                f"{self.heads} heads"
            )
        if self.size % self.patch:
            raise ValueError(f"patch must divide size, got {self.patch} and {self.size}")

    @classmethod
    def preset(cls, name: str = "XL/2", pixels: int = 256) -> "SiTConfig":
        """A published size for images of 256 or 512 pixels a side.

        Raises:
          ValueError: naming the sizes there are.
        """
        if name not in SIZES or pixels not in (256, 512):
            raise ValueError(
                f"got {name!r} at {pixels} pixels, expected one of {', '.join(SIZES)} at 256 or 512"
            )
        width, depth, heads = SIZES[name]
        return cls(width=width, depth=depth, heads=heads, size=pixels // 8)

    @property
    def tokens(self) -> int:
        """Patches of one particle."""
        return (self.size // self.patch) ** 2

    @property
    def labels(self) -> int:
        """Rows of the table of labels."""
        return self.classes + self.unlabelled

    @property
    def outputs(self) -> int:
        """Channels that the last layer gives."""
        return self.channels * (2 if self.learn_sigma else 1)


def sincos_positions(side: int, width: int) -> np.ndarray:
    """Fixed positions float32 [side side, width] of a square of patches.

    The first half of the features encodes the column and the second the row, each as sines and
    then cosines at width / 4 frequencies from 1 to almost 1e-4.
    """
    frequencies = 1e4 ** (-np.arange(width // 4) / (width // 4))
    angles = np.arange(side)[:, None] * frequencies
    line = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    columns, rows = np.tile(line, (side, 1)), np.repeat(line, side, axis=0)
    return np.concatenate([columns, rows], axis=1).astype(np.float32)


class Block(nnx.Module):
    """Attention, then an MLP four times as wide, on tokens [n, tokens, width]."""

    def __init__(self, config: SiTConfig, numerics: Numerics, rngs: nnx.Rngs):
        width, self.heads, self.numerics = config.width, config.heads, numerics
        self.modulation = Modulation(width, 6, numerics, rngs)
        self.qkv = numerics.linear(width, 3 * width, ("embed", "heads"), rngs=rngs)
        self.out = numerics.linear(width, width, ("heads", "embed"), rngs=rngs)
        self.up = numerics.linear(width, 4 * width, ("embed", "mlp"), rngs=rngs)
        self.down = numerics.linear(4 * width, width, ("mlp", "embed"), rngs=rngs)

    def __call__(self, x: jax.Array, c: jax.Array, seen: jax.Array | None = None) -> jax.Array:
        """x: [n, tokens, width]; c: the activated embedding, float32 [n, width].

        Of tokens that are split over devices, seen is that of `Split`.
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c)
        parts = outputs(self.qkv, adaptive_norm(x, shift1, scale1), [x.shape[-1]] * 3)
        q, k, v = (part.reshape(*x.shape[:2], self.heads, -1) for part in parts)
        attended = attention(q, k, v, numerics=self.numerics, mask=seen, split=True)
        x = add_gated(x, gate1, self.out(attended))
        hidden = jax.nn.gelu(self.up(adaptive_norm(x, shift2, scale2)), approximate=True)
        return add_gated(x, gate2, self.down(hidden))


class SiT(nnx.Module):
    """Velocity of a SiT, `model(x, t, labels)`."""

    def __init__(self, config: SiTConfig, numerics: Numerics = FLOAT32, *, rngs: nnx.Rngs):
        self.config, self.numerics = config, numerics
        width, values = config.width, config.patch**2
        self.patches = numerics.linear(values * config.channels, width, (None, "embed"), rngs=rngs)
        # Not trained; a parameter because checkpoints hold it.
        positions = sincos_positions(config.size // config.patch, width)
        self.positions = nnx.Param(
            jnp.asarray(positions, numerics.param_dtype), axes=(None, "embed")
        )
        self.time = Embedding(SINUSOIDS, width, numerics, rngs)
        self.labels = parameter((config.labels, width), ("vocab", "embed"), numerics, rngs)
        self.blocks = stack(lambda r: Block(config, numerics, r), config.depth, rngs)
        self.modulation = Modulation(width, 2, numerics, rngs)
        self.out = numerics.linear(width, values * config.outputs, ("embed", None), rngs=rngs)

    def __call__(self, x: jax.Array, t: jax.Array, labels: jax.Array) -> jax.Array:
        """Velocity, noise - data.

        Args:
          x: latents [n, size, size, channels].
          t: times [n] in [0, 1].
          labels: integers [n] below `classes`, or `classes` for none where the model knows that;
            at others NaN comes out.

        Returns:
          float32, shaped as x.

        Raises:
          ValueError: when x has another shape than the configuration's.
        """
        config, dtype = self.config, self.numerics.dtype
        wanted = (config.size, config.size, config.channels)
        if x.shape[1:] != wanted:
            raise ValueError(f"x must have shape (n, {', '.join(map(str, wanted))}), got {x.shape}")
        h = self.patches(pack(x.astype(dtype), config.patch))
        h = h + self.positions.get_value().astype(dtype)[None]

        tau = 1.0 - t.astype(jnp.float32)
        label = jnp.take(self.labels.get_value(), labels, axis=0).astype(jnp.float32)
        c = jax.nn.silu(self.time(sinusoids(tau)) + label)
        split = Split.of(self.numerics.rules)
        h, seen = split.keep(split.fill(h)), split.seen(config.tokens)
        h = scan(self.blocks, lambda block, h: split.keep(block(h, c, seen)), h)

        shift, scale = self.modulation(c)
        y = self.out(adaptive_norm(h, shift, scale))[:, : config.tokens]
        y = unpack(y, config.size, config.size, config.patch)
        return -y[..., : config.channels].astype(jnp.float32)


def guided_velocity(
    model: SiT, x: jax.Array, t: jax.Array, labels: jax.Array, scale: jax.Array | float
) -> jax.Array:
    """Classifier-free guidance of SiT's published samples: on the first 3 of 4 channels.

    The last channel keeps the velocity of the label. Costs two evaluations of the model.

    Args:
      model: the model.
      x: latents [n, size, size, channels].
      t: times [n].
      labels: integers [n].
      scale: 1 is no guidance, 0 leaves the label to the last channel.

    Raises:
      ValueError: a model without a label for none.
    """
    if not model.config.unlabelled:
        raise ValueError(
            f"guidance needs a label for none, and this model has {model.config.classes} classes "
            "and no label besides: it was trained without dropping labels"
        )
    none = jnp.full_like(labels, model.config.classes)
    both = model(jnp.concatenate([x, x]), jnp.concatenate([t, t]), jnp.concatenate([labels, none]))
    wanted, free = jnp.split(both, 2)
    guided = (free + scale * (wanted - free))[..., :GUIDED_CHANNELS]
    return jnp.concatenate([guided, wanted[..., GUIDED_CHANNELS:]], axis=-1)


def _flow(model: SiT, config: SiTConfig) -> Flow:
    return Flow.from_nnx(model, shape=(config.size, config.size, config.channels))


FAMILY = Family(name="sit", config=SiTConfig, build=SiT, flow=_flow)
