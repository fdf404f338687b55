"""Bytes of others: the format is safetensors', and nothing is taken on trust."""

import io
import json

import numpy as np
import pytest
from safetensors.numpy import load, save

from flowsde.remote import messages, wire
from flowsde.remote.problems import Problem

ARRAYS = {
    "images": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "b": np.asarray([True, False]),
    "c": np.asarray(7, np.int64),
    "d": np.zeros((2, 0), np.uint8),
    "e": np.asarray([1.5, -2.0], np.float16),
}
IMAGES = ARRAYS["images"]


class HeaderAlone(io.BytesIO):
    """Bytes of which no more than the header may be read."""

    def readinto(self, buffer):
        size = int.from_bytes(self.getvalue()[:8], "little")
        assert self.tell() + len(buffer) <= 8 + min(size, wire.MOST_HEADER)
        return super().readinto(buffer)


def read(data):
    stream = io.BytesIO(data)
    header = wire.read_header(stream, len(data))
    return wire.read_arrays(stream, header)[0], header.text


def raw(header, data=b"", size=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if size is None else size).to_bytes(8, "little") + text + data


def test_it_is_the_format_of_safetensors():
    data = wire.dump(ARRAYS, "text é")
    assert data == wire.dump(dict(reversed(ARRAYS.items())), "text é")
    found, text = read(data)
    assert text == "text é"
    for theirs in (load(data), read(save(ARRAYS, {"flowsde": ""}))[0]):
        assert found.keys() == theirs.keys() == ARRAYS.keys()
        for name, array in ARRAYS.items():
            assert found[name].dtype == theirs[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array)
            np.testing.assert_array_equal(theirs[name], array)


META = {"__metadata__": {"flowsde": ""}}


def one(**changes):
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes
    return raw(META | {"a": entry}, b"\0" * 8)


WRONG = {
    "no length": b"1234567",
    "a header of 2**60 bytes": raw(META, size=2**60),
    "a header of more than 1 MiB": raw(b" " * (wire.MOST_HEADER + 1)),
    "a header past the end": raw(META, size=1000),
    "not JSON": raw(b"{"),
    "not Unicode": raw(b"\xff\xfe{}"),
    "deep": raw(b"[" * 100_000),
    "a list": raw([]),
    "no text": raw({}),
    "a text of another kind": raw({"__metadata__": {"flowsde": 7}}),
    "a name twice": raw(b'{"__metadata__": {"flowsde": ""}, "a": 1, "a": 1}'),
    "an object as array": raw(META | {"a": 1}),
    "an unknown dtype": one(dtype="BF17"),
    "a dtype that is no text": one(dtype=["F32"]),
    "a negative shape": one(shape=[-2]),
    "a shape of floats": one(shape=[2.0]),
    "a shape of truths": one(shape=[True, 2]),
    "a shape that overflows 64 bits": one(shape=[2**40, 2**40]),
    "offsets that disagree": one(data_offsets=[0, 4]),
    "offsets backwards": one(data_offsets=[8, 0]),
    "a gap": one(data_offsets=[1, 9]),
    "too little data": one()[:-1],
    "too much data": one() + b"\0",
    "2**50 bytes announced": one(shape=[2**45], data_offsets=[0, 2**47]),
}


@pytest.mark.parametrize("data", WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said_before_memory_is_taken(data):
    with pytest.raises(wire.Malformed):
        wire.read_header(HeaderAlone(data), len(data))


def test_no_bytes_do_worse_than_be_refused():
    good = wire.dump(ARRAYS, json.dumps({"protocol": 1}))
    random, refused = np.random.default_rng(0), 0
    for _ in range(2000):
        data = np.frombuffer(good, np.uint8).copy()
        at = random.integers(0, int.from_bytes(good[:8], "little") + 8, random.integers(1, 4))
        data[at] = random.integers(0, 256, at.size)
        data = data.tobytes()[: random.choice([len(good), random.integers(len(good))])]
        try:
            read(data)
        except wire.Malformed:
            refused += 1
    assert 1000 < refused < 2000


def asked(images=IMAGES, cond=None, reward="judge", version="v1"):
    return messages.pack_request(images, cond, reward, version)


def received(data, **limits):
    stream = HeaderAlone(data) if limits else io.BytesIO(data)
    own = messages.Limits(**limits)
    return messages.read_request(stream, len(data), "judge", "v1", own)


@pytest.mark.parametrize(
    "cond",
    [None, ["one", {"two": [3]}], np.eye(2, dtype=np.float32), {"a": np.arange(2), "b": IMAGES}],
)
def test_a_request_arrives_as_it_was_sent(cond):
    found = received(asked(cond=cond))
    np.testing.assert_array_equal(found.images, IMAGES)
    assert found.images.dtype == IMAGES.dtype and type(found.cond) is type(cond)
    pairs = zip(cond.items(), found.cond.items(), strict=True) if isinstance(cond, dict) else ()
    assert all(a == b and (x == y).all() for (a, x), (b, y) in pairs)
    assert isinstance(cond, dict) or np.all(found.cond == cond)
    assert found.digest == messages.digest_of(asked(cond=cond))
    assert found.digest != messages.digest_of(asked(cond=["others", "two"]))


def test_bfloat16_is_sent_as_the_float32_that_it_is():
    import ml_dtypes

    images = IMAGES.astype(ml_dtypes.bfloat16)
    found = received(asked(images)).images
    assert found.dtype == np.float32 and (found == images.astype(np.float32)).all()


@pytest.mark.parametrize(
    ("data", "limits", "status"),
    [
        (asked(), {"body": 100}, 413),
        (asked(), {"n": 1}, 422),
        (asked(), {"values": 11}, 413),
        (asked(cond=["a" * 101, "b"]), {"text": 100}, 413),
        (asked(cond=["a", ["b" * 100]]), {"text": 100}, 413),
        (asked(reward="other"), {"n": 9}, 404),
        (asked(version="v2"), {"n": 9}, 409),
        (asked(cond=["a"]), {"n": 9}, 422),
        (asked(cond=np.eye(3)), {"n": 9}, 422),
        (asked(np.zeros((0, 3))), {"n": 9}, 422),
        (wire.dump({"images": IMAGES}, "{}"), {"n": 9}, 400),
        (wire.dump({"images": IMAGES}, "{"), {"n": 9}, 400),
        (wire.dump({"b": IMAGES}, json.dumps({"protocol": 1})), {"n": 9}, 404),
    ],
)
def test_limits_are_those_of_the_header(data, limits, status):
    with pytest.raises(Problem) as refused:
        received(data, **limits)
    assert refused.value.status == status and len(str(refused.value)) < 400


def test_what_cannot_be_sent_is_named():
    for cond, said in [([object(), 1], "texts"), ({"a": "b"}, "str as cond 'a'"), ("text", "str")]:
        with pytest.raises(TypeError, match=said):
            asked(cond=cond)
    with pytest.raises(TypeError, match="images must be numbers"):
        asked(np.asarray(["a", "b"]))
