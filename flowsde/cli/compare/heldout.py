"""What the rewards of ``--heldout`` say of a comparison's pictures.

Scores are kept by picture and prompt, in a file for each reward and version, so that the same
command resumes and one with more rows, prompts or seeds asks only for what is new:

    .flowsde/heldout/HASH.json    {"reward": NAME, "scores": {hash of prompt and picture: number}}
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flowsde._files import read_json, write_json
from flowsde._schema import fields, number, table
from flowsde._text import shown
from flowsde.cli import progress
from flowsde.cli.compare.measure import Measured, Study
from flowsde.cli.compare.rows import Row
from flowsde.cli.failures import one_line
from flowsde.cli.heldout import OPTION, Heldout
from flowsde.cli.picture_files import as_array
from flowsde.cli.pictures import enlarged

_READ = fields(scores=table(number))
_SOME = 64
"""Pictures that are scored before the scores are kept."""


def score(
    rewards: Heldout, study: Study, measured: Mapping[Row, Measured], folder: Path
) -> dict[Row, Measured]:
    """Measurements with what the rewards say of the pictures, as they would be in a file.

    Args:
      rewards: of --heldout.
      study: that was measured.
      measured: of every row.
      folder: of the scores; made if need be.

    Raises:
      CommandError: a reward failed; what was scored by then is kept.
      Interrupted: a signal came.
    """
    found = dict(measured)
    for reward in rewards.rewards:
        folder.mkdir(exist_ok=True)
        digest = hashlib.sha256(f"{reward.name} {reward.version}".encode()).hexdigest()[:16]
        with one_line(f"{OPTION} {shown(reward.name)}"):
            scores = _scores(reward, study, measured, folder / f"{digest}.json")
        for row, own in found.items():
            said = [[scores[k] for k in keys] for keys in _keys(study, own)]
            found[row] = own._replace(heldout={**own.heldout, reward.name: np.asarray(said)})
    return found


def _keys(study: Study, measured: Measured) -> list[list[str]]:
    """Digests of pictures and their prompts, [P][M]."""
    pairs = zip(study.prompts, measured.images, strict=True)
    return [
        [hashlib.sha256(prompt.encode() + one.tobytes()).hexdigest()[:32] for one in images]
        for prompt, images in pairs
    ]


def _scores(
    reward: Any, study: Study, measured: Mapping[Row, Measured], path: Path
) -> dict[str, float]:
    """What a reward says of all pictures, by their digests."""
    try:
        scores: dict[str, float] = _READ(read_json(path), str(path))["scores"]
    except (FileNotFoundError, ValueError):
        scores = {}
    todo = {
        key: (prompt, image)
        for own in measured.values()
        for prompt, images, keys in zip(study.prompts, own.images, _keys(study, own), strict=True)
        for image, key in zip(images, keys, strict=True)
        if key not in scores
    }
    keys, about = list(todo), {"unit": "image", "desc": f"held-out {shown(reward.name, 30)}"}
    with progress.bar(total=len(keys), disable=not keys, **about) as bar:
        for some in (keys[begin : begin + _SOME] for begin in range(0, len(keys), _SOME)):
            pictures = [
                reward.seen(path, prompt, as_array(enlarged(image)))
                for prompt, image in map(todo.__getitem__, some)
            ]
            scores |= zip(some, reward.scores(pictures, bar.update).tolist(), strict=True)
            write_json(path, {"reward": reward.name, "scores": scores})
    return scores
