"""Text of others in messages: nothing that a terminal obeys, nothing without end."""

import sys

import pytest

from flowsde._text import listed, names, shown


def test_plain_text_is_left_alone():
    for text in ("blocks.0.attn.qkv.weight", "ein Würfel, 三只猫", "a  b", "\\x1b", ""):
        assert shown(text) == text
    assert shown(3) == "3"


def test_control_characters_are_written_as_in_a_literal():
    """As Python's repr writes them: https://docs.python.org/3/library/stdtypes.html."""
    text = "\x1b[2J\x9b0m a\nb\r\t\x00 \u202egnp\u2028 \ud800"
    assert f"'{shown(text)}'" == repr(text)


def test_every_character_comes_out_printable():
    for i in range(0, sys.maxunicode + 1, 97):
        assert shown(chr(i)).isprintable()


@pytest.mark.parametrize("text", ["x" * 201, "x" * 10**6, "\x1b" * 100, "\x1b" * 10**6])
@pytest.mark.parametrize("limit", [20, 200])
def test_length_is_bounded(text, limit):
    assert len(shown(text, limit)) <= limit


def test_both_ends_of_a_long_name_are_kept():
    said = shown("blocks." + "x" * 10**6 + ".weight", 40)
    assert said.startswith("blocks.x") and said.endswith("x.weight") and "..." in said


def test_lists_are_bounded():
    assert names(["a", "b"]) == "a, b"
    assert names(list("abcdefghijklm"), 3) == "a, b, c and 10 more"
    assert len(names(["x" * 1000] * 1000)) < 3000
    assert listed(["a", "b"], "wrong") == "wrong:\na\nb"
    said = listed((f"{i}\n" * 10**4 for i in range(10**3)), "wrong")
    assert said.splitlines()[0] == "wrong:" and said.splitlines()[-1] == "... and 990 more"
    assert len(said.splitlines()) == 12 and len(said) < 10**4
