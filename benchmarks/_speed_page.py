"""The tables of README and docs about seconds, bytes and chips."""

import json
from typing import Any

from _cells import with_bounds
from _files import RESULTS

MODELS = ("FLUX.1-", "SiT-", "Wan2.1-", "Z-Image", "SD3.5-", "FLUX.2-")
"""How names of models that are searched with begin, of those of the TPU plan."""


def search_overhead() -> str:
    """Ratios of `search_overhead.json`."""
    found = json.loads((RESULTS / "search_overhead.json").read_text())
    methods = ("rbf", "svdd", "smc")
    lines = [
        f"{found['cores']} CPU cores, {found['model_ms']:.1f} ms per candidate, chunks of "
        f"{found['settings']['chunk']}, {found['settings']['nfe']} NFE; load "
        f"{found['load'][0]:.1f} at the start.",
        "",
        f"| | {' | '.join(m.upper() for m in methods)} |",
        "|---|" + "---|" * len(methods),
    ]
    for label, ratios in (
        ("`run`, seconds", found["run"]),
        ("`iterate`, seconds", found["iterate"]),
        ("`run`, CPU seconds", found["cpu"]["run"]),
        ("`iterate`, CPU seconds", found["cpu"]["iterate"]),
        ("`run`, bytes", found["memory"]),
    ):
        lines.append(f"| {label} | {' | '.join(f'{ratios[m]:.2f}' for m in methods)} |")
    return "\n".join(lines)


def packing() -> str:
    """Occupancy by method, prompts a second and the shared budget of `packing.json`."""
    found = json.loads((RESULTS / "packing.json").read_text())
    settings, rates = found["settings"], found["speed"]["prompts_per_second"]
    lines = [
        f"{settings['prompts']} captions of at least {settings['objects']} objects, at "
        f"most {settings['nfe']} NFE each, batches of {settings['batch_size']}; a prompt stops "
        "when its reward (`rss`) is 0.",
        "",
        "| share of rows charged | packed | lock-step | surplus | padding | NFE per prompt |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in found["methods"].items():
        lines.append(
            f"| {name} | **{row['occupancy']:.3f}** | {row['lockstep_occupancy']:.3f} | "
            f"{row['surplus_share']:.3f} | {row['padding_share']:.3f} | {row['nfe']:.0f} |"
        )
    shared = found["shared"]
    lines += [
        "",
        f"RBF on {found['cores']} CPU cores: {rates['packed']:.2f} prompts/s packed, "
        f"{rates['width 1']:.2f} one at a time ({rates['width 4']:.2f} with waves of 4), "
        f"packed is {found['prompts_per_second_ratio']:.2f} times as fast.",
        "",
        f"| {shared['prompts']} captions × {shared['seeds']} seeds, {shared['share']} NFE each "
        "| equal split | one budget (`total_nfe`) | difference, paired |",
        "|---|---|---|---|",
    ]
    for name, row in shared["rewards"].items():
        gain = "{gain:+.2f} ({gain_low:+.2f} – {gain_high:+.2f})".format(**row)
        cells = [
            f"by `{name}` to {row['target']:g}",
            *(with_bounds(row[which], "accuracy") for which in ("split", "shared")),
        ]
        lines.append(f"| {' | '.join([*cells, gain])} |")
    return "\n".join(lines)


def devices() -> str:
    """FLOPs and collectives of `scaling.json`, a device."""
    found = json.loads((RESULTS / "scaling.json").read_text())
    counts = sorted({row["devices"] for row in found["rows"]})
    most = counts[-1]
    lines = [
        f"| GFLOP per device | scaling | {' | '.join(map(str, counts))} | efficiency at {most} | "
        f"collectives per device at {most} |",
        "|---|---|" + "---|" * (len(counts) + 2),
    ]
    for program, scaling in dict.fromkeys((r["program"], r["scaling"]) for r in found["rows"]):
        own = {
            row["devices"]: row
            for row in found["rows"]
            if (row["program"], row["scaling"]) == (program, scaling)
        }
        flops = " | ".join(f"{own[n]['flops'] / 1e9:.2f}" for n in counts)
        last = own[most]
        sent = last["collective_bytes"]
        size = f"{sent} bytes" if sent < 1e4 else f"{sent / 1e6:.1f} MB"
        lines.append(
            f"| {program} | {scaling} | {flops} | {last['efficiency']:.3f} | "
            f"{last['collective_count']}, {size} |"
        )
    return "\n".join(lines)


def tpu_plan() -> str:
    """Programs of `tpu_plan.json` that evaluate models, then all others."""
    found = json.loads((RESULTS / "tpu_plan.json").read_text())
    rows = sorted(found["programs"], key=lambda row: not row.get("nfe_per_second"))
    versions = found["versions"]
    lines = [
        f"JAX {versions['jax']}, libtpu {versions['libtpu']}; eight chips.",
        "",
        "| program | pixels | chip | layout | batch | GB per chip | fits | seconds | of peak | "
        "NFE/s per chip | GB exchanged | bottleneck |",
        "|---" * 12 + "|",
    ]
    for row in rows:
        evaluates = row["model"].startswith(MODELS)
        cells = [
            row["model"] if evaluates else " ".join([row["model"], row["detail"]]).strip(),
            row["resolution"] or "–",
            row["chip"],
            row["layout"],
            row["batch"],
            f"{row['peak_bytes'] / 1e9:.2f}",
            "yes" if row["fits"] else "no",
            *(_tpu_estimate(row) if "estimated_seconds" in row else ["–"] * 5),
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _tpu_estimate(row: dict[str, Any]) -> list[str]:
    """Seconds, share of the peak, NFE/s, GB exchanged, and what limits."""
    low, high = row["peak_share_range"]
    rate = row["nfe_per_second"]
    exchanged = sum(kind["bytes"] for kind in row["collectives"].values()) / 1e9
    return [
        f"{row['estimated_seconds']:.3g}",
        f"{row['peak_share']:.0%} ({low:.0%} – {high:.0%})" if row["flops"] else "–",
        f"{rate:.2f}" if rate else "–",
        f"{exchanged:.2f}",
        row["limits"].replace("what is beside", "work outside"),
    ]


def tpu_search() -> str:
    """Seconds of a search, from `tpu_plan.json`."""
    found = json.loads((RESULTS / "tpu_plan.json").read_text())
    lines = [
        "| model | pixels | chips | prompts at once | evaluations | seconds per image | seconds "
        "per round: evaluating + decoding + searching |",
        "|---" * 7 + "|",
    ]
    for row in found["rbf"]:
        a_round = row["seconds"]
        of_parts = [a_round[name] for name in ("evaluate", "decode", "ask_tell")]
        parts = " + ".join("–" if part is None else f"{part:.3g}" for part in of_parts)
        lines.append(
            f"| {row['model']} | {row['resolution']} | {row['chip']}-8 | {row['prompts']} | "
            f"{row['nfe']} | {row['seconds_per_image']:.1f} | {parts} |"
        )
    return "\n".join(lines)


def peers() -> str:
    """Seconds and bytes of `peers.json`."""
    found = json.loads((RESULTS / "peers.json").read_text())
    methods = ("rbf", "svdd", "smc", "bon")
    settings, rows = found["settings"], [found[method] for method in methods]

    def megabytes(row: dict[str, Any], side: str) -> str:
        return f"{(row[f'{side}_bytes'] - row[f'{side}_loaded_bytes']) / 1e6:.0f}"

    lines = [
        f"{found['processor']}, {found['threads']} threads, float32, PyTorch "
        f"{found['versions']['torch']}; medians over {settings['prompts']} prompts; load "
        f"{found['load'][0]:.1f} at the start.",
        "",
        f"| | {' | '.join(m.upper() for m in methods)} |",
        "|---|" + "---|" * len(methods),
    ]
    for label, cell in (
        ("evaluations charged to both", lambda row: str(row["ours_nfe"])),
        ("… computed by flowsde", lambda row: str(row["ours_evaluations"])),
        ("flowsde, seconds", lambda row: f"{row['ours_s']:.2f}"),
        ("PyTorch, seconds", lambda row: f"{row['peer_s']:.2f}"),
        ("PyTorch ÷ flowsde", lambda row: f"**{row['ratio']:.2f}**"),
        ("flowsde ÷ its limit", lambda row: f"**{row['limit']['of_limit']:.2f}**"),
        ("… rows computed ÷ charged", lambda row: f"{row['limit']['rows']:.2f}"),
        ("… the model's seconds ÷ the limit", lambda row: f"{row['limit']['model']:.2f}"),
        ("… the verifier's", lambda row: f"{row['limit']['verifier']:.2f}"),
        ("flowsde, mean reward", lambda row: f"{row['ours_reward']:.3f}"),
        ("PyTorch, mean reward", lambda row: f"{row['peer_reward']:.3f}"),
        ("flowsde, MB of the first search", lambda row: megabytes(row, "ours")),
        ("PyTorch, MB of the first search", lambda row: megabytes(row, "peer")),
        ("flowsde, seconds of the first search", lambda row: f"{row['ours_first_s']:.1f}"),
        ("PyTorch, seconds of the first search", lambda row: f"{row['peer_first_s']:.1f}"),
    ):
        lines.append(f"| {label} | {' | '.join(map(cell, rows))} |")
    model = (
        f"{row['ours_ms']:.1f} and {row['peer_ms']:.1f} ms for a batch of {n}"
        for n, row in found["model"].items()
    )
    return "\n".join([*lines, "", f"The model alone, flowsde's and PyTorch's: {'; '.join(model)}."])


def cold_start() -> str:
    """Seconds of `cold_start.json`."""
    found = json.loads((RESULTS / "cold_start.json").read_text())
    cold, warm = (found["where"][name] for name in ("cold", "warm"))
    kinds = [f"| {kind} | {cold[kind]:.1f} | {warm[kind]:.1f} |" for kind in cold]
    return "\n".join(
        [
            f"{found['cores']} CPU cores; medians over {found['settings']['repetitions']} fresh "
            f"processes each; load {found['load'][0]:.1f} at the start.",
            "",
            "| | seconds |",
            "|---|---|",
            f"| importing jax and flax | {found['baseline_s']:.2f} |",
            f"| importing flowsde after them | {found['import_s']:.2f} |",
            f"| `{found['settings']['command']}`, the first time | {found['first_image_s']:.1f} |",
            f"| again, its {found['kept_programs']} programs ({found['kept_bytes'] / 1e6:.1f} MB) "
            f"kept | {found['first_image_warm_s']:.1f} |",
            "",
            "Of one more run each, by what its main thread does:",
            "",
            "| | the first time | again |",
            "|---|---|---|",
            *kinds,
        ]
    )


def _fits(share: float) -> str:
    return "no" if share > 1 else "barely" if share > 0.9 else "yes"


def quantised() -> str:
    """Errors of weights in eight bits, of `quantised.json`."""
    rows = json.loads((RESULTS / "quantised.json").read_text())["rows"]
    names = list(dict.fromkeys(row["weights"] for row in rows))
    lines = [f"| | weights | {' | '.join(names)} |", "|---" * (2 + len(names)) + "|"]
    for what, tails in dict.fromkeys((row["what"], row["tails"]) for row in rows):
        own = {r["weights"]: r for r in rows if (r["what"], r["tails"]) == (what, tails)}
        cells = [f"{own[name]['error']:.2%}" for name in names]
        lines.append(f"| {what} | {tails} | {' | '.join(cells)} |")
    return "\n".join(lines)


def memory() -> str:
    """Bytes of the published models on one device, of `memory.json`."""
    found = json.loads((RESULTS / "memory.json").read_text())
    devices = found["devices"]
    chips = [f"≈ each chip of v5e-{count}" for count in found["rows"][0]["sharded"]]
    lines = [
        "GB in bfloat16, for one candidate at a time; ≈ is computed from shapes, all else compiled "
        "or counted.",
        "",
        "| model | pixels | text encoder, then dropped | transformer | autoencoder | evaluating | "
        f"decoding | needed | in int8 | {' | '.join([*devices, *chips])} |",
        "|---" * (9 + len(devices) + len(chips)) + "|",
    ]
    for row in found["rows"]:
        cells = [row["model"], row["resolution"]]
        cells += [f"{row[name] / 1e9:.2f}" for name in ("encoder", "transformer", "autoencoder")]
        for name in ("evaluation", "decoding"):
            about = "" if name in row["compiled"] else "≈ "
            twice = " × 2" if row["guided"] and name == "evaluation" else ""
            cells.append(f"{about}{row[name] / 1e9:.2f}{twice}")
        cells.append(f"{row['needed'] / 1e9:.1f}")
        eight = row["int8"]["needed"]
        cells.append(f"{eight / 1e9:.1f}")
        for size in devices.values():
            plain, less = _fits(row["needed"] / size), _fits(eight / size)
            cells.append(plain if less == plain else f"{plain}; int8: {less}")
        for each in row["sharded"].values():
            cells.append(f"{each / 1e9:.1f}: {_fits(each / devices['a chip of v5e'])}")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)
