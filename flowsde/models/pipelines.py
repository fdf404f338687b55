"""Whole pipelines: from prompts or labels to images, with the models that that takes."""

from pathlib import Path
from typing import Any

from flowsde import _schema
from flowsde._files import read_json
from flowsde._text import shown
from flowsde.models.converted.parts import Read
from flowsde.models.converted.store import INDEX, PIPELINE, check_files, read_config
from flowsde.models.flux import pipeline

PIPELINES = {pipeline.CLASS: pipeline.FluxPipeline}
"""By the class that `model_index.json` names."""


def load(folder: Path, read: Read, verify: bool = True) -> Any:
    """The pipeline of a converted folder.

    Args:
      folder: with a `model_index.json`.
      read: a model of a folder.
      verify: whether to compare what was copied with its hashes.

    Raises:
      FileNotFoundError, ValueError: it is of no known class, or a part is missing.
    """
    about = read_config(folder, PIPELINE, verify)
    if verify:
        check_files(folder, about)
    index = folder / INDEX
    name = _schema.fields(_class_name=_schema.text)(read_json(index), str(index))["_class_name"]
    if name not in PIPELINES:
        parts = ", ".join(str(folder / part) for part in about["models"])
        raise ValueError(
            f"{folder} holds a pipeline, expected one of its models: {parts}; of whole pipelines "
            f"{', '.join(PIPELINES)} is known, got {shown(name)}"
        )
    return PIPELINES[name](folder, read, verify)
