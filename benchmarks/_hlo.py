"""Collectives of a compiled program, from its text: kinds, bytes, groups, and how often they run.

A program is computations that call each other: a collective runs as often as its computation does,
in a loop as often as the loop turns. What a TPU overlaps with other work is written several times,
in the fusions where it starts, goes on and ends: a chain, which has one channel and counts once.
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_SIZES = {"pred": 1, "bf16": 2, "f16": 2, "f8e4m3fn": 1, "f8e5m2": 1}
_BEGIN = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_ARRAY = re.compile(r"\b(pred|token|bf16|f8e4m3fn|f8e5m2|[fsuc]\d+)\[([\d,]*)\]")
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program.

    Attributes:
      kind: of `KINDS`.
      bytes: on a device, of the whole that is reduced, gathered, scattered or exchanged.
      group: devices that take part together.
      times: how often it runs; of a loop without a known count, once.
    """

    kind: str
    bytes: int
    group: int
    times: int


class _Line(NamedTuple):
    computation: str
    text: str


def collectives(text: str) -> list[Collective]:
    """Those of a program, as `jax.stages.Compiled.as_text` gives it."""
    lines = list(_lines(text))
    times = _times(lines, _entry(text))
    devices = re.search(r"num_partitions=(\d+)", text)
    found: dict[str, Collective] = {}
    for i, (computation, line) in enumerate(lines):
        match = _COLLECTIVE.search(line)
        if match is None or not times.get(computation):
            continue
        scattered = computation.startswith("all-reduce-scatter")
        kind = "reduce-scatter" if scattered else match[2]
        group = _group(line, int(devices[1]) if devices else 1)
        size = _bytes(match[1], match[2], bool(match[3]))
        # The result of a reduce-scatter is one share of what is reduced.
        size *= group if match[2] == "reduce-scatter" else 1
        chain = re.search(r"channel_id=(\d+).*chain_id=", line)
        key = f"{kind} {chain[1]}" if chain else f"line {i}"
        made = Collective(kind, size, group, times[computation])
        found[key] = max(made, found.get(key, made), key=lambda c: c.times * c.bytes)
    return list(found.values())


def loops(text: str) -> int:
    """How many loops there are."""
    return sum(" while(" in line for line in text.splitlines())


def _lines(text: str) -> Iterator[_Line]:
    """Instructions, with the names of their computations."""
    name = ""
    for line in text.splitlines():
        begin = _BEGIN.match(line)
        if begin:
            name = begin[1]
        elif " = " in line and line.startswith(" "):
            yield _Line(name, line)


def _entry(text: str) -> str:
    found = re.search(r"^ENTRY %?([\w.-]+)", text, re.MULTILINE)
    if found is None:
        raise ValueError("text must be of a compiled program, found no ENTRY")
    return found[1]


def _times(lines: list[_Line], entry: str) -> dict[str, int]:
    """How often each computation runs."""
    calls: dict[str, list[tuple[str, int]]] = {}
    for computation, line in lines:
        trips = _trips(line, lines) if " while(" in line else 1
        names = _CALLED.findall(line)
        for branches in _BRANCHES.findall(line):
            names += [name.strip().lstrip("%") for name in branches.split(",")]
        for name in names:
            calls.setdefault(computation, []).append((name, trips))
    times: dict[str, int] = {}

    def add(name: str, count: int) -> None:
        times[name] = times.get(name, 0) + count
        for called, trips in calls.get(name, ()):
            add(called, count * trips)

    add(entry, 1)
    return times


def _trips(line: str, lines: list[_Line]) -> int:
    """How often a loop turns: as is written, or as its condition bounds a count from 0."""
    known = _TRIPS.search(line)
    if known:
        return int(known[1])
    condition = re.search(r"condition=%?([\w.-]+)", line)
    inside = [text for name, text in lines if condition and name == condition[1]]
    compared = [text for text in inside if "compare(" in text and "direction=LT" in text]
    bounds = [
        int(n) for text in inside for n in re.findall(r"= s32\[\]\S* constant\((\d+)\)", text)
    ]
    return bounds[0] if len(compared) == len(bounds) == 1 else 1


def _group(line: str, devices: int) -> int:
    """Devices of a collective's groups, which are written in any of four ways."""
    if "source_target_pairs=" in line:
        return 2
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    if listed:
        return len(listed[1].split(","))
    tiled = re.search(r"replica_groups=\[(\d+),(\d+)\]<=", line)
    if tiled:
        return int(tiled[2])
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line)
    if mesh:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    return devices


def _bytes(shape: str, kind: str, start: bool) -> int:
    """Of the result; a start names operands first, then results, then numbers of its own."""
    arrays = [(dtype, dims) for dtype, dims in _ARRAY.findall(shape) if dtype != "token"]
    if start and kind != "all-reduce":
        arrays = [a for a in arrays if a != ("u32", "")]
        arrays = arrays[len(arrays) // 2 :]
    return sum(
        _width(dtype) * math.prod(map(int, filter(None, dims.split(",")))) for dtype, dims in arrays
    )


def _width(dtype: str) -> int:
    return _SIZES.get(dtype) or max(int(dtype[1:]) // 8, 1)
