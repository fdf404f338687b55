"""TPUs by their published numbers, and their topologies for compiling without one."""

import dataclasses
import importlib.util
from typing import Any

import numpy as np
from jax.sharding import AxisType, Mesh

MESH = ("prompt", "particle", "model")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One chip, of eight on a host.

    Attributes:
      name: of the generation.
      topology: of the eight.
      flops: bfloat16, a second, at peak.
      hbm: bytes of its memory.
      bandwidth: bytes a second of its memory.
      link: bytes a second over one of its four links, one way.
      source: of these numbers.
    """

    name: str
    topology: str
    flops: float
    hbm: float
    bandwidth: float
    link: float
    source: str


# Interconnects are published as both directions of all four links together: 400 and 800 GB/s.
V5E = Chip(
    name="v5e", topology="v5e:2x4", flops=197e12, hbm=16e9, bandwidth=819e9, link=50e9,
    source="https://docs.cloud.google.com/tpu/docs/v5e",
)  # fmt: skip
V6E = Chip(
    name="v6e", topology="v6e:2x4", flops=918e12, hbm=32e9, bandwidth=1600e9, link=100e9,
    source="https://docs.cloud.google.com/tpu/docs/v6e",
)  # fmt: skip
CHIPS = {chip.name: chip for chip in (V5E, V6E)}


def mesh(chip: Chip, sizes: tuple[int, int, int]) -> Mesh:
    """Eight chips, divided over prompts, particles and the model.

    Raises:
      SystemExit: there is no compiler for TPUs.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise SystemExit('no libtpu, which compiles for TPUs: pip install "flowsde[tpu]"')
    from jax.experimental import topologies

    described: Any = topologies.get_topology_desc(platform="tpu", topology_name=chip.topology)
    return Mesh(np.array(described.devices).reshape(sizes), MESH, axis_types=(AxisType.Auto,) * 3)
