"""The option --size."""

import pytest

from flowsde.models.common.size import height_and_width


def test_width_comes_first():
    assert height_and_width("832x480") == (480, 832)
    assert height_and_width("1024") == (1024, 1024)


@pytest.mark.parametrize("size", ["", "x480", "832x", "8X4", "8x4x3", "-1", "1e3", "123456"])
def test_anything_else_is_refused(size):
    with pytest.raises(ValueError, match="--size must be WIDTHxHEIGHT or one number of pixels"):
        height_and_width(size)
