"""How a run lies on a mesh: prompts over some of its axes, the rows of a round over those and more.

What a search does, asking and telling, is *local*: each device does it for its own prompts, in a
`jax.shard_map` over all axes of the mesh, so that no collective can slip into it. Devices along
the particle axes share their prompts and do it alike; each evaluates a part of the rows, and what
they were worth is put together before telling. The model in between is left to the compiler, which
splits it as its parameters are.

Without a mesh everything is local to one device, and nothing here does anything.
"""

import contextlib
import dataclasses
import functools
import math
import os
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flowsde.sharding import put

F = TypeVar("F", bound=Callable[..., Any])
EVERYWHERE = PartitionSpec()
"""Of what all devices hold."""


@dataclasses.dataclass(frozen=True)
class Placement:
    """Axes of a mesh, by what is split over them. Static.

    Attributes:
      mesh: with automatic axes; None for the device that JAX chooses.
      prompt: axes over which prompts are split.
      particle: axes over which the rows of a prompt are.
      token: axes over which the model splits the tokens of a row; else devices along them do alike.
      device: without a mesh, the one that some parameters are committed to; None for the one that
        JAX chooses. What a round gives is committed then: were what the first is given not, the
        second would be compiled anew.
    """

    mesh: Mesh | None = None
    prompt: tuple[str, ...] = ()
    particle: tuple[str, ...] = ()
    token: tuple[str, ...] = ()
    device: jax.Device | None = None

    def _ways(self, axes: tuple[str, ...]) -> int:
        return 1 if self.mesh is None else math.prod(self.mesh.shape[axis] for axis in axes)

    @property
    def prompts(self) -> int:
        """Parts that prompts are split into."""
        return self._ways(self.prompt)

    @property
    def particles(self) -> int:
        """Parts that the rows of a prompt are split into."""
        return self._ways(self.particle)

    @property
    def groups(self) -> int:
        """Parts that all rows are split into."""
        return self.prompts * self.particles

    @property
    def by_prompt(self) -> PartitionSpec:
        """Of arrays with a leading axis of prompts."""
        return PartitionSpec(self.prompt or None)

    @property
    def by_row(self) -> PartitionSpec:
        """Of arrays with a leading axis of rows."""
        return PartitionSpec((*self.prompt, *self.particle) or None)

    def local(self, f: Callable[..., Any], ins: Any, outs: Any) -> Callable[..., Any]:
        """A function on each device's own part of its arguments, which ``ins`` says."""
        if self.mesh is None:
            return f
        return jax.shard_map(f, mesh=self.mesh, in_specs=ins, out_specs=outs, check_vma=False)

    def rowwise(self, f: Callable[..., Any]) -> Callable[..., Any]:
        """`local` for a function of rows."""
        return self.local(f, self.by_row, self.by_row)

    def alike(self, f: Callable[..., Any]) -> Callable[..., Any]:
        """`local` for a function of what all devices hold, and then do alike."""
        return self.local(f, EVERYWHERE, EVERYWHERE)

    @property
    def of_rows(self) -> "Placement":
        """Where each row is a prompt of its own: they are split over what all rows are."""
        rows = (*self.prompt, *self.particle)
        return dataclasses.replace(self, prompt=rows, particle=())

    def put(self, tree: Any, spec: PartitionSpec) -> Any:
        """Arrays on the mesh, or the device."""
        if self.mesh is None:
            return tree if self.device is None else jax.device_put(tree, self.device)
        sharding = NamedSharding(self.mesh, spec)
        return jax.tree.map(lambda a: put(a, sharding), tree)

    def shapes(self, tree: Any) -> Any:
        """Shapes of arrays as those on the mesh have them, so that traces are shared."""
        if self.mesh is None:
            return tree
        sharding = NamedSharding(self.mesh, EVERYWHERE)
        return jax.tree.map(lambda a: a.update(sharding=sharding), tree)

    def keep(self, tree: Any, spec: PartitionSpec) -> Any:
        """Arrays split so and not otherwise, in a compiled program."""
        if self.mesh is None:
            return tree
        return jax.lax.with_sharding_constraint(tree, NamedSharding(self.mesh, spec))

    def around_model(self) -> contextlib.AbstractContextManager[Any]:
        """In which a model is traced: kernels that the compiler cannot split find the mesh."""
        if self.mesh is None:
            return contextlib.nullcontext()
        return jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh)

    # Within `local`:

    def first_prompt(self, n: int) -> Any:
        """Number of this device's first prompt, of the n that it has."""
        return n * jax.lax.axis_index(self.prompt) if self.prompt else 0

    def own(self, rows: Any) -> Any:
        """Of rows [m, ...] of this device's prompts, those it evaluates: every so manieth.

        Where they do not come out even, the last row is there again.
        """
        if self.particles == 1:
            return rows
        m = jax.tree.leaves(rows)[0].shape[0]
        at = self._numbers(m)
        return jax.tree.map(lambda a: a[jnp.minimum(at, m - 1)], rows)

    def repeated(self, m: int) -> jax.Array:
        """Which rows of `own` are there only to come out even, bool [k]."""
        return self._numbers(m) >= m

    def _numbers(self, m: int) -> jax.Array:
        steps = jnp.arange(-(-m // self.particles), dtype=jnp.int32)
        part = jax.lax.axis_index(self.particle) if self.particle else 0
        return part + self.particles * steps

    def joined(self, rows: Any) -> Any:
        """Rows [k, ...] of `own`, of all devices that share their prompts: in order, m or more."""

        def join(a: jax.Array) -> jax.Array:
            parts = jax.lax.all_gather(a, self.particle, axis=1)
            return parts.reshape(-1, *a.shape[1:])

        return jax.tree.map(join, rows)


def memory(mesh: Mesh | None) -> float:
    """Bytes of memory of one of this process's devices, of a mesh or of all."""
    device = (jax.local_devices() if mesh is None else mesh.local_devices)[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    # A CPU has the machine's.
    return limit or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def gather(tree: Any) -> Any:
    """A pytree whose arrays are whole in this process; of several, all must call it."""
    leaves = jax.tree.leaves(tree)
    far = [i for i, a in enumerate(leaves) if not getattr(a, "is_fully_addressable", True)]
    if far:
        everywhere = NamedSharding(leaves[far[0]].sharding.mesh, EVERYWHERE)
        copies = _copied([leaves[i] for i in far], everywhere)
        for i, copy in zip(far, copies, strict=True):
            leaves[i] = copy.addressable_data(0)
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


@partial(jax.jit, static_argnames=("sharding",))
def _copied(arrays: list[jax.Array], sharding: NamedSharding) -> list[jax.Array]:
    return jax.lax.with_sharding_constraint(arrays, sharding)


def fetch(tree: Any) -> Any:
    """`gather`, in NumPy."""
    return jax.device_get(gather(tree))


ALONE = Placement()
"""Without a mesh."""


def on_every_device(f: F) -> F:
    """A function that all devices of its `placement` do alike, see `Placement.alike`.

    Its arrays are given by position; `placement`, and all else that is static, by name.
    """

    @functools.wraps(f)
    def shared(*arrays: Any, placement: Placement = ALONE, **static: Any) -> Any:
        return placement.alike(partial(f, placement=placement, **static))(*arrays)

    return cast(F, shared)


def committed_to(tree: Any) -> list[set[jax.Device]]:
    """The devices that arrays are committed to, each once: what lies on others cannot be given to
    one program."""
    found: list[set[jax.Device]] = []
    for leaf in jax.tree.leaves(tree):
        if getattr(leaf, "committed", False) and leaf.devices() not in found:
            found.append(leaf.devices())
    return found
