"""The tables of what is converted from PyTorch: speed, memory, files."""

import json
from typing import Any

from _files import RESULTS


def _ratios(found: dict[str, Any], more: dict[str, dict[str, str]]) -> str:
    """A row for each name of `found`: our seconds over PyTorch's, then other columns by name."""
    lines = [
        f"{found['cores']} CPU cores, float32, batch {found['settings']['batch']}; below 1 is "
        "faster than PyTorch.",
        "",
        f"| | {' | '.join(['time', *more])} |",
        "|---" * (2 + len(more)) + "|",
    ]
    for name in found["error"]:
        cells = [f"{found[name]:.2f}", *(column[name] for column in more.values())]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def ports() -> str:
    """Of `ports.json`."""
    return _ratios(json.loads((RESULTS / "ports.json").read_text()), {})


def rewards() -> str:
    """Of `rewards.json`."""
    found = json.loads((RESULTS / "rewards.json").read_text())
    memory = found["memory"]

    def of(which: str) -> dict[str, str]:
        return {name: f"{own[which] / 2**20:.0f} MiB" for name, own in memory.items()}

    flops = {name: f"{own / 1e9:.0f}" for name, own in found["flops"].items()}
    return _ratios(
        found,
        {"GFLOP a picture": flops, "memory of a call": of("ours"), "… of PyTorch's": of("torch")},
    )


def conversion() -> str:
    """Seconds and bytes of `convert.json`."""
    found = json.loads((RESULTS / "convert.json").read_text())
    gib = {
        name: f"{found[name] / 2**30:.{digits}f} GiB"
        for name, digits in (("bytes", 1), ("peak_rss_bytes", 2), ("largest_stacked_bytes", 1))
    }
    return (
        f"Converting a checkpoint of {gib['bytes']} takes {found['seconds']:.0f} s; copying its "
        f"files takes {found['copy_seconds']:.0f} s. Peak memory is {gib['peak_rss_bytes']}; the "
        f"largest stacked parameter has {gib['largest_stacked_bytes']}."
    )


def full_size() -> str:
    """Seconds and bytes of `full_size.json`."""
    found = json.loads((RESULTS / "full_size.json").read_text())
    lines = [
        "| model | layout | keys | GB | seconds of `--check` | GiB to convert | at most |",
        "|---" * 7 + "|",
    ]
    for row in found["rows"]:
        memory = [
            f"{row[f'{which}_rss_bytes'] / 2**30:.2f}" if "seconds" in row else "–"
            for which in ("peak", "limit")
        ]
        cells = [
            row["name"],
            row["layout"],
            str(row["keys"]),
            f"{row['bytes'] / 1e9:.1f}",
            f"{row['check_seconds']:.1f}",
            *memory,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
