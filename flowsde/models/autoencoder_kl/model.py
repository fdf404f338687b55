"""The convolutional autoencoders of FLUX and Stable Diffusion.

Esser et al., 2021 (arXiv 2012.09841) and Rombach et al., 2022 (arXiv 2112.10752): residual blocks
of group norm, SiLU and 3x3 convolution, halved or doubled in size between levels, with one head of
attention at the smallest. The encoder gives a Gaussian's mean and log-variance; a flow works on

    latents = (z - shift) scale,

or, in FLUX.2, normalised: z less a mean, by a deviation, each of its own for every value of a patch
of 2 x 2 latents. Images are [n, height, width, channels] in [-1, 1]. The parameters, some 80
million, are meant to be whole on each device: they name no axes to split.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
from flax import nnx

from flowsde._checks import check_count
from flowsde._keys import as_key
from flowsde.models.autoencoder_kl.tiles import decode_in_tiles
from flowsde.models.common.conv import convolution, convolve_doubled, group_norm
from flowsde.models.common.layers import Numerics, attention
from flowsde.models.family import Family

VARIANCE = 1e-4
"""Added to a variance that latents are normalised by."""
_PATCH = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderKLConfig:
    """Sizes of `AutoencoderKL`; the defaults are FLUX's, `sd_vae` gives Stable Diffusion's.

    Attributes:
      channels: of an image.
      latents: channels of a latent.
      widths: features of each level, from the largest image to the smallest.
      blocks: residual blocks of an encoder's level; a decoder's has one more.
      groups: of the norms; divides each width.
      quant: whether there is a 1x1 convolution after the encoder and before the decoder.
      scale: of latents.
      shift: of latents.
      normalised: whether a mean and a variance for each value of a patch are in their place.
    """

    channels: int = 3
    latents: int = 16
    widths: tuple[int, ...] = (128, 256, 512, 512)
    blocks: int = 2
    groups: int = 32
    quant: bool = False
    scale: float = 0.3611
    shift: float = 0.1159
    normalised: bool = False

    def __post_init__(self) -> None:
        # JSON gives a list.
        object.__setattr__(self, "widths", tuple(self.widths))
        for name, most in (("blocks", 2**6), ("groups", 2**14)):
            check_count(name, getattr(self, name), most=most)
        if not self.widths or any(width % self.groups for width in self.widths):
            raise ValueError(f"groups must divide widths, got {self.groups} and {self.widths}")

    @property
    def factor(self) -> int:
        """Pixels a side of a latent."""
        return 2 ** (len(self.widths) - 1)


def sd_vae() -> AutoencoderKLConfig:
    """The autoencoder of Stable Diffusion 1 and 2, DiT and SiT."""
    return AutoencoderKLConfig(latents=4, quant=True, scale=0.18215, shift=0.0)


class ResidualBlock(nnx.Module):
    """Two convolutions, and a third of one pixel where the width changes."""

    def __init__(self, features: int, to: int, groups: int, numerics: Numerics, rngs: nnx.Rngs):
        self.norm1 = group_norm(features, groups, rngs)
        self.conv1 = convolution(features, to, 3, numerics, rngs)
        self.norm2 = group_norm(to, groups, rngs)
        self.conv2 = convolution(to, to, 3, numerics, rngs)
        if features != to:
            self.shortcut = convolution(features, to, 1, numerics, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.conv1(jax.nn.silu(self.norm1(x)))
        h = self.conv2(jax.nn.silu(self.norm2(h)))
        return (self.shortcut(x) if hasattr(self, "shortcut") else x) + h


class PixelAttention(nnx.Module):
    """One head of attention among all pixels."""

    def __init__(self, width: int, groups: int, numerics: Numerics, rngs: nnx.Rngs):
        self.numerics = numerics
        self.norm = group_norm(width, groups, rngs)
        self.query = numerics.linear(width, width, (None, None), rngs=rngs)
        self.key = numerics.linear(width, width, (None, None), rngs=rngs)
        self.value = numerics.linear(width, width, (None, None), rngs=rngs)
        self.out = numerics.linear(width, width, (None, None), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        n, width = x.shape[0], x.shape[-1]
        h = self.norm(x).reshape(n, -1, width)
        q, k, v = (layer(h)[:, :, None, :] for layer in (self.query, self.key, self.value))
        return x + self.out(attention(q, k, v, numerics=self.numerics)).reshape(x.shape)


class Middle(nnx.Module):
    """The smallest level."""

    def __init__(self, width: int, groups: int, numerics: Numerics, rngs: nnx.Rngs):
        self.block1 = ResidualBlock(width, width, groups, numerics, rngs)
        self.attention = PixelAttention(width, groups, numerics, rngs)
        self.block2 = ResidualBlock(width, width, groups, numerics, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.block2(self.attention(self.block1(x)))


class Level(nnx.Module):
    """Residual blocks, then, but for the last level, a convolution that changes the size."""

    def __init__(
        self,
        features: int,
        to: int,
        blocks: int,
        resample: nnx.Conv | None,
        groups: int,
        numerics: Numerics,
        rngs: nnx.Rngs,
    ):
        widths = (features, *(to,) * blocks)
        self.blocks = nnx.List(
            ResidualBlock(a, b, groups, numerics, rngs) for a, b in itertools.pairwise(widths)
        )
        self.resample = resample

    def __call__(self, x: jax.Array, *, double: bool) -> jax.Array:
        for block in self.blocks:
            x = block(x)
        if self.resample is None:
            return x
        return convolve_doubled(self.resample, x) if double else self.resample(x)


class Encoder(nnx.Module):
    """Images [n, h, w, channels] to moments [n, h / factor, w / factor, 2 latents]."""

    def __init__(self, config: AutoencoderKLConfig, numerics: Numerics, rngs: nnx.Rngs):
        widths, groups = config.widths, config.groups
        self.conv_in = convolution(config.channels, widths[0], 3, numerics, rngs)
        self.levels: nnx.List[Level] = nnx.List([])
        for i, width in enumerate(widths):
            before, down = widths[max(i - 1, 0)], None
            if i < len(widths) - 1:
                # Padded below and on the right only.
                half = {"strides": 2, "padding": ((0, 1), (0, 1))}
                down = convolution(width, width, 3, numerics, rngs, **half)
            level = Level(before, width, config.blocks, down, groups, numerics, rngs)
            self.levels.append(level)
        self.middle = Middle(widths[-1], groups, numerics, rngs)
        self.norm = group_norm(widths[-1], groups, rngs)
        self.conv_out = convolution(widths[-1], 2 * config.latents, 3, numerics, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.conv_in(x)
        for level in self.levels:
            x = level(x, double=False)
        return self.conv_out(jax.nn.silu(self.norm(self.middle(x))))


class Decoder(nnx.Module):
    """z [n, h, w, latents] to images [n, h factor, w factor, channels]."""

    def __init__(self, config: AutoencoderKLConfig, numerics: Numerics, rngs: nnx.Rngs):
        widths, groups = config.widths[::-1], config.groups
        self.conv_in = convolution(config.latents, widths[0], 3, numerics, rngs)
        self.middle = Middle(widths[0], groups, numerics, rngs)
        self.levels: nnx.List[Level] = nnx.List([])
        for i, width in enumerate(widths):
            before, up = widths[max(i - 1, 0)], None
            if i < len(widths) - 1:
                up = convolution(width, width, 3, numerics, rngs)
            level = Level(before, width, config.blocks + 1, up, groups, numerics, rngs)
            self.levels.append(level)
        self.norm = group_norm(widths[-1], groups, rngs)
        self.conv_out = convolution(widths[-1], config.channels, 3, numerics, rngs)

    def __call__(self, z: jax.Array) -> jax.Array:
        x = self.middle(self.conv_in(z))
        for level in self.levels:
            x = level(x, double=True)
        return self.conv_out(jax.nn.silu(self.norm(x)))


class AutoencoderKL(nnx.Module):
    """Images to latents and back."""

    def __init__(self, config: AutoencoderKLConfig, numerics: Numerics, *, rngs: nnx.Rngs):
        self.config = config
        self.encoder = Encoder(config, numerics, rngs)
        self.decoder = Decoder(config, numerics, rngs)
        if config.quant:
            self.quant = convolution(2 * config.latents, 2 * config.latents, 1, numerics, rngs)
            self.post_quant = convolution(config.latents, config.latents, 1, numerics, rngs)
        if config.normalised:
            values = config.latents * _PATCH**2
            self.mean = nnx.Param(jnp.zeros(values, jnp.float32), axes=(None,))
            self.variance = nnx.Param(jnp.ones(values, jnp.float32), axes=(None,))

    def posterior(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and log-variance of z, before scale and shift.

        Args:
          images: [n, height, width, channels] in [-1, 1], sides multiples of `config.factor`.

        Returns:
          Two of float32 [n, height / factor, width / factor, latents].

        Raises:
          ValueError: images of another shape.
        """
        factor, channels = self.config.factor, self.config.channels
        if (
            images.ndim != 4
            or images.shape[3] != channels
            or any(side % factor for side in images.shape[1:3])
        ):
            raise ValueError(
                f"images must have shape [n, height, width, {channels}] with sides that are "
                f"multiples of {factor}, got {list(images.shape)}"
            )
        moments = self.encoder(images)
        if self.config.quant:
            moments = self.quant(moments)
        mean, log_variance = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        return mean, jnp.clip(log_variance, -30.0, 20.0)

    def encode(self, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Latents, float32 [n, height / factor, width / factor, latents], of images.

        Args:
          images: as `posterior` takes them.
          key: draws from the posterior; without one, its mean.

        Raises:
          ValueError: images of another shape.
        """
        z, log_variance = self.posterior(images)
        if key is not None:
            z = z + jnp.exp(0.5 * log_variance) * jax.random.normal(as_key(key), z.shape)
        if self.config.normalised:
            mean, deviation = self._statistics(z)
            return (z - mean) / deviation
        return (z - self.config.shift) * self.config.scale

    def decode(self, latents: jax.Array) -> jax.Array:
        """Images, float32 [n, h factor, w factor, channels], of latents [n, h, w, latents].

        They are about in [-1, 1], and not clipped.

        Raises:
          ValueError: latents of another shape.
        """
        return self._image(self._z(latents))

    def decode_tiled(self, latents: jax.Array, *, tile: int = 64, overlap: int = 16) -> jax.Array:
        """As `decode`, tile by tile, in memory that does not grow with the image.

        Norms and attention see one tile, so colours can differ a little from `decode`'s; where one
        tile covers all, nothing differs.

        Args:
          latents: [n, h, w, latents].
          tile: latents a side.
          overlap: latents that neighbouring tiles share at least, from 1 to half a tile.

        Raises:
          ValueError: an overlap out of that range, or latents of another shape.
        """
        return decode_in_tiles(
            self._image,
            self._z(latents),
            tile=tile,
            overlap=overlap,
            factor=self.config.factor,
            channels=self.config.channels,
        )

    def _z(self, latents: jax.Array) -> jax.Array:
        """z of latents; ValueError for another shape."""
        if latents.ndim != 4 or latents.shape[3] != self.config.latents:
            raise ValueError(
                f"latents must have shape [n, h, w, {self.config.latents}], "
                f"got {list(latents.shape)}"
            )
        if self.config.normalised:
            mean, deviation = self._statistics(latents)
            return latents * deviation + mean
        return latents / self.config.scale + self.config.shift

    def _image(self, z: jax.Array) -> jax.Array:
        if self.config.quant:
            z = self.post_quant(z)
        return self.decoder(z).astype(jnp.float32)

    def _statistics(self, like: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and deviation of latents, float32 [1, h, w, latents]; ValueError where patches do
        not cover them."""
        height, width, channels = like.shape[1:]
        if height % _PATCH or width % _PATCH:
            raise ValueError(
                f"latents are normalised in patches of {_PATCH} x {_PATCH}, got {height} x {width}"
            )

        def tiled(values: jax.Array) -> jax.Array:
            # The channel comes first in a patch.
            patch = values.reshape(channels, _PATCH, _PATCH).transpose(1, 2, 0)
            return jnp.tile(patch, (height // _PATCH, width // _PATCH, 1))[None]

        mean, variance = (a.get_value().astype(jnp.float32) for a in (self.mean, self.variance))
        return tiled(mean), tiled(jnp.sqrt(variance + VARIANCE))


FAMILY = Family(name="autoencoder_kl", config=AutoencoderKLConfig, build=AutoencoderKL)
