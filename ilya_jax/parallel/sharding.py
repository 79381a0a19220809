"""Rules that lay a tree of parameters (and the optimizer state that mirrors it) over the mesh."""

import math
import re
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from ilya_jax.task import Rules

PyTree = Any


def path_name(path: tuple[Any, ...]) -> str:
  """A leaf's path as text: keys and fields joined by '/'."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def shardings(tree: PyTree, *, rules: Rules, mesh: Mesh | AbstractMesh, prefix: str = "", row: bool = False) -> PyTree:
  """One NamedSharding a leaf of `tree` (arrays or their shapes).

  The first rule whose regex is found in the leaf's path (after `prefix`) wins; a leaf without a rule, or of a lower rank, is
  replicated, and an axis that the mesh does not divide stays whole. row: the tree is one row of a stack of layers, whose
  rules begin with the axis of layers.
  """

  def leaf_sharding(path, leaf):
    name = prefix + path_name(path)
    spec = next((spec for pattern, spec in rules if re.search(pattern, name)), PartitionSpec())[row:]
    if len(spec) > leaf.ndim:
      return NamedSharding(mesh, PartitionSpec())
    axes = [axis if _divides(mesh, axis, size) else None for size, axis in zip(leaf.shape, spec, strict=False)]
    return NamedSharding(mesh, PartitionSpec(*axes))

  return jax.tree_util.tree_map_with_path(leaf_sharding, tree)


def gathered(params: PyTree, *, rules: Rules, mesh: Mesh | None, prefix: str = "", row: bool = False) -> PyTree:
  """Parameters about to be used: whole along `fsdp`, otherwise laid out as `shardings` says.

  Without it XLA may keep a parameter as it is stored and move the activations instead, which are larger: it did so for
  the embedding ("involuntary full rematerialization"). Gathered here, a layer's parameters are whole for as long as it runs.
  """
  if mesh is None or mesh.shape["fsdp"] == 1:
    return params
  current = jax.sharding.get_abstract_mesh()  # inside a shard_map it knows which axes are manual there

  def kept(axis, dropped):
    names = tuple(name for name in (axis if isinstance(axis, tuple) else (axis,)) if name not in (None, *dropped))
    return names or None

  def layout(*dropped):
    own = tuple((regex, PartitionSpec(*(kept(axis, dropped) for axis in spec))) for regex, spec in rules)
    return shardings(params, rules=own, mesh=mesh if current.empty else current, prefix=prefix, row=row)

  whole, stored = layout("fsdp", "stage"), layout("stage")

  # A layer's gradients go back to where its parameters lie; left to itself the derivative asks for whole ones, summed on every
  # device. Those of the embeddings are asked for whole: else XLA moves activations to where they are summed.
  back = stored if prefix else whole
  constrain = jax.lax.with_sharding_constraint
  gather = jax.custom_vjp(lambda params: constrain(params, whole))
  gather.defvjp(lambda params: (constrain(params, whole), None), lambda _, cotangent: (constrain(cotangent, back),))
  return gather(params)


def _divides(mesh: Mesh | AbstractMesh, axis: str | tuple[str, ...] | None, size: int) -> bool:
  """Whether the mesh has the axis (or axes) and cuts `size` evenly along it."""
  names = () if axis is None else (axis,) if isinstance(axis, str) else axis
  return all(name in mesh.shape for name in names) and size % math.prod(mesh.shape[name] for name in names) == 0
