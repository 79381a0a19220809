"""The compiled programs of a run: initialisation, several optimizer steps a dispatch, evaluation of a batch."""

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from ilya_jax.config import RUNTIME_FIELDS, digest, without
from ilya_jax.errors import UserError
from ilya_jax.parallel.layers import in_turn, rematerialised
from ilya_jax.parallel.mesh import batch_sharding, make_mesh, replicated
from ilya_jax.parallel.partition import check_counts, smallest_maximum
from ilya_jax.parallel.pipeline import Plan, layer_costs, pipelined
from ilya_jax.parallel.sharding import shardings
from ilya_jax.task import Source, Task
from ilya_jax.train import gradient_noise
from ilya_jax.train.optimizer import make_optimizer
from ilya_jax.train.state import TrainState
from ilya_jax.train.step import make_step
from ilya_jax.train.unrolled import Unrolled, written_out

PyTree = Any
_CACHE_SIZE = 32  # sets of programs kept in a process
# What runs once: random numbers for 20 kernels compile in a sixth of the time, to the same bits and the same speed.
_QUICKLY_COMPILED = {"xla_backend_optimization_level": 1}


class Programs(NamedTuple):
  """What a run, or a pack of R runs side by side, executes on its mesh.

  init(seed) -> TrainState of one run; abstract_state: its shapes and shardings.
  steps(state, batches, learning_rates, n) -> (state, metrics): n <= steps_per_dispatch steps, state donated; `batches`
    holds [steps_per_dispatch, ...] arrays (nothing for a traced source), each metric is a (total, weight) pair of
    float32 [steps_per_dispatch]. In a pack of R > 1 everything but n has a leading axis [R].
  evaluate(params, model_state, batch) -> metrics of one batch of one run.
  join(states) -> the pack's state; split(state) -> the R states.
  """

  mesh: Mesh
  abstract_state: TrainState
  init: Callable[[Any], TrainState]
  steps: Any  # jitted, or `unrolled.Unrolled`
  evaluate: Callable[..., PyTree]
  join: Callable[[Sequence[TrainState]], TrainState]
  split: Callable[[TrainState], Sequence[TrainState]]
  batch_sharding: Any
  batches_sharding: Any


def find_task(config: ConfigDict) -> Any:
  """The module `ilya_jax.tasks.<config.task>`; raises UserError where there is none."""
  name = f"ilya_jax.tasks.{config.task}"
  try:
    return importlib.import_module(name)
  except ModuleNotFoundError as error:
    if error.name != name:
      raise
    raise UserError(
      f"config.task = {config.task!r}", "the name of a file in ilya_jax/tasks", "--config.task"
    ) from error


_programs: dict[str, Programs] = {}


def program_key(config: ConfigDict, source: Source) -> str:
  """What the compiled programs of a run depend on, as a digest: not its seed, length, rate and schedule."""
  structure = {**without(config, RUNTIME_FIELDS), "data": source.info["fingerprint"]}
  if source.traced:  # a traced source draws from its own seed inside the compiled step
    structure["seed"] = config.seed
  if gradient_noise.extra_pass(config):  # on logged steps alone
    structure["log_every"] = config.log_every
  return digest(structure)


def make_programs(
  config: ConfigDict, *, task: Task, source: Source, pack: int = 1, devices: Sequence[Any] | None = None
) -> Programs:
  """The programs of a run, or of `pack` runs of the same `program_key`; kept within a process.

  devices: to compile for, instead of those of this process; they may be of a machine that is not there. Such programs are
  not kept.
  """
  if devices is not None:
    return _build(config, task=task, source=source, pack=pack, devices=devices)
  key = f"{program_key(config, source)} {pack}"
  if key not in _programs:
    while len(_programs) >= _CACHE_SIZE:
      _programs.pop(next(iter(_programs)))
    _programs[key] = _build(config, task=task, source=source, pack=pack, devices=None)
  return _programs[key]


def _build(config: ConfigDict, *, task: Task, source: Source, pack: int, devices: Sequence[Any] | None) -> Programs:
  task = _with_recomputing(config, task)
  parts = config.accumulate * config.pipeline.microbatches
  mesh = make_mesh(config.mesh, batch_size=config.batch_size, accumulate=parts, devices=devices)
  gradient_noise.check(config, shards=mesh.shape["data"] * mesh.shape["fsdp"])
  optimizer = make_optimizer(config.optim)
  example = (
    jax.eval_shape(functools.partial(source.batch, split="train"), 0)
    if source.traced
    else source.batch(0, split="train")
  )
  init = _initialisation(task, optimizer, example)
  shapes, on_cpu = jax.eval_shape(init, jnp.uint32(0)), mesh.devices.flat[0].platform == "cpu"
  optimised = not jax.config.read("jax_disable_most_optimizations")
  uncut = task.loss if task.layers is None or mesh.size == 1 else in_turn(task.layers, mesh=mesh, rules=task.rules)
  task = _with_pipeline(config, task, mesh=mesh, shapes=shapes, example=example)
  layout = shardings(shapes, rules=task.rules, mesh=mesh)

  same, joined, packed = replicated(mesh), layout, pack > 1
  if packed:
    joined = jax.tree.map(lambda s: NamedSharding(mesh, PartitionSpec(None, *s.spec)), layout)

  def join(states):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)

  def split(state):
    return tuple(row(state, index) for index in range(pack))

  return Programs(
    mesh=mesh,
    abstract_state=jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, layout),
    init=jax.jit(init, out_shardings=layout, compiler_options=_QUICKLY_COMPILED if on_cpu and optimised else None),
    steps=_compiled_steps(
      config,
      make_step(config, task=task, optimizer=optimizer, mesh=mesh),
      source,
      layout=joined,
      same=same,
      packed=packed,
    ),
    evaluate=jax.jit(_evaluation(task, batch_size=config.batch_size, uncut=uncut), out_shardings=same),
    join=jax.jit(join, out_shardings=joined) if packed else lambda states: states[0],
    split=jax.jit(split, out_shardings=(layout,) * pack) if packed else lambda state: (state,),
    batch_sharding=batch_sharding(mesh),
    batches_sharding=batch_sharding(mesh, leading=1 + packed),
  )


def _initialisation(task: Task, optimizer: Any, example: PyTree) -> Callable[[Any], TrainState]:
  """The function seed -> state, its parameters drawn for batches like `example`."""

  def init(seed):
    params_key, base_key = jax.random.split(jax.random.key(seed))
    variables = dict(task.init(params_key, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), example)))
    params = variables.pop("params")
    return TrainState(jnp.int32(0), params, variables, optimizer.init(params), base_key)

  return init


def _evaluation(task: Task, *, batch_size: int, uncut: Callable[..., Any]) -> Callable[..., PyTree]:
  """The function (params, model state, batch) -> metrics. uncut: the loss for an odd last batch, not cut into micro-batches."""

  def evaluate(params, model_state, batch):
    rows = jax.tree.leaves(batch)[0].shape[0]
    loss = task.loss if rows % batch_size == 0 else uncut
    _, (metrics, _) = loss(params, model_state, batch, jax.random.key(0), train=False)
    return metrics

  return evaluate


def _compiled_steps(
  config: ConfigDict, step: Callable[..., Any], source: Source, *, layout: PyTree, same: Any, packed: bool
) -> Any:
  """`Programs.steps`: a loop of up to `steps_per_dispatch` steps, or the steps written out. layout: of the (pack's) state."""
  capacity = config.execution.steps_per_dispatch

  def numbered_step(state, batches, rates, index):
    if source.traced:
      batch = source.batch(state.step, split="train")
    else:
      batch = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), batches)
    return step(state, batch, rates[index])

  def no_metrics(state, batches, rates):
    _, metric_shapes = jax.eval_shape(numbered_step, state, batches, rates, 0)
    return jax.tree.map(lambda leaf: jnp.zeros((capacity, *leaf.shape), leaf.dtype), metric_shapes)

  def steps(state, batches, rates, n):
    if capacity == 1:  # no loop: some operations (convolutions) are slow inside one on the CPU
      state, metrics = numbered_step(state, batches, rates, 0)
      return state, jax.tree.map(lambda value: value[None], metrics)

    def body(index, carry):
      state, kept = carry
      state, metrics = numbered_step(state, batches, rates, index)
      kept = jax.tree.map(lambda row, value: row.at[index].set(value), kept, metrics)
      return state, kept

    # The trip count is an argument: the same program runs any chunk, so that chunking cannot change a bit.
    return jax.lax.fori_loop(0, n, body, (state, no_metrics(state, batches, rates)))

  def compiled(function, *axes, donated):
    function = jax.vmap(function, in_axes=axes) if packed else function
    return jax.jit(function, donate_argnums=donated, out_shardings=(layout, same))

  if capacity == 1 or not config.execution.unroll_steps:
    return compiled(steps, 0, 0, 0, None, donated=0)
  whole, single = written_out(numbered_step, capacity=capacity)
  return Unrolled(
    whole=compiled(whole, 0, 0, 0, None, donated=0),
    single=compiled(single, 0, 0, 0, 0, None, donated=(0, 1)),
    begin=jax.jit(jax.vmap(no_metrics) if packed else no_metrics, out_shardings=same),
    capacity=capacity,
  )


def _with_recomputing(config: ConfigDict, task: Task) -> Task:
  """The task, its layers recomputing their inside in the backward pass where `config.execution.remat` says so."""
  if not config.execution.remat:
    return task
  if task.layers is None:
    got = f"execution.remat with the task {config.task!r}, which names no layers"
    raise UserError(got, "false", "--config.execution.remat")
  layers = rematerialised(task.layers)
  return task._replace(layers=layers, loss=in_turn(layers))


def _with_pipeline(config: ConfigDict, task: Task, *, mesh: Mesh, shapes: TrainState, example: PyTree) -> Task:
  """The task on its mesh: activations laid out, layers spread over the stages where there are several or micro-batches."""
  stages, settings = mesh.shape["stage"], config.pipeline
  if task.layers is None and min(mesh.shape["data"], mesh.shape["fsdp"], mesh.shape["tensor"]) > 1:
    got = f"data, fsdp and tensor above 1 with the task {config.task!r}, which names no layers (openxla/xla#40034)"
    raise UserError(got, "one of the three to be 1", "--config.mesh.tensor")
  if stages == 1 and settings.microbatches == 1:
    if task.layers is None or mesh.size == 1:
      return task
    return task._replace(loss=in_turn(task.layers, mesh=mesh, rules=task.rules))
  if task.layers is None:
    raise UserError(
      f"mesh.stage = {stages} with the task {config.task!r}, which names no layers", "1", "--config.mesh.stage"
    )
  costs = layer_costs(task.layers, shapes.params, shapes.model_state, example)
  counts = cell_counts(config, costs, cells=stages * settings.virtual_stages)
  plan = Plan(settings.microbatches, counts, settings.virtual_stages, settings.remat, settings.tick_unroll)
  return task._replace(loss=pipelined(task.layers, mesh=mesh, plan=plan, rules=task.rules))


def cell_counts(config: ConfigDict, costs: Sequence[float], *, cells: int) -> tuple[int, ...]:
  """Layers in each cell of a pipeline: as `config.pipeline.partition` says, else by the layers' costs."""
  if config.pipeline.partition:
    return check_counts(tuple(config.pipeline.partition), layers=len(costs), cells=cells)
  return smallest_maximum(costs, cells)


def row(tree: PyTree, index: int) -> PyTree:
  """The tree of one run of a pack: row `index` of every leaf."""
  return jax.tree.map(lambda leaf: leaf[index], tree)
