"""One model in the place of a pipeline's transformer: fine-tunes are published as that one file.

The pipeline that it was trained from, its base, gives all else: text encoders, autoencoder,
tokenizers, times.
"""

import dataclasses
from pathlib import Path

from flowsde._text import shown
from flowsde.models import registry
from flowsde.models.converted.store import CONFIG, INDEX, kind_of
from flowsde.models.family import Pipeline
from flowsde_converters.copies import contained
from flowsde_converters.detect import Plan, plan
from flowsde_converters.files import Checkpoint, read_json

TRANSFORMER = "transformer"
"""The part of a pipeline whose place a single model may take."""
ALONE = (
    "a transformer alone; to sample it, convert it with --base, the pipeline that it was trained "
    "from, which has the text encoders and the autoencoder"
)
_PATH = 4096
_TEXTS = ("joint_attention_dim", "cap_feat_dim", "text_dim")
"""What families call the features of texts in a transformer's config.json."""


def check_base(source: Path, base: Path) -> None:
    """ValueError unless `base` is the folder of a pipeline, and the source is none."""
    if (source / INDEX).is_file():
        raise ValueError(f"--base is for a single model, and SOURCE {source} is a pipeline")
    if kind_of(base) is not None:
        raise ValueError(
            f"--base {base} was written by flowsde convert, expected what it was converted from"
        )
    if not (base / INDEX).is_file():
        raise ValueError(
            f"--base {base} holds no {INDEX}, expected the folder of a pipeline, or one on the "
            "hub, such as black-forest-labs/FLUX.1-dev"
        )


def transformer_of(base: Path, known: Pipeline | None) -> str:
    """The family of a base's transformer; ValueError for one whose place no other may take."""
    index = read_json(base / INDEX)
    kind = index.get(TRANSFORMER)
    if known is not None and known.transformer and isinstance(kind, list) and None not in kind:
        return known.transformer
    able = [name for name, one in registry.pipelines().items() if one.transformer]
    raise ValueError(
        f"--base {base} is a {shown(index.get('_class_name'))}, expected one of "
        f"{', '.join(able)}, with a {TRANSFORMER}"
    )


def in_place(
    checkpoint: Checkpoint, base: Path, family: str, dtype: str | None, entry: str | None
) -> Plan:
    """The plan of what takes the place of a base's transformer, whose config.json it shares.

    Args:
      checkpoint: of one model.
      base: of the pipeline.
      family: of its transformer.
      dtype, entry: as of `plan`.

    Raises:
      ValueError: it is of something else, in so far as keys, shapes and the config.json tell.
    """
    own = base / TRANSFORMER / CONFIG
    shared = checkpoint.config is None and own.is_file()
    if shared:
        contained(own, base)
        checkpoint = dataclasses.replace(checkpoint, config=read_json(own))
    try:
        one = plan(checkpoint.noting([_said(checkpoint, base)]), family, dtype, entry)
        _check_texts(one, base)
        return one
    except ValueError as error:
        if not shared:
            raise
        raise ValueError(
            f"{error}\nSOURCE was read with {own}: --base must be the pipeline that it was "
            "trained from; a config.json beside SOURCE is read instead"
        ) from None


def _said(checkpoint: Checkpoint, base: Path) -> str:
    return f"{checkpoint.paths[0].name} in the place of the {TRANSFORMER} of {shown(base, _PATH)}"


def _check_texts(one: Plan, base: Path) -> None:
    """ValueError unless a model takes as many features of texts as the base's transformer."""
    about = one.checkpoint.config or {}
    said = [about[name] for name in _TEXTS if name in about]
    found = getattr(one.found.config, "text", None)
    if said and found not in (None, said[0]):
        raise ValueError(
            f"it takes texts of {found} features, and {base / TRANSFORMER} of {said[0]}: of "
            "another size"
        )
