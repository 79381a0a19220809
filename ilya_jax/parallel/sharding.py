"""Rules that lay a tree of parameters (and the optimizer state that mirrors it) over the mesh."""

import math
import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

PyTree = Any


def path_name(path: tuple[Any, ...]) -> str:
  """A leaf's path as text: keys and fields joined by '/'."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def shardings(tree: PyTree, *, rules: tuple[tuple[str, PartitionSpec], ...], mesh: Mesh) -> PyTree:
  """One NamedSharding a leaf of `tree` (arrays or their shapes).

  The first rule whose regex is found in the leaf's path wins; a leaf without a rule, or of a lower rank, is replicated, and
  an axis that the mesh does not divide stays whole.
  """

  def leaf_sharding(path, leaf):
    name = path_name(path)
    spec = next((spec for pattern, spec in rules if re.search(pattern, name)), PartitionSpec())
    if len(spec) > leaf.ndim:
      return NamedSharding(mesh, PartitionSpec())
    axes = [axis if _divides(mesh, axis, size) else None for size, axis in zip(leaf.shape, spec, strict=False)]
    return NamedSharding(mesh, PartitionSpec(*axes))

  return jax.tree_util.tree_map_with_path(leaf_sharding, tree)


def _divides(mesh: Mesh, axis: str | tuple[str, ...] | None, size: int) -> bool:
  """Whether the mesh has the axis (or axes) and cuts `size` evenly along it."""
  names = () if axis is None else (axis,) if isinstance(axis, str) else axis
  return all(name in mesh.shape for name in names) and size % math.prod(mesh.shape[name] for name in names) == 0
