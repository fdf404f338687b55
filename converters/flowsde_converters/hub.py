"""Models of the Hugging Face hub, fetched into its cache; what was fetched is kept on a stop."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from flowsde._text import shown
from flowsde.models.converted.store import INDEX
from flowsde_converters.names import GGUF, OF_GGUF, SAFETENSORS, TORCH, USUAL, ends

_PATIENCE = 10.0
"""Seconds to wait for the hub."""
_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:/([\w./-]+))?")
_SMALL = (".json", ".txt", ".model")
"""Configurations and tokenizers."""
_USUAL = re.compile(rf"({'|'.join(USUAL)})(-\d+-of-\d+)?\.\w+", re.IGNORECASE)


def fetch(
    source: str,
    revision: str | None = None,
    what: str = "SOURCE",
    check: Callable[[Path], Any] = lambda folder: None,
    without: str | None = None,
) -> Path:
    """The folder of a model, with the files that a conversion reads, or one file of it.

    Args:
      source: owner/name or owner/name/path.
      revision: branch, tag or commit; the main branch by default.
      what: the argument, for errors.
      check: of a whole pipeline's folder with nothing in it but configurations and tokenizers,
        which are fetched first; what it raises is raised before weights are fetched.
      without: a folder of a pipeline, whose weights are not fetched.

    Raises:
      ImportError: there is no huggingface_hub.
      ValueError: the model cannot be had: unknown, gated, or no network.
    """
    match = _ID.fullmatch(source)
    if match is None:
        raise ValueError(f"{what} {source} does not exist, and is no owner/name of the hub")
    name, inside = match.groups()
    if inside and ends(inside, (GGUF,)):
        raise ValueError(f"{what} {source} {OF_GGUF}")
    if inside and ".." in PurePosixPath(inside).parts:
        raise ValueError(f"{what} {source} leaves the model, expected a file or folder inside it")
    try:
        import huggingface_hub as hub
        from huggingface_hub import errors
    except ImportError:
        raise ImportError(
            f"{what} {source} is no path here; to fetch it from the hub takes huggingface_hub, "
            "expected it installed"
        ) from None
    try:
        info = hub.HfApi().model_info(name, revision=revision, timeout=_PATIENCE)
        files = wanted([one.rfilename for one in info.siblings or ()], inside, without)

        def fetched(patterns: list[str]) -> Path:
            return Path(hub.snapshot_download(name, revision=info.sha, allow_patterns=patterns))

        if inside is None and INDEX in files:
            _look(check, fetched([one for one in files if one.endswith(_SMALL)]))
        if files:
            return fetched(files) / (inside or "")
        said = f"it has no weights{f' at {inside}' if inside else ''}"
    except errors.GatedRepoError:
        said = "its licence must be accepted at huggingface.co, then `hf auth login`"
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
        said = "the hub has no such model, or none that you may see"
    except errors.HFValidationError as error:
        said = str(error)
    except _Refused as error:
        raise ValueError(f"{what} {source} is not fetched: {error}") from None
    except Exception as error:  # of whichever library it reaches the network by
        cached = _cached(hub, name, revision)
        if cached is not None:
            return cached / (inside or "")
        words = shown(" ".join(str(error).split()))
        said = f"it is not in the cache, and the hub cannot be reached ({words})"
    raise ValueError(f"{what} {source} is no path here, and cannot be fetched: {said}")


class _Refused(Exception):
    """A pipeline that could not be converted."""


def _look(check: Callable[[Path], Any], folder: Path) -> None:
    """`check` a folder; `_Refused`, which is no error of the network's, for what is wrong."""
    try:
        check(folder)
    except (ValueError, OSError) as error:
        raise _Refused(str(error)) from None


def _cached(hub: Any, name: str, revision: str | None) -> Path | None:
    """The folder of a model that was fetched before."""
    try:
        return Path(hub.snapshot_download(name, revision=revision, local_files_only=True))
    except Exception:  # as above
        return None


def wanted(
    files: Iterable[str], inside: str | None = None, without: str | None = None
) -> list[str]:
    """Of a model's files those to convert: safetensors, or, without them, PyTorch's.

    Args:
      files: paths in the model.
      inside: of which only this file or folder is converted.
      without: a folder of a pipeline, whose weights are not.
    """
    there = sorted(files)
    if inside in there:
        folder = PurePosixPath(inside).parent
        beside = [str(folder / name) for name in ("config.json", "adapter_config.json")]
        return [name for name in there if name in (inside, *beside)]
    small = [name for name in there if name.endswith(_SMALL)]
    if inside is not None:
        folders = [inside]
        small = [name for name in small if _folder(name) == inside]
    elif INDEX in there:
        # Beside a pipeline's folders lie copies of the same weights.
        folders = sorted({_folder(name) for name in there} - {".", without})
    else:
        folders = ["."]
    weights = [w for folder in folders for w in _weights(n for n in there if _folder(n) == folder)]
    return small + weights if weights else []


def _folder(name: str) -> str:
    return str(PurePosixPath(name).parent)


def _weights(names: Iterable[str]) -> list[str]:
    """Those of one folder, under their usual names if there are any such."""
    there = list(names)
    for suffixes in (SAFETENSORS, TORCH):
        found = [name for name in there if ends(name, suffixes)]
        usual = [name for name in found if _USUAL.fullmatch(PurePosixPath(name).name)]
        if found:
            return usual or found
    return []
