"""Where arrays go on a mesh: rules from the logical names of their axes to axes of the mesh.

"prompt" and "particle" lead the states and the candidates of searches; "token" is a place in a
transformer's sequence, see `flowsde.models.common.sequence`; "embed", "heads", "mlp", "vocab" and
"layer" are axes of parameters, see `flowsde.models.common.layers`. The default rules are data
parallel over prompts and particles, tensor parallel over "model", and split tokens over "token":

    mesh = jax.make_mesh((2, 1, 4), ("prompt", "particle", "model"), (AxisType.Auto,) * 3)
    ShardingRules().spec("embed", "mlp")                    # PartitionSpec(None, "model")
    ShardingRules(embed="prompt").spec("embed", "mlp")      # fully sharded as well
"""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from flax import nnx
from flax.core.meta import Partitioned
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

MeshAxes = str | tuple[str, ...] | None
Axes = tuple[str | None, ...]
AXES = ("prompt", "particle", "token", "model")
"""Of a mesh, in the default rules; a mesh may have some of them only."""


class UnevenError(ValueError):
    """Devices do not share a parameter evenly."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardingRules:
    """Axes of a mesh that each logical axis is split over, from the slowest; None for none.

    Example:
      >>> tuple(fs.ShardingRules().spec("embed", "mlp"))
      (None, 'model')
      >>> tuple(fs.ShardingRules(embed="prompt").spec("embed", "mlp"))  # fully sharded as well
      ('prompt', 'model')
    """

    prompt: MeshAxes = "prompt"
    particle: MeshAxes = "particle"
    token: MeshAxes = "token"
    embed: MeshAxes = None
    heads: MeshAxes = "model"
    mlp: MeshAxes = "model"
    vocab: MeshAxes = "model"
    layer: MeshAxes = None

    def __post_init__(self) -> None:
        for name, axes in vars(self).items():
            # A list would not hash.
            object.__setattr__(self, name, tuple(axes) if isinstance(axes, list) else axes)
            self.spec(name)

    def mesh_axes(self, name: str | None, mesh: Mesh | None = None) -> tuple[str, ...]:
        """Axes of the mesh for a logical axis; ValueError for a name that has no rule.

        With a mesh, an axis of it that has no rule stands for itself.
        """
        if name is None:
            return ()
        if name not in vars(self):
            if mesh is not None and name in mesh.shape:
                return (name,)
            expected = ", ".join(vars(self))
            raise ValueError(f"{name!r} is no logical axis, expected one of {expected}")
        axes = getattr(self, name)
        return () if axes is None else (axes,) if isinstance(axes, str) else axes

    def spec(self, *names: str | None, mesh: Mesh | None = None) -> PartitionSpec:
        """Of an array whose axes have these names, see `mesh_axes`.

        Raises:
          ValueError: two of its axes would be split over the same axis of a mesh.
        """
        every = [self.mesh_axes(name, mesh) for name in names]
        seen: dict[str, str | None] = {}
        for name, axes in zip(names, every, strict=True):
            for axis in axes:
                if axis in seen:
                    raise ValueError(
                        f"rules map both {seen[axis]!r} and {name!r} of an array with axes "
                        f"{names} to mesh axis {axis!r}, expected different ones"
                    )
                seen[axis] = name
        return _partition(every)

    def dividing(
        self, mesh: Any, sizes: tuple[int, ...], names: tuple[tuple[str, ...], ...]
    ) -> list[tuple[str, ...]]:
        """Axes of a mesh for some axes of an array, each by its logical names.

        None where they do not divide it evenly, and none that an axis before it has.
        """
        made: list[tuple[str, ...]] = []
        for size, own in zip(sizes, names, strict=True):
            axes = [axis for name in own for axis in self.mesh_axes(name)]
            left = tuple(a for a in axes if a in mesh.axis_names and a not in sum(made, ()))
            ways = math.prod(mesh.shape[axis] for axis in left)
            made.append(() if size % ways else left)
        return made

    def on(self, mesh: Mesh) -> "ShardingRules":
        """These rules without the axes that a mesh has not got, of those that are default ones.

        Raises:
          ValueError: a rule names another axis that the mesh has not got.
        """

        def there(name: str) -> tuple[str, ...]:
            for axis in self.mesh_axes(name):
                if axis not in mesh.shape and axis not in AXES:
                    raise ValueError(
                        f"rules map {name!r} to {axis!r}, expected one of the mesh's axes, "
                        f"{', '.join(map(str, mesh.axis_names))}"
                    )
            return tuple(axis for axis in self.mesh_axes(name) if axis in mesh.shape)

        return ShardingRules(**{name: there(name) or None for name in vars(self)})

    def sharding(self, what: str, shape: tuple[int, ...], names: Axes, mesh: Mesh) -> NamedSharding:
        """Of a parameter.

        A table whose rows ("vocab") do not come out even, as a published one has as many as there
        happen to be, is split along another of its named axes instead: of each row devices hold a
        part.

        Args:
          what: it is called.
          shape: its sizes.
          names: of its axes.
          mesh: that has all the axes of these rules.

        Raises:
          ValueError: naming the parameter, one of whose axes does not come out even.
        """
        self.spec(*names, mesh=mesh)  # or raises
        split = [self.mesh_axes(name, mesh) for name in names]

        def ways(axes: tuple[str, ...]) -> int:
            return math.prod(mesh.shape[axis] for axis in axes)

        if "vocab" in names and shape[at := names.index("vocab")] % ways(split[at]):
            for i, name in enumerate(names):
                both = (*split[i], *split[at])
                if i != at and name is not None and shape[i] % ways(both) == 0:
                    split[i], split[at] = both, ()
                    break
        for size, name, axes in zip(shape, names, split, strict=True):
            if size % ways(axes):
                raise UnevenError(
                    f"rules split axis {name!r} of parameter {what}, of size {size}, over the "
                    f"{ways(axes)} devices of mesh axis {' and '.join(axes)}, expected a multiple; "
                    f"ShardingRules({name}=None) keeps it whole"
                )
        return NamedSharding(mesh, _partition(split))


def _partition(axes: list[tuple[str, ...]]) -> PartitionSpec:
    """Of the mesh axes of each axis of an array."""
    return PartitionSpec(*[own[0] if len(own) == 1 else own or None for own in axes])


def automatic(mesh: Any) -> Mesh:
    """The same mesh with automatic axes, those of which the compiler chooses how to split.

    Raises:
      TypeError: it is no mesh.
    """
    if not isinstance(mesh, Mesh):
        raise TypeError(f"mesh must be a jax.sharding.Mesh, got {type(mesh).__name__}")
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * mesh.devices.ndim)


def put(value: Any, sharding: NamedSharding) -> jax.Array:
    """An array where it belongs; of several processes, all of which have it, each its own part."""
    if sharding.is_fully_addressable or not getattr(value, "is_fully_addressable", True):
        return jax.device_put(value, sharding)
    if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        data = put(jax.random.key_data(value), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(value))
    here = np.asarray(value)
    return jax.make_array_from_callback(here.shape, sharding, lambda index: here[index])


def axes_of(variable: nnx.Variable) -> Axes:
    """Logical names of a parameter's axes; None for each if it has not been given any.

    Stacked blocks have one more in front, "layer".
    """
    ndim = variable.get_value().ndim
    axes: Axes = variable.get_metadata().get("axes") or (None,) * ndim
    return ("layer",) * (ndim - len(axes)) + axes


def place(tree: Any, mesh: Mesh, rules: ShardingRules) -> Any:
    """A pytree of parameters on a mesh.

    Args:
      tree: NNX parameters and linen's partitioned ones go by the names of their axes, arrays that
        are on this mesh already stay as they are, and what has no names is held whole by every
        device.
      mesh: with automatic axes.
      rules: of this mesh, see `ShardingRules.on`.

    Raises:
      ValueError: naming a parameter that a rule does not fit.
    """

    def place_one(value: Any, path: Any, names: Axes) -> Any:
        old = getattr(value, "sharding", None)
        if isinstance(old, NamedSharding) and _same(old.mesh, mesh):
            return put(value, NamedSharding(mesh, old.spec))
        what = jax.tree_util.keystr(path)
        return put(value, rules.sharding(what, value.shape, names, mesh))

    def one(path: Any, leaf: Any) -> Any:
        if isinstance(leaf, nnx.Variable):
            return leaf.replace(place_one(leaf.get_value(), path, axes_of(leaf)))
        if isinstance(leaf, Partitioned):
            # Linen leaves out the last of the names that are None.
            names = (*leaf.names, *(None,) * (leaf.value.ndim - len(leaf.names)))
            return leaf.replace(value=place_one(leaf.value, path, names))
        leaf = leaf if hasattr(leaf, "shape") else jax.numpy.asarray(leaf)
        return place_one(leaf, path, (None,) * leaf.ndim)

    return jax.tree.map_with_path(
        one, tree, is_leaf=lambda a: isinstance(a, nnx.Variable | Partitioned)
    )


def _same(one: Any, other: Mesh) -> bool:
    """Whether two meshes have the same devices along the same axes."""
    return (
        isinstance(one, Mesh)
        and one.axis_names == other.axis_names
        and one.devices.shape == other.devices.shape
        and bool((one.devices == other.devices).all())
    )
