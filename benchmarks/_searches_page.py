"""The table of all searches in docs/searches.md: what each needs, and its place on the tasks.

Places are those on *sides*, which all have been measured on, of each method's best setting of the
development captions, as in docs/benchmarks.md; Best-of-N is tuned to the budget. Neighbours are
often too close to be told apart.
"""

from typing import Any, NamedTuple

from _tasks_compare import grouped, tuned
from _tasks_page import leader
from _tasks_settings import RESTARTS

_TASK, _NFE = "sides", 300


class About(NamedTuple):
    """What is known of a search without measuring it.

    Attributes:
      paper: its source, with a link.
      rewards: what it asks for the rewards of; "finished" pictures alone are terminal rewards.
      begins: what a picture begins as.
      needs: besides a model and a reward.
      use: when it is worth a try.
    """

    paper: str
    rewards: str
    begins: str
    needs: str
    use: str


def _arxiv(who: str, number: str) -> str:
    return f"{who}, [{number}](https://arxiv.org/abs/{number})".removeprefix(", ")


_FINISHED, _MEANS = "finished pictures", "posterior means at each step"
_FRESH = "fresh noise"
_ICML = "[ICML](https://proceedings.mlr.press/v28/karnin13.html)"
SEARCHES = {
    "bon": About("–", _FINISHED, _FRESH, "–", "a plain sample is often right"),
    "halving": About(
        f"Karnin et al., 2013, {_ICML}", "finished drafts", _FRESH, "–",
        "drafts of few steps rank as full samples do",
    ),
    "zero_order": About(
        _arxiv("Ma et al., 2025", "2501.09732"), _FINISHED, "noise near the best one's",
        "a model of few steps", "few steps make a picture, and rewards are slow",
    ),
    "lidar": About(
        _arxiv("", "2602.03211"), "finished drafts",
        "fresh noise, means pulled to good drafts", "a temperature",
        "rewards of blurred pictures say nothing, and drafts are close to each other",
    ),
    "sop": About(
        _arxiv("Ma et al., 2025", "2501.09732"), "posterior means from `start` on", _FRESH, "–",
        "good paths are to be explored around",
    ),
    "evolution": About(
        _arxiv("after He et al., 2025", "2505.17618"), _FINISHED, "the best picture, noised", "–",
        "the reward is slow, or says little of blurred pictures: the first to try",
    ),
    "dfs": About(
        _arxiv("after Zhang et al., 2025", "2505.23614"), "posterior means at checks", _FRESH,
        "a `bar`, if you have one", "you know what reward is good enough on the way",
    ),
    "dts": About(
        _arxiv("Jain et al., 2025", "2506.20701"), _FINISHED, "a node of the tree",
        "a temperature, memory", "several good samples are wanted, of terminal rewards alone",
    ),
    "pcn": About(
        _arxiv("Cotter et al., 2013", "1202.0709"), _FINISHED, "noise near the chain's",
        "a temperature, a model of few steps; a gradient if you have one",
        "samples of the tilted law are wanted from a model of few steps",
    ),
    "smc": About(
        "; ".join(
            _arxiv(*one)
            for one in (
                ("Singhal et al., 2025", "2501.06848"), ("Wu et al., 2023", "2306.17775"),
                ("Kim et al., 2025", "2501.05803"),
            )
        ),
        _MEANS, "fresh noise; with restarts also the best one, noised",
        "a temperature; a gradient if you have one",
        "with restarts, the reward costs no more than the model: the first to try; or the law is "
        "wanted, with weights and log Z",
    ),
    "psi": About(
        _arxiv("Yoon et al., 2025", "2506.01320"), _MEANS, "noise of Markov chains",
        "a temperature, a model of few steps; a gradient if you have one",
        "as `smc`, where good noise is rare",
    ),
    "code": About(
        _arxiv("Singh et al., 2025", "2502.00968"), "posterior means, each `block` steps", _FRESH,
        "–", "as `svdd`, with fewer rewards",
    ),
    "svdd": About(
        _arxiv("Li et al., 2024", "2408.08252"), _MEANS, _FRESH, "–",
        "the reward costs next to nothing, and its scale is not known",
    ),
    "epsilon_greedy": About(
        _arxiv("Ramesh and Mardani, 2025", "2506.03164"), _MEANS, _FRESH, "–",
        "as `svdd`; the first to try with a model of few steps, whose start it searches too",
    ),
    "rbf": About(
        _arxiv("Kim et al., 2025", "2503.19385"), _MEANS, _FRESH, "–",
        "an easy prompt is to leave its budget to others (`accept=\"quantile\"`)",
    ),
}  # fmt: skip


def table(results: dict[str, Any]) -> str:
    """Every search, of what `tasks.py` wrote."""
    # Restarts are an option of SMC.
    every = (r | {"method": "smc"} if r["method"] == RESTARTS else r for r in results["rows"])
    rows = [r for r in every if r["split"] == "dev" and r["method"] in SEARCHES]
    measured = {model: _measured(own) for (model,), own in grouped(rows, "model").items()}
    heads = " | ".join(f"{model}: success, place" for model in measured)
    lines = [
        f"| search | paper | rewards of | a picture begins as | needs | try it where | {heads} | "
        "verifier calls |",
        "|---|---|---|---|---|---|" + "---|" * len(measured) + "---|",
    ]
    for name, about in SEARCHES.items():
        places = " | ".join(_place(own, name) for own in measured.values())
        first = next((own[name] for own in measured.values() if name in own), None)
        calls = "–" if first is None else f"{first['verifier_calls']:.0f}"
        lines.append(f"| `{name}` | {' | '.join(about)} | {places} | {calls} |")
    return "\n".join(lines)


def _measured(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The row of each method's best setting, of those that have one at the budget."""
    found = {}
    for (method,), own in grouped(rows, "method").items():
        best = leader(own)
        own = tuned(own) if method == "bon" else [r for r in own if r["setting"] == best]
        for row in own:
            if (row["task"], row["nfe"]) == (_TASK, _NFE):
                found[method] = row
    return found


def _place(measured: dict[str, dict[str, Any]], name: str) -> str:
    """Success, and the place by it; equals share the first of theirs."""
    if name not in measured:
        return "–"
    success = measured[name]["success"]
    place = 1 + sum(row["success"] > success for row in measured.values())
    return f"{success:.2f}, {place} of {len(measured)}"
