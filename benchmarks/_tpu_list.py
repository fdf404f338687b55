"""Which programs are planned, and where each lies on the chips."""

import dataclasses
from collections.abc import Callable
from functools import partial

from _tpu_encoders import clip_text, qwen3, t5, umt5
from _tpu_pictures import klein, stable_diffusion, z_image
from _tpu_programs import NFE, Place, Program, ask_tell, decoder, flux, sit, text_tokens
from _tpu_wan import decoder as wan_decoder
from _tpu_wan import latents, wan

from flowsde.models.autoencoder_kl.model import AutoencoderKLConfig, sd_vae
from flowsde.models.flux.model import FluxConfig
from flowsde.models.sd3.model import SD3Config
from flowsde.models.sit.model import SiTConfig
from flowsde.models.wan.model import WanConfig
from flowsde.sharding import ShardingRules

CHIPS = 8


@dataclasses.dataclass(frozen=True)
class Layout:
    """How eight chips share a program.

    Attributes:
      name: for people.
      sizes: of the mesh's axes prompt, particle and model.
      rules: what is divided over them.
    """

    name: str
    sizes: tuple[int, int, int]
    rules: ShardingRules


DATA = Layout("data", (8, 1, 1), ShardingRules())
FULLY = Layout("fully sharded", (8, 1, 1), ShardingRules(embed="prompt"))
TENSOR = Layout("tensor", (1, 1, 8), ShardingRules())
MIXED = Layout("data 4 x tensor 2", (4, 1, 2), ShardingRules())
_TOKENS = ShardingRules(heads=None, mlp=None, vocab=None, token="model")
SEQUENCE = Layout("sequence", (1, 1, 8), _TOKENS)
SEQUENCE_FULLY = Layout(
    "sequence, fully sharded", (1, 1, 8), dataclasses.replace(_TOKENS, embed="model")
)


@dataclasses.dataclass(frozen=True)
class Uses:
    """Names of the programs that a search takes beside its evaluations, and how many it makes.

    Where `decode` is planned of a shorter video, its loop runs `loops` times.
    """

    decode: str
    ask_tell: str
    encode: tuple[str, ...]
    nfe: int = NFE
    loops: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """A program to plan, built when it is wanted: `build(place)`."""

    model: str
    resolution: int | str | None
    chip: str
    layout: Layout
    prompts: int
    build: Callable[[Place], Program]
    detail: str = ""
    uses: Uses | None = None

    @property
    def name(self) -> str:
        """Words that no other entry has together."""
        words = [self.model, self.resolution, self.chip, self.layout.name, self.detail]
        return " ".join(str(word) for word in words if word)


FLUX = {"FLUX.1-schnell": FluxConfig.schnell(), "FLUX.1-dev": FluxConfig.dev()}
WAN = {"Wan2.1-1.3B": WanConfig.t2v_1_3b(), "Wan2.1-14B": WanConfig.t2v_14b()}
FRAMES = {1: 4, 17: 1, 81: 1}
"""Of videos, with the chains of a prompt that are searched together."""
DECODED = 17
"""Most frames of a decoder that is planned: its program for longer ones is the same."""
FEW = 100
"""Evaluations of a search with a model whose evaluations are long."""


def _flux(
    chip: str, model: str, pixels: int, layout: Layout, chains: int, prompts: int = CHIPS
) -> Entry:
    config = FLUX[model]
    return Entry(
        model=model,
        resolution=pixels,
        chip=chip,
        layout=layout,
        prompts=prompts,
        build=lambda place: flux(place, config, pixels, prompts, chains),
        detail=f"batch {prompts * chains}",
        uses=Uses(
            f"FLUX.1 decoder {pixels} {chip} data",
            f"FLUX.1 ask and tell {pixels} {chip} data {chains} chains",
            (f"T5-XXL {chip} fully sharded {text_tokens(config)} tokens", f"CLIP {chip} data"),
        ),
    )


def _sit(chip: str, size: str, pixels: int, chains: int) -> Entry:
    config = SiTConfig.preset(size, pixels)
    return Entry(
        model=f"SiT-{size}",
        resolution=pixels,
        chip=chip,
        layout=DATA,
        prompts=CHIPS,
        build=lambda place: sit(place, config, CHIPS, chains),
        detail=f"batch {CHIPS * chains}",
        uses=Uses(
            f"SiT decoder {pixels} {chip} data",
            f"SiT ask and tell {pixels} {chip} data {chains} chains",
            (),
        ),
    )


def _helpers(
    chip: str, name: str, pixels: int, vae: AutoencoderKLConfig, chains: int
) -> list[Entry]:
    side = pixels // vae.factor
    shape = (side, side, vae.latents)
    common = partial(Entry, resolution=pixels, chip=chip, layout=DATA, prompts=CHIPS)
    return [
        common(
            model=f"{name} decoder",
            build=lambda place: decoder(place, vae, pixels, CHIPS),
        ),
        common(
            model=f"{name} ask and tell",
            build=lambda place: ask_tell(place, shape, CHIPS, chains),
            detail=f"{chains} chains",
        ),
    ]


def _encoders(chip: str) -> list[Entry]:
    common = partial(Entry, resolution=None, chip=chip, prompts=CHIPS)

    def t5_of(length: int) -> Entry:
        return common(
            model="T5-XXL",
            layout=FULLY,
            build=lambda place: t5(place, length, CHIPS),
            detail=f"{length} tokens",
        )

    clip = common(model="CLIP", layout=DATA, build=lambda place: clip_text(place, CHIPS))
    return [*(t5_of(text_tokens(config)) for config in FLUX.values()), clip]


def _z_image(chip: str, layout: Layout, chains: int) -> Entry:
    pixels = 1024
    return Entry(
        model="Z-Image",
        resolution=pixels,
        chip=chip,
        layout=layout,
        prompts=CHIPS,
        build=lambda place: z_image(place, pixels, CHIPS, chains),
        detail=f"batch {CHIPS * chains}",
        uses=Uses(
            f"FLUX.1 decoder {pixels} {chip} data",
            f"FLUX.1 ask and tell {pixels} {chip} data {chains} chains",
            (f"Qwen3-4B {chip} fully sharded 512 tokens",),
            FEW,
        ),
    )


def _wan(chip: str, model: str, frames: int, layout: Layout, chains: int) -> Entry:
    config, resolution = WAN[model], _video(frames)
    # A latent frame after the other, all but the first by one program.
    decoded = min(frames, DECODED)
    return Entry(
        model=model,
        resolution=resolution,
        chip=chip,
        layout=layout,
        prompts=CHIPS,
        build=lambda place: wan(place, config, frames, CHIPS, chains),
        detail=f"batch {CHIPS * chains}",
        uses=Uses(
            f"Wan2.1 decoder {_video(decoded)} {chip} data",
            f"Wan2.1 ask and tell {resolution} {chip} data {chains} chains",
            (f"UMT5-XXL {chip} fully sharded 512 tokens",),
            FEW,
            None if decoded == frames else latents(frames)[0] - 1,
        ),
    )


def _video(frames: int) -> str:
    return f"832x480x{frames}"


def _alone(chip: str, model: str, pixels: int, build: Callable[[Place], Program]) -> Entry:
    """A model of which nothing but its evaluations is planned, one on each chip."""
    return Entry(
        model=model,
        resolution=pixels,
        chip=chip,
        layout=DATA,
        prompts=CHIPS,
        build=build,
        detail=f"batch {CHIPS}",
    )


def _this_year() -> list[Entry]:
    """Wan 2.1, Z-Image, Stable Diffusion 3.5 and FLUX.2-klein."""
    made: list[Entry] = []
    small, large = WAN
    for chip in ("v5e", "v6e"):
        common = partial(Entry, chip=chip, prompts=CHIPS)
        # One for each model is enough: a prompt is encoded once.
        for model, encode in (("UMT5-XXL", umt5), ("Qwen3-4B", qwen3)):
            build = partial(encode, length=512, prompts=CHIPS)
            tokens = "512 tokens"
            made.append(
                common(model=model, resolution=None, layout=FULLY, build=build, detail=tokens)
            )
        for frames, chains in FRAMES.items():
            shape, on_video = latents(frames), partial(common, resolution=_video(frames))
            made += [
                _wan(chip, small, frames, DATA, chains),
                _wan(chip, large, frames, FULLY, chains),
                on_video(
                    model="Wan2.1 ask and tell",
                    layout=DATA,
                    build=partial(ask_tell, shape=shape, prompts=CHIPS, chains=chains),
                    detail=f"{chains} chains",
                ),
            ]
            if frames <= DECODED:
                build = partial(wan_decoder, frames=frames, videos=CHIPS)
                made.append(on_video(model="Wan2.1 decoder", layout=DATA, build=build))
    of = partial(partial, pixels=1024, prompts=CHIPS, chains=1)
    return [
        *made,
        _z_image("v5e", FULLY, 4),
        _z_image("v6e", DATA, 2),
        _z_image("v5e", DATA, 1),
        _alone("v5e", "FLUX.2-klein-4B", 1024, of(klein)),
        _alone("v5e", "SD3.5-medium", 1024, of(stable_diffusion, config=SD3Config.medium_3_5())),
        _alone("v6e", "SD3.5-large", 1024, of(stable_diffusion, config=SD3Config.large_3_5())),
        *(_wan("v6e", large, frames, DATA, 1) for frames in FRAMES),
    ]


def entries() -> list[Entry]:
    """Everything: on each chip what is recommended, then other layouts to compare."""
    made: list[Entry] = []
    # FLUX does not fit into a v5e's memory whole. Weights, gathered or read, want a large batch.
    chains = {1024: 4, 512: 8}
    for chip, layout in (("v5e", FULLY), ("v6e", DATA)):
        for pixels in chains:
            made += [_flux(chip, model, pixels, layout, chains[pixels]) for model in FLUX]
            made += _helpers(chip, "FLUX.1", pixels, AutoencoderKLConfig(), chains[pixels])
        made += _encoders(chip)
        for pixels, many in ((512, 4), (256, 8)):
            made.append(_sit(chip, "XL/2", pixels, many))
            made += _helpers(chip, "SiT", pixels, sd_vae(), many)
    schnell = "FLUX.1-schnell"
    made += [
        _flux("v5e", schnell, 1024, DATA, 1),
        _flux("v5e", schnell, 1024, FULLY, 1),
        _flux("v5e", schnell, 1024, MIXED, 1),
        _flux("v5e", schnell, 1024, TENSOR, 1),
        _flux("v5e", schnell, 1024, TENSOR, 1, prompts=1),
        _flux("v6e", schnell, 1024, FULLY, 2),
        _flux("v6e", schnell, 1024, TENSOR, 1, prompts=1),
        _flux("v6e", schnell, 1024, SEQUENCE, 1, prompts=1),
        # What else a search of such pictures takes is not planned.
        dataclasses.replace(_flux("v5e", schnell, 2048, SEQUENCE_FULLY, 1, prompts=1), uses=None),
        *_this_year(),
    ]
    return made


def quick() -> list[Entry]:
    """One small program."""
    return [_sit("v5e", "S/2", 256, 1)]
