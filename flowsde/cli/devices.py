"""Options of a mesh, which `sample` and `batch` share.

What is found does not depend on them, so no result says them and a run may go on with others.
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, NamedTuple

from flowsde._text import shown as as_text
from flowsde.cli.described import described
from flowsde.cli.errors import OptionError
from flowsde.cli.kinds import Flag, shown

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from flowsde.sharding import ShardingRules

_OTHERS = ("prompt", "particle", "token")
"""Axes that candidates and their tokens are split over, and weights only if they are told to be."""


@dataclasses.dataclass(frozen=True, kw_only=True)
@described
class Devices:
    """Share the work among the devices of this process."""

    mesh: Annotated[str | None, shown("AXIS=N,...")] = None
    """Axes of a mesh of devices, such as "prompt=8" or "prompt=4,model=2": batches are split over
    "prompt", the candidates of a sample over "particle", the weights over "model", and of --model
    the tokens of each candidate, for long videos, over "token" (default: the first device
    alone)."""
    fully_sharded: Flag = False
    """Split the weights over the other axes of --mesh as well, each part fetched where it is
    needed: for a model that is too large for a device."""


class Spread(NamedTuple):
    """How the work lies on devices, as `flowsde.run` takes it."""

    mesh: "Mesh | None" = None
    rules: "ShardingRules | None" = None

    @property
    def shares(self) -> int:
        """Parts that the weights of a model are split into, at most."""
        if self.mesh is None:
            return 1
        return self.mesh.size if self.fully else self.mesh.shape.get("model", 1)

    @property
    def fully(self) -> bool:
        """Whether weights are split over all axes."""
        return self.rules is not None


def spread(options: Devices, single: bool = False) -> Spread:
    """The mesh that is asked for.

    Args:
      options: of the command.
      single: whether prompts are searched one by one.

    Raises:
      OptionError: it is none of this process's devices.
    """
    if options.mesh is None:
        if options.fully_sharded:
            raise OptionError("--fully-sharded", "it has no effect without --mesh")
        return Spread()
    sizes = _sizes(options.mesh)
    if single and sizes.get("prompt", 1) > 1:
        n = sizes["prompt"]
        raise OptionError(
            "--mesh", f"a prompt is searched alone here: expected particle={n}, got prompt={n}"
        )
    # JAX is imported once there is a mesh to make.
    import jax
    from jax.sharding import AxisType

    from flowsde.sharding import ShardingRules

    there, wanted = jax.local_devices(), math.prod(sizes.values())
    if wanted > len(there):
        raise OptionError(
            "--mesh", f"{options.mesh} has {wanted} devices, and this process {len(there)}"
        )
    automatic = (AxisType.Auto,) * len(sizes)
    mesh = jax.make_mesh(tuple(sizes.values()), tuple(sizes), automatic, devices=there[:wanted])
    if not options.fully_sharded:
        return Spread(mesh)
    others = tuple(axis for axis in _OTHERS if axis in sizes)
    if not others:
        raise OptionError(
            "--fully-sharded", f"--mesh {options.mesh} has no other axis than of weights, expected "
            "prompt, particle or token"
        )  # fmt: skip
    return Spread(mesh, ShardingRules(embed=others))


@contextmanager
def fitting() -> Iterator[None]:
    """In which weights are put on devices: OptionError for one that these do not share evenly."""
    from flowsde.sharding import UnevenError

    try:
        yield
    except UnevenError as error:
        raise OptionError("--mesh", str(error).partition(";")[0]) from None


def _sizes(text: str) -> dict[str, int]:
    """Devices along each axis."""
    expected = "expected prompt=N, particle=N, token=N or model=N, or several joined by commas"
    sizes: dict[str, int] = {}
    for part in text.split(","):
        found = re.fullmatch(r"(prompt|particle|token|model)=([1-9][0-9]{0,6})", part.strip())
        if found is None or found[1] in sizes:
            raise OptionError("--mesh", f"{expected}, got '{as_text(text)}'")
        sizes[found[1]] = int(found[2])
    return sizes


def idle(options: Devices, axis: str) -> list[str]:
    """That this process has more devices than it uses, and how to use them along an axis."""
    import jax

    many = jax.local_device_count()
    # Those of a CPU are one machine's, cut up by a setting.
    if options.mesh is not None or many == 1 or jax.default_backend() == "cpu":
        return []
    return [f"1 of {many} devices is used: --mesh {axis}={many} shares the work among all"]
