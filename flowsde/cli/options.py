"""Options of `flowsde sample`, and what it shares with others, as tyro reads them."""

import dataclasses
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from flowsde import _text
from flowsde._checks import check_path
from flowsde.cli.settings import CHOICES, TUNING, Settings, default, flag


def number(kind: type, name: str) -> PrimitiveConstructorSpec:
    """An option that is a number; `name` says so in errors."""

    def convert(words: list[str]) -> Any:
        try:
            return kind(words[0])
        except ValueError:
            raise ValueError(f"expected {name}, got '{_text.shown(words[0])}'") from None

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="N" if kind is int else "X",
        instance_from_str=convert,
        is_instance=lambda value: value is None or isinstance(value, kind),
        str_from_instance=lambda value: [str(value)],
    )


_QUIET = tyro.conf.arg(help_behavior_hint="")
Int = Annotated[int | None, number(int, "an integer"), _QUIET]
Float = Annotated[float | None, number(float, "a number"), _QUIET]
Flag = Annotated[bool, _QUIET]


def shown(metavar: str) -> Any:
    """An option with this placeholder in the help."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


Weights = Annotated[tuple[Path, ...], shown("PATH"), tyro.conf.UseAppendAction]


def word(name: str) -> Any:
    """An option that is one of the choices of a setting."""
    return shown("{" + ",".join(CHOICES[name]) + "}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trajectory:
    """How a particle moves from noise to data."""

    eta: Float = None
    """ddim, cps: share of fresh noise, 0 to 1."""
    data_variance: Float = None
    """ddim, cps: variance of the data that they assume; 0 uses the posterior mean."""
    diffusion: Annotated[str | None, word("diffusion")] = None
    """euler_maruyama: diffusion coefficient."""
    diffusion_scale: Float = None
    """Its scale; by default the coefficient's own."""
    grid: Annotated[str | None, word("grid")] = None
    """Spacing of the times; shifted is Stable Diffusion 3's, by 3; model, with a FLUX.1, takes the
    model's own."""
    steps: Int = None
    """Steps of the grid; by default 20, for smc, code, svdd and rbf a fifth of a smaller budget."""
    guidance: Float = None
    """Classifier-free guidance scale; other than 1 it doubles the cost of every candidate. SiT's is
    4 by default; FLUX.1-dev takes its own, 3.5 by default, as an input and at no cost; other FLUX.1
    with --negative-prompt."""
    gradient_temperature: Float = None
    """Guide a stochastic kernel by the gradient of exp(reward / temperature), not for smc; one
    backward pass a candidate. 0, the default, does not."""


def _help(name: str) -> str:
    """An option of some methods: what it is for each of them, and its default."""
    said: dict[str, list[str]] = {}
    for method, option in TUNING[name].items():
        value, text = default(method, name), option.help.replace("`", "").rstrip(".")
        worked_out = value is None or "default" in text
        end = "." if worked_out else f" (default: {value})."
        said.setdefault(text + end, []).append(method)
    return " ".join(f"{', '.join(methods)}: {text}" for text, methods in said.items())


def _type(name: str) -> Any:
    """The type of an option of some methods, as tyro reads it."""
    kind = {option.kind for option in TUNING[name].values()}
    said = tyro.conf.arg(name=flag(name)[2:], help=_help(name), help_behavior_hint="")
    if kind == {str}:
        return Annotated[str | None, word(name), said]
    return Annotated[Int if kind == {int} else Float, said]


if TYPE_CHECKING:

    class Tuning: ...  # noqa: D101
else:
    Tuning = dataclasses.make_dataclass(
        "Tuning",
        [(name, _type(name), None) for name in TUNING],
        namespace={"__doc__": "How the budget is spent.", "__module__": __name__},
        frozen=True,
        kw_only=True,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Converted:
    """A converted model in the place of the embedded one."""

    model: Annotated[Path | None, shown("FOLDER")] = None
    """What flowsde convert wrote of a FLUX.1 pipeline or of a SiT."""
    size: Annotated[str | None, shown("HEIGHTxWIDTH")] = None
    """FLUX.1: pixels, 1024x768 or 1024 for a square; by default the model's own."""
    text_tokens: Int = None
    """FLUX.1: tokens of a prompt for its T5, 512 by default and at most; 256 is what Black Forest
    Labs' own code takes for schnell."""
    negative_prompt: Annotated[str | None, shown("TEXT")] = None
    """FLUX.1 without guidance as an input, de-distilled ones above all: what --guidance leads away
    from, at two evaluations a candidate; may be empty."""
    label: Int = None
    """SiT: number of the class, in the place of a prompt."""
    vae: Annotated[Path | None, shown("FOLDER")] = None
    """SiT: the autoencoder that it was trained with, converted (stabilityai/sd-vae-ft-ema)."""
    reward_model: Annotated[tuple[Path, ...], shown("FOLDER"), tyro.conf.UseAppendAction] = ()
    """Rewards clip and pick: a converted CLIP; aesthetic: given twice, a CLIP and the head."""
    reward_timeout: Annotated[Float, shown("SECONDS")] = None
    """MODULE:FUNCTION: how long one call may take, an hour by default; after that the run ends, to
    be gone on with."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What `sample` and `batch` have in common: a method, its settings, and what they are for."""

    method: Annotated[str, word("method")] = "rbf"
    """ODE or SDE trajectory, Best-of-N, Search over Paths, SMC, CoDe, SVDD, RBF (the default)."""
    preset: Annotated[str, word("preset")] = "recommended"
    """What measures best on the embedded model (the default), or the setting of the RBF paper."""
    nfe: Int = None
    """Budget in evaluations of the model, a hard cap: 500, or one trajectory's steps."""
    interpolant: Annotated[str | None, word("interpolant")] = None
    """In which the search moves; the flow is converted."""
    kernel: Annotated[str | None, word("kernel")] = None
    """How a particle moves from one time to the next."""
    reward: Annotated[str | None, shown("REWARD")] = None
    """likelihood (of the scorer's counts, the default) or rss (minus their squared error), of which
    0 is perfect. With --model: clip, pick, aesthetic, MODULE:FUNCTION (of images and prompts), or
    none, the default of ode and sde."""
    target_reward: Float = None
    """Stop as soon as a reward is this high."""
    seed: Annotated[int, number(int, "an integer")] = 0
    """Of all random numbers."""
    weights: Weights = ()
    """Embedded model: weights that flowsde train wrote, of the flow or of the scorer, in the place
    of the packaged ones: a file, or the folder of a run. Given twice for both."""
    converted: Annotated[Converted, tyro.conf.OmitArgPrefixes] = Converted()
    trajectory: Annotated[Trajectory, tyro.conf.OmitArgPrefixes] = Trajectory()
    search: Annotated[Tuning, tyro.conf.OmitArgPrefixes] = Tuning()

    @property
    def given(self) -> dict[str, Any]:
        """Fields of `Settings` that the user gave."""
        return given(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
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
    """More prompts, one a line; blank lines and lines that start with # are skipped."""
    out: Annotated[Path | None, shown("DIR")] = None
    """Folder of the results; for several prompts or a --prompts-file, one below it for each.
    By default flowsde-out/PROMPT-METHOD-seedSEED."""
    overwrite: Flag = False
    """Discard finished results and unfinished runs in the folder, and begin anew; without it, the
    same command resumes."""
    save_trajectory: Flag = False
    """Also write trajectory.npz: every round, and every particle accepted."""


def given(command: Any) -> dict[str, Any]:
    """Fields of `Settings` that the user gave, in its own options and its two groups."""
    every = vars(command) | vars(command.trajectory) | vars(command.search)
    fields = [field.name for field in dataclasses.fields(Settings)]
    return {name: every[name] for name in fields if every.get(name) is not None}


def names() -> list[str]:
    """All options, by field."""
    groups = {"converted": Converted, "trajectory": Trajectory, "search": Tuning}
    own = [f.name for f in dataclasses.fields(Sample) if f.name not in groups]
    return own + [f.name for group in groups.values() for f in dataclasses.fields(group)]


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
