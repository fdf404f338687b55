"""`flowsde serve-reward`: the options, and a server until a signal comes.

Neither JAX nor anything that needs it is imported but for a reward of `NAMES`: a function of a
module is served from whatever environment it needs.
"""

import dataclasses
import importlib
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from flowsde import interrupts
from flowsde._checks import check_count, check_path
from flowsde.cli.described import described
from flowsde.cli.errors import OptionError
from flowsde.cli.options import Flag, number, shown
from flowsde.remote.batching import Batcher
from flowsde.remote.messages import Limits
from flowsde.remote.problems import ENVIRONMENT
from flowsde.remote.served import Served, served
from flowsde.remote.server import RewardServer

NAMES = (
    "likelihood", "rss", "clip", "pick", "hpsv2", "hpsv2.1", "imagereward", "vqascore",
    "vqascore-odds", "instructblip", "instructblip-odds", "owlv2", "owlv2-smooth", "qwen3vl",
    "qwen3vl-share", "qwen3vl-odds", "qwen3vl-counts", "aesthetic",
)  # fmt: skip
"""Rewards that `_NAMED` loads."""
_NAMED = "flowsde.cli.named_rewards"
_GRACE = 30.0
"""Seconds for requests under way when a signal has come."""


@dataclasses.dataclass(frozen=True, kw_only=True)
@described
class ServeReward:
    """Serve a reward to searches on other machines, or in other environments.

    Clients are fs.rewards.remote(urls, ...). Bodies are safetensors, never pickle; a failure is an
    error that the search can be resumed from, never a score. The token of clients is read from
    --token-file or from FLOWSDE_REWARD_TOKEN. Runs until Ctrl-C or SIGTERM.
    """

    reward: Annotated[str, shown("NAME|MODULE:FUNCTION")]
    """Function of (images, prompts) -> n floats, which may import what it wants; or likelihood,
    rss, or one with a converted model, as for sample. `flowsde rewards` lists them."""
    reward_model: Annotated[tuple[Path, ...], shown("FOLDER"), tyro.conf.UseAppendAction] = ()
    """Folder of a converted model, if the reward needs one, as for sample."""
    version: Annotated[str | None, shown("TEXT")] = None
    """Version of the reward, which searches are pinned to; by default a hash of the module's
    source, of its VERSION if it has one, and of --weights."""
    weights: Annotated[tuple[Path, ...], shown("PATH"), tyro.conf.UseAppendAction] = ()
    """File or folder of weights that the scores of MODULE:FUNCTION depend on: part of the
    version."""
    host: Annotated[str, shown("HOST")] = "127.0.0.1"
    """Address to listen at, this machine's own by default; any other needs a token. The connection
    is plain HTTP: between machines use a tunnel, or a proxy that speaks https."""
    port: Annotated[int, number(int, "an integer")] = 8321
    """Port to listen at; 0 takes one that is free."""
    token_file: Annotated[Path | None, shown("FILE")] = None
    """File whose text is the token, at least 16 characters."""
    batch: Annotated[int, number(int, "an integer")] = 32
    """Images of one call of the reward, at most; halved where memory runs out."""
    fixed: Flag = False
    """Call the reward with just --batch images always, some of them repeated, so that scores do not
    depend on which are computed together. Always so for a NAME."""
    queue: Annotated[int, number(int, "an integer")] = 32
    """Requests that are read, waiting and computed at once; further ones are told to come again."""
    most: Annotated[int, number(int, "an integer")] = 256
    """Images of one request, at most."""
    body: Annotated[int, number(int, "an integer")] = 128
    """MiB of one request, at most."""
    timeout: Annotated[float, number(float, "a number")] = 300.0
    """Seconds that a request may take."""

    def prepare(self) -> Callable[[], int]:
        """Load the reward and bind the port; the function serves until a signal comes.

        Raises:
          ValueError, TypeError, OSError: naming the option that is wrong.
        """
        for name in ("batch", "queue", "most", "body"):
            check_count(f"--{name}", getattr(self, name), most=1 << 20)
        if not 0 <= self.port < 1 << 16:
            raise OptionError("--port", f"expected 0 to 65535, got {self.port}")
        if not 0.0 < self.timeout < 1e6:
            raise OptionError("--timeout", f"expected seconds above 0, got {self.timeout}")
        token, found = self._token(), self._served()
        batcher = Batcher(
            found.fn, found.version, batch=self.batch, fixed=self.fixed or found.name in NAMES
        )
        try:
            server = RewardServer(
                self.host,
                self.port,
                batcher,
                found.name,
                found.version,
                token=token,
                limits=Limits(body=self.body << 20, n=self.most),
                places=self.queue,
                timeout=self.timeout,
            )
        except OSError as error:
            where = f"{self.host}:{self.port}"
            raise OptionError("--port", f"{where} cannot be bound: {error.strerror}") from None
        print(f"reward  {found.name}\nversion {found.version}\nurl     {server.url}", flush=True)
        return partial(_serve, server, batcher)

    def _token(self) -> str | None:
        if self.token_file is None:
            return os.environ.get(ENVIRONMENT) or None
        return check_path("--token-file", self.token_file).read_text("utf-8").strip()

    def _served(self) -> Served:
        if ":" in self.reward:
            if self.reward_model:
                raise OptionError("--reward-model", f"has no effect with {self.reward}")
            return served(self.reward, self.version, self.weights)
        if self.reward not in NAMES:
            known = ", ".join(NAMES)
            raise OptionError("--reward", f"expected {known} or MODULE:FUNCTION")
        if self.weights:
            raise OptionError("--weights", f"has no effect with --reward {self.reward}")
        found = importlib.import_module(_NAMED).load(self.reward, self.reward_model)
        return found if self.version is None else found._replace(version=self.version)


def _serve(server: RewardServer, batcher: Batcher) -> int:
    """Answer requests until a signal comes, then those that are under way."""
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            interrupts.check()
            time.sleep(0.1)
    except interrupts.Interrupted:
        pass
    finally:
        server.shutdown()
        batcher.close(_GRACE)
        server.server_close()
    return 0
