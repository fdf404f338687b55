"""Where in a checkpoint the model's weights may be.

A training run saves them in entries of a file, raw and averaged, beside its optimiser's state
({"model": ..., "ema": ...}), and wrappers of the model put their name before every key ("module.").
Both are beginnings of dotted keys here. Which of them is a model, its keys and shapes tell; of two,
the averaged weights are what is published and sampled from. Some files hold a whole pipeline: the
text encoders and the autoencoder under names of their own, beside the model ("vae.").
"""

import re
from collections.abc import Mapping

_WRAPPERS = frozenset({
    "module",  # DistributedDataParallel, DeepSpeed, AveragedModel
    "model", "net", "network", "diffusion_model", "transformer", "state_dict",
    "model_state_dict", "_forward_module",
})  # fmt: skip
"""Names of a model in what wraps it."""
_ANYWHERE = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""What torch.compile, FSDP and checkpointing put anywhere in a key."""
_AVERAGED = frozenset({
    "ema", "emamodel", "modelema", "emanet", "netema", "swa", "avg", "average", "averaged",
    "shadow", "polyak",
})  # fmt: skip
_PART = re.compile(
    r"(?:^|(?<=\.))(?:vae|first_stage_model|text_encoder(?:_\d+)?"
    r"|text_encoders\.\w+|cond_stage_model\.\w+|conditioner\.embedders\.\d+)(?=\.)"
)
"""What the other models of a pipeline are called in one file."""
_OPTIMISER = re.compile(r"opt|optim|optimi[sz]ers?")
_DEEPEST = 4
TOP = "."
"""For users: what is in no entry."""


def bare(key: str) -> tuple[str, list[str]]:
    """A key without what wrappers put anywhere in it, and what that was."""
    parts = key.split(".")
    gone = [part for part in parts if part in _ANYWHERE]
    return (".".join(part for part in parts if part not in _ANYWHERE) if gone else key), gone


def is_averaged(entry: str) -> bool:
    """Whether a part of a dotted name says that the weights are averaged: "params_ema"."""
    return any({"exp"}.isdisjoint(words) and words & _AVERAGED for words in _words(entry))


def _is_optimiser(entry: str) -> bool:
    return any(map(_OPTIMISER.fullmatch, (word for words in _words(entry) for word in words)))


def is_part(entry: str) -> bool:
    """Whether an entry is called as another model of a pipeline, beside the one of the samples."""
    return _PART.search(f"{entry}.") is not None


def _words(entry: str) -> list[set[str]]:
    """Of each part: of "modelEMA_0.99" are model and ema."""
    parts = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", entry).lower().split(".")
    return [set(re.findall(r"[a-z]+", part)) for part in parts]


def candidates(owners: Mapping[str, str]) -> dict[str, list[str]]:
    """Keys by the entries and beginnings that they may be taken out of, and "" for as they are.

    Args:
      owners: the entry of the file that each key is of; "" for those at its top.
    """
    found: dict[str, list[str]] = {}
    for key, owner in owners.items():
        rest = key[len(owner) + 1 :] if owner else key
        names = [owner]
        if part := _PART.match(rest):
            names, rest = [f"{owner}.{part[0]}" if owner else part[0]], rest[part.end() + 1 :]
        while len(names) <= _DEEPEST:
            first, dot, rest = rest.partition(".")
            if not dot or not (first in _WRAPPERS or is_averaged(first)):
                break
            name = f"{names[-1]}.{first}" if names[-1] else first
            # A model has no copy of itself in it.
            names = [name] if is_averaged(first) else [*names, name]
        for name in names:
            found.setdefault(name, []).append(key)
    return {name: keys for name, keys in found.items() if not _is_optimiser(name)}


def kept_by_optimisers(owners: Mapping[str, str]) -> list[str]:
    """Entries of an optimiser's that say that they are averaged weights: some keep these."""
    return [
        name for name in dict.fromkeys(owners.values()) if _is_optimiser(name) and is_averaged(name)
    ]


def under(entry: str, owners: Mapping[str, str]) -> dict[str, str]:
    """The keys that begin with the name of an entry, and the entries in it that they are of; of
    `TOP`, those of no entry."""
    if entry == TOP:
        return {key: "" for key in candidates(owners).get("", [])}
    begin = f"{entry}."
    return {
        key: owner if owner.startswith(begin) else entry
        for key, owner in owners.items()
        if key.startswith(begin)
    }
