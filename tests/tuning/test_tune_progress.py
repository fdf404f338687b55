"""What is said of a tuning's length: before it, by races that leave out as little as they can."""

import math

import numpy as np
import pytest

from flowsde.tuning.progress import Course, searches_left
from flowsde.tuning.race import race
from flowsde.tuning.split import split


@pytest.mark.parametrize("standards", [0, 1, 2])
@pytest.mark.parametrize(
    ("settings", "prompts", "seeds"), [(4, 1, 4), (12, 2, 12), (46, 48, 1), (12, 9, 2)]
)
def test_no_race_takes_more_searches_and_one_of_equals_takes_as_many(
    settings, prompts, seeds, standards
):
    names, halves = [str(i) for i in range(settings)], split(prompts, seeds)
    usual = set(names[-standards:]) if standards else set()
    counted = []

    def equal(name, units):
        counted.append(len(units))
        return np.asarray([unit.prompt + unit.seed for unit in units], float)

    course = Course(names, halves, 0, standards)
    said = course.most
    found = race(
        names, {names[0]}, halves, equal, usual,
        tell=lambda rung: course.go_on([s.name for s in rung.table if not s.why], rung.units),
    )  # fmt: skip
    every = sum(counted) + len(found.finalists) * len(halves.final)
    assert said == searches_left(settings, 0, settings, halves, standards) == every


def test_what_is_left_counts_what_is_compiled_once():
    names, halves = [str(i) for i in range(12)], split(2, 12)
    course = Course(names, halves, 0)
    # Rungs of 6, 12 and 24 searches, of 12, 6 and 3 settings, and the comparison of 3.
    assert course.most == 12 * 6 + 6 * 6 + 3 * 12 + 3 * 24 and math.isnan(course.left)
    for name in names[:3]:
        course.measured(name, 6, 12.0)
    assert course.done == 18 and course.left == (216 - 18) * 2.0
    for name in names[3:]:
        course.measured(name, 6, 12.0)
    course.go_on(names[:4], 6)
    # Four, of which at most six could have stayed, and then three.
    assert course.most == 72 + 4 * 6 + 3 * 12 + 72
    course.measured(names[0], 6, 6.0)
    assert course.left == (204 - 78) * 1.0
    course.measured(names[1], 6, 6.0)
    course.compare(names[:2])
    assert course.most == 84 + 2 * 24


def test_what_is_known_is_done_from_the_start_and_says_nothing_of_speed():
    names, halves = [str(i) for i in range(12)], split(2, 12)
    course = Course(names, halves, 72)
    assert course.done == 72
    for name in names:
        course.measured(name, 6, None)
    assert course.done == 72 and math.isnan(course.left)
    course.go_on(names[:6], 6)
    course.measured("0", 6, 30.0)
    course.measured("0", 6, 6.0)
    # Five others are compiled yet, which takes 24 seconds more than six searches.
    assert course.left == (216 - 84) * 1.0 + 5 * 24.0
