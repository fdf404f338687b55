"""Questions in a file, and the mean of what is answered to them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import flowsde as fs
from flowsde.cli.named_rewards import load, version_of
from flowsde.cli.sources.rewards import reward_source
from flowsde.conds import stacked
from flowsde.models.qwen3_vl.atoms import Atoms, AtomsError, read_atoms
from flowsde.models.qwen3_vl.questions import Atom, asking
from flowsde.models.qwen3_vl.rewards import judge

RED, LOG = tiny.PROMPTS


def test_questions_of_each_prompt_and_of_every_one(tmp_path):
    path = tmp_path / "questions.json"
    path.write_text(json.dumps({RED: ["Is it red?", {"question": "What?", "answers": ["a", "b"]}]}))
    atoms = read_atoms(path)
    assert atoms(RED) == [Atom("Is it red?"), Atom("What?", ("a", "b"), ("No",))]
    with pytest.raises(AtomsError, match=f"json has no questions about '{LOG}', only about {RED}"):
        atoms(LOG)
    path.write_text('[{"question": "Is it wet?", "against": ["Dry"]}]')
    assert read_atoms(path)(LOG) == [Atom("Is it wet?", against=("Dry",))]


def test_what_is_no_question_is_named(tmp_path):
    path = tmp_path / "questions.json"
    for said, line in (
        ("{}", "must have at least one question of each prompt"),
        ('{"x": []}', "must have at least one question of each prompt"),
        ('"Is it?"', "must be an object of questions by prompt, or a list of them, got 'Is it"),
        ('{"x": "Is it?"}', r"questions.json: x must be a list, got 'Is it\?'"),
        ('{"x": [3]}', r"questions.json: x\[0\] must be an object, got 3"),
        ('[{"ask": "Is it?"}]', r"questions.json\[0\] lacks the field question"),
        ('["Is it?", " "]', r"questions.json\[1\]: question must have words"),
        ('[{"question": "What?", "answer": ["a"]}]',
         "has the field answer, expected question, answers, against"),
        ('[{"question": "What?", "answers": "a"}]', "answers must be a list, got 'a'"),
        ('[{"question": "What?", "answers": []}]', "answers must be at least one word"),
        ("[", "cannot be read"),
    ):  # fmt: skip
        path.write_text(said)
        with pytest.raises(ValueError, match=line):
            read_atoms(path)


@pytest.mark.slow
def test_the_mean_is_that_of_each_question_alone(tmp_path):
    """Of two prompts together, the second with fewer questions; and as `flowsde score` asks."""
    folder, path = tiny.qwen3_vl(tmp_path / "model"), tmp_path / "questions.json"
    each = {RED: ["Is it red?", {"question": "What is it?", "answers": ["a", "d"]}], LOG: ["Wet?"]}
    path.write_text(json.dumps(each))
    model = fs.load(folder)
    ask = asking(folder / "tokenizer", vocab=model.config.text.vocab)
    images = np.random.default_rng(0).uniform(-1.0, 1.0, (2, 16, 20, 3)).astype(np.float32)
    score = jax.jit(lambda reward, images, told: reward(images, told))

    def alone(i, atom):
        (told,) = ask.atoms([[atom]])
        said = score(judge(model), images[i : i + 1], jax.tree.map(lambda a: a[None], told))
        return float(said[0])

    red = [alone(0, Atom("Is it red?")), alone(0, Atom("What is it?", ("a", "d")))]
    wet = alone(1, Atom("Wet?"))
    for name, wanted in (
        ("qwen3vl-atoms", np.mean(red)), ("qwen3vl-atoms-geometric", np.sqrt(np.prod(red))),
    ):  # fmt: skip
        reward, told = reward_source(name, [folder], questions=path).load([RED, LOG])
        assert reward.name == name
        np.testing.assert_allclose(
            score(reward, jnp.asarray(images), stacked("told", told)), [wanted, wet], rtol=1e-4
        )
    served = load("qwen3vl-atoms", [folder], path)
    np.testing.assert_allclose(served.fn(images, [RED, LOG]), [np.mean(red), wet], rtol=1e-4)
    path.write_text("[]")
    assert version_of("qwen3vl-atoms", [folder], path) != served.version


def test_there_are_some_of_each():
    with pytest.raises(AtomsError, match="atoms must have at least one question of each prompt"):
        Atoms({RED: [Atom("Is it?")], LOG: []})
