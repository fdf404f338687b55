"""How long do the ports take beside the PyTorch classes that they were converted from?

Each pair has the same sizes and the same weights, copied by the converter's tables, and computes
the same answer (checked before anything is timed). Forward passes on the CPU, in float32, ours
compiled, PyTorch's in inference mode, both with all cores. The two are timed in turns in one
process, so that what else the machine does falls on both.

Widths are those of published models at their smallest, at least 768, depths are cut, and the batch
is 4:

    flux         FluxTransformer2DModel of diffusers: 2 double and 4 single blocks of 768, 256 image
                 tokens and 64 of text
    klein        Flux2Transformer2DModel of diffusers: half as many double blocks of 768 as single
                 ones, 256 image tokens and 64 of text
    sd3          SD3Transformer2DModel of diffusers, of SD3.5's kind: blocks of 768, 256 image
                 tokens and 64 of text
    zimage       ZImageTransformer2DModel of diffusers: blocks of 768 and a refiner each, the same
    wan          WanTransformer3DModel of diffusers: blocks of 768, 288 tokens of two latent frames
                 and 64 of text
    sit          no public class computes it; a plain PyTorch forward written here, with
                 `scaled_dot_product_attention`: 4 blocks of 768 (B/2), 256 tokens
    autoencoder  the decoder of AutoencoderKL of diffusers: widths 128, 256, 768; 64 x 64 pixels
    autoencoder_wan
                 the decoder of AutoencoderKLWan of diffusers: widths 256, 128, 64; 5 frames
    clip_text    CLIPTextModel of transformers: 4 blocks of 768 (ViT-L/14's text), 77 tokens
    clip_vision  CLIPVisionModel of transformers: 4 blocks of 1,024 (ViT-L/14), 224 x 224 pixels
    t5, umt5     T5EncoderModel and UMT5EncoderModel of transformers: 4 blocks of 768 (v1.1 base),
                 128 tokens
    qwen3        Qwen3Model of transformers: 4 blocks of 768, 128 tokens

    python benchmarks/ports.py [--quick] [--json FILE] [--only NAMES]

With `--only` the file's rows of all other models stay in it.

Keys of the JSON: version, versions {jax, jaxlib, torch, diffusers, transformers, python}, cores,
load (average over a minute, at the start and at the end), settings {batch, repetitions, blocks};
flux and the others (our median seconds over PyTorch's); target; error, by model (largest difference
of the answers over their largest value); details, by model, {ours, torch} (seconds, a list over
repetitions each) and, of those measured later with `--only`, load and versions; seconds. With
--quick there are fewer blocks, pixels and repetitions.
"""

import os
import time
from typing import Any

import diffusers
import jax
import jaxlib
import torch
import tyro
from _files import save_json
from _ports_flows import flux, klein, sd3, sit, wan, zimage
from _ports_pairs import ratios
from _ports_parts import (
    autoencoder,
    autoencoder_wan,
    clip_text,
    clip_vision,
    qwen3,
    t5,
    umt5,
)
from _ports_some import VERSIONS, Some, how, joined, others_of

MODELS = {
    make.__name__: make
    for make in (
        flux, klein, sd3, zimage, wan, sit, autoencoder, autoencoder_wan, clip_text, clip_vision,
        t5, umt5, qwen3,
    )
}  # fmt: skip


def measure(args: Some) -> dict[str, Any]:
    """All models, or some, with the file's rows of the others."""
    began, load = time.perf_counter(), os.getloadavg()[0]
    blocks, repetitions = (2, 3) if args.quick else (4, 15)
    same = how(repetitions, blocks)
    others = others_of(args, MODELS, same)
    found = ratios({n: MODELS[n] for n in args.only or MODELS}, blocks, repetitions)
    versions = {one.__name__: one.__version__ for one in (jax, jaxlib, torch, diffusers)}
    about = {"versions": versions | VERSIONS, "load": [load, os.getloadavg()[0]]}
    return joined(others, found, same, about, time.perf_counter() - began)


def main() -> None:
    """Measure, and write what is asked for."""
    args = tyro.cli(Some, description=__doc__)
    save_json(args.json, measure(args))


if __name__ == "__main__":
    main()
