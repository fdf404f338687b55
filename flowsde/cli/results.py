"""A prompt's results in a user's folder: reading, writing, and what may be replaced.

The rule of all commands: the same command again resumes, or says that all is complete; another one
is refused, unless --overwrite is given, which discards what is there and says so first.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowsde import _schema
from flowsde._files import read_json, speakable, write_json
from flowsde._schema import fields, items, mapping, maybe, number, table, text, whole
from flowsde._text import shown
from flowsde.cli import video_files
from flowsde.cli.errors import OptionError
from flowsde.cli.settings import ALWAYS, EMBEDDED, Settings, flag
from flowsde.cli.sources.base import Source
from flowsde.runner.clock import Timing
from flowsde.runner.result import COUNTERS, Result
from flowsde.search import Weights
from flowsde.shapes import captions

RESULT, IMAGE = "result.json", "image.png"
OTHERWISE = "expected another --out, or --overwrite"
"""What every refusal of a folder asks for."""
_LARGEST = 2**63 - 1
_COUNT = whole(0, _LARGEST)
ABOUT = {
    "prompt": text,
    "method": text,
    "seed": whole(0, 2**32 - 1),
    "settings": mapping,
    "version": text,
}
"""Readers of the fields that say what a run is of."""
_HELDOUT = fields({"success": _schema.flag}, exact=_schema.flag, rss=number)
_JUDGED = {"heldout": _HELDOUT, "heldout_rewards": table(number)}
_WEIGHT = {"log_weight": maybe(number)}
_READ = fields(
    {
        "attempts": items(fields(nfe=_COUNT, reward=number)),
        "kept": items(
            fields(_JUDGED | _WEIGHT | {"video": text}, image=text, reward=maybe(number))
        ),
        "weighted_sample": fields(
            time=number,
            log_z=maybe(number),
            ess=number,
            log_weights=items(number),
            rewards=items(number),
        ),
        **_WEIGHT,
        "tournament": fields(
            judge=text,
            version=maybe(text),
            asked=maybe(_COUNT),
            calls=_COUNT,
            winner=text,
            ranking=items(text),
            strength=items(number),
        ),
        "video": text,
        "id": text,
        "heldout_versions": table(text),
        "part_calls": table(_COUNT),
        **_JUDGED,
    },
    **ABOUT,
    reward=maybe(number),
    nfe=_COUNT,
    evaluations=_COUNT,
    backward_passes=_COUNT,
    verifier_calls=_COUNT,
    seconds=fields(total=number),
)
_SHOWN = 100


def read(folder: Path) -> dict[str, Any] | None:
    """Contents of a folder's result.json, None without one; ValueError naming file and field."""
    path = folder / RESULT
    try:
        return _READ(read_json(path), str(path))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{error}; {OTHERWISE}") from None


def images(many: int) -> list[str]:
    """Names of so many pictures of a prompt, the best first."""
    return [IMAGE, *(f"image-{i}.png" for i in range(2, many + 1))]


def files(offer: Source, many: int) -> list[str]:
    """Names of all files of so many answers to a prompt: pictures, and of videos both."""
    return [name for image in images(many) for name in (image, *_video(offer, image).values())]


def _video(offer: Source, image: str) -> dict[str, str]:
    """Name of the video whose first frame is a picture, as result.json has it."""
    return {} if offer.video is None else {"video": video_files.beside(image, offer.video)}


def make(folder: Path) -> None:
    """Make the folder of a command's results; OptionError if that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(
            "--out", f"cannot make folder {shown(folder)}: {error.strerror}"
        ) from None


def check_writable(folder: Path, names: Sequence[str], overwrite: bool) -> None:
    """ValueError naming a file that is not ours where a result would be written.

    Args:
      folder: of the results, without any of ours.
      names: of the files to be written.
      overwrite: whether the user allows files to be replaced.
    """
    for path in (folder / name for name in names):
        if path.is_dir() and not path.is_symlink():
            raise ValueError(f"{path} is a folder, expected another --out for a file of that name")
        if (path.exists() or path.is_symlink()) and not overwrite:
            raise ValueError(
                f"{path} already exists and is not a result of flowsde's; {OTHERWISE} to replace it"
            )


def write(
    folder: Path,
    offer: Source,
    about: dict[str, Any],
    result: Result,
    seconds: Mapping[str, float | None],
    attempts: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Write a prompt's pictures or videos, and at last result.json: with it, that is complete.

    Args:
      folder: made if need be, in one that is there.
      offer: of the model.
      about: what the result is of: prompt, method, seed, settings and version.
      result: of the search.
      seconds: by what took them; see `flowsde.cli.sample`.
      attempts: of a prompt with a shared budget.

    Returns:
      What result.json says.
    """
    folder.mkdir(exist_ok=True)
    (folder / RESULT).unlink(missing_ok=True)
    image = np.asarray(result.image)
    offer.save(folder / IMAGE, image)
    counted = {name: int(getattr(result, name)) for name in COUNTERS}
    values = {
        **about,
        "reward": float(result.reward) if offer.has_reward else None,
        **_parts(result),
        **_weight(result.top(1)[0]),
        **_weighted_sample(result.weights),
        **({} if result.part_calls is None else {"part_calls": _numbers(result.part_calls)}),
        **_video(offer, IMAGE),
        **offer.heldout(about["prompt"], image),
        **(counted if offer.has_reward else counted | {"verifier_calls": 0}),
        "seconds": seconds,
        **({} if attempts is None else {"attempts": attempts}),
        **({} if result.timing is None else {"timing": result.timing._asdict()}),
        **({} if result.kept is None else {"kept": _write_kept(folder, offer, about, result)}),
    }
    write_json(folder / RESULT, values)
    return values


def _parts(answer: Any) -> dict[str, Any]:
    """What the parts of a combined reward say of an answer's picture, by name."""
    if answer.parts is None:
        return {}
    numbers = {name: float(part) for name, part in answer.parts.items()}
    return {"parts": {n: p if math.isfinite(p) else None for n, p in numbers.items()}}


def _numbers(calls: Mapping[str, Any]) -> dict[str, int]:
    return {name: int(n) for name, n in calls.items()}


def _weight(answer: Any) -> dict[str, Any]:
    """An answer's in the weighted sample; null where it is no particle of that."""
    if answer.log_weight is None:
        return {}
    number = float(answer.log_weight)
    return {"log_weight": number if math.isfinite(number) else None}


def _weighted_sample(weights: Weights | None) -> dict[str, Any]:
    """Of a search that weighs particles, those that have a weight."""
    if weights is None:
        return {}
    there = np.isfinite(weights.log_weights)
    return {
        "weighted_sample": {
            "time": float(weights.t),
            "log_z": None if weights.log_z is None else float(weights.log_z),
            "ess": float(weights.ess) if there.any() else 0.0,
            "log_weights": np.asarray(weights.log_weights)[there].tolist(),
            "rewards": np.asarray(weights.reward)[there].tolist(),
        }
    }


def said_of_weights(sample: dict[str, Any]) -> str:
    """A weighted sample, in a line, given what result.json says of it."""
    log_z = "" if sample["log_z"] is None else f", log Z {sample['log_z']:.4f}"
    return f"of {len(sample['log_weights'])} particles, worth {sample['ess']:.1f} equal ones{log_z}"


def said(timing: Timing, most: int) -> str:
    """How a budget in seconds was spent, in a line; `most` evaluations were allowed."""
    cut = ", cut at the deadline" if timing.cut else ""
    if timing.nfe == most and not cut:
        cut = ", the most that --nfe allows"
    return (
        f"{timing.spent:.1f} of {timing.seconds:g}, planned for {timing.nfe} NFE{cut}; compiling "
        f"and measuring took {timing.preparing:.1f} before"
    )


def _write_kept(
    folder: Path, offer: Source, about: dict[str, Any], result: Result
) -> list[dict[str, Any]]:
    """Write the pictures behind the best; what result.json says of all."""
    many = result.kept.reward.shape[0]
    said = []
    for name, one in zip(images(many), result.top(many), strict=False):
        image = np.asarray(one.image)
        if name != IMAGE:
            offer.save(folder / name, image)
        reward = float(one.reward) if offer.has_reward else None
        own = {"image": name, **_video(offer, name), "reward": reward, **_parts(one)}
        own |= _weight(one)
        said.append(own | offer.heldout(about["prompt"], image))
    return said


_ID = "the id"
_CONTENTS = "converted models with the checksums"
_WHERE_GIVEN = {
    *("--weights", "--reward-model", "--keep", "--image", "--mask"),
    *("--reward-frames", "--over-frames", "--reward-weights", "--reward-pool"),
    *("--reward-questions", "--reward-counts", "--reward-version", "--quantise"),
    *("--skip-layers", "--skip-scale", "--skip-start", "--skip-stop"),
} | {flag(field.name) for field in dataclasses.fields(Settings) if field.name not in ALWAYS}
"""Options that a run names only where they have an effect and are not the default."""


def as_called_now(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a result, of which an earlier version may have called one otherwise."""
    if settings.get("model", "shapes") in EMBEDDED:
        # Which results of the default model and task do not name.
        settings = {"model": EMBEDDED[0], "task": "counts"} | settings
    return settings | ({"grid": "model"} if settings.get("grid") == "flux" else {})


def _by_option(about: dict[str, Any], option: Callable[[str], str]) -> dict[str, Any]:
    """What a run is of, by option, as JSON gives it back."""
    about = speakable(about)
    settings = {option(name): value for name, value in as_called_now(about["settings"]).items()}
    prompt = about["prompt"]
    if about["settings"].get("model", "shapes") in EMBEDDED:
        try:
            prompt = captions.caption(captions.parse(prompt))
        except ValueError:
            pass  # A file may say anything.
    if contents := settings.pop("--contents", None):
        settings[_CONTENTS] = contents
    own = {"--method": about["method"], "--seed": about["seed"], _ID: about.get("id")}
    return {"PROMPT": prompt} | own | settings | {"version": about["version"]}


def check_same(
    folder: Path,
    kind: str,
    wanted: dict[str, Any],
    found: dict[str, Any],
    option: Callable[[str], str] = flag,
) -> None:
    """ValueError naming what differs between the run that is wanted and the one in a folder."""
    ours, theirs = _by_option(wanted, option), _by_option(found, option)
    if _CONTENTS not in theirs:
        ours.pop(_CONTENTS, None)  # An earlier version kept none.
    names = [*ours, *(name for name in theirs if name in _WHERE_GIVEN and name not in ours)]
    differ = [name for name in names if ours.get(name) != theirs.get(name)]
    # What another method brings along need not be said.
    for first in ("PROMPT", "--method"):
        differ = [first] if first in differ else differ
    if differ:
        used = ", ".join(f"{n} {_short(theirs.get(n))}, not {_short(ours.get(n))}" for n in differ)
        raise ValueError(f"the {kind} run in {folder} used {used}; {OTHERWISE}")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
