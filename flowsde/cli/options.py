"""Options of `flowsde sample`, and what it shares with others, as tyro reads them."""

import dataclasses
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from flowsde import _text
from flowsde._checks import check_path
from flowsde.cli.described import described
from flowsde.cli.devices import Devices
from flowsde.cli.kinds import Flag, Float, Int, number, shown
from flowsde.cli.makers import Option
from flowsde.cli.option_groups import Choosing, Combining
from flowsde.cli.settings import (
    CHOICES,
    MOST_IN_SECONDS,
    MOVING,
    TUNING,
    Settings,
    default,
    default_of_kernel,
    flag,
)

Table = Mapping[str, Mapping[str, Option]]
"""Options of makers, by name and by maker."""


Weights = Annotated[tuple[Path, ...], shown("PATH"), tyro.conf.UseAppendAction]
HeldoutNames = Annotated[tuple[str, ...], shown("REWARD"), tyro.conf.UseAppendAction]
HeldoutFolders = Annotated[tuple[Path, ...], shown("FOLDER"), tyro.conf.UseAppendAction]


def word(name: str) -> Any:
    """An option that is one of the choices of a setting."""
    return shown("{" + ",".join(CHOICES[name]) + "}")


def words(name: str) -> Any:
    """An option that is one or more of the choices of a setting."""
    return shown("{" + ",".join(CHOICES[name]) + "}...")


Preset = Annotated[str, shown("{" + ",".join(CHOICES["preset"]) + "}|FILE")]


@dataclasses.dataclass(frozen=True, kw_only=True)
@described
class Trajectory:
    """How a particle moves from noise to data."""

    diffusion: Annotated[str | None, word("diffusion")] = None
    """Diffusion coefficient of euler_maruyama and exact (default: square)."""
    diffusion_scale: Float = None
    """Scale of the diffusion coefficient (default: the coefficient's own)."""
    grid: Annotated[str | None, shown("{" + ",".join((*CHOICES["grid"], "model")) + "}")] = None
    """Spacing of the times (default: uniform). "shifted" is shifted by 3. "model", with a FLUX.1,
    FLUX.2-klein, SD3, Wan 2.1 or Z-Image, is the model's own, and the default there for
    {linear_methods}."""
    steps: Int = None
    """Number of steps. With --model the default is that of its pipeline, where that has one for the
    method; else, as of the embedded model: {steps}."""
    guidance: Float = None
    """Classifier-free guidance scale (default: 1, off; 0 is not off). Any other doubles the cost of
    every candidate. SiT's and FLUX.2-klein-base's default is 4, Wan 2.1's and Z-Image's 5, SD3's 7.
    FLUX.1-dev's is 3.5, an input of the model that costs nothing. Other FLUX.1 models take it with
    --negative-prompt; the distilled FLUX.2-klein takes none."""
    gradient_temperature: Float = None
    """Move particles along the gradient of reward / temperature, at one backward pass a candidate
    (default: 0, off). Needs a stochastic kernel. The samples of smc are weighed accordingly."""
    gradient_curvature: Float = None
    """Damp the gradient where pictures are still uncertain, for a reward of this curvature, in its
    units by those of a picture squared (default: do not). Needs --gradient-temperature, and a
    kernel with --data-variance."""
    noise_tilt: Float = None
    """Let the reward's gradient, made to look like noise, take the place of this share of the
    kernel's noise (default: 0, off); instead of --gradient-temperature."""


_WITH_MODEL = {"data_variance": " of the embedded model, 0 with --model"}
"""Defaults that are another model's otherwise."""


def _help(name: str, table: Table, default: Callable[[str, str], Any]) -> str:
    """An option of some makers: what it is for each of them, and its default."""
    said: dict[str, list[str]] = {}
    for method, option in table[name].items():
        value, text = default(method, name), option.help.replace("`", "").rstrip(".")
        worked_out = value is None or "default" in text
        with_model = _WITH_MODEL.get(name, "")
        end = "." if worked_out else f" (default: {value}{with_model})."
        said.setdefault(text + end, []).append(method)
    return " ".join(f"{', '.join(methods)}: {text}" for text, methods in said.items())


def _type(name: str, table: Table, default: Callable[[str, str], Any]) -> Any:
    """The type of an option of some makers, as tyro reads it."""
    kind = {option.kind for option in table[name].values()}
    said = tyro.conf.arg(
        name=flag(name)[2:], help=_help(name, table, default), help_behavior_hint=""
    )
    if kind == {str}:
        return Annotated[str | None, word(name), said]
    return Annotated[Int if kind == {int} else Float, said]


if TYPE_CHECKING:

    class Tuning: ...  # noqa: D101

    class Moving: ...  # noqa: D101
else:

    def _group(title: str, doc: str, table: Table, default: Callable[[str, str], Any]) -> Any:
        return dataclasses.make_dataclass(
            title,
            [(name, _type(name, table, default), None) for name in table],
            namespace={"__doc__": doc, "__module__": __name__},
            frozen=True,
            kw_only=True,
        )

    Tuning = _group("Tuning", "Options of the searches.", TUNING, default)
    Moving = _group("Moving", "Options of the kernels.", MOVING, default_of_kernel)


@dataclasses.dataclass(frozen=True, kw_only=True)
@described
class Converted:
    """Use another model."""

    model: Annotated[Path | None, shown("NAME|FOLDER")] = None
    """An embedded model, shapes (the default) or shapes-turbo, which is distilled to four steps; or
    the folder that flowsde convert wrote, of a FLUX.1, FLUX.2-klein, SD3, Wan 2.1 or Z-Image
    pipeline, or a SiT."""
    quantise: Annotated[str | None, shown("{int8,float8_e4m3fn}")] = None
    """Hold the weights of --model's blocks in eight bits, in half of bfloat16's memory (default: as
    they were converted)."""
    size: Annotated[str | None, shown("SIZE")] = None
    """Size in pixels: WIDTHxHEIGHT, 832x480, or 1024 for a square (default: the model's own)."""
    frames: Int = None
    """Wan 2.1: frames of a video, 1 and a multiple of 4 (default: 81); 1 makes a picture."""
    fps: Float = None
    """Wan 2.1: frames a second that the file is played at (default: 16)."""
    text_tokens: Int = None
    """FLUX.1 and SD3: length of a prompt for the T5 encoder, at most 512 (default: 512, SD3's 256).
    Black Forest Labs' own code uses 256 for schnell. Z-Image: tokens of a prompt and the chat
    around it, a multiple of 32; fewer are faster, and the same unless the prompt is cut (default:
    512). FLUX.2-klein: the same, to 512, padding included, which the model sees."""
    negative_prompt: Annotated[str | None, shown("TEXT")] = None
    """What --guidance leads away from, at two evaluations a candidate; may be empty. SD3, Wan 2.1,
    Z-Image and FLUX.2-klein-base (default: empty), and FLUX.1 without guidance as an input
    (de-distilled models)."""
    skip_layers: Annotated[str | None, shown("BLOCKS")] = None
    """SD3: also lead away from the model without these blocks, such as "7,8,9", those published for
    SD3.5-medium, numbered from 0: three evaluations a candidate (default: none)."""
    skip_scale: Float = None
    """Scale of --skip-layers (default: 2.8)."""
    skip_start: Float = None
    """Share of the steps after which --skip-layers begins (default: 0.01)."""
    skip_stop: Float = None
    """Share of the steps before which --skip-layers ends (default: 0.2)."""
    label: Int = None
    """SiT: number of the class, instead of a prompt."""
    vae: Annotated[Path | None, shown("FOLDER")] = None
    """SiT: folder of its converted autoencoder (stabilityai/sd-vae-ft-ema)."""
    reward_model: Annotated[tuple[Path, ...], shown("FOLDER"), tyro.conf.UseAppendAction] = ()
    """Folder of a converted model that the reward needs: a CLIP for clip, PickScore for pick. For
    aesthetic give it twice: a CLIP, then the head. `flowsde rewards` says what each needs."""
    reward_counts: Annotated[str | None, shown("TEXT")] = None
    """What owlv2, owlv2-smooth and qwen3vl-counts count, such as "3 red circles, 2 dogs" (default:
    what the prompt itself says)."""
    reward_questions: Annotated[Path | None, shown("FILE.json")] = None
    """What qwen3vl-atoms and qwen3vl-atoms-geometric ask: lists of questions by prompt, or one list
    for every prompt. A question is a text, answered Yes, or an object of "question", "answers" and
    "against" (lists of words)."""
    reward_frames: Int = None
    """Videos: frames that a reward of pictures is asked about, evenly from the first to the last
    (default: 4), or that consistency compares (default: 8)."""
    over_frames: Annotated[str | None, shown("{mean,minimum}")] = None
    """Videos: what counts of the frames' rewards (default: mean). A MODULE:FUNCTION is given whole
    videos [n, frames, h, w, 3], and frames one by one only with this or --reward-frames."""
    reward_timeout: Annotated[Float, shown("SECONDS")] = None
    """Longest time for one call of a MODULE:FUNCTION reward (default: 3600), or of a judge at a URL
    (default: 630). After that the run stops, and can be resumed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
@described
class Beginning:
    """Begin from a picture."""

    image: Annotated[Path | None, shown("FILE")] = None
    """A picture to begin from, cropped and resized to the model's size, instead of noise."""
    strength: Float = None
    """Share of the steps that are run on --image, as in diffusers, and so how noisy it becomes: the
    steps before are neither taken nor charged (default: 0.8, or 1 with --mask)."""
    mask: Annotated[Path | None, shown("FILE")] = None
    """A picture that is white where --image is drawn anew, and black where it stays."""

    @property
    def given(self) -> dict[str, Any]:
        """Fields of `Settings`."""
        if self.image is None:
            return {}
        default = 0.8 if self.mask is None else 1.0
        return {"strength": default if self.strength is None else self.strength}


@dataclasses.dataclass(frozen=True, kw_only=True)
@described
class Task:
    """Options that `sample` and `batch` share."""

    method: Annotated[str, word("method")] = "svdd"
    """How to spend the budget: one trajectory of the ODE or the SDE, or a search (default: smc
    of the embedded model, svdd of others and with --preset paper, epsilon_greedy of shapes-turbo
    and with --preset distilled)."""
    preset: Preset = "recommended"
    """Defaults of all other settings: "recommended", measured best on the embedded model (the
    default), "distilled", for models of a few steps (what is recommended for shapes-turbo),
    "paper", those of the RBF paper, or a FILE.json that flowsde tune wrote, which brings its method
    along."""
    nfe: Int = None
    """Budget in model evaluations, a hard cap (default: 500; for ode and sde their steps; with
    --seconds the most that they may buy, 2000)."""
    seconds: Float = None
    """Budget in seconds instead, of a prompt, of batch of all prompts together: what the model and
    the reward take is measured first, without counting, and turned into model evaluations. At the
    deadline a search ends with the best so far."""
    interpolant: Annotated[str | None, word("interpolant")] = None
    """Interpolant to sample in; the flow is converted to it (default: {interpolants})."""
    kernel: Annotated[str | None, word("kernel")] = None
    """How a particle moves from one time to the next (default: {kernels})."""
    reward: Annotated[tuple[str, ...], shown("REWARD"), tyro.conf.UseAppendAction] = ()
    """Reward to search by: MODULE:FUNCTION (of images and prompts) or a judge at URL#MODEL.
    Embedded model: also "likelihood" of the counts (the default), or "rss", minus their squared
    error. With --model FOLDER: also one of `flowsde rewards`, such as clip, or none, the default of
    ode and sde. May be given several times, with --combine."""
    task: Annotated[str, word("task")] = "counts"
    """Embedded model: what a picture of the prompt must also be, for the reward and for the
    held-out checker: in the order above, just the objects of the prompt (the default), 8 of them or
    more, the first group left and the second right, all in one row, the first above the second,
    larger than usual, at the places of a sketch, or with a count that training never showed."""
    heldout: HeldoutNames = ()
    """Reward that no search sees, of the pictures found: what --reward may be, also likelihood and
    rss with an embedded model. May be given several times."""
    heldout_model: HeldoutFolders = ()
    """Folder of a converted model for --heldout, as --reward-model is for --reward."""
    target_reward: Float = None
    """Stop as soon as a reward reaches this: of a picture, or of a posterior mean at the search's
    last time (with --finish mean, at any)."""
    keep: Int = None
    """Number of different pictures of each prompt to write, the best by reward that the search came
    to: image.png, image-2.png, … (default: 1)."""
    seed: Annotated[int, number(int, "an integer")] = 0
    """Random seed."""
    weights: Weights = ()
    """Embedded model: weights that flowsde train wrote, of the flow or of the scorer, instead of
    the packaged ones: a file, or the folder of a run. Give it twice for both."""
    converted: Annotated[Converted, tyro.conf.OmitArgPrefixes] = Converted()
    combining: Annotated[Combining, tyro.conf.OmitArgPrefixes] = Combining()
    choosing: Annotated[Choosing, tyro.conf.OmitArgPrefixes] = Choosing()
    beginning: Annotated[Beginning, tyro.conf.OmitArgPrefixes] = Beginning()
    devices: Annotated[Devices, tyro.conf.OmitArgPrefixes] = Devices()
    trajectory: Annotated[Trajectory, tyro.conf.OmitArgPrefixes] = Trajectory()
    moves: Annotated[Moving, tyro.conf.OmitArgPrefixes] = Moving()
    search: Annotated[Tuning, tyro.conf.OmitArgPrefixes] = Tuning()

    @property
    def given(self) -> dict[str, Any]:
        """Fields of `Settings` that the user gave; of seconds, the most that they may buy."""
        own = given(self) | self.beginning.given
        own |= {"reward": self.combining.name_of(self.reward)} if self.reward else {}
        return own if self.seconds is None else {"nfe": MOST_IN_SECONDS, **own}


@dataclasses.dataclass(frozen=True, kw_only=True)
@described
class Sample(Task):
    """Search for a picture of PROMPT with the embedded text-to-image flow, or with --model.

    A prompt of the embedded flow is one or two groups, for example "three red circles and two blue
    squares"; several quoted prompts are searched one after the other. What is not given comes from
    the preset.
    """

    prompt: Annotated[tuple[str, ...], tyro.conf.Positional, shown("PROMPT...")]
    """What the picture should show. For the embedded flow one or two groups, each a number from one
    to five, a colour (red, green, blue, yellow, magenta, cyan) and a shape (circle, square,
    triangle)."""
    prompts_file: Annotated[Path | None, shown("FILE")] = None
    """More prompts, one a line, # for comments; of .csv, .tsv and .jsonl the column "prompt"."""
    out: Annotated[Path | None, shown("DIR")] = None
    """Folder of the results; for several prompts or a --prompts-file, one below it for each.
    By default flowsde-out/PROMPT-METHOD-seedSEED."""
    overwrite: Flag = False
    """Discard finished results and unfinished runs in the folder, and begin anew; without it, the
    same command resumes."""
    save_trajectory: Flag = False
    """Also write trajectory.npz: every round, and every particle accepted."""


def given(command: Any) -> dict[str, Any]:
    """Fields of `Settings` that the user gave, in its own options and its groups."""
    groups = (command.trajectory, command.moves, command.search)
    every = vars(command) | {k: v for group in groups for k, v in vars(group).items()}
    fields = [field.name for field in dataclasses.fields(Settings)]
    return {name: every[name] for name in fields if every.get(name) not in (None, ())}


def names() -> list[str]:
    """All options, by field."""
    groups = {
        "converted": Converted,
        "combining": Combining,
        "choosing": Choosing,
        "beginning": Beginning,
        "devices": Devices,
        "trajectory": Trajectory,
        "moves": Moving,
        "search": Tuning,
    }
    own = [f.name for f in dataclasses.fields(Sample) if f.name not in groups]
    return own + [f.name for group in groups.values() for f in dataclasses.fields(group)]


def check_words(command: Any) -> None:
    """ValueError naming an option of the embedded model that is none of its choices."""
    for name in ("task", "split"):
        value = getattr(command, name, None)
        if value is not None and value not in CHOICES[name]:
            known = ", ".join(CHOICES[name])
            raise ValueError(f"{flag(name)} must be one of {known}, got '{_text.shown(value)}'")


def check_paths(command: Any) -> None:
    """ValueError naming the option whose path is a URL; groups of options included."""
    hints = typing.get_type_hints(type(command), include_extras=True)
    for field in dataclasses.fields(command):
        value = getattr(command, field.name)
        if dataclasses.is_dataclass(value):
            check_paths(value)
        positional = tyro.conf.Positional in getattr(hints[field.name], "__metadata__", ())
        for path in value if isinstance(value, tuple) else (value,):
            if isinstance(path, Path):
                check_path(field.name.upper() if positional else flag(field.name), path)
