"""`flowsde convert`: the options, and what it prints."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tqdm import tqdm

from flowsde import _text, _threads, interrupts
from flowsde._checks import check_path
from flowsde._replace import settle, target
from flowsde.cli import progress
from flowsde.cli.described import described
from flowsde.cli.options import Flag, Int, shown
from flowsde.models.converted.store import kind_of
from flowsde_converters import hub, sit
from flowsde_converters.back import prepare_back, run_back
from flowsde_converters.complete import is_complete
from flowsde_converters.convert import (
    TRANSFORMER,
    Conversion,
    check_class,
    check_out,
    prepare,
    run,
)
from flowsde_converters.detect import Plan

_IGNORED_SHOWN = 6
_BYTES: dict[str, Any] = {"unit": "B", "unit_scale": True}


@dataclasses.dataclass(frozen=True, kw_only=True)
@described
class Convert:
    """Convert a PyTorch checkpoint to a folder that flowsde.load reads.

    Detects and prints the model family. Every key must have its place and every parameter its
    tensor, of the right shape and dtype and with finite values, or nothing is written; what was
    written is read back and compared. A pipeline's folder (model_index.json) is converted model by
    model, and its tokenizers are copied.
    """

    source: Annotated[str, tyro.conf.Positional, shown("SOURCE")]
    """Checkpoint: a file (.safetensors, .sft, or .pt, .pth, .ckpt, .bin with torch), a folder, or
    one on the Hugging Face hub: owner/name, or owner/name/file."""
    out: Annotated[Path | None, tyro.conf.Positional, shown("OUT")] = None
    """Folder to make; it appears when the conversion is complete."""
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None, shown("{float32,bfloat16,float16}")
    ] = None
    """Dtype to write weights in; by default their own. Models run in bfloat16 where their weights
    are bfloat16, in float32 where they are float32 or float16."""
    family: Annotated[str | None, shown("NAME")] = None
    """Model family: refuse any other, or choose one where the checkpoint fits several."""
    classes: Int = None
    """SiT: number of labels, where it is not ImageNet's 1,000. A table with one row more has a null
    label; a table with as many rows has none, and its model cannot be guided."""
    entry: Annotated[str | None, shown("NAME")] = None
    """Entry of a training run's file that holds the weights, such as "ema" or "state.ema", or "."
    for the top level, or another model in the file, such as "vae"; detected by default, averaged
    weights first."""
    lora: Annotated[tuple[str, ...], shown("FILE[:SCALE]"), tyro.conf.UseAppendAction] = ()
    """Adapters (LoRA) to merge into the weights, times a scale (default: 1), with keys of PEFT,
    diffusers or kohya; for several, repeat the option. FILE may be one on the hub:
    owner/name/file."""
    base: Annotated[str | None, shown("FOLDER")] = None
    """For SOURCE that is a transformer alone, such as a fine-tune of FLUX.1 in one file: the
    pipeline that it was trained from, in the folder that diffusers has or on the hub (owner/name).
    It is converted with SOURCE in the place of its own transformer, whose weights are not
    fetched."""
    distilled: Flag = False
    """SD3: the pipeline was distilled to 4 steps without guidance, as SD3.5-large-turbo was, whose
    files do not say so; a pipeline with "turbo" in its name is taken for one without this."""
    revision: Annotated[str | None, shown("REV")] = None
    """Branch, tag or commit on the hub."""
    check: Flag = False
    """Check files, keys and shapes, and print what is found; write nothing (OUT is not needed)."""
    to_torch: Flag = False
    """Convert back: SOURCE is a converted folder, OUT a new .safetensors file with the original
    keys and bits, or a new folder with that file and its config.json."""
    overwrite: Flag = False
    """Replace the conversion in OUT, whatever it is of; without it, the same command finds what is
    complete."""

    def run(self) -> None:
        """Convert, and print what was found and written.

        Raises:
          ValueError, ImportError, OSError: naming what is wrong; nothing is left behind.
        """
        if self.out is None and not self.check:
            raise ValueError("OUT is missing, expected a new folder, or --check")
        check_path("SOURCE", self.source)
        if self.to_torch:
            return self._back()
        there = self.out is not None and self._is_there(self.out)
        job = self._prepared()
        if there and self.out is not None:
            place = target(self.out)
            if not is_complete(job, place):
                raise ValueError(
                    f"OUT {place} exists and holds another conversion, expected another one or "
                    f"--overwrite"
                )
            print(f"flowsde convert: {_text.shown(self.out, 4096)} is already complete", flush=True)
            return
        print("\n".join(found(job)), flush=True)
        if self.check:
            print("check   all keys and shapes fit; values were not read, nothing was written")
            return
        assert self.out is not None
        with progress.bar(total=job.to_read + job.to_write, **_BYTES) as bar:
            run(job, self.out, self.overwrite, _advance(bar))
        print(
            f"folder  {self.out}: {job.to_write / 1e9:.2f} GB, read back and compared", flush=True
        )

    def _is_there(self, out: Path) -> bool:
        """Whether OUT holds a conversion, perhaps this one; ValueError if it cannot be written."""
        settle(out)
        place = target(out)
        if not (self.check or self.overwrite) and kind_of(place) is not None:
            return True
        base = None if self.base is None else Path(self.base)
        check_out(Path(self.source), place, self.overwrite, base)
        return False

    def _prepared(self) -> Conversion:
        if self.classes is not None and self.classes < 1:
            raise ValueError(f"--classes must be at least 1, got {self.classes}")
        settings: dict[str, Any] = {} if self.classes is None else {"num_classes": self.classes}
        if self.family == sit.FAMILY.name:
            # What else has its keys predicts something else.
            settings["prediction"] = "velocity"
        named = [lora_named(words) for words in self.lora]
        loras = [(_on_this_machine("--lora", file), scale) for file, scale in named]
        job = prepare(
            self._fetched(),
            self.family,
            self.dtype,
            settings,
            self.entry,
            loras,
            self.distilled,
            self._fetched_base(),
        )
        for one in job.plans.values():
            if self.classes is not None and one.family.name != sit.FAMILY.name:
                raise ValueError(f"--classes is for a SiT, and SOURCE is of {one.family.name}")
            if self.family is None and one.family.name == sit.FAMILY.name:
                sit.check_names(one.checkpoint.paths)
        return job

    def _fetched(self) -> Path:
        """Path of the source on this machine, fetched if need be."""
        path = Path(self.source)
        if path.exists():
            if self.revision is not None:
                raise ValueError(f"--revision is for the hub, and SOURCE {path} is on this machine")
            return path
        return _on_this_machine("SOURCE", self.source, self.revision, check_class)

    def _fetched_base(self) -> Path | None:
        if self.base is None:
            return None
        check_path("--base", self.base)
        return _on_this_machine("--base", self.base, check=check_class, without=TRANSFORMER)

    def _back(self) -> None:
        given = {
            "--dtype": self.dtype,
            "--family": self.family,
            "--entry": self.entry,
            "--revision": self.revision,
            "--classes": self.classes,
            "--lora": self.lora or None,
            "--base": self.base,
            "--distilled": self.distilled or None,
        }
        wrong = [name for name, value in given.items() if value is not None]
        if wrong or self.check or self.out is None:
            raise ValueError(f"--to-torch takes SOURCE and OUT, not {(wrong or ['--check'])[0]}")
        try:
            models = prepare_back(Path(self.source))
        except (ValueError, FileNotFoundError) as error:
            raise ValueError(f"SOURCE: {error}") from None
        for name, one in models.items():
            print(f"found   {name + ': ' if name else ''}{one.described}", flush=True)
        with progress.bar(total=sum(one.nbytes for one in models.values()), **_BYTES) as bar:
            run_back(Path(self.source), models, self.out, self.overwrite, _advance(bar))
        print(f"wrote   {self.out}", flush=True)


def _on_this_machine(
    name: str,
    source: str,
    revision: str | None = None,
    check: Callable[[Path], Any] = lambda folder: None,
    without: str | None = None,
) -> Path:
    """Path of a file or a folder, fetched from the hub if need be; `name` says so in errors.

    A pipeline of the hub is checked before its weights are fetched.
    """
    if Path(source).exists():
        return Path(source)
    # In a thread, so that a signal need not wait for the end of a download.
    return _threads.call("hub", math.inf, hub.fetch, source, revision, name, check, without)


def lora_named(words: str) -> tuple[str, float]:
    """A file of adapters and its scale, out of "FILE" or "FILE:SCALE"; ValueError for another
    scale."""
    check_path("--lora", words)
    name, colon, end = words.rpartition(":")
    if not colon or Path(words).exists():
        return words, 1.0
    try:
        scale = float(end)
    except ValueError:
        scale = math.nan
    if not math.isfinite(scale) or not name:
        raise ValueError(
            f"--lora {_text.shown(words)}: expected FILE or FILE:SCALE, with a finite number"
        )
    return name, scale


def _advance(bar: tqdm) -> Callable[[int], None]:
    """A callback for the bytes of every tensor, which also checks for signals."""

    def advance(nbytes: int) -> None:
        interrupts.check()
        bar.update(nbytes)

    return advance


def found(job: Conversion) -> list[str]:
    """Lines that say what was found."""
    lines = []
    for name, one in job.plans.items():
        lines += _described(one, f"{name}: " if name else "")
    files = [f"tokenizer: {', '.join(job.tokenizers.values())}"] if job.tokenizers else []
    lines += [f"copies  {name}" for name in (*job.copied, *files)]
    return lines + [f"note    {note}" for note in job.notes]


def _many(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e6 else str(count)


def _described(one: Plan, prefix: str) -> list[str]:
    held, dtypes = one.checkpoint, {like.dtype.name for like in one.model.values()}
    source = sorted({held.tensors[key].dtype.name for key in one.used})
    lines = [
        f"found   {prefix}{one.family.name}, {one.found.layout} keys: {_many(one.count)} "
        f"parameters in {len(set(one.used))} tensors, {' and '.join(source)}, "
        f"{held.nbytes / 1e9:.2f} GB in {len(held.paths)} file{'s' * (len(held.paths) > 1)}",
        "config  " + ", ".join(f"{k}={_text.shown(v)}" for k, v in vars(one.found.config).items()),
        *(f"takes   {note}" for note in held.notes),
        *(f"note    {note}" for note in one.found.notes),
        *(f"merges  {lora.said}" for lora in one.loras),
    ]
    if one.ignored:
        ignored = _text.names(one.ignored, _IGNORED_SHOWN)
        lines.append(
            f"ignores {ignored}: not used by the model; copies are compared when values are read"
        )
    return [*lines, f"writes  {' and '.join(sorted(dtypes))}"]
