"""A checkpoint or a pipeline's folder, converted whole or not at all (`replace`)."""

import dataclasses
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import flowsde as fs
from flowsde import _schema
from flowsde._replace import replacing_out
from flowsde._text import names, shown
from flowsde.models import registry
from flowsde.models.converted.store import CONFIG, INDEX, PIPELINE, kind_of, strangers, write_config
from flowsde.models.family import Pipeline
from flowsde_converters import open_clip
from flowsde_converters.based import ALONE, TRANSFORMER, check_base, in_place, transformer_of
from flowsde_converters.copies import contained, copy_file, copy_tree
from flowsde_converters.detect import Plan, plan
from flowsde_converters.files import Checkpoint, has_weights, open_checkpoint, read_json
from flowsde_converters.lora import with_loras
from flowsde_converters.lora_file import of_other_parts, open_loras
from flowsde_converters.stream import Advance
from flowsde_converters.tables import listed, nbytes
from flowsde_converters.write import write

TOKENIZER = "tokenizer"
"""Folder, in that of a single model, of the files that say how it splits texts."""
_VOCABULARIES = ("tokenizer.json", "vocab.json", "spiece.model")
_TOKENIZERS = (*_VOCABULARIES, "merges.txt", "special_tokens_map.json", "tokenizer_config.json")


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What is to be converted.

    Attributes:
      source: file or folder.
      plans: by name of the sub-folder, or only "" for a single model.
      copied: sub-folders without weights, which are copied as they are.
      tokenizers: files beside a single model's weights, by where in OUT they are copied to.
      distilled: whether a pipeline was, and no file of its own says so.
      notes: what is to be said of the whole.
      base: the pipeline, where the source is to take the place of its transformer.
    """

    source: Path
    plans: dict[str, Plan]
    copied: tuple[str, ...] = ()
    tokenizers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    distilled: bool = False
    notes: tuple[str, ...] = ()
    base: Path | None = None

    @property
    def folder(self) -> Path:
        """Of what is copied."""
        return self.source if self.base is None else self.base

    @property
    def about(self) -> dict[str, Any]:
        """What the `config.json` of a pipeline says."""
        own = {"models": list(self.plans), "copied": list(self.copied)}
        return own | ({"distilled": True} if self.distilled else {})

    @property
    def to_read(self) -> int:
        """Bytes of tensors."""
        return sum(
            one.checkpoint.tensors[k].nbytes for one in self.plans.values() for k in one.used
        )

    @property
    def to_write(self) -> int:
        """Bytes of parameters."""
        return sum(nbytes(like) for one in self.plans.values() for like in one.model.values())

    @property
    def largest(self) -> int:
        """Bytes of the largest parameter."""
        return max(nbytes(like) for one in self.plans.values() for like in one.model.values())


def prepare(
    source: Path,
    family: str | None = None,
    dtype: str | None = None,
    settings: Mapping[str, Any] | None = None,
    entry: str | None = None,
    loras: Sequence[tuple[Path, float]] = (),
    distilled: bool = False,
    base: Path | None = None,
) -> Conversion:
    """Look at everything but the values.

    Args:
      source: file or folder.
      family: that a single model must be of; found out by default.
      dtype: of the parameters; as in the checkpoint by default.
      settings: of a single model, in the place of those in the config.json beside it.
      entry: of a single model's file, whose weights are taken; found out by default.
      loras: files of adapters to merge, in order, and the scale of each.
      distilled: whether a pipeline whose files do not say so was; the name of the source may, too.
      base: folder of a pipeline that is converted with the source in the place of its transformer,
        whose own weights may be missing.

    Raises:
      ValueError: listing everything that is wrong.
      ImportError: PyTorch's own files without torch.
      OSError: the files cannot be read.
    """
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist, expected a file or a folder")
    if base is not None:
        check_base(source, base)
        if family is not None:
            raise ValueError(f"--family has no effect with --base {base}, whose family it must be")
    elif not (source / INDEX).is_file():
        if distilled:
            raise ValueError(f"--distilled is for a pipeline, and {source} is a single model")
        return _single(source, family, dtype, settings, entry, loras)
    elif family is not None:
        raise ValueError(f"--family is for a single model, and {source} is a pipeline")
    elif entry is not None:
        raise ValueError(f"--entry is for a single model, and {source} is a pipeline")
    if settings:
        raise ValueError(
            f"{', '.join(settings)}: settings are of a single model, and {base or source} is a "
            "pipeline"
        )
    return _pipeline(source, base, dtype, entry, loras, distilled)


def _single(
    source: Path,
    family: str | None,
    dtype: str | None,
    settings: Mapping[str, Any] | None,
    entry: str | None,
    loras: Sequence[tuple[Path, float]],
) -> Conversion:
    """Of one model."""
    checkpoint = _opened(source, source)
    told = {**open_clip.told(family, checkpoint.paths), **(settings or {})}
    if told:
        config = {**(checkpoint.config or {}), **told}
        checkpoint = dataclasses.replace(checkpoint, config=config)
    one = plan(checkpoint, family, dtype, entry)
    if loras:
        one = with_loras(one, open_loras(loras))
    notes = (ALONE,) if registry.is_transformer(one.family.name) else ()
    found = _tokenizers(source, one.family.tokenizers)
    return Conversion(source, {"": one}, tokenizers=found, notes=notes)


def _pipeline(
    source: Path,
    base: Path | None,
    dtype: str | None,
    entry: str | None,
    loras: Sequence[tuple[Path, float]],
    distilled: bool,
) -> Conversion:
    """Of all models of a pipeline, or of a base with the source for its transformer."""
    folder = source if base is None else base
    known = check_class(folder)
    word = None if known is None else known.distilled
    if distilled and word is None:
        raise ValueError(f"--distilled has no effect: {folder / INDEX} says what it is")
    given = {} if base is None else {TRANSFORMER: transformer_of(base, known)}
    models, copied, problems = _parts(folder, () if known is None else known.optional, given)
    plans: dict[str, Plan] = {}
    adapters = open_loras(loras)
    problems += of_other_parts(adapters, models)
    for name in models:
        try:
            if base is not None and name in given:
                one = in_place(_opened(source, source), base, given[name], dtype, entry)
            else:
                one = plan(_opened(folder / name, folder), None, dtype)
            plans[name] = with_loras(one, adapters, name) if adapters else one
        except ValueError as error:
            problems += [f"{name}: {line}" for line in str(error).splitlines()]
    if not models and not problems:
        problems.append(f"none of {', '.join(copied)} holds weights")
    if problems:
        raise ValueError(listed(problems, f"the pipeline {folder} cannot be converted"))
    called = _named(folder) if base is None else f"{_named(folder)} {source.name.lower()}"
    distilled = distilled or (word is not None and word in called)
    configs = {name: one.found.config for name, one in plans.items()}
    notes = () if known is None else tuple(known.notes(configs, distilled))
    return Conversion(source, plans, tuple(copied), distilled=distilled, notes=notes, base=base)


def _named(source: Path) -> str:
    """What a pipeline is called, in small letters: its folder, or, in the hub's cache, its name."""
    path = source.resolve()
    return (path.parents[1] if path.parent.name == "snapshots" else path).name.lower()


def _opened(path: Path, source: Path) -> Checkpoint:
    """Of a file, or of a folder in the source, whose links must stay in that."""
    if path.is_dir():
        contained(path / CONFIG, source)
    checkpoint = open_checkpoint(path)
    if path.is_dir():
        for one in checkpoint.paths:
            contained(one, source)
    return checkpoint


def check_class(source: Path) -> Pipeline | None:
    """Which it is of those that are known; ValueError for their relatives that share its parts and
    make something else of them, such as FluxKontextPipeline or WanImageToVideoPipeline."""
    kind, known = read_json(source / INDEX).get("_class_name"), registry.pipelines()
    for name, one in known.items():
        if str(kind) in one.others:
            said = f"{one.others[str(kind)]}, which is not supported"
            raise ValueError(f"{source} is a {kind}: {said}; expected a {name}")
    kin = [name for name in known if str(kind).startswith(name.removesuffix("Pipeline"))]
    if kin and kind not in known:
        raise ValueError(
            f"{source} is a {shown(kind)}, expected a {max(kin, key=len)}; its models, as "
            f"far as they are known, can be converted one by one: {source / 'vae'}, for instance"
        )
    found = known.get(kind) if isinstance(kind, str) else None
    if found is not None:
        found.check(source)
    return found


def _tokenizers(source: Path, others: Sequence[str]) -> dict[str, str]:
    """A tokenizer's files in a folder, and in others inside it, by where in OUT they belong; none
    where there is no vocabulary."""
    found: dict[str, str] = {}
    for out, inside in ((TOKENIZER, ""), *((name, name) for name in others)):
        if any((source / inside / name).is_file() for name in _VOCABULARIES):
            names = [name for name in _TOKENIZERS if (source / inside / name).is_file()]
            found |= {f"{out}/{name}": str(Path(inside, name)) for name in names}
    return found


def _parts(
    source: Path, optional: Sequence[str], given: Collection[str] = ()
) -> tuple[list[str], list[str], list[str]]:
    """Names of a pipeline's models, of what is copied, and what is wrong.

    Args:
      source: of the pipeline.
      optional: parts that it can do without.
      given: models that are elsewhere.
    """
    models: list[str] = []
    copied: list[str] = []
    problems: list[str] = []
    for name, kind in read_json(source / INDEX).items():
        # Other entries are settings, and parts that this pipeline does without.
        if name.startswith("_") or not isinstance(kind, list) or None in kind:
            continue
        try:
            contained(source / _schema.name(name, "the part"), source)
        except ValueError as error:
            problems.append(f"{INDEX} names a part outside of the folder: {error}")
            continue
        if name in given:
            models.append(name)
        elif not (source / name).is_dir():
            hint = "; to do without it, write [null, null] there" if name in optional else ""
            problems.append(f"{INDEX} names the part {name}, which is missing{hint}")
        else:
            (models if has_weights(source / name) else copied).append(name)
    return models, copied, problems


def check_out(source: Path, out: Path, overwrite: bool, base: Path | None = None) -> None:
    """ValueError unless `out` can be written."""
    for name, path in (("SOURCE", source), ("--base", base)):
        if path is not None and out.resolve() in (path.resolve(), *path.resolve().parents):
            raise ValueError(f"OUT {out} holds {name} {path}, expected a new folder")
    if not out.exists():
        return
    if not overwrite:
        raise ValueError(f"OUT {out} exists, expected another one or --overwrite")
    if out.is_dir() and not any(out.iterdir()):
        return
    if kind_of(out) is None:
        raise ValueError(f"--overwrite: OUT {out} was not written by a conversion, and is left")
    others = strangers(out)
    if others:
        raise ValueError(
            f"--overwrite: OUT {out} holds {names(others)}, which no conversion wrote, and is left"
        )


def run(
    job: Conversion, out: Path, overwrite: bool = False, advance: Advance = lambda _: None
) -> None:
    """Convert.

    Args:
      job: of `prepare`.
      out: new folder.
      overwrite: whether it may take the place of an older conversion.
      advance: told of bytes of tensors that were read, and of parameters that were verified.

    Raises:
      ValueError: `out` is there, written to by another process or too large for the disk, or values
        are not finite; nothing is left behind.
      OSError: the disk.
    """

    def check(place: Path) -> None:
        check_out(job.source, place, overwrite, job.base)
        check_space(place, job.to_write)

    with replacing_out(out, check) as folder:
        folder.mkdir()
        for to, name in job.tokenizers.items():
            (folder / to).parent.mkdir(exist_ok=True)
            copy_file(job.source / name, job.source, folder / to)
        for name, one in job.plans.items():
            (folder / name).mkdir(exist_ok=True)
            try:
                write(one, folder / name, advance)
            except ValueError as error:
                raise ValueError(f"{name}: {error}" if name else str(error)) from None
        if "" in job.plans:
            return
        for name in job.copied:
            copy_tree(job.folder / name, job.folder, folder / name)
        copy_file(job.folder / INDEX, job.folder, folder / INDEX)
        write_config(folder, {"format": PIPELINE, "version": fs.__version__, **job.about})


def check_space(out: Path, needed: int) -> None:
    """ValueError if the disk of `out`, whose parents are made, has less than `needed` bytes."""
    free = shutil.disk_usage(out.parent).free
    if free < needed:
        raise ValueError(f"OUT {out} takes {needed / 1e9:.1f} GB, and {free / 1e9:.1f} are free")
