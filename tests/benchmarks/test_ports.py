"""Some ports measured again, beside what was measured before."""

import json

import pytest

import flowsde as fs


@pytest.fixture
def ports():
    return pytest.importorskip("ports")


@pytest.fixture
def rewards():
    return pytest.importorskip("rewards")


def fake(models, blocks, repetitions):
    return {
        **{name: float(repetitions) for name in models},
        "target": 1.15,
        "error": dict.fromkeys(models, 0.0),
        "details": {name: {"ours": [], "torch": []} for name in models},
    }


@pytest.mark.slow
def test_others_stay_in_the_file(ports, tmp_path, monkeypatch):
    path = tmp_path / "ports.json"
    monkeypatch.setattr(ports, "ratios", fake)
    before = ports.measure(ports.Some(json=path))
    before["sit"], before["flux"] = 0.5, 0.25
    path.write_text(json.dumps(before))
    after = ports.measure(ports.Some(json=path, only=("flux",)))
    assert (after["flux"], after["sit"], list(after)) == (15.0, 0.5, list(before))
    again = [name for name, own in after["details"].items() if len(own) > 2]
    assert again == ["flux"] and set(after["details"]["flux"]) >= {"load", "versions"}
    assert list(after["error"]) == list(ports.MODELS)


def test_a_file_measured_otherwise_is_refused(ports, tmp_path, monkeypatch):
    path = tmp_path / "ports.json"
    monkeypatch.setattr(ports, "ratios", lambda *args: pytest.fail("measured"))
    path.write_text(json.dumps({"version": fs.__version__, "cores": 0}))
    with pytest.raises(SystemExit, match="has cores 0, this run"):
        ports.measure(ports.Some(json=path, only=("flux",)))
    with pytest.raises(SystemExit, match="must be of flux, .*, got other"):
        ports.measure(ports.Some(only=("other",)))


def test_rewards_measured_alone_keep_the_work_and_memory_of_the_others(
    ports, rewards, tmp_path, monkeypatch
):
    def made(models, blocks, repetitions):
        for make in models.values():
            make(blocks)
        return fake(models, blocks, repetitions)

    def sides(reward, costs):
        costs |= {"flops": 5, "memory": {"ours": 2**20, "torch": 2**20}}

    monkeypatch.setattr(rewards, "ratios", made)
    monkeypatch.setattr(rewards, "sides", sides)
    monkeypatch.setattr(rewards, "REWARDS", dict.fromkeys(("clip", "pick"), lambda blocks: None))
    path = tmp_path / "rewards.json"
    before = rewards.measure(ports.Some(json=path))
    before |= {"clip": 0.5, "flops": {"clip": 1, "pick": 2}}
    path.write_text(json.dumps(before))
    after = rewards.measure(ports.Some(json=path, only=("pick",)))
    assert (after["clip"], after["pick"], after["flops"]) == (0.5, 15.0, {"clip": 1, "pick": 5})
    assert set(after["memory"]) == {"clip", "pick"} and after["seconds"] == before["seconds"]
