"""How long a step takes at least: its arithmetic, its memory traffic and its collectives, each at the chip's peak.

The model: the three go on beside one another, so that a step lasts as long as the longest of them (Williams et al. 2009,
https://doi.org/10.1145/1498765.1498785, with the links as a third roof). What is printed is hence a bound, which no run reaches;
the sum of the three is what it would be if nothing overlapped. Idle ticks of a pipeline compute too, on values that are thrown
away: the layers' arithmetic is multiplied by (V M + K - 1) / (V M).
Matrix products of float32 arrays count at the peak of bfloat16: by default JAX computes them in one bfloat16 pass on a TPU
(https://docs.jax.dev/en/latest/201/precision.html); `jax_default_matmul_precision` of high or highest makes that 3 or 6 passes.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ilya_jax.parallel.chips import Topology, bandwidth
from ilya_jax.parallel.collectives import Collective
from ilya_jax.task import Task

_PASSES = {"high": 3, "bfloat16_3x": 3, "tensorfloat32": 3, "highest": 6, "float32": 6}


class Flops(NamedTuple):
  """FLOP of one step on one chip: of the training formula, recomputed by re-materialisation, and of idle pipeline ticks,
  layers that pad uneven cells, and heads that stages compute alike."""

  formula: float
  recomputed: float
  idle: float

  @property
  def total(self) -> float:
    """All that the chip executes."""
    return self.formula + self.recomputed + self.idle


class Roofline(NamedTuple):
  """Seconds a step takes at least by each of the three roofs, on the busiest chip."""

  compute: float
  memory: float
  links: float

  @property
  def step(self) -> float:
    """Where all overlap."""
    return max(self)

  @property
  def apart(self) -> float:
    """Where nothing overlaps."""
    return sum(self)


def chip_flops(config: ConfigDict, task: Task, *, mesh: Mapping[str, int], busiest: float = 1.0) -> Flops:
  """FLOP of a step on the busiest chip of a mesh of these sizes.

  busiest: the cost of the costliest pipeline cell over the mean of all cells.
  Recomputing costs a forward pass of the layers (a third of their training FLOP) each time: once for `execution.remat`,
  once for `pipeline.remat` where there is a pipeline.
  """
  chips, settings, counts = 1, config.pipeline, task.counts
  for size in mesh.values():
    chips *= size
  stages, micro = mesh["stage"], settings.microbatches
  pipelined = stages > 1 or micro > 1
  outside = counts.outside_flops_per_unit * counts.units_per_step / chips
  inside = counts.flops_per_unit * counts.units_per_step / chips - outside
  recomputed = inside / 3 * (bool(config.execution.remat) + bool(pipelined and settings.remat))
  work = settings.virtual_stages * micro
  factor = busiest * (work + stages - 1) / work if pipelined else 1.0
  alike = outside * (stages - 1) if micro % stages else 0.0
  return Flops(inside + outside, recomputed, (inside + recomputed) * (factor - 1) + alike)


def matmul_passes(config: ConfigDict) -> int:
  """Passes of bfloat16 that a product of this config takes on a TPU."""
  precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
  return _PASSES.get(str(precision).lower(), 1) if config.dtype == "float32" else 1


def link_seconds(sent: Mapping[Collective, float], *, topology: Topology, mesh: Mesh) -> float:
  """Seconds that the collectives of a step take one after another, each over the links that its group can use."""
  places = [device.coords for device in mesh.devices.flat]

  def seconds(group: Sequence[int]) -> float:
    return 1 / bandwidth(topology, [places[index] for index in group])

  rates = {group: seconds(group) for group in {found.group for found in sent}}
  return sum(bytes_ * rates[found.group] for found, bytes_ in sent.items())


def roofline(flops: float, traffic: float, links: float, *, topology: Topology, passes: int = 1) -> Roofline:
  """The three times of FLOP, bytes of memory traffic, and seconds on the links, of one chip."""
  chip = topology.spec
  return Roofline(passes * flops / chip.flops, traffic / chip.hbm_bandwidth, links)
