"""Rules that lay a tree of parameters (and the optimizer state that mirrors it) over the mesh."""

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

  The first rule whose regex is found in the leaf's path wins; a leaf without a rule, of another rank, or whose axes the
  mesh does not divide, is replicated.
  """

  def leaf_sharding(path, leaf):
    name = path_name(path)
    spec = next((spec for pattern, spec in rules if re.search(pattern, name)), PartitionSpec())
    fits = len(spec) <= leaf.ndim and all(
      size % _axis_size(mesh, axis) == 0 for size, axis in zip(leaf.shape, spec, strict=False)
    )
    return NamedSharding(mesh, spec if fits else PartitionSpec())

  return jax.tree_util.tree_map_with_path(leaf_sharding, tree)


def _axis_size(mesh: Mesh, axis: str | tuple[str, ...] | None) -> int:
  names = () if axis is None else (axis,) if isinstance(axis, str) else axis
  size = 1
  for name in names:
    size *= mesh.shape[name]
  return size
