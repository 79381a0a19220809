"""The mesh of devices: axes data, fsdp, tensor and stage, and how a batch is laid over it."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ilya_jax.errors import UserError

AXES = ("data", "fsdp", "tensor", "stage")
BATCH_AXES = ("data", "fsdp")  # the axes that a batch is split over


def make_mesh(sizes: Any, *, batch_size: int, accumulate: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
  """A mesh of the sizes in `config.mesh` (one of them may be -1: what is left), with Auto axes.

  On one process's CPU the free axis takes as many of the cores as the batch divides over, elsewhere all devices.
  devices: to take instead of those of this process. Raises UserError where the mesh is larger than the devices there
  are, or the batch (or a micro-batch of it) does not divide over the data and fsdp axes.
  """
  devices = jax.devices() if devices is None else devices
  wanted = {axis: int(sizes[axis]) for axis in AXES}
  free = [axis for axis in AXES if wanted[axis] == -1]
  if len(free) > 1:
    raise UserError(
      f"config.mesh with -1 for {' and '.join(free)}", "at most one axis of size -1", f"--config.mesh.{free[0]}"
    )
  fixed = math.prod(size for size in wanted.values() if size != -1)
  if free:
    left = max(len(devices) // fixed, 1)
    if free[0] in BATCH_AXES and devices[0].platform == "cpu" and jax.process_count() == 1:
      # Cores as devices need not all be taken: as many as the batch divides over.
      other = math.prod(wanted[axis] for axis in BATCH_AXES if axis != free[0]) * accumulate
      left = next((n for n in range(left, 0, -1) if batch_size % (n * other) == 0), left)
    wanted[free[0]] = left
  total = math.prod(wanted.values())
  if total > len(devices):
    wished = " x ".join(f"{axis} {size}" for axis, size in wanted.items() if size > 1)
    raise UserError(f"a mesh of {total} devices ({wished})", f"at most the {len(devices)} there are", "--config.mesh")
  shards = math.prod(wanted[axis] for axis in BATCH_AXES)
  if batch_size % (shards * accumulate):
    raise UserError(
      f"a batch of {batch_size}", f"a multiple of {shards} data shards times {accumulate} micro-batches",
      "--config.batch_size or --config.mesh.data",
    )  # fmt: skip
  shape = tuple(wanted[axis] for axis in AXES)
  types = (AxisType.Auto,) * len(AXES)
  try:
    return jax.make_mesh(shape, AXES, axis_types=types, devices=devices[:total])
  except NotImplementedError:  # a TPU slice whose torus has no axes of these sizes: axes are split to make them
    split = mesh_utils.create_device_mesh(shape, devices[:total], allow_split_physical_axes=True)
    return Mesh(np.asarray(split), AXES, axis_types=types)


def batch_sharding(mesh: Mesh, *, leading: int = 0) -> NamedSharding:
  """Splits the batch axis, which comes after `leading` other axes, over data and fsdp."""
  return NamedSharding(mesh, PartitionSpec(*(None,) * leading, BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
  """The same value on every device of the mesh."""
  return NamedSharding(mesh, PartitionSpec())


def micro_batches(leaf: jax.Array, count: int) -> jax.Array:
  """[B, ...] -> [M, b, ...]: micro-batch m takes rows m, m + M, ..., so that every device keeps its own rows."""
  return jnp.swapaxes(leaf.reshape(-1, count, *leaf.shape[1:]), 0, 1)


def split_batch(tree: Any, mesh: Mesh, *, axis: int = 0, first: str | None = None) -> Any:
  """Activations constrained to lie split along their batch axis, and whole along the others; but the first, which comes before
  the batch axis, may be split over the mesh axis `first`.

  Layers keep to this between one another. Left to itself XLA may choose a layout for which it forgets to sum gradients over
  `data` (openxla/xla#40034): seen with data, fsdp and tensor of 2 in 6 of 25 random stacks of tanh layers, never with this.
  """
  current = jax.sharding.get_abstract_mesh()  # inside a shard_map it knows which axes are manual there
  spec = PartitionSpec(*(first,)[:axis], *(None,) * (axis - 1), BATCH_AXES)
  sharding = NamedSharding(mesh if current.empty else current, spec)
  shards = math.prod(mesh.shape[name] for name in BATCH_AXES)

  def constrain(leaf):
    return jax.lax.with_sharding_constraint(leaf, sharding) if leaf.shape[axis] % shards == 0 else leaf

  return jax.tree.map(constrain, tree)
