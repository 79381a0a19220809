"""A layer list run in turn on whole batches: the loss that a pipeline of the same list must reproduce.

Keys: layer i draws from fold_in(rng, i), what comes before from fold_in(rng, L) and what comes after from
fold_in(rng, L + 1), L layers; so dropout does not depend on where the list is cut.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh

from ilya_jax.parallel.mesh import split_batch
from ilya_jax.parallel.sharding import gathered
from ilya_jax.task import Layers, Rules, Stack

PyTree = Any


def length(layers: Layers) -> int:
  """How many layers there are."""
  return layers.layers.length if isinstance(layers.layers, Stack) else len(layers.layers)


def keeper(
  layers: Layers, mesh: Mesh | None, *, leading: int = 0, first: str | None = None
) -> Callable[[PyTree], PyTree]:
  """What constrains the activations between the layers, after `leading` other axes, the first of which may be split over the
  mesh axis `first`; nothing on a single device."""
  if mesh is None or mesh.size == 1:
    return lambda x: x
  return functools.partial(split_batch, mesh=mesh, axis=leading + layers.batch_axis, first=first)


def own_state(model_state: Mapping[str, Any], name: str) -> dict[str, Any]:
  """The state of the layer (or stack) `name`: collection -> its part, without collections that hold none."""
  return {collection: tree[name] for collection, tree in model_state.items() if name in tree}


def with_state(model_state: Mapping[str, Any], name: str, state: Mapping[str, Any]) -> dict[str, Any]:
  """The model state with the part of `name` replaced."""
  return {
    collection: {**tree, name: state[collection]} if collection in state else tree
    for collection, tree in model_state.items()
  }


def gathering(layers: Layers, *, mesh: Mesh | None, rules: Rules, own: bool = True) -> Layers:
  """The same list, which gathers parameters along `fsdp` where they are used (`ilya_jax.parallel.sharding.gathered`).

  A layer's are gathered once more in the backward pass, and equal layers run in a rolled loop, so that no device ever holds
  all of them. own: whether the layers gather theirs at all.
  """
  if mesh is None or mesh.shape["fsdp"] == 1:
    return layers
  stacked = isinstance(layers.layers, Stack)
  members: tuple[Any, ...] = (layers.layers,) if isinstance(layers.layers, Stack) else layers.layers
  names = [layer.name for layer in members]

  def outside(function):
    def run(params, *rest, train):
      others = {name: tree for name, tree in params.items() if name not in names}
      return function({**params, **gathered(others, rules=rules, mesh=mesh)}, *rest, train=train)

    return run

  def inside(layer):
    def run(params, state, x, rng, *, train):
      params = gathered(params, rules=rules, mesh=mesh, prefix=f"{layer.name}/", row=stacked)
      return layer.apply(checkpoint_name(params, "gathered"), state, x, rng, train=train)

    def again(params, state, x, rng, *, train):
      return jax.checkpoint(functools.partial(run, train=train), policy=_not_gathered)(params, state, x, rng)

    return layer._replace(apply=run if layer.recomputes else again)

  layers = layers._replace(before=outside(layers.before), after=outside(layers.after))
  if not own:
    return layers
  members = tuple(map(inside, members))
  return layers._replace(layers=members[0]._replace(unroll=1) if stacked else members)


def _not_gathered(primitive: Any, *_: Any, **parameters: Any) -> bool:
  """What the backward pass may keep: all but gathered parameters and what is a copy of its input, as one in another type is."""
  copies = ("convert_element_type", "transpose", "reshape", "sharding_constraint", "pvary")
  return parameters.get("name") != "gathered" and primitive.name not in copies


def in_turn(layers: Layers, *, mesh: Mesh | None = None, rules: Rules = ()) -> Callable[..., Any]:
  """The loss of a Task (params, model_state, batch, rng, *, train) that runs the list in turn.

  Its batch is split over `mesh`; `rules` are those of the parameters.
  """
  count = length(layers)
  keep, layers = keeper(layers, mesh), recomputing(gathering(layers, mesh=mesh, rules=rules))

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
  keep: Callable[[PyTree], PyTree], used: jax.Array | None = None,
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
    return layers._replace(layers=layers.layers._replace(recomputes=True))
  return layers._replace(layers=tuple(layer._replace(recomputes=True) for layer in layers.layers))


def recomputing(layers: Layers) -> Layers:
  """The list made ready to run: the layers that recompute do so. Outermost, as it forgets all that they would keep."""

  def wrapped(layer, *, apart):
    def run(params, state, x, rng, *, train):
      return jax.checkpoint(functools.partial(layer.apply, train=train), prevent_cse=apart)(params, state, x, rng)

    return layer._replace(apply=run) if layer.recomputes else layer

  if isinstance(layers.layers, Stack):
    # In a rolled loop XLA cannot merge the two computations, so that nothing need keep them apart.
    return layers._replace(layers=wrapped(layers.layers, apart=layers.layers.unroll >= layers.layers.length))
  return layers._replace(layers=tuple(wrapped(layer, apart=True) for layer in layers.layers))
