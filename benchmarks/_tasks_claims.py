"""What papers claim of their methods, on the tasks: successes of one kind of search less another's.

Each side is the best of its settings by the mean over both budgets, on the development captions of
*sides* at 100 and 300 NFE; differences are paired over captions. Settings were chosen on the same
captions, and differences are not corrected for how many there are. Where a method's settings were
measured on different numbers of captions, those of the most are compared.
"""

from typing import Any, NamedTuple

from _cells import difference
from _tasks_choose import best, gap
from _tasks_compare import grouped

_BUDGETS = (100, 300)
Wanted = dict[str, Any]


class Claim(NamedTuple):
    """Of searches with some options over those with others: `method`, or an option's value; `has`
    and `lacks` are of the setting's name."""

    says: str
    source: str
    first: Wanted
    second: Wanted


_BON: Wanted = {"method": "bon"}
CLAIMS = (
    Claim("SMC over Best-of-N", "Singhal et al., 2025", {"method": "smc"}, _BON),
    Claim("SVDD over Best-of-N", "Li et al., 2024", {"method": "svdd"}, _BON),
    Claim("RBF over Best-of-N", "Kim et al., 2025", {"method": "rbf", "accept": "improve"}, _BON),
    Claim(
        "RBF over SVDD", "Kim et al., 2025",
        {"method": "rbf", "accept": "improve"}, {"method": "svdd"},
    ),
    Claim(
        "VP over linear, particles moved by DDIM", "Kim et al., 2025",
        {"method": ("smc", "svdd"), "interpolant": "vp", "kernel": "ddim"},
        {"method": ("smc", "svdd"), "interpolant": "linear", "kernel": "ddim"},
    ),
    Claim("Evolution over Best-of-N", "He et al., 2025", {"method": "evolution"}, _BON),
    Claim("Zero-order search over Best-of-N", "Ma et al., 2025", {"method": "zero_order"}, _BON),
    Claim(
        "ε-greedy over zero-order", "Ramesh and Mardani, 2025",
        {"method": "epsilon_greedy"}, {"method": "zero_order"},
    ),
    Claim("Ψ-Sampler over SMC", "Yoon et al., 2025", {"method": "psi"}, {"method": "smc"}),
    Claim("pCN chains over Best-of-N", "Yoon et al., 2025", {"method": "pcn"}, _BON),
    Claim("DTS\\* over Best-of-N", "Jain et al., 2025", {"method": "dts"}, _BON),
    Claim("Depth-first search over Best-of-N", "Zhang et al., 2025", {"method": "dfs"}, _BON),
    Claim("LiDAR over Best-of-N", "2026", {"method": "lidar"}, _BON),
    Claim("Drafts, halved successively, over Best-of-N", "Flash-BoN, 2026",
          {"method": "halving"}, _BON),
    Claim(
        "GLASS over DDIM, for SMC", "Holderrieth et al., 2025",
        {"method": "smc", "kernel": "glass"}, {"method": "smc", "kernel": "ddim"},
    ),
    Claim(
        'SMC by what rewards are ("current") over by what they gain', "Singhal et al., 2025",
        {"method": "smc", "has": "potential=current"},
        {"method": "smc", "has": "potential=difference", "lacks": "resample_"},
    ),
    Claim(
        "SMC that resamples in a window of steps over at every step", "Singhal et al., 2025",
        {"method": "smc", "has": "resample_"},
        {"method": "smc", "has": "potential=difference", "lacks": "resample_"},
    ),
    Claim(
        "SMC by masses of least variance over its usual weights", "VASR, 2026",
        {"method": "smc", "has": "mass="}, {"method": "smc", "lacks": "mass="},
    ),
    Claim("SMC with restarts over SMC", "here", {"method": "restarts"}, {"method": "smc"}),
    Claim("SMC guided by the reward's gradient (TDS) over SMC", "Wu et al., 2023",
          {"method": "tds"}, {"method": "smc"}),
    Claim("Tempered guided SMC (DAS) over TDS", "Kim et al., 2025 (DAS)",
          {"method": "das"}, {"method": "tds"}),
    Claim("NoiseTilt over Best-of-N", "NoiseTilt, 2026", {"method": "noise_tilt"}, _BON),
)  # fmt: skip


def _matches(row: dict[str, Any], wanted: Wanted) -> bool:
    return all(_agrees(row, name, value) for name, value in wanted.items())


def _agrees(row: dict[str, Any], name: str, value: Any) -> bool:
    if name in ("has", "lacks"):
        return (value in row["setting"]) == (name == "has")
    return row[name] in value if isinstance(value, tuple) else row[name] == value


def table(results: dict[str, Any]) -> str:
    """Every claim on both models, of what `tasks.py` wrote."""
    rows = [
        row
        for row in results["rows"]
        if (row["task"], row["split"]) == ("sides", "dev") and row["nfe"] in _BUDGETS
    ]
    models = list(dict.fromkeys(row["model"] for row in rows))
    lines = [f"| claim | source | {' | '.join(models)} |", "|---|---|" + "---|" * len(models)]
    for claim in CLAIMS:
        cells = [_cell([r for r in rows if r["model"] == model], claim) for model in models]
        lines.append(f"| {claim.says} | {claim.source} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(rows: list[dict[str, Any]], claim: Claim) -> str:
    """The difference, in bold where its interval is on one side of 0."""
    sides = []
    for wanted in (claim.first, claim.second):
        matching = [row for row in rows if _matches(row, wanted)]
        settings = grouped(matching, "setting")
        whole = {n: found for (n,), found in settings.items() if len(found) == len(_BUDGETS)}
        if not whole:
            return "–"
        prompts = {n: min(row["prompts"] for row in found) for n, found in whole.items()}
        most = max(prompts.values())
        own = {n: found for n, found in whole.items() if prompts[n] == most}
        sides.append(own[best(own)])
    found = gap(*sides)
    assert found is not None
    return difference(found)
