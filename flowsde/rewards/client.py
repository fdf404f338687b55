"""`remote`: a reward that is computed elsewhere, by ``flowsde serve-reward``."""

import os
from collections.abc import Sequence

from flowsde._checks import check_bool, check_count, check_non_negative, check_positive
from flowsde.remote.client import Client, Patience
from flowsde.remote.connection import Connections
from flowsde.remote.problems import ENVIRONMENT, RemoteError
from flowsde.rewards.base import HostReward, RewardError

_LATE = 30.0
"""Seconds that a call may take after its deadline, which ends it by itself."""


def remote(
    urls: str | Sequence[str],
    reward: str | None = None,
    *,
    token: str | None = None,
    cost: float = 0.0,
    minibatch: int | None = None,
    connect_timeout: float = 5.0,
    read_timeout: float = 120.0,
    deadline: float = 600.0,
    retries: int = 6,
    max_in_flight: int = 4,
    chunk: int = 8,
    as_pixels: bool = False,
    latents: bool = False,
    insecure: bool = False,
) -> HostReward:
    """A reward of ``flowsde serve-reward``, on this machine or another; a host reward.

    Images are sent as they are, so that it scores what a function here would, and `reward_cond` as
    JSON or arrays. Servers are asked now what they serve: all that answer must have one version,
    and a search goes on with that version alone. What is worth another try (no answer, 408, 429,
    502, 503, 504) is tried again, at another server if there is one; all else is an error at once.

    Args:
      urls: ``http://host:port`` or https, of one or several servers of the same reward.
      reward: name that they must serve; whatever it is, by default.
      token: of the servers; FLOWSDE_REWARD_TOKEN of the environment by default.
      cost, minibatch: as for `device`.
      connect_timeout, read_timeout: seconds for a connection, and for an answer to a request.
      deadline: seconds of one call, with all that is tried again.
      retries: of one request.
      max_in_flight: requests at once, over all servers: more than these compute, so that none waits
        for the next.
      chunk: images of one request, at most.
      as_pixels: send pictures in [-1, 1] as uint8, a quarter of the bytes; scores are then of what
        was rounded.
      latents: send latents x0 [n, *flow.shape] in place of images, which the servers' function has
        to expect; as for `device`.
      insecure: send the token over plain HTTP to another machine, where anyone on the way reads it.

    Raises:
      ValueError, TypeError: naming the argument.
      RewardError: no server answers, or they serve another reward, or different versions.

    Example:
      >>> reward = fs.rewards.remote("http://127.0.0.1:8321")  # flowsde serve-reward, there
      >>> reward(np.zeros([2, 8, 8, 3], np.float32), None).shape
      (2,)
    """
    every = [urls] if isinstance(urls, str) else list(urls)
    if not every or not all(isinstance(url, str) for url in every):
        raise ValueError(f"urls must be a URL or a list of them, got {urls!r:.200}")
    seconds = {"connect_timeout": connect_timeout, "read_timeout": read_timeout}
    for name, value in {**seconds, "deadline": deadline}.items():
        check_positive(name, value)
    check_non_negative("cost", cost)
    check_bool("latents", latents)
    if latents and as_pixels:
        raise ValueError("as_pixels is of pictures, expected it without latents")
    token = (os.environ.get(ENVIRONMENT) or None) if token is None else token
    patience = Patience(retries=check_count("retries", retries, 0), deadline=deadline)
    servers = [Connections(url, token, connect_timeout, read_timeout, insecure) for url in every]
    try:
        client = Client(
            servers,
            reward,
            patience=patience,
            max_in_flight=check_count("max_in_flight", max_in_flight),
            chunk=check_count("chunk", chunk),
            as_pixels=as_pixels,
        )
    except RemoteError as error:
        raise RewardError(str(error)) from None
    size = None if minibatch is None else check_count("minibatch", minibatch)
    # The timeout is above the deadline: a call in a thread of its own lets signals through.
    late = deadline + _LATE
    own = (client.reward, float(cost), size, late, client.version)
    return HostReward(client, *own, latents=latents)
