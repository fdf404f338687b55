"""The autoencoder of Wan 2.1: videos to latents of a quarter of the frames and an eighth of a side.

Residual blocks of norm, SiLU and 3 x 3 x 3 convolution that see no later frames, halved or doubled
in size between levels, with attention among the pixels of a frame at the smallest (Wan Team, 2025,
arXiv 2503.20314). 1 + 4 k frames are 1 + k latent frames: the first stands alone, so that an image
is a video of one frame. A norm divides by the root mean square over channels. Flows work on

    latents = (z - mean) / std,    mean and std by channel.

Videos are [n, frames, height, width, channels] in [-1, 1]. The parameters, 127 million, are meant
to be whole on each device: they name no axes to split.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from flowsde._checks import check_count
from flowsde.models.autoencoder_wan.past import Past, through_time
from flowsde.models.common.conv import convolution, convolve_doubled
from flowsde.models.common.layers import Numerics, attention, outputs
from flowsde.models.family import Family

_LEAST = 1e-12
"""Of the length of a pixel's channels."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderWanConfig:
    """Sizes of `AutoencoderWan`; the defaults are Wan 2.1's.

    Attributes:
      channels: of a video.
      latents: channels of a latent.
      widths: features of each level, from the largest frames to the smallest; even numbers.
      blocks: residual blocks of an encoder's level; a decoder's has one more.
      temporal: for each level but the last, whether frames are halved, too.
      mean: of latents, by channel.
      std: of latents, by channel.
    """

    channels: int = 3
    latents: int = 16
    widths: tuple[int, ...] = (96, 192, 384, 384)
    blocks: int = 2
    temporal: tuple[bool, ...] = (False, True, True)
    mean: tuple[float, ...] = (
        -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
        0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
    )  # fmt: skip
    std: tuple[float, ...] = (
        2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
        3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
    )  # fmt: skip

    def __post_init__(self) -> None:
        # JSON gives lists.
        for name in ("widths", "temporal", "mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_count("blocks", self.blocks, most=2**6)
        if not self.widths or any(width < 2 or width % 2 for width in self.widths):
            raise ValueError(f"widths must be even numbers, got {self.widths}")
        if len(self.temporal) != len(self.widths) - 1:
            raise ValueError(
                f"temporal must have an entry for each of {len(self.widths) - 1} levels but the "
                f"last, got {self.temporal}"
            )
        for name in ("mean", "std"):
            if len(getattr(self, name)) != self.latents:
                raise ValueError(
                    f"{name} must have {self.latents} numbers, one for each channel of a latent, "
                    f"got {getattr(self, name)}"
                )
        if not min(self.std, default=1.0) > 0:
            raise ValueError(f"std must be positive, got {self.std}")

    @property
    def factor(self) -> int:
        """Pixels a side of a latent."""
        return 2 ** (len(self.widths) - 1)

    @property
    def frames(self) -> int:
        """Frames of a latent but the first, which is one."""
        return 2 ** sum(self.temporal)


def folded(x: jax.Array) -> jax.Array:
    """Frames [n, frames, ...] as so many pictures."""
    return x.reshape(-1, *x.shape[2:])


class PixelNorm(nnx.Module):
    """A pixel's channels over their root mean square, in float32."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32), axes=(None,))

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        length = jnp.sqrt(jnp.square(x).sum(-1, keepdims=True))
        scale = self.scale.get_value().astype(jnp.float32) * np.float32(np.sqrt(x.shape[-1]))
        return x / jnp.maximum(length, _LEAST) * scale.reshape((1,) * (x.ndim - 1) + (-1,))


def _causal(features: int, to: int, numerics: Numerics, rngs: nnx.Rngs) -> nnx.Conv:
    """Of 3 x 3 pixels of a frame and the two before it, which `Past` gives."""
    return convolution(features, to, (3, 3, 3), numerics, rngs)


def _by_pixel(features: int, to: int, numerics: Numerics, rngs: nnx.Rngs) -> nnx.Conv:
    return convolution(features, to, (1, 1, 1), numerics, rngs)


class ResidualBlock(nnx.Module):
    """Two convolutions, and a third of one pixel where the width changes."""

    def __init__(self, features: int, to: int, numerics: Numerics, rngs: nnx.Rngs):
        self.norm1 = PixelNorm(features, rngs)
        self.conv1 = _causal(features, to, numerics, rngs)
        self.norm2 = PixelNorm(to, rngs)
        self.conv2 = _causal(to, to, numerics, rngs)
        if features != to:
            self.shortcut = _by_pixel(features, to, numerics, rngs)

    def __call__(self, x: jax.Array, past: Past) -> jax.Array:
        h = past.through(self.conv1, jax.nn.silu(self.norm1(x)))
        h = past.through(self.conv2, jax.nn.silu(self.norm2(h)))
        return (self.shortcut(x) if hasattr(self, "shortcut") else x) + h


class FrameAttention(nnx.Module):
    """One head of attention among the pixels of each frame."""

    def __init__(self, width: int, numerics: Numerics, rngs: nnx.Rngs):
        self.numerics = numerics
        self.norm = PixelNorm(width, rngs)
        self.qkv = numerics.linear(width, 3 * width, (None, None), rngs=rngs)
        self.out = numerics.linear(width, width, (None, None), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        h = self.norm(x).reshape(x.shape[0] * x.shape[1], -1, width).astype(self.numerics.dtype)
        q, k, v = (a[:, :, None, :] for a in outputs(self.qkv, h, [width] * 3))
        return x + self.out(attention(q, k, v, numerics=self.numerics)).reshape(x.shape)


class Middle(nnx.Module):
    """The smallest level."""

    def __init__(self, width: int, numerics: Numerics, rngs: nnx.Rngs):
        self.block1 = ResidualBlock(width, width, numerics, rngs)
        self.attention = FrameAttention(width, numerics, rngs)
        self.block2 = ResidualBlock(width, width, numerics, rngs)

    def __call__(self, x: jax.Array, past: Past) -> jax.Array:
        return self.block2(self.attention(self.block1(x, past)), past)


class Halve(nnx.Module):
    """Half of a side, then of the frames but the first."""

    def __init__(self, width: int, temporal: bool, numerics: Numerics, rngs: nnx.Rngs):
        # Padded below and on the right only.
        half = {"strides": 2, "padding": ((0, 1), (0, 1))}
        self.conv = convolution(width, width, 3, numerics, rngs, **half)
        if temporal:
            self.time = convolution(width, width, (3, 1, 1), numerics, rngs, strides=(2, 1, 1))

    def __call__(self, x: jax.Array, past: Past) -> jax.Array:
        made = self.conv(folded(x))
        x = made.reshape(*x.shape[:2], *made.shape[1:])
        if not hasattr(self, "time"):
            return x
        if past.first:
            past.begin(self.time, x, seen=True)
            return x
        return past.through(self.time, x)


class Double(nnx.Module):
    """Twice the frames but the first, then twice a side, of half the width."""

    def __init__(self, width: int, temporal: bool, numerics: Numerics, rngs: nnx.Rngs):
        self.conv = convolution(width, width // 2, 3, numerics, rngs)
        if temporal:
            self.time = convolution(width, 2 * width, (3, 1, 1), numerics, rngs)

    def __call__(self, x: jax.Array, past: Past) -> jax.Array:
        if hasattr(self, "time"):
            if past.first:
                past.begin(self.time, x, seen=False)
            else:
                x = self._doubled(past.through(self.time, x))
        made = convolve_doubled(self.conv, folded(x))
        return made.reshape(*x.shape[:2], *made.shape[1:])

    def _doubled(self, x: jax.Array) -> jax.Array:
        """Two frames of the halves of each one's channels."""
        n, frames, height, width, channels = x.shape
        halves = jnp.moveaxis(x.reshape(n, frames, height, width, 2, channels // 2), 4, 2)
        return halves.reshape(n, 2 * frames, height, width, channels // 2)


class Level(nnx.Module):
    """Residual blocks, then, but for the last level, what changes the size."""

    def __init__(
        self,
        features: int,
        to: int,
        blocks: int,
        resample: Halve | Double | None,
        numerics: Numerics,
        rngs: nnx.Rngs,
    ):
        widths = (features, *(to,) * blocks)
        self.blocks = nnx.List(
            ResidualBlock(a, b, numerics, rngs) for a, b in itertools.pairwise(widths)
        )
        self.resample = resample

    def __call__(self, x: jax.Array, past: Past) -> jax.Array:
        for block in self.blocks:
            x = block(x, past)
        return x if self.resample is None else self.resample(x, past)


class Encoder(nnx.Module):
    """Frames to moments, of 2 latents channels."""

    def __init__(self, config: AutoencoderWanConfig, numerics: Numerics, rngs: nnx.Rngs):
        widths = config.widths
        self.conv_in = _causal(config.channels, widths[0], numerics, rngs)
        self.levels: nnx.List[Level] = nnx.List([])
        for i, width in enumerate(widths):
            last = i == len(widths) - 1
            down = None if last else Halve(width, config.temporal[i], numerics, rngs)
            before = widths[max(i - 1, 0)]
            self.levels.append(Level(before, width, config.blocks, down, numerics, rngs))
        self.middle = Middle(widths[-1], numerics, rngs)
        self.norm = PixelNorm(widths[-1], rngs)
        self.conv_out = _causal(widths[-1], 2 * config.latents, numerics, rngs)

    def __call__(self, x: jax.Array, past: Past) -> jax.Array:
        x = past.through(self.conv_in, x)
        for level in self.levels:
            x = level(x, past)
        x = self.middle(x, past)
        return past.through(self.conv_out, jax.nn.silu(self.norm(x)))


class Decoder(nnx.Module):
    """Latent frames of z to frames."""

    def __init__(self, config: AutoencoderWanConfig, numerics: Numerics, rngs: nnx.Rngs):
        widths, temporal = config.widths[::-1], config.temporal[::-1]
        self.conv_in = _causal(config.latents, widths[0], numerics, rngs)
        self.middle = Middle(widths[0], numerics, rngs)
        self.levels: nnx.List[Level] = nnx.List([])
        for i, width in enumerate(widths):
            last = i == len(widths) - 1
            up = None if last else Double(width, temporal[i], numerics, rngs)
            before = widths[i - 1] // 2 if i else width
            self.levels.append(Level(before, width, config.blocks + 1, up, numerics, rngs))
        self.norm = PixelNorm(widths[-1], rngs)
        self.conv_out = _causal(widths[-1], config.channels, numerics, rngs)

    def __call__(self, z: jax.Array, past: Past) -> jax.Array:
        x = self.middle(past.through(self.conv_in, z), past)
        for level in self.levels:
            x = level(x, past)
        return past.through(self.conv_out, jax.nn.silu(self.norm(x)))


class AutoencoderWan(nnx.Module):
    """Videos to latents and back."""

    def __init__(self, config: AutoencoderWanConfig, numerics: Numerics, *, rngs: nnx.Rngs):
        self.config = config
        self.encoder = Encoder(config, numerics, rngs)
        self.decoder = Decoder(config, numerics, rngs)
        self.quant = _by_pixel(2 * config.latents, 2 * config.latents, numerics, rngs)
        self.post_quant = _by_pixel(config.latents, config.latents, numerics, rngs)

    def encode(self, videos: jax.Array, *, streamed: bool = False) -> jax.Array:
        """Latents, float32 [n, 1 + k, height / 8, width / 8, latents], the posterior's mean.

        Args:
          videos: [n, 1 + 4 k, height, width, channels] in [-1, 1], sides multiples of 8 (of
            `config.frames` and `config.factor`, for others than Wan's).
          streamed: encode a few frames after the others, in memory that does not grow with them.

        Raises:
          ValueError: videos of another shape.
        """
        c = self.config
        wrong = videos.ndim != 5 or videos.shape[-1] != c.channels
        if wrong or any(side % c.factor for side in videos.shape[2:4]):
            raise ValueError(
                f"videos must have shape [n, frames, height, width, {c.channels}] with sides that "
                f"are multiples of {c.factor}, got {list(videos.shape)}"
            )
        if videos.shape[1] % c.frames != 1 % c.frames:
            raise ValueError(
                f"videos must have one frame and a multiple of {c.frames}, got {videos.shape[1]}"
            )
        moments = self.quant(through_time(self.encoder, videos, c.frames, streamed))
        z = moments.astype(jnp.float32)[..., : c.latents]
        return (z - _by_channel(c.mean)) / _by_channel(c.std)

    def decode(self, latents: jax.Array, *, streamed: bool = False) -> jax.Array:
        """Videos, float32 [n, 1 + 4 k, 8 h, 8 w, channels] in [-1, 1], clipped to that.

        Args:
          latents: [n, 1 + k, h, w, latents]. A first latent frame alone is the first frame.
          streamed: decode a latent frame after the other, in memory that does not grow with them.

        Raises:
          ValueError: latents of another shape.
        """
        c = self.config
        if latents.ndim != 5 or latents.shape[-1] != c.latents:
            raise ValueError(
                f"latents must have shape [n, frames, h, w, {c.latents}], got {list(latents.shape)}"
            )
        z = self.post_quant(latents * _by_channel(c.std) + _by_channel(c.mean))
        videos = through_time(self.decoder, z, 1, streamed)
        return jnp.clip(videos.astype(jnp.float32), -1.0, 1.0)


def _by_channel(values: tuple[float, ...]) -> jax.Array:
    return jnp.asarray(values, jnp.float32).reshape(1, 1, 1, 1, -1)


FAMILY = Family(name="autoencoder_wan", config=AutoencoderWanConfig, build=AutoencoderWan)
