"""Where arrays go on a mesh: rules from the logical names of their axes to axes of the mesh.

"prompt" and "particle" lead the states and the candidates of searches; "token" is a place in a
transformer's sequence; "embed", "heads", "mlp", "vocab" and "layer" are axes of parameters, see
`flowsde.models.layers`. The default rules are
data parallel over prompts and particles, and tensor parallel over "model":

    mesh = jax.make_mesh((2, 1, 4), ("prompt", "particle", "model"), (AxisType.Auto,) * 3)
    ShardingRules().spec("embed", "mlp")                    # PartitionSpec(None, "model")
    ShardingRules(embed="prompt").spec("embed", "mlp")      # fully sharded as well
"""

import dataclasses

from jax.sharding import PartitionSpec

MeshAxes = str | tuple[str, ...] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardingRules:
    """Axes of a mesh that each logical axis is split over, from the slowest; None for none."""

    prompt: MeshAxes = "prompt"
    particle: MeshAxes = "particle"
    token: MeshAxes = None
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

    def mesh_axes(self, name: str | None) -> tuple[str, ...]:
        """Axes of the mesh for a logical axis; ValueError for a name that has no rule."""
        if name is None:
            return ()
        if name not in vars(self):
            expected = ", ".join(vars(self))
            raise ValueError(f"{name!r} is no logical axis, expected one of {expected}")
        axes = getattr(self, name)
        return () if axes is None else (axes,) if isinstance(axes, str) else axes

    def spec(self, *names: str | None) -> PartitionSpec:
        """Of an array whose axes have these names.

        Raises:
          ValueError: two of its axes would be split over the same axis of a mesh.
        """
        every = [self.mesh_axes(name) for name in names]
        seen: dict[str, str | None] = {}
        for name, axes in zip(names, every, strict=True):
            for axis in axes:
                if axis in seen:
                    raise ValueError(
                        f"rules map both {seen[axis]!r} and {name!r} of an array with axes "
                        f"{names} to mesh axis {axis!r}, expected different ones"
                    )
                seen[axis] = name
        return PartitionSpec(*[axes[0] if len(axes) == 1 else axes or None for axes in every])
