"""Which programs are planned, and where each lies on the chips."""

import dataclasses
from collections.abc import Callable
from functools import partial

from _tpu_programs import Place, Program, ask_tell, clip_text, decoder, flux, sit, t5, text_tokens

from flowsde.models.autoencoder_kl.model import AutoencoderKLConfig, sd_vae
from flowsde.models.flux.model import FluxConfig
from flowsde.models.sit.model import SiTConfig
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
SEQUENCE = Layout(
    "sequence", (1, 1, 8), ShardingRules(heads=None, mlp=None, vocab=None, token="model")
)


@dataclasses.dataclass(frozen=True)
class Uses:
    """Names of the programs that a search takes beside its evaluations."""

    decode: str
    ask_tell: str
    encode: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """A program to plan, built when it is wanted: `build(place)`."""

    model: str
    resolution: int | None
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


def entries() -> list[Entry]:
    """Everything: on each chip what is recommended, then other layouts to compare."""
    made: list[Entry] = []
    # FLUX does not fit into a v5e's memory whole; gathered weights want a large batch.
    for chip, layout, chains in (
        ("v5e", FULLY, {1024: 4, 512: 8}),
        ("v6e", DATA, {1024: 2, 512: 4}),
    ):
        for pixels in (1024, 512):
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
    ]
    return made


def quick() -> list[Entry]:
    """One small program."""
    return [_sit("v5e", "S/2", 256, 1)]
