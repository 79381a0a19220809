"""`ilya-jax plan`: a training step compiled for a TPU slice that is not there, and what it would take and cost on it."""

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ilya_jax.config import load_config
from ilya_jax.errors import UserError
from ilya_jax.parallel import collectives, hlo
from ilya_jax.parallel.chips import Topology, compile_for, parse_topology, slice_devices
from ilya_jax.parallel.pipeline import layer_costs
from ilya_jax.task import Source, Task
from ilya_jax.train.plan_printed import (
  RECORDS,
  Compiled,
  Report,
  print_best,
  print_ranking,
  print_report,
  write_records,
)
from ilya_jax.train.plan_search import candidates, facts_of, suggestion
from ilya_jax.train.programs import cell_counts, find_task, make_programs
from ilya_jax.train.roofline import chip_flops, link_seconds, matmul_passes, roofline

_UNITS = {"": 1.0, "K": 2.0**10, "M": 2.0**20, "G": 2.0**30, "T": 2.0**40}


def stand_in(config: ConfigDict) -> tuple[Task, Source]:
  """The task of a config and a source of its shapes, which a task file makes without data where it has `make_stand_in`."""
  module = find_task(config)
  source = getattr(module, "make_stand_in", module.make_source)(config)
  return module.make_task(config, source), source


def compile_step(config: ConfigDict, *, task: Task, source: Source, devices: Sequence[Any]) -> Compiled:
  """Compiles one optimizer step for these devices. One that does not fit is a result, not an error."""
  programs = make_programs(config, task=task, source=source, devices=devices)
  batches = None
  if not source.traced:
    batches = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype, sharding=programs.batches_sharding),
      source.batch(0, split="train"),
    )
  rates, n = jax.ShapeDtypeStruct((1,), np.float32), jax.ShapeDtypeStruct((), np.int32)
  began = time.perf_counter()
  lowered = programs.steps.lower(programs.abstract_state, batches, rates, n)
  try:
    compiled = compile_for(lowered)
  except jax.errors.JaxRuntimeError as error:
    return Compiled(programs.mesh, needed_bytes(str(error), error), {}, {}, 0.0, time.perf_counter() - began)
  seconds = time.perf_counter() - began
  memory = compiled.memory_analysis()
  parts = {
    "arguments": memory.argument_size_in_bytes,
    "results beside them": memory.output_size_in_bytes - memory.alias_size_in_bytes,
    "temporaries": memory.temp_size_in_bytes,
    "code": memory.generated_code_size_in_bytes,
  }
  module = hlo.parse(compiled.as_text())
  sent = collectives.sent(module, devices=programs.mesh.size)
  return Compiled(programs.mesh, sum(parts.values()), parts, sent, hlo.memory_traffic(module), seconds)


def needed_bytes(message: str, error: Exception) -> float:
  """Bytes that a program needs, from the compiler's message that there is too little memory; raises `error` on any other."""
  found = re.search(r"(?:Used|\() ?([\d.]+)([KMGT]?) ?(?:of|\) exceeds)", message)
  if "RESOURCE_EXHAUSTED" not in message or "hbm" not in message.lower() or not found:
    raise error
  return float(found[1]) * _UNITS[found[2]]


def busiest_cell(config: ConfigDict, task: Task, source: Source, *, stages: int) -> float:
  """The cost of the costliest cell of the config's pipeline over the mean of all; 1 without a pipeline."""
  if stages == 1 or task.layers is None:
    return 1.0
  example = source.batch(0, split="train")
  variables = dict(jax.eval_shape(task.init, jax.random.key(0), example))
  costs = layer_costs(task.layers, variables.pop("params"), variables, example)
  cells = stages * config.pipeline.virtual_stages
  counts = cell_counts(config, costs, cells=cells)
  ends = np.cumsum(counts)
  own = [sum(costs[end - count : end]) for end, count in zip(ends, counts, strict=True)]
  return max(own) * cells / sum(own)


def report(config: ConfigDict, *, task: Task, source: Source, topology: Topology, devices: Sequence[Any]) -> Report:
  """Compiles and works out all that is printed."""
  compiled = compile_step(config, task=task, source=source, devices=devices)
  sizes = dict(compiled.mesh.shape)
  flops = chip_flops(config, task, mesh=sizes, busiest=busiest_cell(config, task, source, stages=sizes["stage"]))
  links = link_seconds(compiled.sent, topology=topology, mesh=compiled.mesh)
  roof = roofline(flops.total, compiled.traffic, links, topology=topology, passes=matmul_passes(config))
  change = ""
  if not compiled.fits:
    facts = facts_of(config, task, source)
    change = suggestion(config, facts, topology=topology, mesh=compiled.mesh, devices=devices, needed=compiled.needed)
  return Report(config, task, topology, compiled, flops, roof, change)


def plan(
  spec: str, overrides: Mapping[str, str], *, topology: str, search: bool = False, tokens: float = 0.0,
  command: str = "", record: bool = False,
) -> None:  # fmt: skip
  """Prints the plan of a config on a slice; with `search`, of the best meshes for it.

  tokens: how many the days are for (0: the config's steps). record: writes the figures to RECORDS beside `command`.
  Raises UserError on a slice, a mesh or a config that cannot be, and where libtpu is missing.
  """
  wanted = parse_topology(topology)
  config = load_config(spec, overrides)
  if tokens < 0:
    raise UserError(f"--tokens {tokens:g}", "a positive number", "--tokens")
  if record and not RECORDS.parent.is_dir():
    raise UserError(f"no folder {RECORDS.parent} here", "to be run inside a checkout", "--record")
  config.execution.steps_per_dispatch = 1  # the loop over steps has a length that the program does not know
  task, source = stand_in(config)
  devices = slice_devices(wanted)
  title = f"{spec} on {wanted.name} ({wanted.size} chips): {task.counts.n_total:,} parameters, N {task.counts.n:,}"
  found = []
  if search:
    print(title)
    ranked = candidates(config, facts_of(config, task, source), topology=wanted, devices=devices)
    print_ranking(ranked)
    if not ranked.fitting:
      print(f"no mesh of {wanted.name} is estimated to fit; {ranked.advice}")
    for estimate in ranked.fitting[:3]:
      found.append(report(estimate.config, task=task, source=source, topology=wanted, devices=devices))
      print_report(found[-1], tokens=tokens)
    if found:
      print_best(found)
  else:
    found.append(report(config, task=task, source=source, topology=wanted, devices=devices))
    print(title)
    print_report(found[-1], tokens=tokens)
  if record:
    write_records(found, command=command, tokens=tokens)
