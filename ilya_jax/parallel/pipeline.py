"""GPipe for any list of layers, as one SPMD program: the stages work on successive micro-batches, tick by tick.

Sources: Huang et al. 2018, https://arxiv.org/abs/1811.06965 (schedule, re-materialisation, batch statistics per
micro-batch); Narayanan et al. 2021, https://arxiv.org/abs/2104.04473 (several cells a device, here as a circular pipeline).
K stages, V cells a stage, M micro-batches of b examples: cell r K + k lies on stage k, which at tick t works on the micro-batch
m = (t - k) mod M in round r = (t - k) div M; V M + K - 1 ticks. Idle ticks compute on finite values that are thrown away.
The backward pipeline is the derivative of the forward one.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, PartitionSpec

from ilya_jax.errors import UserError
from ilya_jax.parallel.layers import gathering, keeper, length, own_state, recomputing, run_stack, with_state
from ilya_jax.parallel.mesh import BATCH_AXES, micro_batches
from ilya_jax.task import Layers, Rules, Stack

PyTree = Any
STAGE = "stage"


class Plan(NamedTuple):
  """How a list of layers is pipelined.

  microbatches: M. counts: layers in each of the V K cells, in order. virtual: V. remat: each cell recomputes its inside
  in the backward pass, keeping its input alone. tick_unroll: ticks written out per iteration of the loop (a convolution
  inside a rolled loop is very slow on the CPU).
  """

  microbatches: int
  counts: tuple[int, ...]
  virtual: int = 1
  remat: bool = True
  tick_unroll: int = 1


class _Cells(NamedTuple):
  """A list of layers made ready for the stages.

  manual: whether the stages are programs that differ, which then must not leave the batch to the compiler to split: a
    collective that it inserts into one stage's program would wait for the others.
  params, state: leaves [V, K, ...].
  run(params, state, x, rng, cell) -> (x, state) for one cell's own part, with the activations of one micro-batch in the
    form that travels.
  wrap, unwrap: between the activations that `before` and `after` know and that form, leaves [M, b, ...].
  split(state) -> the layers' own states.
  """

  manual: bool
  params: PyTree
  state: PyTree
  run: Callable[..., tuple[PyTree, PyTree]]
  wrap: Callable[[PyTree], PyTree]
  unwrap: Callable[[PyTree], PyTree]
  split: Callable[[PyTree], dict[str, PyTree]]


def ticks(plan: Plan, *, stages: int) -> int:
  """How many ticks a step takes: V M + K - 1."""
  return plan.virtual * plan.microbatches + stages - 1


def layer_costs(layers: Layers, params: PyTree, model_state: PyTree, batch: PyTree) -> list[float]:
  """Forward FLOP of each layer by XLA's cost analysis, for shapes of parameters, state and a batch; equal layers cost 1."""
  if isinstance(layers.layers, Stack):
    return [1.0] * layers.layers.length
  key = jax.eval_shape(lambda: jax.random.key(0))
  x = jax.eval_shape(functools.partial(layers.before, train=True), params, batch, key)
  costs = []
  for layer in layers.layers:
    apply = functools.partial(layer.apply, train=True)
    arguments = (params.get(layer.name, {}), own_state(model_state, layer.name), x, key)
    analysis = jax.jit(apply).lower(*arguments).cost_analysis() or {}
    costs.append(max(float(analysis.get("flops", 0.0)), 1.0))
    x, _ = jax.eval_shape(apply, *arguments)
  return costs


def pipelined(layers: Layers, *, mesh: Mesh, plan: Plan, rules: Rules = ()) -> Callable[..., Any]:
  """The loss of a Task, equal to `in_turn(layers)` averaged over the micro-batches, with the cells spread over `stage`.

  Micro-batch m holds rows m, m + M, ... of the batch and draws its keys from fold_in(rng, m), as with gradient
  accumulation over M; `rules` are those of the parameters. The model state passes through the micro-batches in their
  order. Raises UserError where the plan does not fit the mesh.
  """
  stages, micro = mesh.shape[STAGE], plan.microbatches
  # The cells of layers that differ are manual programs, which get whole parameters.
  layers = recomputing(gathering(layers, mesh=mesh, rules=rules, own=isinstance(layers.layers, Stack)))
  if len(plan.counts) != stages * plan.virtual or sum(plan.counts) != length(layers):
    got = f"{len(plan.counts)} pipeline cells of {sum(plan.counts)} layers"
    raise UserError(got, f"{stages * plan.virtual} cells of the {length(layers)} layers", "--config.pipeline.partition")
  if plan.virtual > 1 and micro < stages:
    raise UserError(
      f"{micro} micro-batches with {plan.virtual} virtual stages", f"at least as many as the {stages} stages",
      "--config.pipeline.microbatches",
    )  # fmt: skip

  def loss(params, model_state, batch, rng, *, train):
    batches = jax.tree.map(lambda leaf: micro_batches(leaf, micro), batch)  # [M, b, ...]
    keys = rng[None] if micro == 1 else jax.vmap(lambda m: jax.random.fold_in(rng, m))(jnp.arange(micro))
    fold = jax.vmap(jax.random.fold_in, in_axes=(0, None))
    count = length(layers)
    before = functools.partial(layers.before, train=train)
    after = functools.partial(layers.after, train=train)
    keep, keep_all = keeper(layers, mesh), keeper(layers, mesh, leading=1)
    x = keep_all(jax.vmap(before, in_axes=(None, 0, 0))(params, batches, fold(keys, count)))
    if isinstance(layers.layers, Stack):
      cells = _stacked(layers.layers, params, model_state, plan=plan, stages=stages, train=train, keep=keep)
    else:
      cells = _listed(layers.layers, params, model_state, x, plan=plan, mesh=mesh, train=train)
    y, state = _run(cells, cells.wrap(x), keys, mesh=mesh, plan=plan, keep_all=keep_all)
    for name, own in cells.split(state).items():
      model_state = with_state(model_state, name, own)
    # Each stage has its share of the micro-batches, where their number allows it, and computes the loss of these alone.
    y = keeper(layers, mesh, leading=1, first=None if micro % stages else STAGE)(cells.unwrap(y))
    scalars, metrics = jax.vmap(after, in_axes=(None, 0, 0, 0))(params, y, batches, fold(keys, count + 1))
    return scalars.mean(), (jax.tree.map(lambda leaf: leaf.sum(0), dict(metrics)), model_state)

  return loss


def _run(cells: _Cells, x: PyTree, keys: jax.Array, *, mesh: Mesh, plan: Plan, keep_all) -> tuple[PyTree, PyTree]:
  """Runs all ticks: x [M, b, ...] -> what the last cell writes [M, b, ...], and the state of all cells."""
  stages, micro, rounds = mesh.shape[STAGE], plan.microbatches, plan.virtual

  def run(params, state, x, rng, turn, cell):
    """One cell: its own parameters are picked out in here, so that a tick keeps no copy of them for the backward pass."""
    own = params if rounds == 1 else jax.tree.map(lambda leaf: _at(leaf, turn), params)
    return cells.run(own, state, x, rng, cell)

  run = jax.checkpoint(run, prevent_cse=False) if plan.remat else run
  scatter = micro % stages == 0
  split = _split_axes(mesh) if cells.manual else ()
  shards = math.prod(mesh.shape[axis] for axis in split)
  to_next = [(k, (k + 1) % stages) for k in range(stages)]

  def program(params, state, x, keys):
    params, state = (jax.tree.map(lambda leaf: leaf[:, 0], tree) for tree in (params, state))  # [V, ...]
    params = params if rounds > 1 else jax.tree.map(lambda leaf: leaf[0], params)
    params = _varying(params, split)  # here, so that their gradients are summed over devices once, after all ticks
    stage = lax.axis_index(STAGE)  # int32
    if shards > 1:  # rows that lie on different devices draw differently
      keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, lax.axis_index(split))
    queue = _varying(x, (STAGE, *split))  # what stage 0 reads next: micro-batches, later what the last stage sends back
    zeros = _varying(jax.tree.map(jnp.zeros_like, queue), (STAGE, *split))
    if not cells.manual:
      queue, zeros = keep_all(queue), keep_all(zeros)
    arriving = jax.tree.map(lambda leaf: leaf[0], zeros)

    def tick(carry, t):
      arriving, queue, written, state = carry
      work = jnp.clip(t - stage, 0, rounds * micro - 1)
      valid = (t >= stage) & (t - stage < rounds * micro)
      turn, m = work // micro, work % micro
      if rounds > 1:  # what the last stage wrote a tick ago is for stage 0 in the next round
        back = t - stages
        slot = jnp.where((back >= 0) & (back < (rounds - 1) * micro), back % micro, micro)  # out of range: dropped
        queue = jax.tree.map(lambda leaf, new: leaf.at[slot].set(new, mode="drop"), queue, arriving)
      read = jax.tree.map(lambda leaf, new: jnp.where(stage == 0, _at(leaf, m), new), queue, arriving)
      own = jax.tree.map(lambda leaf: _at(leaf, turn), state)
      wrote, new = run(params, own, read, _key_at(keys, m), turn, turn * stages + stage)
      new = jax.tree.map(lambda a, b: jnp.where(valid, a, b), new, own)
      state = jax.tree.map(lambda leaf, value: leaf.at[turn].set(value), state, new)
      last = valid & (stage == stages - 1) & (turn == rounds - 1)
      slot = jnp.where(last, m, micro)
      written = jax.tree.map(lambda leaf, value: leaf.at[slot].set(value, mode="drop"), written, wrote)
      arriving = jax.tree.map(lambda leaf: lax.ppermute(leaf, STAGE, to_next), wrote)
      return (arriving, queue, written, state), None

    carry = (arriving, queue, zeros, state)
    steps = jnp.arange(ticks(plan, stages=stages), dtype=jnp.int32)
    (_, _, written, state), _ = lax.scan(tick, carry, steps, unroll=plan.tick_unroll)
    # Only the last stage holds anything but zeros: every stage gets its share of the micro-batches (or all of them).
    collect = functools.partial(_deal, stages=stages) if scatter else functools.partial(lax.psum, axis_name=STAGE)
    return jax.tree.map(collect, written), jax.tree.map(lambda leaf: leaf[:, None], state)

  spread, rows = PartitionSpec(None, STAGE), (split,) if split else ()
  in_specs = (spread, spread, PartitionSpec(None, *rows), PartitionSpec())
  out_specs = (PartitionSpec(STAGE if scatter else None, *rows), spread)
  names = set(mesh.axis_names) if cells.manual else {STAGE}
  mapped = jax.shard_map(program, mesh=mesh, in_specs=in_specs, out_specs=out_specs, axis_names=names)
  return mapped(cells.params, cells.state, x, keys)


def _deal(leaf: jax.Array, *, stages: int) -> jax.Array:
  """[M, ...], zeros but on the last stage -> [M / K, ...]: stage k gets part k.

  As a psum_scatter, which XLA would not leave split over the mesh axes that the compiler looks after: it gathers them first.
  """
  parts = jnp.split(leaf, stages)
  sent = [lax.ppermute(part, STAGE, [(stages - 1, k)]) for k, part in enumerate(parts[:-1])]
  return sum(sent, start=parts[-1])


def _split_axes(mesh: Mesh) -> tuple[str, ...]:
  """The axes that a batch is really split over."""
  return tuple(axis for axis in BATCH_AXES if mesh.shape.get(axis, 1) > 1)


def _varying(tree: PyTree, axes: Sequence[str]) -> PyTree:
  """The same arrays, typed as ones that may differ along mesh axes."""

  def cast(leaf):
    missing = tuple(axis for axis in axes if axis not in jax.typeof(leaf).manual_axis_type.varying)
    return lax.pcast(leaf, missing, to="varying") if missing else leaf

  return jax.tree.map(cast, tree)


def _at(leaf: jax.Array, index: jax.Array) -> jax.Array:
  return lax.dynamic_index_in_dim(leaf, index, keepdims=False)


def _key_at(keys: jax.Array, index: jax.Array) -> jax.Array:
  return jax.random.wrap_key_data(_at(jax.random.key_data(keys), index), impl=jax.random.key_impl(keys))


def _stacked(stack: Stack, params, model_state, *, plan: Plan, stages: int, train: bool, keep) -> _Cells:
  """Equal layers: each cell scans over its rows; shorter cells are padded with rows that do not count."""
  counts, longest = plan.counts, max(plan.counts)
  shape = (plan.virtual, stages, longest)
  starts = [sum(counts[:cell]) for cell in range(len(counts))]
  rows = [start + min(j, count - 1) for start, count in zip(starts, counts, strict=True) for j in range(longest)]
  counted = [j < count for count in counts for j in range(longest)]
  even = all(counted)
  indices, used = jnp.array(rows, jnp.int32).reshape(-1, longest), jnp.array(counted).reshape(-1, longest)

  def gather(leaf):
    return leaf.reshape(*shape, *leaf.shape[1:]) if even else leaf[jnp.array(rows)].reshape(*shape, *leaf.shape[1:])

  def run(own_params, own, x, rng, cell):
    return run_stack(
      stack, own_params, own, x, indices[cell], rng, train=train, keep=keep, used=None if even else used[cell]
    )

  first = [cell * longest + j for cell, count in enumerate(counts) for j in range(count)]

  def split(state):
    return {stack.name: jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[3:])[jnp.array(first)], state)}

  own_params, own = params[stack.name], own_state(model_state, stack.name)
  return _Cells(
    False, jax.tree.map(gather, own_params), jax.tree.map(gather, own), run, lambda x: x, lambda y: y, split
  )


def _listed(layers: Sequence[Any], params, model_state, x, *, plan: Plan, mesh: Mesh, train: bool) -> _Cells:
  """Layers that differ: each cell's parameters and state are a padded row, activations travel as padded flat rows [b, F]."""
  stages, split = mesh.shape[STAGE], _split_axes(mesh)
  ends = [sum(plan.counts[: cell + 1]) for cell in range(len(plan.counts))]
  members = [layers[end - count : end] for end, count in zip(ends, plan.counts, strict=True)]
  trees = [
    (
      {layer.name: params.get(layer.name, {}) for layer in own},
      {layer.name: own_state(model_state, layer.name) for layer in own},
    )
    for own in members
  ]
  boundaries = [jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), x)]
  starts = [end - count for end, count in zip(ends, plan.counts, strict=True)]

  def run_cell(cell, own_params, own, x, rng):
    new = {}
    for offset, layer in enumerate(members[cell]):
      key = jax.random.fold_in(rng, starts[cell] + offset)
      x, new[layer.name] = layer.apply(own_params[layer.name], own[layer.name], x, key, train=train)
    return x, new

  for cell, (own_params, own) in enumerate(trees):
    key = jax.eval_shape(lambda: jax.random.key(0))
    written, _ = jax.eval_shape(functools.partial(run_cell, cell), own_params, own, boundaries[-1], key)
    boundaries.append(written)
  width = max(_features(boundary) for boundary in boundaries)
  param_rows, param_trees = _rows([own_params for own_params, _ in trees])
  state_rows, state_trees = _rows([own for _, own in trees])

  def branch(cell):
    def run_one(row, own, x, rng):
      written, new = run_cell(
        cell, param_trees[cell](row), state_trees[cell](own), _unflatten(x, boundaries[cell]), rng
      )
      new = _pad(ravel_pytree(new)[0].astype(own.dtype), own.shape[0])
      if set(split) & set(jax.typeof(new).manual_axis_type.varying):
        names = ", ".join(layer.name for layer in members[cell] if own_state(model_state, layer.name))
        raise UserError(
          f"a state of {names} that comes from a part of the batch alone", "batch statistics by nn.varying.mean_over_batch",
          "the layer, or --config.mesh.data=1",
        )  # fmt: skip
      return _varying(_flatten(written, width), (STAGE, *split)), _varying(new, (STAGE,))

    return run_one

  branches = [branch(cell) for cell in range(len(members))]

  def run(row, own, x, rng, cell):
    return lax.switch(cell, branches, row, own, x, rng)

  def arrange(rows):  # [V K, P] -> [V, K, P]
    return rows.reshape(plan.virtual, stages, -1)

  def split_state(state):
    rows = state.reshape(len(members), -1)
    return {name: own for cell in range(len(members)) for name, own in state_trees[cell](rows[cell]).items()}

  return _Cells(
    True,
    arrange(param_rows),
    arrange(state_rows),
    run,
    jax.vmap(lambda x: _flatten(x, width)),
    jax.vmap(lambda y: _unflatten(y, boundaries[-1])),
    split_state,
  )


def _rows(trees: Sequence[PyTree]) -> tuple[jax.Array, list[Callable[[jax.Array], PyTree]]]:
  """The trees as padded rows [n, P], and for each what makes the tree of its row again."""
  dtypes = {leaf.dtype for leaf in jax.tree.leaves(trees)}
  if len(dtypes) > 1:
    raise ValueError(f"layers of a pipeline with parameters or states of several types: {dtypes}")
  dtype = next(iter(dtypes), jnp.dtype(jnp.float32))
  flat = [ravel_pytree(tree) for tree in trees]
  width = max(max(row.size for row, _ in flat), 1)

  def maker(row, make):
    return lambda padded: make(padded[: row.size].astype(row.dtype))

  rows = jnp.stack([_pad(row.astype(dtype), width) for row, _ in flat])
  return rows, [maker(row, make) for row, make in flat]


def _pad(row: jax.Array, width: int) -> jax.Array:
  return jnp.pad(row, (0, width - row.shape[0]))


def _features(boundary: PyTree) -> int:
  """Values of an example in activations [b, ...]."""
  return sum(leaf.size // leaf.shape[0] for leaf in jax.tree.leaves(boundary))


def _flatten(x: PyTree, width: int) -> jax.Array:
  """Activations, leaves [b, ...] -> [b, width], padded with zeros."""
  leaves = jax.tree.leaves(x)
  flat = jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in leaves], axis=1)
  return jnp.pad(flat, ((0, 0), (0, width - flat.shape[1])))


def _unflatten(flat: jax.Array, boundary: PyTree) -> PyTree:
  """What `_flatten` made of activations of the shapes in `boundary` (of any number of examples), back again."""
  leaves, tree = jax.tree.flatten(boundary)
  parts, at = [], 0
  for leaf in leaves:
    size = leaf.size // leaf.shape[0]
    parts.append(flat[:, at : at + size].reshape(flat.shape[0], *leaf.shape[1:]).astype(leaf.dtype))
    at += size
  return jax.tree.unflatten(tree, parts)
