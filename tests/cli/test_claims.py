"""Who searches for what, among processes that share a folder."""

import os

import pytest

from flowsde import _own
from flowsde.cli.claims import Claims

NAMES = ["a", "b", "c", "d", "e"]


def nothing(name):
    return False


@pytest.fixture
def hidden(tmp_path):
    with _own.shared(tmp_path) as hidden:
        yield hidden


def died(claims):
    """As the kernel leaves a process that was killed: its locks are gone, its file is not."""
    os.close(claims._own)


def test_no_prompt_is_two_processes(hidden):
    one, two = Claims(hidden), Claims(hidden)
    assert one.take(NAMES, nothing, 2) == ["a", "b"]
    assert two.take(NAMES, nothing, 8) == ["c", "d", "e"]
    assert one.workers() == two.workers() == 2
    # What was taken before is given back, done or not.
    assert one.take(NAMES, lambda name: name == "a", 8) == ["b"]
    assert two.take(NAMES, lambda name: True, 8) == []
    assert one.take(NAMES, nothing, 8) == NAMES
    one.close()
    assert two.take(NAMES, nothing, 1) == ["a"] and two.workers() == 1
    two.close()


def test_those_of_a_dead_process_are_taken_over(hidden):
    one, two = Claims(hidden), Claims(hidden)
    one.take(NAMES, nothing, 4)
    assert two.take(NAMES, nothing, 8) == ["e"]
    died(one)
    assert two.take(NAMES, nothing, 8) == NAMES and two.workers() == 1
    two.close()
    assert sorted(path.name for path in (hidden / "claims").iterdir()) == ["lock"]


def test_what_failed_is_tried_by_nobody_until_all_have_ended(hidden):
    one, two = Claims(hidden), Claims(hidden)
    one.fail("b", "it is odd")
    one.fail("d", "so is this")
    one.close()
    assert two.take(NAMES, nothing, 8) == ["a", "c", "e"]
    assert two.failed() == {"b": "it is odd", "d": "so is this"}
    three = Claims(hidden)
    assert three.failed().keys() == {"b", "d"}
    two.close()
    three.close()
    again = Claims(hidden)
    assert again.failed() == {} and again.take(NAMES, nothing, 8) == NAMES
    again.close()


def test_all_are_asked_for_the_same(hidden):
    one, two = Claims(hidden), Claims(hidden)
    with one.alone():
        one.check_same({"--seed": 1, "settings": {"eta": float("inf")}})
        one.check_same({"--seed": 1, "settings": {"eta": float("inf")}})
    with two.alone(), pytest.raises(ValueError, match="were given another settings"):
        two.check_same({"--seed": 1, "settings": {"eta": 1.0}})
    one.close()
    two.close()
    again = Claims(hidden)
    with again.alone():
        again.check_same({"--seed": 2})
    again.close()


def test_what_a_live_process_has_written_must_be_readable(hidden):
    one, two = Claims(hidden), Claims(hidden)
    os.ftruncate(one._own, 0)
    with pytest.raises(ValueError, match="of a process that is alive, cannot be read"):
        two.take(NAMES, nothing, 1)
    one.close()
    two.close()


def test_a_folder_is_one_process_or_those_that_share_it(tmp_path):
    with _own.shared(tmp_path), _own.shared(tmp_path):
        with pytest.raises(ValueError, match="another flowsde process is writing to"):
            with _own.locked(tmp_path):
                pass
        _own.release_unless_shared(tmp_path)
        assert _own.is_ours(tmp_path / ".flowsde")
    with _own.locked(tmp_path) as hidden:
        (hidden / "kept").write_text("")
        with pytest.raises(ValueError, match="another flowsde process is writing to"):
            with _own.shared(tmp_path):
                pass
    _own.release_unless_shared(tmp_path)
    assert not (tmp_path / ".flowsde").exists()
