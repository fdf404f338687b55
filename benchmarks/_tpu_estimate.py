"""From what a compiler says of programs to seconds on a chip: the arithmetic, without a compiler.

Seconds of a program are those of its parts, added up, nothing overlapped:

    compute       what the compiler says of one block of each kind, times how many there are, and
                  of what is outside of the loops: the whole, whose loops count once, less one block
                  of each kind
    attention     its FLOPs, filled up to the kernel's blocks, over the peak times an assumed share
    collectives   bytes over links, around a ring in both directions; between two chips over one
                  link

The compiler's own seconds fall by one for each instruction that it cannot cost, collectives and
kernels among them; what is left is the part after the point, for a program of less than a second.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from _hlo import Collective
from _tpu_chips import Chip
from _tpu_programs import Attention

EFFICIENCY = 0.5
"""Share of the peak that the attention kernel is assumed to reach."""
EFFICIENCIES = (0.3, 0.7)
"""What `peak_share_range` assumes instead, with all collectives exposed and hidden."""
ASSUMPTIONS = (
    f"the attention kernel reaches {EFFICIENCY:.0%} of the peak (no cost is known of it)",
    "collectives overlap with nothing, run at the links' published rate along a ring of all chips "
    "of a group, two links of a chip in use; between two chips one link",
    "everything else takes what the compiler's cost analysis says",
    f"peak_share_range: the kernel at {EFFICIENCIES[0]:.0%} with collectives as above, and at "
    f"{EFFICIENCIES[1]:.0%} with all of them hidden",
)


class Facts(NamedTuple):
    """What compiling told.

    Attributes:
      peak_bytes: arguments, results, temporaries and code on a chip.
      optimal_seconds: of the cost analysis.
      flops: of the cost analysis, on a chip.
      bytes: that it accesses, on a chip.
      loops: that it has.
      collectives: of the program.
      compile_seconds: that it took.
    """

    peak_bytes: int
    optimal_seconds: float
    flops: float
    bytes: float
    loops: int
    collectives: tuple[Collective, ...]
    compile_seconds: float


class Block(NamedTuple):
    """A block that a program loops over, compiled alone."""

    name: str
    depth: int
    facts: Facts


def compute_seconds(facts: Facts, chip: Chip) -> float:
    """Of what the compiler has costed.

    Raises:
      ValueError: so much work that seconds below one are not all that can be meant.
    """
    least = facts.flops / chip.flops
    if least >= 0.9:
        raise ValueError(
            f"a program that is costed must take less than a second, its FLOPs alone take {least}"
        )
    return facts.optimal_seconds - math.floor(facts.optimal_seconds)


def collective_seconds(collective: Collective, chip: Chip) -> float:
    """Of all its runs."""
    k = collective.group
    rate = chip.link if k == 2 else 2 * chip.link
    share = {
        "all-reduce": 2 * (k - 1) / k,
        "all-gather": (k - 1) / k,
        "reduce-scatter": (k - 1) / k,
        # Half a share goes either way, k / 4 chips far on average.
        "all-to-all": k / 4,
        "collective-permute": 1.0,
    }[collective.kind]
    return collective.times * share * collective.bytes / rate


def attention_seconds(attention: Attention, chips: int, chip: Chip, efficiency: float) -> float:
    """Of the kernel, divided evenly among the chips."""
    return attention.computed / (chips * chip.flops * efficiency)


def estimate(
    *,
    whole: Facts,
    blocks: Sequence[Block],
    flops: int,
    attention: Attention,
    nfe: int,
    chips: int,
    chip: Chip,
) -> dict[str, Any]:
    """A row of the results: whether it fits, seconds by part, and what limits them."""
    looped = [(b.name, b.depth, compute_seconds(b.facts, chip)) for b in blocks]
    # An estimate of a whole that is below that of its parts leaves nothing outside of them.
    outside = max(compute_seconds(whole, chip) - sum(seconds for *_, seconds in looped), 0.0)
    parts = [*looped, ("outside of loops" if blocks else "all", 1, outside)]
    compute = sum(count * seconds for _, count, seconds in parts)
    kernel = attention_seconds(attention, chips, chip, EFFICIENCY)
    by_kind = _by_kind(whole.collectives, chip)
    exchanged = sum(kind["seconds"] for kind in by_kind.values())
    seconds = compute + kernel + exchanged
    low, high = (attention_seconds(attention, chips, chip, e) for e in EFFICIENCIES)
    ideal = flops / (chips * chip.flops)
    products = (flops - attention.flops) / (chips * chip.flops)
    lost = {
        "what is beside matrix products": compute - products,
        "attention at its assumed share of the peak": kernel - (ideal - products),
        "collectives": exchanged,
    }
    return {
        "fits": whole.peak_bytes <= chip.hbm,
        "peak_bytes": whole.peak_bytes,
        "estimated_seconds": seconds,
        "flops": flops,
        "peak_share": ideal / seconds,
        "peak_share_range": [ideal / (compute + low + exchanged), ideal / (compute + high)],
        "nfe_per_second": nfe / seconds / chips if nfe else None,
        "parts": {
            "compute": [
                {"name": name, "count": count, "seconds_each": each} for name, count, each in parts
            ],
            "compute_seconds": compute,
            "attention_seconds": kernel,
            "attention_flops": attention.flops,
            "collective_seconds": exchanged,
        },
        "collectives": by_kind,
        "limits": max(lost, key=lambda name: lost[name]),
        "lost_seconds": lost,
        "compile_seconds": whole.compile_seconds + sum(b.facts.compile_seconds for b in blocks),
    }


def _by_kind(collectives: Sequence[Collective], chip: Chip) -> dict[str, dict[str, Any]]:
    """How many of each kind run in a call, their bytes on a chip and their seconds."""
    found: dict[str, dict[str, Any]] = {}
    for c in collectives:
        kind = found.setdefault(c.kind, {"count": 0, "bytes": 0, "seconds": 0.0})
        kind["count"] += c.times
        kind["bytes"] += c.times * c.bytes
        kind["seconds"] += collective_seconds(c, chip)
    return found
