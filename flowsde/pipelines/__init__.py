"""Whole pipelines: from prompts or labels to images, with the models that that takes."""

from pathlib import Path
from typing import Any

from flowsde.pipelines import flux
from flowsde.pipelines.parts import Read

PIPELINES = {flux.CLASS: flux.FluxPipeline}
"""By the class that `model_index.json` names."""


def load(folder: Path, read: Read) -> Any:
    """The pipeline of a converted folder.

    Args:
      folder: with a `model_index.json`.
      read: a model of a folder.

    Raises:
      FileNotFoundError, ValueError: it is of no known class, or a part is missing.
    """
    from flowsde_converters.convert import INDEX
    from flowsde_converters.files import read_json
    from flowsde_converters.store import PIPELINE, read_config

    models = read_config(folder, PIPELINE)["models"]
    name = read_json(folder / INDEX).get("_class_name")
    if name not in PIPELINES:
        parts = ", ".join(str(folder / part) for part in models)
        raise ValueError(
            f"{folder} holds a pipeline, expected one of its models: {parts}; of whole pipelines "
            f"{', '.join(PIPELINES)} is known, got {name}"
        )
    return PIPELINES[name](folder, read)
