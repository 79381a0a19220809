"""Which meshes of a slice are worth compiling for: memory and time of a step by formula, without a compiler.

Letters: B batch, b examples of a micro-batch on one chip, M micro-batches, K stages, V cells a stage, L layers, t tensor shards,
x bytes of activations between two layers and r bytes that a layer keeps for its backward pass, both per example.
Memory: the train state as the rules lay it out, gradients of that size (twice with several micro-batches), the largest layer
and everything outside the layers gathered, what is kept for the backward pass (x for each layer where layers recompute, r where
not; a pipeline keeps x for every tick), and the larger of what the loss and one layer or cell need while their derivative is taken.
Time: the roofline of `ilya_jax.train.roofline` with traffic and collectives by formula: parameters of a layer are gathered over
`fsdp` in every pass over it and their gradients scattered; gradients are summed over `data`; four sums of activations a layer go
over `tensor` (Shoeybi et al. 2019, https://arxiv.org/abs/1909.08053, section 3), two more where layers recompute; activations
move over `stage` in every tick. These rank; what is reported of a mesh is read off its compiled program.
"""

import functools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh
from ml_collections import ConfigDict

from ilya_jax.errors import UserError
from ilya_jax.parallel.chips import Topology, bandwidth
from ilya_jax.parallel.layers import length, own_state
from ilya_jax.parallel.mesh import AXES, make_mesh
from ilya_jax.parallel.pipeline import layer_costs
from ilya_jax.parallel.sharding import path_name, shardings
from ilya_jax.task import Source, Stack, Task
from ilya_jax.train.optimizer import make_optimizer
from ilya_jax.train.programs import cell_counts
from ilya_jax.train.roofline import Roofline, chip_flops, matmul_passes, roofline

PyTree = Any


class Facts(NamedTuple):
  """What the formulas need of a task: shapes, and bytes per example.

  state: shapes of parameters, other variables and optimizer state. between: x. kept: r of each layer. loss: bytes that
  what comes after the layers keeps. costs: of the layers, for the cut into cells.
  """

  task: Task
  params: PyTree
  state: PyTree
  between: float
  kept: tuple[float, ...]
  loss: float
  costs: tuple[float, ...]

  @property
  def inside(self) -> frozenset[str]:
    """The keys of parameters that belong to layers."""
    layers = self.task.layers
    if layers is None:
      return frozenset()
    return frozenset(m.name for m in ((layers.layers,) if isinstance(layers.layers, Stack) else layers.layers))


class Estimate(NamedTuple):
  """A candidate: its config, the sizes of its mesh, bytes a chip needs, and the times."""

  config: ConfigDict
  sizes: Mapping[str, int]
  memory: float
  roof: Roofline


class Ranking(NamedTuple):
  """Candidates that fit, best first; how many do not fit; why others were left out; what to do where none fits."""

  fitting: Sequence[Estimate]
  too_large: int
  skipped: Mapping[str, int]
  advice: str


def size(tree: PyTree) -> float:
  """Bytes of a tree of shapes."""
  leaves = [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf.dtype, "itemsize")]
  return float(sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves))


def facts_of(config: ConfigDict, task: Task, source: Source) -> Facts:
  """Traces the task's parts for their shapes; computes nothing."""
  example = jax.eval_shape(lambda: source.batch(0, split="train"))
  rows = jax.tree.leaves(example)[0].shape[0]
  key = jax.eval_shape(lambda: jax.random.key(0))
  variables = dict(jax.eval_shape(task.init, key, example))
  params = variables.pop("params")
  state = (params, variables, jax.eval_shape(make_optimizer(config.optim).init, params))

  def kept_by(function, differentiated, others):
    """Bytes per example that the derivative of function(*differentiated, *others) keeps."""
    saved = jax.eval_shape(
      lambda own, rest: jax.vjp(lambda *own: function(*own, *rest), *own)[1], differentiated, others
    )
    return size(saved) / rows

  if task.layers is None:
    whole = kept_by(lambda p, v, b, k: task.loss(p, v, b, k, train=True)[0], (params,), (variables, example, key))
    return Facts(task, params, state, 0.0, (whole,), 0.0, (1.0,))
  layers = task.layers
  x = jax.eval_shape(functools.partial(layers.before, train=True), params, example, key)
  between, kept = size(x) / rows, []
  for member in (layers.layers,) if isinstance(layers.layers, Stack) else layers.layers:
    own = (params.get(member.name, {}), own_state(variables, member.name))
    if isinstance(member, Stack):  # one row of the stack
      own = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), own)

    def apply(own, x, state, key, member=member):
      return member.apply(own, state, x, key, train=True)[0]

    kept.append(kept_by(apply, (own[0], x), (own[1], key)))
    x = jax.eval_shape(apply, own[0], x, own[1], key)
  kept = kept * length(layers) if isinstance(layers.layers, Stack) else kept
  loss = kept_by(lambda p, x, b, k: layers.after(p, x, b, k, train=True)[0], (params, x), (example, key))
  return Facts(task, params, state, between, tuple(kept), loss, tuple(layer_costs(layers, params, variables, example)))


def candidates(config: ConfigDict, facts: Facts, *, topology: Topology, devices: Sequence[Any]) -> Ranking:
  """Every mesh of all chips with every power of two of micro-batches, by formula."""
  skipped: Counter = Counter()
  found = []
  for shape in _factors(topology.size, len(AXES)):
    sizes = dict(zip(AXES, shape, strict=True))
    reason = undivided(facts, sizes)
    if reason:
      skipped[reason] += 1
      continue
    mesh = None
    for accumulate, micro in cuts(config, sizes):
      candidate = with_mesh(config, sizes, accumulate=accumulate, micro=micro)
      try:
        check(candidate, facts)
        mesh = mesh or make_mesh(candidate.mesh, batch_size=config.batch_size, devices=devices)
      except UserError as error:
        skipped[str(error).split(";")[0]] += 1
        break
      found.append(estimate(candidate, facts, mesh=mesh, topology=topology))
  fitting = [one for one in found if one.memory <= topology.spec.hbm]
  fitting.sort(key=lambda one: (round(math.log(one.roof.step) / math.log(1.01)), one.roof.apart))
  least = min((one.memory for one in found), default=0.0)
  advice = (
    f"the smallest needs about {least / 2**30:.1f} GiB of {topology.spec.hbm / 2**30:.2f}; take more chips: --topology"
  )
  return Ranking(fitting, len(found) - len(fitting), skipped, advice)


def cuts(config: ConfigDict, sizes: Mapping[str, int]) -> list[tuple[int, int]]:
  """(accumulated parts, micro-batches of the pipeline): powers of two into which the batch can be cut on a mesh; a pipeline
  has at least as many micro-batches as stages, but for small batches. (1, 1) where the batch does not even divide."""
  rows = config.batch_size // (sizes["data"] * sizes["fsdp"])
  if config.batch_size % (sizes["data"] * sizes["fsdp"]):
    return [(1, 1)]
  powers = [part for part in _powers(rows) if rows % part == 0]
  micro = [part for part in powers if part >= sizes["stage"]] or powers[-1:] if sizes["stage"] > 1 else [1]
  return [(one, other) for one in powers for other in micro if rows % (one * other) == 0]


def _factors(product: int, count: int) -> list[tuple[int, ...]]:
  """All ways to write `product` as `count` factors in order."""
  if count == 1:
    return [(product,)]
  return [(n, *rest) for n in range(1, product + 1) if product % n == 0 for rest in _factors(product // n, count - 1)]


def _powers(limit: int) -> list[int]:
  return [2**k for k in range(limit.bit_length()) if 2**k <= limit]


def with_mesh(config: ConfigDict, sizes: Mapping[str, int], *, accumulate: int = 1, micro: int = 1) -> ConfigDict:
  """The config on a mesh of these sizes, its batch accumulated in parts, each of them in micro-batches of the pipeline."""
  changed = ConfigDict(config.to_dict())
  changed.mesh.update(sizes)
  changed.accumulate, changed.pipeline.microbatches = accumulate, micro
  return changed.lock()


def check(config: ConfigDict, facts: Facts) -> None:
  """Raises the UserError of the real step where the config's pipeline cannot be."""
  stages, settings = config.mesh.stage, config.pipeline
  if facts.task.layers is None and stages > 1:
    raise UserError("stages for a task that names no layers", "1", "--config.mesh.stage")
  cell_counts(config, facts.costs, cells=stages * settings.virtual_stages)
  if settings.virtual_stages > 1 and stages > 1 and settings.microbatches < stages:
    raise UserError("fewer micro-batches than stages", "at least as many", "--config.pipeline.microbatches")


def undivided(facts: Facts, sizes: Mapping[str, int]) -> str:
  """Which parameter a tensor axis of this size would leave whole although its rule splits it (heads, widths); else empty."""
  if sizes["tensor"] == 1:
    return ""
  alone = shardings(facts.params, rules=facts.task.rules, mesh=_abstract({**sizes, "fsdp": 1, "stage": 1}))
  ideal = shardings(facts.params, rules=facts.task.rules, mesh=_abstract(dict.fromkeys(AXES, 1)))
  for (path, got), want in zip(jax.tree_util.tree_leaves_with_path(alone), jax.tree.leaves(ideal), strict=True):
    if "tensor" in _axes(want.spec) and "tensor" not in _axes(got.spec):
      return f"tensor {sizes['tensor']} does not divide {path_name(path)}"
  return ""


def _abstract(sizes: Mapping[str, int]) -> AbstractMesh:
  return AbstractMesh(tuple(sizes[axis] for axis in AXES), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _axes(spec: Any) -> set[str]:
  return {name for axis in spec for name in ((axis,) if isinstance(axis, str) else axis or ())}


def estimate(config: ConfigDict, facts: Facts, *, mesh: Mesh, topology: Topology) -> Estimate:
  """Memory and times of a step of `config` (whose mesh has no -1) by the formulas above."""
  sizes = dict(mesh.shape)
  share = _Share(config, facts, sizes)
  flops = chip_flops(config, facts.task, mesh=sizes, busiest=share.busiest)
  links = sum(bytes_ / _rate(mesh, axis, topology) for axis, bytes_ in share.sent().items() if bytes_)
  roof = roofline(flops.total, share.traffic(), links, topology=topology, passes=matmul_passes(config))
  return Estimate(config, sizes, share.memory(), roof)


def _rate(mesh: Mesh, axis: str, topology: Topology) -> float:
  """Bytes/s that a chip sends along a mesh axis."""
  along = np.moveaxis(mesh.devices, AXES.index(axis), -1).reshape(-1, mesh.shape[axis])[0]
  return bandwidth(topology, [device.coords for device in along])


class _Share:
  """What falls to one chip of a mesh: bytes of state and parameters, examples, and passes over the layers."""

  def __init__(self, config: ConfigDict, facts: Facts, sizes: Mapping[str, int]):
    task, settings = facts.task, config.pipeline
    self.facts, self.sizes, self.config = facts, sizes, config
    self.layers, self.stages, self.tensor = len(facts.kept), sizes["stage"], sizes["tensor"]
    self.parts = config.accumulate * settings.microbatches
    self.rows = config.batch_size / (sizes["data"] * sizes["fsdp"])  # of the whole batch
    self.micro = self.rows / self.parts  # b
    self.remat = bool(config.execution.remat)
    self.cell_remat = bool(self.stages > 1 and settings.remat)
    self.cells = self.stages * settings.virtual_stages
    counts = cell_counts(config, facts.costs, cells=self.cells)
    ends = np.cumsum(counts)
    own = [sum(facts.costs[end - count : end]) for end, count in zip(ends, counts, strict=True)]
    self.busiest = max(own) * self.cells / sum(own)
    self.ticks = settings.virtual_stages * settings.microbatches + self.stages - 1
    # How often the layers of a chip are run forwards, in all, counted in micro-batches.
    self.runs = self.ticks * config.accumulate if self.stages > 1 else self.parts
    self.width = np.dtype(config.dtype).itemsize if config.dtype != "bfloat16" else 2
    mesh = _abstract(sizes)
    self.state = _held(facts.state, task, mesh)
    self.params = _held(facts.params, task, mesh)
    whole = _abstract({**sizes, "fsdp": 1})
    inside = {name: tree for name, tree in facts.params.items() if name in facts.inside}
    outside = {name: tree for name, tree in facts.params.items() if name not in facts.inside}
    self.inside, self.outside = (_held(tree, task, whole) * self.width / 4 for tree in (inside, outside))  # gathered
    self.split_inside, self.split_outside = (
      (_held(tree, task, whole) - _held(tree, task, mesh)) * self.width / 4 for tree in (inside, outside)
    )

  @property
  def passes(self) -> int:
    """Times that a layer's parameters are read for a micro-batch: forwards, backwards, and where it is recomputed."""
    return 2 + self.remat + self.cell_remat

  def memory(self) -> float:
    """Bytes that the chip holds at most."""
    facts, b = self.facts, self.micro
    gradients = self.params * (2 if self.config.accumulate > 1 else 1)
    gathered = self.inside * self.stages / self.layers + self.outside * 3
    per_cell = self.layers / self.cells * self.busiest
    x = facts.between * b
    one, mean = (of(facts.kept) * b / self.tensor for of in (max, lambda kept: sum(kept) / self.layers))
    # (kept until the backward pass comes to a cell, needed while it is there) of a cell's layers
    kept, there = (per_cell * x, one) if self.remat else (per_cell * mean, 0.0)
    if self.stages > 1:
      kept, there = (0.0, kept + there) if self.cell_remat else (self.ticks * kept, there)
      kept += (self.ticks + 3 * self.config.pipeline.microbatches) * x
    rows = b if self.stages == 1 else self.rows / self.config.accumulate / self._heads()
    loss = 2 * facts.loss * rows / self.tensor
    return self.state + gradients + gathered + kept + max(there, loss)

  def _heads(self) -> int:
    """Over how many stages the loss is spread."""
    return self.stages if self.config.pipeline.microbatches % self.stages == 0 else 1

  def traffic(self) -> float:
    """Bytes to and from memory: parameters in every pass, the optimizer's update, what layers keep written and read."""
    facts = self.facts
    per_chip = self.layers / self.stages * self.busiest * self.runs * self.micro / self.tensor
    kept = sum(facts.kept) / self.layers * per_chip
    weights = self.passes * self.inside * self.runs + 3 * self.outside * self.parts
    return (
      2 * self.state + 3 * self.params + weights + 2 * self.passes * kept + 4 * facts.loss * self.rows / self._heads()
    )

  def sent(self) -> dict[str, float]:
    """Bytes sent along each axis of the mesh."""
    sizes, x = self.sizes, self.facts.between * self.micro
    ring = {axis: (n - 1) / n for axis, n in sizes.items()}
    gathers = self.split_inside * (self.passes + 1) * self.runs + 3 * self.split_outside * self.config.accumulate
    tensor_sums = 2 * self.passes * self.layers / self.stages * self.runs
    return {
      "fsdp": gathers if sizes["fsdp"] > 1 else 0.0,
      "data": 2 * ring["data"] * self.params * self.config.accumulate,
      "tensor": 2 * ring["tensor"] * x * tensor_sums if sizes["tensor"] > 1 else 0.0,
      "stage": (2 * self.ticks * x + 4 * ring["stage"] * self.rows * self.facts.between) if self.stages > 1 else 0.0,
    }


def _held(tree: PyTree, task: Task, mesh: AbstractMesh) -> float:
  """Bytes of a tree that one chip of the mesh holds."""
  layout = shardings(tree, rules=task.rules, mesh=mesh)
  pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(layout), strict=True)
  return float(sum(math.prod(own.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf, own in pairs))


def suggestion(
  config: ConfigDict, facts: Facts, *, topology: Topology, mesh: Mesh, devices: Sequence[Any], needed: float
) -> str:
  """One change with which the step should fit: the first whose estimate, scaled by what this one's was off, does."""
  sizes = dict(mesh.shape)
  now = {"accumulate": config.accumulate, "micro": config.pipeline.microbatches}
  off = needed / estimate(with_mesh(config, sizes, **now), facts, mesh=mesh, topology=topology).memory
  changes: list[tuple[str, ConfigDict]] = []
  if facts.task.layers is not None and not config.execution.remat:
    changed = ConfigDict(config.to_dict())
    changed.execution.remat = True
    changes.append(("--config.execution.remat=true", with_mesh(changed, sizes, **now)))
  for field, name in (("pipeline.microbatches", "micro"), ("accumulate", "accumulate"))[sizes["stage"] == 1 :]:
    more = [part for part in _powers(config.batch_size) if part > now[name]]
    changes += [(f"--config.{field}={part}", with_mesh(config, sizes, **{**now, name: part})) for part in more]
  if sizes["data"] > 1:
    sharded = {**sizes, "data": 1, "fsdp": sizes["data"] * sizes["fsdp"]}
    changes.append((f"--config.mesh.data=1 --config.mesh.fsdp={sharded['fsdp']}", with_mesh(config, sharded, **now)))
  for text, changed in changes:
    parts = changed.accumulate * changed.pipeline.microbatches
    try:
      own = make_mesh(changed.mesh, batch_size=config.batch_size, accumulate=parts, devices=devices)
    except UserError:
      continue
    if off * estimate(changed, facts, mesh=own, topology=topology).memory <= topology.spec.hbm:
      return text
  chips = 2 ** math.ceil(math.log2(needed / topology.spec.hbm)) * topology.size
  return f"a slice of about {chips} chips: --topology"
