"""What functions need inside `jax.shard_map`: arguments made alike for derivatives by hand, means over the whole batch."""

from typing import Any

import jax
from jax import lax

PyTree = Any


def vary_alike(*trees: PyTree) -> tuple[PyTree, ...]:
  """The same arrays, each marked as varying over every mesh axis that one of them varies over.

  A derivative that is written by hand sees one device's part and returns one device's part of each gradient; the marking
  is what sums these parts where the argument itself is the same on all devices. Outside `jax.shard_map`: no effect.
  """
  leaves = jax.tree.leaves(trees)
  axes = frozenset().union(*(jax.typeof(leaf).manual_axis_type.varying for leaf in leaves))

  def cast(leaf):
    missing = tuple(sorted(axes - jax.typeof(leaf).manual_axis_type.varying))
    return lax.pcast(leaf, missing, to="varying") if missing else leaf

  return jax.tree.map(cast, trees)


def mean_over_batch(x: jax.Array, axes: tuple[int, ...] = (0,)) -> jax.Array:
  """The mean of x over `axes`, the batch's among them, and over the devices that hold the other rows of the batch.

  Inside a pipeline whose stages differ, a device sees its own rows alone; batch statistics must be taken with this.
  """
  mean = x.mean(axes)
  split = tuple(axis for axis in ("data", "fsdp") if axis in jax.typeof(mean).manual_axis_type.varying)
  return lax.pmean(mean, split) if split else mean
