"""What a tuned setting is worth beside the recommended one: `benchmarks/tuned.py`."""

from types import SimpleNamespace

import numpy as np
import pytest
import tuned

from flowsde.tuning.space import declared


def test_what_tuning_chose_is_measured_as_the_recommended_setting_is(monkeypatch):
    own = declared(("svdd",))[-1]
    race = SimpleNamespace(rungs=[SimpleNamespace(table=(1, 2, 3))])
    cost = {"nfe": 5, "evaluations": 6, "verifier_calls": 7, "seconds": 8.0}
    found = SimpleNamespace(setting=own, sure=True, race=race, cost=cost)
    monkeypatch.setattr(tuned, "tuned", lambda *_: found)
    asked = []

    def measure(case):
        asked.append(case)
        assert case.setting.search(case.nfe).nfe == 40  # what `tasks.py` measures can be run
        wins = np.asarray([2, 1, 0, 2] if case.setting.label == "svdd" else [2, 0, 0, 1])
        success = float(wins.mean()) / 2
        return {"wins": wins, "success": success, "success_low": 0.0, "success_high": 1.0}

    monkeypatch.setattr(tuned, "measure", measure)
    row = tuned.compare("sides", "shapes", tuned.Args(nfe=40, test_captions=4, test_seeds=2))
    assert [case.setting.label for case in asked] == ["svdd", "restarts"]
    assert {(case.split, case.prompts, case.seeds) for case in asked} == {("test", 4, 2)}
    assert row["setting"] == own.name and row["raced"] == 3 and "evaluations" not in row["cost"]
    assert (row["success"], row["default_success"]) == (0.625, 0.375)
    assert row["difference"] == pytest.approx(0.25)
    assert row["difference_low"] < 0.25 < row["difference_high"]
