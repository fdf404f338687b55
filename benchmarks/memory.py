"""How much memory do the published models need on one device, in bfloat16?

By shapes, for one candidate at a time: the text encoder is read first and dropped, then the
transformer and the autoencoder are there together, and either evaluates or decodes. What an
evaluation takes beside the weights is, where `tpu_plan.json` has the program with whole weights on
each chip, what the compiler gave it on a TPU; elsewhere it is computed: of a block the tokens, in
bfloat16 and in float32, and the hidden features of its MLP. Attention keeps no scores, as by cuDNN
and on TPUs. Videos are decoded four frames at a time, those of 81 frames as those of 17, with a
longer video; where neither is compiled, computed are the frames that convolutions
keep, a level's widest features, and the video; pictures take what was compiled for FLUX.1's
autoencoder, whose shape they share. Guided models evaluate a candidate and its negative prompt at
once. Of several chips each holds its share of the transformer and of the text encoder, all else
whole, and works on a candidate of its own; what it gathers of a block for a moment is left out.

    python benchmarks/memory.py [--json FILE]

Keys of the JSON: version, devices {name: bytes}; rows, each {model, resolution, guided, encoder,
transformer, autoencoder (bytes of weights), evaluation, decoding (bytes beside weights, of one
candidate without guidance), compiled (which of the two are the compiler's), needed (bytes of the
largest of all: transformer, autoencoder, and the larger of the two, or the encoder), int8 {encoder,
transformer, needed (with the largest kernel of a block once more, widened)}, sharded {number of
chips: needed of each chip}}.
"""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from _files import RESULTS, save_json
from _tpu_list import DECODED
from flax import nnx

import flowsde as fs
from flowsde.models import (
    autoencoder_kl,
    autoencoder_wan,
    clip,
    flux,
    flux2,
    qwen3,
    sd3,
    t5,
    wan,
    zimage,
)
from flowsde.models.autoencoder_wan.past import Past
from flowsde.models.clip.model import CLIPTextConfig
from flowsde.models.common.layers import Numerics
from flowsde.models.common.paths import parameters
from flowsde.models.common.quantised import Format, quantise_layers
from flowsde.models.family import Family, abstract
from flowsde.models.flux.model import FluxConfig
from flowsde.models.sd3.model import SD3Config
from flowsde.models.wan.model import WanConfig

DEVICES = {
    "a GPU of 24 GB": 24e9, "a GPU of 80 GB": 80e9, "a chip of v5e": 16e9, "a chip of v6e": 32e9
}  # fmt: skip
CHIPS = (4, 8)
PIXELS, HEIGHT, WIDTH = 1024, 480, 832
_LOW = Numerics(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
_BIG_G = CLIPTextConfig(width=1280, depth=32, heads=20, mlp=5120, projection=1280)
_QWEN3 = ((qwen3.FAMILY, qwen3.FAMILY.config()),)
_T5 = ((t5.ENCODER, t5.ENCODER.config()), (clip.TEXT, CLIPTextConfig(projection=768)))
_KL = autoencoder_kl.FAMILY.config()


@dataclasses.dataclass(frozen=True)
class Args:
    """Bytes of the published models on one device.

    Attributes:
      json: where to write the results.
    """

    json: pathlib.Path | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A published model.

    Attributes:
      name: as the TPU plan has it.
      family, config: of the transformer.
      encoders: families and configurations of what reads the text.
      text: tokens of it that the transformer reads.
      hidden: features of a token between the layers of an MLP, those of its gate included.
      guided: whether a candidate is evaluated twice.
      frames: of videos; None for a model of pictures.
    """

    name: str
    family: Family
    config: Any
    encoders: tuple[tuple[Family, Any], ...]
    text: int
    hidden: int
    guided: bool = True
    frames: int | None = None

    @property
    def resolution(self) -> int | str:
        """As the TPU plan has it."""
        return PIXELS if self.frames is None else f"{WIDTH}x{HEIGHT}x{self.frames}"

    @property
    def tokens(self) -> int:
        """Of a block."""
        if self.frames is None:
            return (PIXELS // 16) ** 2 + self.text
        # Those of the text are looked at from outside.
        return (1 + (self.frames - 1) // 4) * (HEIGHT // 16) * (WIDTH // 16)


def models() -> list[Model]:
    """All rows."""
    made = [
        Model(
            name="FLUX.1-dev", family=flux.FAMILY, config=FluxConfig.dev(), encoders=_T5,
            text=512, hidden=12288 + 4 * 3072, guided=False,
        ),
        Model(
            name="FLUX.2-klein-4B", family=flux2.FAMILY, config=flux2.FAMILY.config(),
            encoders=_QWEN3, text=512, hidden=2 * 9216 + 4 * 3072, guided=False,
        ),
        Model(
            name="Z-Image", family=zimage.FAMILY, config=zimage.FAMILY.config(), encoders=_QWEN3,
            text=512, hidden=2 * 10240,
        ),
    ]  # fmt: skip
    for name, config in (("medium", SD3Config.medium_3_5()), ("large", SD3Config.large_3_5())):
        encoders = (*_T5, (clip.TEXT, _BIG_G))
        made.append(
            Model(
                name=f"SD3.5-{name}", family=sd3.FAMILY, config=config, encoders=encoders,
                text=77 + 256, hidden=config.mlp,
            )
        )  # fmt: skip
    umt5 = ((t5.UMT5, t5.UMT5.config()),)
    for name in ("1_3b", "14b"):
        config = getattr(WanConfig, f"t2v_{name}")()
        called = f"Wan2.1-{name.replace('_', '.').upper()}"
        made += [
            Model(
                name=called, family=wan.FAMILY, config=config, encoders=umt5, text=512,
                hidden=config.mlp, frames=frames,
            )
            for frames in (1, 17, 81)
        ]  # fmt: skip
    return made


def weights(family: Family, config: Any, form: Format | None = None) -> int:
    """Bytes of a model's parameters, those of its blocks in a format."""
    model = abstract(family, config, _LOW)
    if form is not None:
        quantise_layers(model, form)
    return sum(p.size * p.dtype.itemsize for p in parameters(model).values())


def widened(family: Family, config: Any) -> int:
    """Bytes of the largest kernel of a block, in bfloat16."""
    model = abstract(family, config, _LOW)
    held, kernels = parameters(model), quantise_layers(model, "int8")
    return max(
        held[path].size // held[path].shape[0] * held[path].dtype.itemsize for path in kernels
    )


def evaluating(model: Model) -> int:
    """Bytes beside the weights, computed."""
    # The residual stream, and one such in float32: norms and what is added; then an MLP's features.
    return model.tokens * (6 * model.config.width + 2 * model.hidden)


def decoding(frames: int) -> int:
    """Bytes beside the weights of decoding a video, computed."""
    config = autoencoder_wan.FAMILY.config()
    vae: Any = abstract(autoencoder_wan.FAMILY, config, _LOW)
    graph, state = nnx.split(vae)

    def kept(state: Any, z: jax.Array) -> list[jax.Array]:
        past = Past()
        made: Any = nnx.merge(graph, state)
        made.decoder(z, past)
        return past.kept

    side = (HEIGHT // config.factor, WIDTH // config.factor)
    z = jax.ShapeDtypeStruct((1, 1, *side, config.latents), _LOW.dtype)
    held = sum(a.size * a.dtype.itemsize for a in jax.eval_shape(kept, state, z))
    pieces = min(frames, config.frames) * HEIGHT * WIDTH
    # The widest features are those before the last level: in bfloat16, normalised, and after.
    features = 8 * pieces * config.widths[1]
    video = 4 * 3 * frames * HEIGHT * WIDTH
    return (held if frames > 1 else 0) + features + video


def _compiled(plan: list[dict[str, Any]], name: str, resolution: Any) -> dict[str, Any] | None:
    """The row of a program with whole weights on each chip, of the fewest candidates."""
    found = [
        row
        for row in plan
        if (row["model"], row["resolution"], row["layout"]) == (name, resolution, "data")
    ]
    return min(found, key=lambda row: row["batch"], default=None)


def row_of(model: Model, plan: list[dict[str, Any]]) -> dict[str, Any]:
    """A row of the results."""
    video = model.frames is not None
    vae: Any = autoencoder_wan.FAMILY if video else autoencoder_kl.FAMILY
    transformer, autoencoder = weights(model.family, model.config), weights(vae, vae.config())
    encoder = sum(weights(*one) for one in model.encoders)
    compiled = []
    evaluation = evaluating(model)
    if (own := _compiled(plan, model.name, model.resolution)) is not None:
        evaluation = round((own["peak_bytes"] - transformer) / (own["batch"] / own["chips"]))
        compiled.append("evaluation")
    decoder = "Wan2.1 decoder" if video else "FLUX.1 decoder"
    if (own := _compiled(plan, decoder, model.resolution)) is not None:
        decode = own["peak_bytes"] - autoencoder
        compiled.append("decoding")
    else:
        assert model.frames is not None, "decoders of pictures are planned"
        decode = decoding(model.frames)
        short = _compiled(plan, decoder, f"{WIDTH}x{HEIGHT}x{DECODED}")
        if short is not None and model.frames > DECODED:
            # The loop over its frames is the same, and the video longer.
            more = 4 * 3 * (model.frames - DECODED) * HEIGHT * WIDTH
            decode = max(decode, short["peak_bytes"] - autoencoder + more)
    beside = autoencoder + max(evaluation * (2 if model.guided else 1), decode)
    encoder8 = sum(weights(*one, "int8") for one in model.encoders)
    transformer8 = weights(model.family, model.config, "int8")
    held8 = transformer8 + beside + widened(model.family, model.config)
    sharded = {chips: max(encoder // chips, transformer // chips + beside) for chips in CHIPS}
    return {
        "model": model.name,
        "resolution": model.resolution,
        "guided": model.guided,
        "encoder": encoder,
        "transformer": transformer,
        "autoencoder": autoencoder,
        "evaluation": evaluation,
        "decoding": decode,
        "compiled": compiled,
        "needed": max(encoder, transformer + beside),
        "int8": {
            "encoder": encoder8,
            "transformer": transformer8,
            "needed": max(encoder8, held8),
        },
        "sharded": sharded,
    }


def main() -> None:
    """Compute, print and write."""
    args = tyro.cli(Args, description=__doc__)
    plan = json.loads((RESULTS / "tpu_plan.json").read_text())["programs"]
    rows = []
    for model in models():
        rows.append(row_of(model, plan))
        told = {k: f"{v / 1e9:.2f}" for k, v in rows[-1].items() if isinstance(v, int) and v > 9999}
        print(model.name, model.resolution, told, rows[-1]["compiled"], flush=True)
    save_json(args.json, {"version": fs.__version__, "devices": DEVICES, "rows": rows})


if __name__ == "__main__":
    main()
