"""Whether a conversion is there already: the same command again has nothing to do."""

import json
from pathlib import Path
from typing import Any

from flowsde._files import speakable
from flowsde.models.converted.arrays import digest
from flowsde.models.converted.store import FORMAT, PARAMS, PIPELINE, read_config
from flowsde_converters.convert import Conversion
from flowsde_converters.detect import Plan
from flowsde_converters.write import described


def is_complete(job: Conversion, out: Path) -> bool:
    """Whether a folder holds what a conversion would write; reads the whole source.

    Parameters are not read: `flowsde.load` compares them with their SHA-256.
    """
    try:
        if "" in job.plans:
            own = read_config(out, FORMAT)
            return _is_of(job.plans[""], own) and _copies(job, out, own["files"])
        own = read_config(out, PIPELINE)
        if any(own.get(name) != job.about.get(name) for name in ("distilled", *job.about)):
            return False
        models = {name: read_config(out / name, FORMAT) for name in job.plans}
    except (FileNotFoundError, ValueError):
        return False
    same = all(_is_of(plan, models[name]) for name, plan in job.plans.items())
    return same and _copies(job, out, own["files"])


def _is_of(plan: Plan, own: dict[str, Any]) -> bool:
    """Whether a model's `config.json` is what the plan would write."""
    hashes = {path: about["sha256"] for path, about in own["params"].items()}
    if hashes.keys() != plan.model.keys():
        return False
    files = own["source"]["files"]
    merged = [one["sha256"] for one in own["source"].get("loras", ())]
    if len(merged) != len(plan.loras):
        return False
    wanted = speakable(described(plan, hashes, files, merged))
    names = [name for name in wanted if name not in ("format", "version")]
    if any(
        json.dumps(wanted[name], sort_keys=True) != json.dumps(own[name], sort_keys=True)
        for name in names
    ):
        return False
    # Read only if all else is the same.
    same = files == {path.name: digest(iter([path])) for path in plan.checkpoint.paths}
    return same and merged == [digest(iter(one.file.checkpoint.paths)) for one in plan.loras]


def _copies(job: Conversion, out: Path, files: dict[str, str]) -> bool:
    """Whether what is copied is in the source as it was, and in the folder."""
    if "" in job.plans:
        # Others are the parameters' own.
        sources = {to: job.source / name for to, name in job.tokenizers.items()}
        own = {name for name in files if not name.startswith(f"{PARAMS}/")}
    else:
        sources = {name: job.folder / name for name in files}
        own = set(files)
    return own == sources.keys() and all(
        path.is_file() and digest(iter([path])) == files[name] == digest(iter([out / name]))
        for name, path in sources.items()
    )
