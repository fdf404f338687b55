"""PyTorch's pickles before they are read: how much there is to read, and what may be in them.

`torch.load(weights_only=True)` builds tensors, containers and what it is told to allow. Allowed
besides are names of values that training scripts leave beside their weights; what stands in for
them takes anything and does nothing, so that no code but PyTorch's is run.
"""

import io
import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

_LONGEST = 2**24
"""Most bytes of a pickle: it is read at some 10 MB/s. Tensors lie beside it; the pickle of a model
with a thousand of them has 200 kB."""
_OLD = 4
"""Pickles that a file of PyTorch's old format begins with: a number, a version, the system, the
values."""
_NO_PICKLES = (
    *(ValueError, MemoryError, OverflowError, IndexError, TypeError, RuntimeError),
    zipfile.BadZipFile,
)
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
    try:
        bounded = all(map(_is_bounded, _pickles(path)))
    except _NO_PICKLES:
        return  # PyTorch says so.
    if not bounded:
        raise ValueError("tuples in tuples beyond all use: save the weights alone")


def _pickles(path: Path) -> Iterator[BinaryIO]:
    """A file's pickles, one after the other."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for part in archive.infolist():
                if part.filename.endswith(".pkl"):
                    yield io.BytesIO(archive.read(part))
        return
    with path.open("rb") as file:
        for _ in range(_OLD):
            yield file


def _is_bounded(pickled: BinaryIO) -> bool:
    """Whether hashing each tuple of a pickle takes about as long as reading a file.

    A tuple that holds another twice, which holds a third twice, and so on, is written in a few
    bytes; as a key of a dict it is never found. Only tuples count: nothing else that is hashed
    holds what was written before. The file is read to the end of the pickle.
    """
    stack: list[int | None] = []  # Steps that each takes; None is a mark.
    memo: dict[int, int] = {}
    for op, argument, _ in pickletools.genops(pickled):
        arg: Any = argument
        if op.name == "MARK":
            stack.append(None)
        elif op.name == "DUP":
            stack.append(stack[-1])
        elif op.name == "MEMOIZE":
            memo[len(memo)] = stack[-1] or 1
        elif op.name.endswith("PUT"):
            memo[int(arg)] = stack[-1] or 1
        elif op.name.endswith("GET"):
            stack.append(memo.get(int(arg), 1))
        else:
            parts = _taken(stack, op)
            steps = 1 + sum(part or 1 for part in parts) if "TUPLE" in op.name else 1
            if steps > _LONGEST:
                return False
            stack += [steps] * len(op.stack_after)
    return True


def _taken(stack: list[int | None], op: pickletools.OpcodeInfo) -> list[int | None]:
    """What an operation takes from the stack."""
    before = op.stack_before
    taken: list[int | None] = []
    if pickletools.markobject in before:
        while (part := stack.pop()) is not None:
            taken.append(part)
        before = before[: before.index(pickletools.markobject)]
    for _ in before:
        taken.append(stack.pop())
    return taken


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
        for _ in range(_OLD):
            try:
                for *_, at in pickletools.genops(file):
                    if at is not None and at > _LONGEST:
                        return at
            except _NO_PICKLES:
                # Not pickles: PyTorch says so.
                return end
            end = file.tell()
    return end
