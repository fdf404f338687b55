"""The table of claims: who is compared with whom, and what is bold."""

import _tasks_claims
import pytest


def row(method, model, nfe, wins, **own):
    success = sum(wins) / (2 * len(wins))
    setting = " ".join([method, *(f"{name}={value}" for name, value in own.items())])
    same = {"task": "sides", "split": "dev", "seeds": 2, "accept": None, "interpolant": "linear"}
    kernel = {"kernel": "ode_euler"}
    return same | kernel | own | {
        "method": method, "model": model, "nfe": nfe, "wins": wins, "success": success,
        "setting": setting, "prompts": len(wins),
    }  # fmt: skip


def cells(found, says):
    (line,) = [line for line in found.splitlines() if line.startswith(f"| {says} |")]
    return [cell.strip() for cell in line.split("|")[3:-1]]


@pytest.fixture
def rows():
    few, half, many = [0] * 9 + [1], [1] * 10, [2] * 9 + [1]
    made = []
    for nfe in (100, 300):
        made += [
            row("bon", "one", nfe, half, steps=4),
            row("bon", "one", nfe, few, steps=8),
            row("smc", "one", nfe, many, interpolant="vp", kernel="ddim"),
            row("smc", "one", nfe, half, interpolant="linear", kernel="ddim"),
            row("svdd", "one", nfe, half, interpolant="vp", kernel="ddim"),
            row("bon", "two", nfe, many, steps=4),
            row("smc", "two", nfe, few, interpolant="vp", kernel="ddim"),
        ]
    # One budget alone says less.
    made.append(row("zero_order", "one", 100, many))
    return made


def test_the_best_settings_are_compared_on_each_model(rows):
    found = _tasks_claims.table({"rows": rows})
    assert found.splitlines()[0] == "| claim | source | one | two |"
    one, two = cells(found, "SMC over Best-of-N")
    # .95 against .5, and .05 against .95.
    assert one.startswith("**+0.45 (") and two.startswith("**-0.90 (")
    assert cells(found, "SVDD over Best-of-N")[0].startswith("+0.00 (")
    assert cells(found, "VP over linear, particles moved by DDIM")[0].startswith("**+0.45 (")
    assert cells(found, "SVDD over Best-of-N")[1] == "–"
    assert cells(found, "Zero-order search over Best-of-N") == ["–", "–"]
