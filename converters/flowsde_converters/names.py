"""What files of weights are called."""

import re
from pathlib import PurePath

SAFETENSORS = (".safetensors", ".sft")
TORCH = (".pt", ".pth", ".ckpt", ".bin")
SUFFIXES = (*SAFETENSORS, *TORCH)
"""In any case: some systems write them in capitals."""
GGUF = ".gguf"
OF_GGUF = (
    "is a GGUF, whose weights are rounded to a few bits in blocks, which is not supported: "
    "expected the same model as .safetensors, of 16 bits or of 8 (fp8)"
)
"""What to say of such a file."""
USUAL = ("diffusion_pytorch_model", "model", "pytorch_model")
"""What libraries call the weights of a folder, without the ending."""
# "model-00001-of-00002.safetensors"; a variant stands before the number, or, in older files, after
# it: "model.fp16-00001-of-00002.safetensors", "model-00001-of-00002.fp16.safetensors".
_SHARD = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})((?:\.[\w-]+)?\.\w+)")
_INDEX = re.compile(r".+(\.\w+)\.index(?:\.[\w-]+)?\.json", re.IGNORECASE)


def ends(name: str, suffixes: tuple[str, ...] = SUFFIXES) -> bool:
    """Whether a file is called as weights are."""
    return PurePath(name).suffix.lower() in suffixes


def indexes(name: str, suffixes: tuple[str, ...] = SUFFIXES) -> bool:
    """Whether a file is the index of several of weights."""
    found = _INDEX.fullmatch(name)
    return found is not None and found[1].lower() in suffixes


def series(name: str) -> list[str] | None:
    """The names of all files that a file is one of by its name, or None."""
    found = _SHARD.fullmatch(name)
    if found is None or not ends(name):
        return None
    base, _, total, end = found.groups()
    return [f"{base}-{i:05}-of-{total}{end}" for i in range(1, int(total) + 1)]
