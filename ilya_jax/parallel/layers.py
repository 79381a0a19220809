"""A layer list run in turn on whole batches: the loss that a pipeline of the same list must reproduce.

Keys: layer i draws from fold_in(rng, i), what comes before from fold_in(rng, L) and what comes after from
fold_in(rng, L + 1), L layers; so dropout does not depend on where the list is cut.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ilya_jax.parallel.mesh import split_batch
from ilya_jax.task import Layers, Stack

PyTree = Any


def length(layers: Layers) -> int:
  """How many layers there are."""
  return layers.layers.length if isinstance(layers.layers, Stack) else len(layers.layers)


def keeper(layers: Layers, mesh: Mesh | None) -> Callable[[PyTree], PyTree]:
  """What constrains the activations between the layers; nothing without a mesh of several devices."""
  if mesh is None or mesh.size == 1:
    return lambda x: x
  return functools.partial(split_batch, mesh=mesh, axis=layers.batch_axis)


def own_state(model_state: Mapping[str, Any], name: str) -> dict[str, Any]:
  """The state of the layer (or stack) `name`: collection -> its part, without collections that hold none."""
  return {collection: tree[name] for collection, tree in model_state.items() if name in tree}


def with_state(model_state: Mapping[str, Any], name: str, state: Mapping[str, Any]) -> dict[str, Any]:
  """The model state with the part of `name` replaced."""
  return {
    collection: {**tree, name: state[collection]} if collection in state else tree
    for collection, tree in model_state.items()
  }


def in_turn(layers: Layers, *, mesh: Mesh | None = None) -> Callable[..., Any]:
  """The loss of a Task (params, model_state, batch, rng, *, train) that runs the list in turn, its batch split over `mesh`."""
  count = length(layers)
  keep = keeper(layers, mesh)

  def loss(params, model_state, batch, rng, *, train):
    x = keep(layers.before(params, batch, jax.random.fold_in(rng, count), train=train))
    if isinstance(layers.layers, Stack):
      stack = layers.layers
      state = own_state(model_state, stack.name)
      x, state = run_stack(
        stack, params[stack.name], state, x, jnp.arange(count, dtype=jnp.int32), rng, train=train, keep=keep
      )
      model_state = with_state(model_state, stack.name, state)
    else:
      for index, layer in enumerate(layers.layers):
        state, key = own_state(model_state, layer.name), jax.random.fold_in(rng, index)
        x, state = layer.apply(params.get(layer.name, {}), state, x, key, train=train)
        x, model_state = keep(x), with_state(model_state, layer.name, state)
    scalar, metrics = layers.after(params, x, batch, jax.random.fold_in(rng, count + 1), train=train)
    return scalar, (metrics, model_state)

  return loss


def run_stack(
  stack: Stack, params: PyTree, state: PyTree, x: PyTree, indices: jax.Array, rng: jax.Array, *, train: bool,
  used: jax.Array | None = None, keep: Callable[[PyTree], PyTree] = lambda x: x,
) -> tuple[PyTree, PyTree]:  # fmt: skip
  """Runs the layers whose parameters and state are the rows of `params` and `state`, in turn.

  indices [n]: which layer of the whole stack each row is. used [n]: rows that count; the others are computed on the same
  activations and thrown away (None: all count). keep: constrains the activations between layers.
  """

  def body(x, row):
    own_params, own_state_, index, counts = row
    y, new = stack.apply(own_params, own_state_, x, jax.random.fold_in(rng, index), train=train)
    y = keep(y)
    if counts is None:
      return y, new
    choose = lambda one, other: jax.tree.map(lambda a, b: jnp.where(counts, a, b), one, other)  # noqa: E731
    return choose(y, x), choose(new, own_state_)

  return jax.lax.scan(body, x, (params, state, indices, used), unroll=stack.unroll)


def rematerialised(layers: Layers) -> Layers:
  """The same list, each of whose layers keeps its input alone for the backward pass and recomputes the rest there."""
  if isinstance(layers.layers, Stack):
    stack = layers.layers
    # In a rolled loop XLA cannot merge the two computations, so that nothing has to keep them apart.
    apply = _recomputing(stack.apply, apart=stack.unroll >= stack.length)
    return layers._replace(layers=stack._replace(apply=apply))
  own = tuple(layer._replace(apply=_recomputing(layer.apply, apart=True)) for layer in layers.layers)
  return layers._replace(layers=own)


def _recomputing(apply: Callable[..., Any], *, apart: bool) -> Callable[..., Any]:
  def run(params, state, x, rng, *, train):
    return jax.checkpoint(functools.partial(apply, train=train), prevent_cse=apart)(params, state, x, rng)

  return run
