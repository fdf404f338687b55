"""Write the tables of README and docs from the result files, or check that they are up to date.

python benchmarks/readme.py [--check]
"""

import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from _files import replace_file
from _gradients_page import tables as gradient_tables
from _tasks_page import best_settings, of_paper, recommended
from _tasks_plan import paper_settings

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


def _share(row: dict[str, Any]) -> str:
    """Exact captions with their interval."""
    return f"{row['accuracy']:.2f} ({row['accuracy_low']:.2f} – {row['accuracy_high']:.2f})"


def base_success() -> str:
    """How often a plain sample succeeds, task by task."""
    found = json.loads((RESULTS / "base_success.json").read_text())
    rows = sorted(found["rows"], key=lambda row: row["success"])
    (captions,), (seeds,) = {row["captions"] for row in rows}, {row["seeds"] for row in rows}
    lines = ["| task | asked for | success | exact counts |", "|---|---|---|---|"]
    for row in rows:
        success = f"{row['success']:.4f} ({row['success_low']:.4f} – {row['success_high']:.4f})"
        lines.append(f"| {row['task']} | {row['summary']} | {success} | {row['exact']:.2f} |")
    steps = f"{captions} captions × {seeds} seeds, {found['steps']} ODE steps; 95% intervals."
    return "\n".join([*lines, "", steps])


def _tasks() -> dict[str, Any]:
    return json.loads((RESULTS / "tasks.json").read_text())


def tasks_nfe() -> str:
    """What is recommended against the best Best-of-N, at equal NFE."""
    return recommended(_tasks(), "nfe")


def tasks_seconds(verifier: int) -> str:
    """The same at equal seconds, a reward costing so many network evaluations."""
    return recommended(_tasks(), "seconds", verifier)


def tasks_methods() -> str:
    """Each method's best setting of the development captions."""
    return best_settings(_tasks())


def tasks_paper() -> str:
    """The paper's settings, and a plain sample and Best-of-N as in the paper."""
    return of_paper(_tasks(), [setting.name for setting in paper_settings()])


def gradients() -> str:
    """What gradients buy, of `gradients.json`."""
    return gradient_tables(json.loads((RESULTS / "gradients.json").read_text()))


def diagnosis() -> str:
    """Rank correlation and worth of branching at each time of `diagnosis.json`."""
    found = json.loads((RESULTS / "diagnosis.json").read_text())

    def cell(row: dict[str, Any], name: str) -> str:
        if row[name] is None:
            return "–"
        return f"{row[name]:.2f} ({row[f'{name}_low']:.2f} – {row[f'{name}_high']:.2f})"

    tasks = list(dict.fromkeys(row["task"] for row in found["rows"]))
    lines = [
        f"{found['n']} trajectories of each of {found['captions']} development captions.",
        "",
        "| model | t | " + " | ".join(f"{t}: rank correlation | {t}: worth" for t in tasks) + " |",
        "|---" * (2 + 2 * len(tasks)) + "|",
    ]
    for model in dict.fromkeys(row["model"] for row in found["rows"]):
        own = [row["times"] for row in found["rows"] if row["model"] == model]
        # The last time is the picture's.
        for at in list(zip(*own, strict=True))[:-1]:
            cells = [cell(row, name) for row in at for name in ("correlation", "worth")]
            lines.append(f"| {model} | {at[0]['time']:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def scorer() -> str:
    """Exact captions, ranking accuracies, places and speed of `scorer.json`, by scorer."""
    found = json.loads((RESULTS / "scorer.json").read_text())
    names = list(dict.fromkeys(row["scorer"] for row in found["ranking"]))
    lines = [f"| | {' | '.join(names)} |", "|---|" + "---|" * len(names)]

    def line(label: str, cells: list[str]) -> None:
        lines.append(f"| {label} | {' | '.join(cells)} |")

    def own(rows: list[dict[str, Any]], name: str, key: str, value: str) -> dict[str, Any] | None:
        match = [row for row in rows if row["scorer"] == name and row[key] == value]
        return match[0] if match else None

    for key, share, part in (("label", _share, "search"), ("pictures", _ranked, "ranking")):
        for value in dict.fromkeys(row[key] for row in found.get(part, [])):
            rows = [own(found[part], name, key, value) for name in names]
            cells = ["–" if row is None else share(row) for row in rows]
            budget = next(f", {row['nfe']} NFE" if "nfe" in row else "" for row in rows if row)
            line(f"{'ranked: ' if part == 'ranking' else 'exact: '}{value}{budget}", cells)
    for label, quantile in (("right", "0.05"), ("wrong", "0.95")):
        rows = [own(found["reward"], name, "pictures", label) for name in names]
        cells = ["–" if row is None else f"{row['quantiles'][quantile]:.2f}" for row in rows]
        line(f"reward of {label} samples, {float(quantile):.0%} quantile", cells)
    for key, label in (("median", "median"), ("worst", "95% quantile")):
        at = {row["scorer"]: row[key] for row in found["places"]}
        line(f"error of the mean place, pixels: {label}", [f"{at[name]:.2f}" for name in names])
    return "\n".join(
        [
            f"{found['captions']} captions of at least five objects; {found['samples']} samples "
            f"of each are ranked"
            + (f", {found['seeds']} searches are run." if "search" in found else "."),
            "",
            *lines,
        ]
    )


def _ranked(row: dict[str, Any]) -> str:
    """Accuracy with its interval."""
    return f"{row['accuracy']:.3f} ({row['accuracy_low']:.3f} – {row['accuracy_high']:.3f})"


def methods_analytic() -> str:
    """Mean rewards of `methods_analytic.json` by path and method, the best of each row in bold."""
    found = json.loads((RESULTS / "methods_analytic.json").read_text())
    names = {"bon": "BoN", "sop": "SoP", "smc": "SMC", "code": "CoDe", "svdd": "SVDD", "rbf": "RBF"}
    rows = {(r["budget"], r["path"], r["method"]): r for r in found["rows"]}
    half = max((r["high"] - r["low"]) / 2 for r in rows.values())
    lines = [
        f"{found['settings']['seeds']} seeds; 95% intervals are at most ± {half:.3f}.",
        "",
        f"| NFE | path | {' | '.join(names.values())} |",
        "|---|---|" + "---|" * len(names),
    ]
    for budget in found["settings"]["nfe"]:
        for path in dict.fromkeys(path for _, path, _ in rows):
            means = {m: rows[budget, path, m]["mean"] for m in names if (budget, path, m) in rows}
            best = max(means.values())
            cells = [
                "–"
                if m not in means
                else ("**{:.3f}**" if means[m] == best else "{:.3f}").format(means[m])
                for m in names
            ]
            lines.append(f"| {budget} | {path} | {' | '.join(cells)} |")
    return "\n".join(lines)


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
        cells = [f"by `{name}` to {row['target']:g}", _share(row["split"]), _share(row["shared"])]
        lines.append(f"| {' | '.join([*cells, gain])} |")
    return "\n".join(lines)


def ports() -> str:
    """Ratios of `ports.json`."""
    found = json.loads((RESULTS / "ports.json").read_text())
    names = ("flux", "sit", "autoencoder", "clip_text", "clip_vision", "t5")
    return "\n".join(
        [
            f"{found['cores']} CPU cores, float32, batch {found['settings']['batch']}; below 1 is "
            "faster than PyTorch.",
            "",
            f"| {' | '.join(names)} |",
            "|---" * len(names) + "|",
            f"| {' | '.join(f'{found[name]:.2f}' for name in names)} |",
        ]
    )


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
        evaluates = row["model"].startswith(("FLUX.1-", "SiT-"))
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
    """Seconds of a search of 500 evaluations, from `tpu_plan.json`."""
    found = json.loads((RESULTS / "tpu_plan.json").read_text())
    lines = [
        "| model | pixels | chips | prompts at once | seconds per image | seconds per round: "
        "evaluating + decoding + searching |",
        "|---" * 6 + "|",
    ]
    for row in found["rbf"]:
        a_round = row["seconds"]
        parts = " + ".join(f"{a_round[name]:.3g}" for name in ("evaluate", "decode", "ask_tell"))
        lines.append(
            f"| {row['model']} | {row['resolution']} | {row['chip']}-8 | {row['prompts']} | "
            f"{row['seconds_per_image']:.1f} | {parts} |"
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
        ]
    )


TABLES: dict[str, Callable[[], str]] = {
    "tpu_plan": tpu_plan,
    "tpu_search": tpu_search,
    "peers": peers,
    "cold_start": cold_start,
    "devices": devices,
    "packing": packing,
    "ports": ports,
    "conversion": conversion,
    "methods_analytic": methods_analytic,
    "scorer": scorer,
    "gradients": gradients,
    "base_success": base_success,
    "tasks_nfe": tasks_nfe,
    "tasks_seconds_1": partial(tasks_seconds, 1),
    "tasks_seconds_5": partial(tasks_seconds, 5),
    "tasks_methods": tasks_methods,
    "tasks_paper": tasks_paper,
    "diagnosis": diagnosis,
    "search_overhead": search_overhead,
}


def fill(text: str) -> tuple[str, set[str]]:
    """A page with every marked block written anew, and the names of these."""
    found = set(re.findall(r"<!-- begin (\w+) -->", text))
    for name in found:
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        before, _, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if name not in TABLES or not closed:
            raise SystemExit(f"{begin} … {end} is no table of {', '.join(TABLES)}")
        text = f"{before}{begin}\n{TABLES[name]()}\n{end}{after}"
    return text, found


def main() -> None:
    """Write or check."""
    check, filled = "--check" in sys.argv[1:], set()
    for path in PAGES:
        old = path.read_text()
        new, found = fill(old)
        filled |= found
        if check and new != old:
            raise SystemExit(f"{path.name} is out of date: run python benchmarks/readme.py")
        if new != old:
            replace_file(path, partial(Path.write_text, data=new))
    if missing := TABLES.keys() - filled:
        raise SystemExit(f"no page has the tables {', '.join(sorted(missing))}")


if __name__ == "__main__":
    main()
