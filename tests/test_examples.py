"""The examples of docstrings: every public name has one, of at most ten lines, and they run."""

import doctest
import inspect
import math
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chat_server import judging, told
from faulty import serving
from test_public import NAMES

import flowsde as fs

PARSER = doctest.DocTestParser()
JUDGE, REMOTE = "http://127.0.0.1:8000/v1", "http://127.0.0.1:8321"
SLOW = (
    "fs.run(",
    "fs.iterate(",
    "fs.batch(",
    "fs.sample(",
    "fs.posterior_samples(",
    "fs.diagnose(",
    "fs.tune(",
    "fs.check_",
    "fs.tournament(",
    "fs.reparameterise(",
    "search.ask(",
    "load_",
    "fs.Flow",
    "fs.analytic.",
    "lexicographic(",
    "http://",
)
"""What compiles, or reads weights."""


def described():
    """Functions and classes by their public names."""
    for module, names in NAMES.items():
        inside = fs if module == "flowsde" else getattr(fs, module.partition(".")[2])
        for name in names.split():
            value = getattr(inside, name)
            if callable(value) and not inspect.ismodule(value):
                yield f"{module}.{name}", value


PUBLIC = dict(described())
TEXTS = {name: inspect.getdoc(value) or "" for name, value in PUBLIC.items()}
WITH = {name: text for name, text in TEXTS.items() if PARSER.get_examples(text)}
# Former and second names have the same text.
EXAMPLES = {name: text for text, name in {text: name for name, text in WITH.items()}.items()}


def makes(name, maker, cls):
    """Whether a function makes a class, by its name or by the type that it returns."""
    if inspect.isclass(maker):
        return False
    same = name.rpartition(".")[2].replace("_", "") == cls.__name__.lower()
    return same or typing.get_type_hints(maker).get("return") is cls


def test_every_public_name_has_an_example():
    """Of its own, or that of the function which makes it."""
    for name, value in PUBLIC.items():
        if inspect.isclass(value) and any(makes(own, PUBLIC[own], value) for own in WITH):
            continue
        assert name in WITH, name


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_are_short_and_name_what_they_show(name):
    text = EXAMPLES[name].rpartition("Example:\n")[2]
    assert text.splitlines()[0].startswith("  >>>") and len(text.splitlines()) <= 10
    value = PUBLIC[name]
    if inspect.isfunction(value):
        assert f".{value.__name__}" in text


def likely(request):
    """The first of the two answers, to every question."""
    _, texts = told(request)
    answers = ("A", "B") if "A or B" in texts[-1] else ("Yes", "No")
    return [(answers[0], math.log(0.9)), (answers[1], math.log(0.1))]


@pytest.fixture
def servers():
    """A reward and a judge on this machine, by the addresses in the examples."""
    with serving(lambda images, cond: images.mean(axis=(1, 2, 3))) as own, judging(likely) as judge:
        yield {REMOTE: own.url, JUDGE: judge.url}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if any(w in text for w in SLOW) else ())
        for name, text in EXAMPLES.items()
    ],
)
def test_examples_run(name, request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = EXAMPLES[name]
    if "http://" in text:
        for address, own in request.getfixturevalue("servers").items():
            text = text.replace(address, own)
    test = PARSER.get_doctest(text, {"jax": jax, "jnp": jnp, "np": np, "fs": fs}, name, None, None)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    said = []
    # As users have it.
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        failed = runner.run(test, out=said.append).failed
    assert not failed, "".join(said)
