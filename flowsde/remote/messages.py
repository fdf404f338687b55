"""What a request and an answer hold, and how large they may be.

A request has the array ``images`` [n, ...] and what its reward is told of them: nothing, a JSON
list of n objects (prompts, mostly), or arrays with a leading axis n, called ``cond`` or, of a
dictionary, ``cond/NAME``. Its text is JSON: protocol, name and version of the reward, and the list.

An answer has the array ``scores`` [n]; its text has the version, the digest of the request that it
answers, and the seconds that it waited and took.
"""

import dataclasses
import hashlib
import json
import math
from typing import Any, NamedTuple

import numpy as np

from flowsde.remote.problems import OTHER_VERSION, Problem
from flowsde.remote.wire import Header, Malformed, Stream, dump, read_arrays, read_header

PROTOCOL = 1
SCORE, INFO, HEALTH = "/v1/score", "/v1/info", "/v1/health"
"""Paths of the service."""
_ANSWER = 1 << 16
"""Bytes of an answer beside its scores."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Of a request, checked on its header.

    Attributes:
      body: bytes.
      n: images.
      values: numbers of one image: height × width × channels, times frames of a video.
      text: characters of one prompt, or of another object as JSON.
    """

    body: int = 128 << 20
    n: int = 256
    values: int = 1 << 26
    text: int = 20_000


class Request(NamedTuple):
    """What is to be scored.

    Attributes:
      images: [n, ...].
      cond: None, a list of n, an array [n, ...] or a dictionary of them.
      digest: of all bytes, which the answer repeats.
    """

    images: np.ndarray
    cond: Any
    digest: str


class Answer(NamedTuple):
    """Scores [n] of a floating dtype, all finite; the version; seconds waited and computed."""

    scores: np.ndarray
    version: str
    waited: float
    computed: float


def digest_of(*parts: bytes | bytearray) -> str:
    """Of a message's bytes, 128 bits in hexadecimal."""
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        found.update(part)
    return found.hexdigest()


def pack_request(images: np.ndarray, cond: Any, reward: str, version: str) -> bytes:
    """A request's bytes.

    Raises:
      TypeError: naming what cannot be sent.
    """
    arrays = {"images": _plain("images", images)}
    about: dict[str, Any] = {"protocol": PROTOCOL, "reward": reward, "version": version}
    if isinstance(cond, list):
        about["list"] = cond
    elif isinstance(cond, dict):
        arrays |= {f"cond/{name}": _plain(f"cond {name!r}", a) for name, a in cond.items()}
    elif cond is not None:
        arrays["cond"] = _plain("cond", cond)
    try:
        text = json.dumps(about, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(f"reward_cond must be texts, other JSON, or arrays: {error}") from None
    return dump(arrays, text)


def _plain(name: str, array: Any) -> np.ndarray:
    """An array of a dtype that the wire has; bfloat16 and the like as float32, which holds them."""
    if not isinstance(array, np.ndarray | np.generic):
        raise TypeError(
            f"a remote reward is told texts, an array or a dictionary of arrays, got "
            f"{type(array).__name__} as {name}"
        )
    array = np.asarray(array)
    if array.dtype.kind == "V" and array.dtype.itemsize <= 2:
        array = array.astype(np.float32)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must be numbers, got {array.dtype}")
    return array


def read_request(stream: Stream, length: int, reward: str, version: str, limits: Limits) -> Request:
    """A request, of which everything is checked before its arrays are read.

    Raises:
      Problem: it is too large, malformed, or for another reward or version.
    """
    if length > limits.body:
        raise Problem(413, f"a request has at most {limits.body} bytes, got {length}")
    try:
        header = read_header(stream, length)
        about = _about(header)
    except Malformed as error:
        raise Problem(400, str(error)) from None
    if about.get("reward") != reward:
        raise Problem(404, f"the reward here is {reward!r}, got {about.get('reward')!r:.200}")
    if about.get("version") != version:
        raise Problem(OTHER_VERSION, f"the version of {reward!r} is {version} here")
    _check_shapes(header, about, limits)
    try:
        arrays, data = read_arrays(stream, header)
    except Malformed as error:
        raise Problem(400, str(error)) from None
    images = arrays.pop("images")
    cond: Any = about.get("list", arrays.pop("cond", None))
    if arrays:
        cond = {name.removeprefix("cond/"): array for name, array in arrays.items()}
    return Request(images, cond, digest_of(header.raw, data))


def _about(header: Header) -> dict[str, Any]:
    try:
        about = json.loads(header.text)
    except (ValueError, RecursionError):
        raise Malformed("the text beside the arrays is not JSON") from None
    if not isinstance(about, dict) or about.get("protocol") != PROTOCOL:
        raise Malformed(f"expected a message of protocol {PROTOCOL}")
    return about


def _check_shapes(header: Header, about: dict[str, Any], limits: Limits) -> None:
    arrays = header.arrays
    shape = arrays["images"].shape if "images" in arrays else ()
    if not shape or not 1 <= shape[0] <= limits.n:
        raise Problem(422, f"images must be of shape [n, ...], n from 1 to {limits.n}, got {shape}")
    if math.prod(shape[1:]) > limits.values:
        raise Problem(413, f"an image has at most {limits.values} numbers, got {shape[1:]}")
    told = set(arrays) - {"images"}
    if told != {"cond"} and not all(name.startswith("cond/") for name in told):
        raise Problem(422, f"unknown arrays {sorted(told)!r:.200}")
    kinds = ("list" in about) + ("cond" in told) + any(name != "cond" for name in told)
    if kinds > 1:
        raise Problem(422, "cond must be a list or arrays, got both")
    for name in told:
        if arrays[name].shape[:1] != shape[:1]:
            raise Problem(422, f"{name} must have a leading axis of {shape[0]}: {name!r:.100}")
    objects = about.get("list", [None] * shape[0])
    if not isinstance(objects, list) or len(objects) != shape[0]:
        raise Problem(422, f"expected a list of {shape[0]}, one of each image")
    longest = max(len(o) if isinstance(o, str) else len(json.dumps(o)) for o in objects)
    if longest > limits.text:
        raise Problem(413, f"a prompt has at most {limits.text} characters, got {longest}")


def pack_answer(answer: Answer, digest: str) -> bytes:
    """An answer's bytes."""
    about = {"protocol": PROTOCOL, "version": answer.version, "request": digest}
    about |= {"waited": answer.waited, "computed": answer.computed}
    return dump({"scores": answer.scores}, json.dumps(about, sort_keys=True))


def read_answer(stream: Stream, length: int, n: int, digest: str) -> Answer:
    """The answer to a request of n images.

    Raises:
      Malformed: it is none, is to another request, or has not n finite scores.
    """
    if length > _ANSWER + 8 * n:
        raise Malformed(f"an answer has at most {_ANSWER + 8 * n} bytes, got {length}")
    header = read_header(stream, length)
    about = _about(header)
    entry = header.arrays.get("scores")
    if entry is None or entry.shape != (n,) or entry.dtype.kind != "f":
        got = "none" if entry is None else f"shape {entry.shape} and dtype {entry.dtype}"
        raise Malformed(f"expected scores of shape ({n},) and a floating dtype, got {got}")
    if about.get("request") != digest:
        raise Malformed("the answer is to another request")
    if not isinstance(about.get("version"), str):
        raise Malformed("the answer has no version")
    scores = read_arrays(stream, header)[0]["scores"]
    if not np.isfinite(scores).all():
        raise Malformed("the scores are not finite")
    try:
        waited, computed = float(about["waited"]), float(about["computed"])
    except (KeyError, TypeError, ValueError, OverflowError):
        raise Malformed("the answer does not say its seconds") from None
    return Answer(scores, about["version"], waited, computed)
