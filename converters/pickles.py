"""PyTorch's pickles before they are read: how much there is to read, and what may be in them.

`torch.load(weights_only=True)` builds tensors, containers and what it is told to allow. Allowed
besides are names of values that training scripts leave beside their weights; what stands in for
them takes anything and does nothing, so that no code but PyTorch's is run.
"""

import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any

_LONGEST = 2**24
"""Most bytes of a pickle: it is read at some 10 MB/s. Tensors lie beside it; the pickle of a model
with a thousand of them has 200 kB."""
_CLASSES = (
    "argparse.Namespace",
    *(f"builtins.{name}" for name in ("bool", "dict", "float", "int", "list", "str", "tuple")),
    *(f"datetime.{name}" for name in ("date", "datetime", "timedelta")),
    *(f"{module}.{function}" for module in ("numpy.core.multiarray", "numpy._core.multiarray")
      for function in ("scalar", "_reconstruct")),
    "numpy.dtype",
    "numpy.ndarray",
    *(f"{module}.{kind}{system}Path" for module in ("pathlib", "pathlib._local")
      for kind in ("", "Pure") for system in ("", "Posix", "Windows")),
    "torch.torch_version.TorchVersion",
    "types.SimpleNamespace",
)  # fmt: skip


class Unread:
    """A value that was left unread."""

    def __new__(cls, *_: Any) -> "Unread":
        return super().__new__(cls)

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def _empty(*_: Any) -> dict[Any, Any]:
    """For a defaultdict: its entries are set one by one, and may be the weights."""
    return {}


def allowed() -> list[Any]:
    """What stands in for classes, as `torch.serialization.safe_globals` takes them."""
    stand_ins = [(type(name.rpartition(".")[2], (Unread,), {}), name) for name in _CLASSES]
    return [*stand_ins, (_empty, "collections.defaultdict")]


def refused(said: str) -> str | None:
    """The class that PyTorch's error names, if it is about one."""
    found = re.search(r"GLOBAL ([\w.]+)", said)
    return None if found is None else found[1].removesuffix(".")


def check_size(path: Path) -> None:
    """ValueError unless reading a file costs about what it is long."""
    size = path.stat().st_size
    longest = _in_zip(path, size) if zipfile.is_zipfile(path) else _in_old(path)
    if longest > _LONGEST:
        raise ValueError(
            f"a pickle of {longest} bytes beside the tensors, expected at most {_LONGEST}: save "
            "the weights alone"
        )


def _in_zip(path: Path, size: int) -> int:
    """Bytes of the longest pickle of a file in PyTorch's format, which never compresses."""
    try:
        with zipfile.ZipFile(path) as file:
            parts = file.infolist()
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as error:
        raise ValueError(f"truncated or broken: {error}") from None
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
        raise ValueError("a compressed archive, expected what torch.save writes")
    whole = sum(part.file_size for part in parts)
    if whole > size:
        raise ValueError(f"an archive of {whole} bytes in {size}, expected what torch.save writes")
    return max((part.file_size for part in parts if part.filename.endswith(".pkl")), default=0)


def _in_old(path: Path) -> int:
    """Bytes of the pickles that a file of PyTorch's old format begins with."""
    end = 0
    with path.open("rb") as file:
        # A number, a version, the system, the values.
        for _ in range(4):
            try:
                for *_, at in pickletools.genops(file):
                    if at is not None and at > _LONGEST:
                        return at
            except (ValueError, MemoryError, OverflowError, IndexError):
                # Not pickles: PyTorch says so.
                return end
            end = file.tell()
    return end
