"""Some ports measured again, beside what was measured before."""

import json

import pytest

for name in ("torch", "diffusers", "transformers"):
    pytest.importorskip(name)

import ports  # noqa: E402


def fake(models, blocks, repetitions):
    return {
        **{name: float(repetitions) for name in models},
        "target": 1.15,
        "error": dict.fromkeys(models, 0.0),
        "details": {name: {"ours": [], "torch": []} for name in models},
    }


def test_others_stay_in_the_file(tmp_path, monkeypatch):
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


def test_a_file_measured_otherwise_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "ports.json"
    monkeypatch.setattr(ports, "ratios", lambda *args: pytest.fail("measured"))
    path.write_text(json.dumps({"version": ports.fs.__version__, "cores": 0}))
    with pytest.raises(SystemExit, match="has cores 0, this run"):
        ports.measure(ports.Some(json=path, only=("flux",)))
    with pytest.raises(SystemExit, match="must be of flux, .*, got other"):
        ports.measure(ports.Some(only=("other",)))
