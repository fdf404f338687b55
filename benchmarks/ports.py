"""How long do the ports take beside the PyTorch classes that they were converted from?

Each pair has the same sizes and the same weights, copied by the converter's tables, and computes
the same answer (checked before anything is timed). Forward passes on the CPU, in float32, ours
compiled, PyTorch's in inference mode, both with all cores. The two are timed in turns in one
process, so that what else the machine does falls on both.

Widths are those of published models at their smallest, at least 768, depths are cut, and the batch
is 4:

    flux         FluxTransformer2DModel of diffusers: 2 double and 4 single blocks of 768, 256 image
                 tokens and 64 of text
    sit          no public class computes it; a plain PyTorch forward written here, with
                 `scaled_dot_product_attention`: 4 blocks of 768 (B/2), 256 tokens
    autoencoder  the decoder of AutoencoderKL of diffusers: widths 128, 256, 768; 64 x 64 pixels
    clip_text    CLIPTextModel of transformers: 4 blocks of 768 (ViT-L/14's text), 77 tokens
    clip_vision  CLIPVisionModel of transformers: 4 blocks of 1,024 (ViT-L/14), 224 x 224 pixels
    t5           T5EncoderModel of transformers: 4 blocks of 768 (v1.1 base), 128 tokens

    python benchmarks/ports.py [--quick] [--json FILE]

Keys of the JSON: version, versions {jax, jaxlib, torch, diffusers, transformers, python}, cores,
load (average over a minute, at the start and at the end), settings {batch, repetitions, blocks};
flux, sit, autoencoder, clip_text, clip_vision, t5 (our median seconds over PyTorch's); target;
error, by model (largest difference of the answers over their largest value); details, by model,
{ours, torch} (seconds, a list over repetitions each); seconds. With --quick there are fewer blocks,
pixels and repetitions.
"""

import dataclasses
import os
import pathlib
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import torch
import transformers
import tyro
from _files import save_json
from flax import nnx

import flowsde as fs
from flowsde.models.common.paths import parameters, with_parameters
from flowsde.models.family import abstract
from flowsde_converters.detect import families
from flowsde_converters.tables import convert

BATCH = 4
TARGET = 1.15
_ERROR = 1e-3
_F = torch.nn.functional


@dataclasses.dataclass(frozen=True)
class Args:
    """Seconds of the ports against those of PyTorch's classes.

    Attributes:
      quick: fewer blocks and repetitions, done in 45 seconds on two cores.
      json: where to write the results.
    """

    quick: bool = False
    json: pathlib.Path | None = None


@dataclasses.dataclass(frozen=True)
class Pair:
    """One model on both sides.

    Attributes:
      ours: compiled, without arguments; an array.
      theirs: the same in PyTorch.
    """

    ours: Callable[[], jax.Array]
    theirs: Callable[[], torch.Tensor]


def filled(module: Any) -> Any:
    """A module with normal weights whose products keep their size."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
            parameter.normal_(0.0, fan_in**-0.5, generator=generator)
    return module.eval()


def port(family: str, tensors: dict[str, np.ndarray], beside: dict[str, Any] | None) -> Any:
    """Our module of a checkpoint in memory."""
    known = families()[family]
    found = known.recognise(tensors, beside)
    assert found is not None
    model = abstract(known, found.config)
    return with_parameters(model, convert(found.table, tensors, parameters(model)))


def pair(
    family: str,
    module: torch.nn.Module,
    call: Callable[..., jax.Array],
    call_theirs: Callable[..., torch.Tensor],
    inputs: list[np.ndarray],
) -> Pair:
    """Both sides of a class, on the same inputs; `call` takes our module first."""
    tensors = {key: value.detach().numpy() for key, value in module.state_dict().items()}
    config: Any = module.config
    beside = dict(config) if hasattr(config, "keys") else config.to_dict()
    return sides(port(family, tensors, beside), call, call_theirs, inputs)


def sides(
    model: Any,
    call: Callable[..., jax.Array],
    call_theirs: Callable[..., torch.Tensor],
    inputs: list[np.ndarray],
) -> Pair:
    """Ours compiled, with parameters and inputs as arguments, already on the device."""
    graph, state = nnx.split(model)
    compiled = jax.jit(lambda state, *args: call(nnx.merge(graph, state), *args))
    on_device = [jnp.asarray(a) for a in inputs]
    in_torch = [torch.from_numpy(a.astype(np.int64) if a.dtype.kind == "i" else a) for a in inputs]

    def theirs() -> torch.Tensor:
        with torch.inference_mode():
            return call_theirs(*in_torch)

    return Pair(lambda: compiled(state, *on_device), theirs)


def normal(*shape: int) -> np.ndarray:
    """Inputs."""
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def tokens(vocab: int, length: int) -> np.ndarray:
    """Inputs that are texts."""
    return np.random.default_rng(0).integers(3, vocab, (BATCH, length), dtype=np.int32)


def flux(blocks: int) -> Pair:
    """Packed tokens on both sides."""
    side = 16
    module: Any = filled(
        diffusers.FluxTransformer2DModel(
            in_channels=64, num_layers=blocks // 2, num_single_layers=blocks,
            attention_head_dim=128, num_attention_heads=6, joint_attention_dim=768,
            pooled_projection_dim=768, guidance_embeds=True, axes_dims_rope=(16, 56, 56),
        )
    )  # fmt: skip
    rows, columns = np.indices((side, side))
    ids = np.stack([np.zeros_like(rows), rows, columns], -1).reshape(-1, 3)
    at, text_at = torch.from_numpy(ids).float(), torch.zeros(64, 3)
    times = np.linspace(0.1, 0.9, BATCH, dtype=np.float32)
    inputs = [normal(BATCH, side**2, 64), times, normal(BATCH, 64, 768), normal(BATCH, 768), times]

    def ours(model: Any, x: Any, t: Any, text: Any, pooled: Any, guidance: Any) -> jax.Array:
        return model.tokens(x, ids, t, text, pooled, guidance)

    def theirs(x: Any, t: Any, text: Any, pooled: Any, guidance: Any) -> torch.Tensor:
        return module(
            hidden_states=x, encoder_hidden_states=text, pooled_projections=pooled, timestep=t,
            img_ids=at, txt_ids=text_at, guidance=guidance, return_dict=False,
        )[0]  # fmt: skip

    return pair("flux", module, ours, theirs, inputs)


class PlainSiT(torch.nn.Module):
    """SiT-B/2's forward pass, in modules with the published names."""

    def __init__(self, blocks: int, width: int = 768, heads: int = 12, side: int = 32):
        super().__init__()
        linear, self.heads, self.side = torch.nn.Linear, heads, side

        def named(**layers: torch.nn.Module) -> torch.nn.ModuleDict:
            return torch.nn.ModuleDict(layers)

        def modulation(chunks: int) -> torch.nn.Module:
            return torch.nn.Sequential(torch.nn.SiLU(), linear(width, chunks * width))

        self.pos_embed = torch.nn.Parameter(torch.zeros(1, (side // 2) ** 2, width))
        self.x_embedder = named(proj=torch.nn.Conv2d(4, width, 2, 2))
        mlp = torch.nn.Sequential(linear(256, width), torch.nn.SiLU(), linear(width, width))
        self.t_embedder = named(mlp=mlp)
        self.y_embedder = named(embedding_table=torch.nn.Embedding(1001, width))
        self.blocks = torch.nn.ModuleList(
            named(
                adaLN_modulation=modulation(6),
                attn=named(qkv=linear(width, 3 * width), proj=linear(width, width)),
                mlp=named(fc1=linear(width, 4 * width), fc2=linear(4 * width, width)),
            )
            for _ in range(blocks)
        )
        self.final_layer = named(adaLN_modulation=modulation(2), linear=linear(width, 32))
        self.register_buffer("frequencies", 1e4 ** (-torch.arange(128) / 128), persistent=False)

    @staticmethod
    def _modulated(h: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return _F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale) + shift

    def forward(self, x: torch.Tensor, tau: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Data - noise [n, 4, side, side] of latents shaped alike."""
        layers: Any = self
        n = len(x)
        h = layers.x_embedder["proj"](x).flatten(2).transpose(1, 2) + self.pos_embed
        angles = tau[:, None] * layers.frequencies
        c = layers.t_embedder["mlp"](torch.cat([angles.cos(), angles.sin()], 1))
        c = c + layers.y_embedder["embedding_table"](labels)
        for block in layers.blocks:
            m = [a[:, None] for a in block["adaLN_modulation"](c).chunk(6, 1)]
            qkv = block["attn"]["qkv"](self._modulated(h, m[0], m[1]))
            q, k, v = qkv.reshape(n, h.shape[1], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            y = _F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            h = h + m[2] * block["attn"]["proj"](y)
            y = block["mlp"]["fc1"](self._modulated(h, m[3], m[4]))
            h = h + m[5] * block["mlp"]["fc2"](_F.gelu(y, approximate="tanh"))
        shift, scale = (a[:, None] for a in layers.final_layer["adaLN_modulation"](c).chunk(2, 1))
        y = layers.final_layer["linear"](self._modulated(h, shift, scale))
        half = self.side // 2
        y = y.reshape(n, half, half, 2, 2, 8).permute(0, 5, 1, 3, 2, 4)
        return y.reshape(n, 8, self.side, self.side)[:, :4]


def sit(blocks: int) -> Pair:
    """Ours has time and output the other way round."""
    module: Any = filled(PlainSiT(blocks))
    tensors = {key: value.detach().numpy() for key, value in module.state_dict().items()}
    times = np.linspace(0.1, 0.9, BATCH, dtype=np.float32)
    labels = np.arange(BATCH, dtype=np.int32)

    def ours(model: Any, x: Any, t: Any, labels: Any) -> jax.Array:
        return model(x, t, labels)

    def theirs(x: Any, t: Any, labels: Any) -> torch.Tensor:
        return -module(x.permute(0, 3, 1, 2), 1 - t, labels).permute(0, 2, 3, 1)

    return sides(
        port("sit", tensors, None), ours, theirs, [normal(BATCH, 32, 32, 4), times, labels]
    )


def autoencoder(blocks: int) -> Pair:
    """Decoding alone: what a search does."""
    module: Any = filled(
        diffusers.AutoencoderKL(
            block_out_channels=(128, 256, 768), down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3, latent_channels=16, layers_per_block=1,
            use_quant_conv=False, use_post_quant_conv=False, scaling_factor=1.0, shift_factor=0.0,
        )
    )  # fmt: skip

    def theirs(z: torch.Tensor) -> torch.Tensor:
        return module.decode(z.permute(0, 3, 1, 2)).sample.permute(0, 2, 3, 1)

    side = 4 * blocks
    inputs = [normal(BATCH, side, side, 16)]
    return pair("autoencoder_kl", module, lambda model, z: model.decode(z), theirs, inputs)


def clip_text(blocks: int) -> Pair:
    """The text tower of ViT-L/14."""
    config = transformers.CLIPTextConfig(
        vocab_size=1000, hidden_size=768, intermediate_size=3072, num_hidden_layers=blocks,
        num_attention_heads=12, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    module: Any = filled(transformers.CLIPTextModel(config))
    return pair(
        "clip_text", module, lambda model, ids: model(ids).last,
        lambda ids: module(ids).last_hidden_state, [tokens(1000, 77)],
    )  # fmt: skip


def clip_vision(blocks: int) -> Pair:
    """The image tower of ViT-L/14."""
    config = transformers.CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=blocks,
        num_attention_heads=16, patch_size=14,
    )  # fmt: skip
    module: Any = filled(transformers.CLIPVisionModel(config))
    return pair(
        "clip_vision", module, lambda model, x: model(x).pooled,
        lambda x: module(x.permute(0, 3, 1, 2)).pooler_output, [normal(BATCH, 224, 224, 3)],
    )  # fmt: skip


def t5(blocks: int) -> Pair:
    """The encoder of T5 v1.1."""
    config = transformers.T5Config(
        vocab_size=1000, d_model=768, d_kv=64, d_ff=2048, num_layers=blocks, num_heads=12,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    module: Any = filled(transformers.T5EncoderModel(config))
    return pair(
        "t5_encoder", module, lambda model, ids: model(ids),
        lambda ids: module(ids).last_hidden_state, [tokens(1000, 128)],
    )  # fmt: skip


MODELS = {
    "flux": flux,
    "sit": sit,
    "autoencoder": autoencoder,
    "clip_text": clip_text,
    "clip_vision": clip_vision,
    "t5": t5,
}


def error(both: Pair) -> float:
    """Largest difference over the largest value; this run also compiles."""
    ours, theirs = np.asarray(both.ours()), both.theirs().numpy()
    if ours.shape != theirs.shape:
        raise ValueError(f"ours has shape {ours.shape}, PyTorch's {theirs.shape}")
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def timed(f: Callable[[], Any]) -> float:
    """Seconds of the wall clock."""
    began = time.perf_counter()
    jax.block_until_ready(f())
    return time.perf_counter() - began


def ratios(
    models: Mapping[str, Callable[[int], Pair]], blocks: int, repetitions: int
) -> dict[str, Any]:
    """Our median seconds over PyTorch's, by name; with target, error and details.

    Args:
      models: make both sides, of so many blocks.
      blocks: of each.
      repetitions: of either side, in turns.

    Raises:
      ValueError: the answers differ.
    """
    found, errors, details = {}, {}, {}
    print(f"{'model':12}{'ours s':>9}{'torch s':>9}{'ratio':>8}{'error':>10}   target {TARGET}")
    for name, make in models.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            both = make(blocks)
        errors[name] = error(both)
        if not errors[name] < _ERROR:
            raise ValueError(f"{name}: the answers differ by {errors[name]:.1e} of their size")
        seconds: dict[str, list[float]] = {"ours": [], "torch": []}
        for i in range(repetitions):
            sides = {"ours": both.ours, "torch": both.theirs}
            for side in list(sides)[:: 1 if i % 2 else -1]:
                seconds[side].append(round(timed(sides[side]), 5))
        middle = {side: statistics.median(own) for side, own in seconds.items()}
        found[name], details[name] = middle["ours"] / middle["torch"], seconds
        print(f"{name:12}{middle['ours']:9.3f}{middle['torch']:9.3f}{found[name]:8.3f}", end="")
        print(f"{errors[name]:10.1e}", flush=True)
    return {**found, "target": TARGET, "error": errors, "details": details}


def measure(args: Args) -> dict[str, Any]:
    """All models."""
    began, load = time.perf_counter(), os.getloadavg()[0]
    blocks, repetitions = (2, 3) if args.quick else (4, 15)
    found = ratios(MODELS, blocks, repetitions)
    versions = {"jax": jax.__version__, "jaxlib": jaxlib.__version__, "torch": torch.__version__}
    versions |= {one.__name__: one.__version__ for one in (diffusers, transformers)}
    return {
        "version": fs.__version__,
        "versions": versions | {"python": platform.python_version()},
        "cores": os.cpu_count(),
        "load": [load, os.getloadavg()[0]],
        "settings": {"batch": BATCH, "repetitions": repetitions, "blocks": blocks},
        **found,
        "seconds": time.perf_counter() - began,
    }


def main() -> None:
    """Measure, and write what is asked for."""
    args = tyro.cli(Args, description=__doc__)
    results = measure(args)
    save_json(args.json, results)


if __name__ == "__main__":
    main()
