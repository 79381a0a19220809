"""What a sweep would cost: its cells with N, D and C, and time and memory from earlier runs or a short measurement."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from ilya_jax.parallel.devices import on_cpu
from ilya_jax.scaling.sweep import Cell, Sweep, cell_state, own_flops
from ilya_jax.train.loop import next_chunk, prepare
from ilya_jax.train.metrics import clock
from ilya_jax.train.programs import make_programs

_DISPATCHES = 3  # timed, after one that compiles


class Speed(NamedTuple):
  """Seconds a step takes at some FLOP a step, seconds to compile, and bytes of state and temporaries."""

  flops: float
  seconds: float
  compile_s: float
  bytes: int


def measure(cell: Cell) -> Speed:
  """Times a few dispatches of the cell's program on its own data. Writes nothing."""
  task, source, _ = prepare(cell.config)
  programs = make_programs(cell.config, task=task, source=source)
  capacity = cell.config.execution.steps_per_dispatch
  rates = np.full(capacity, 1e-4, np.float32)
  state = programs.init(jax.numpy.uint32(0))
  batches, chunk_rates = next_chunk(cell.config, source, rates, step=0, end=min(capacity, cell.config.steps))
  batches = jax.device_put(batches, programs.batches_sharding)
  began = time.perf_counter()
  compiled = programs.steps.lower(state, batches, chunk_rates, np.int32(capacity)).compile()
  compile_s = time.perf_counter() - began
  memory = compiled.memory_analysis()
  held = memory.argument_size_in_bytes + memory.temp_size_in_bytes if memory is not None else 0
  state, metrics = compiled(state, batches, chunk_rates, np.int32(capacity))
  jax.block_until_ready(metrics)
  began = time.perf_counter()
  for _ in range(_DISPATCHES):
    state, metrics = compiled(state, batches, chunk_rates, np.int32(capacity))
  jax.block_until_ready(metrics)
  seconds = (time.perf_counter() - began) / (_DISPATCHES * capacity)
  return Speed(cell.counts.units_per_step * cell.counts.flops_per_unit, seconds, compile_s, held)


def speeds(cells: Sequence[Cell], *, workers: int) -> dict[str, list[Speed]]:
  """For each family the speeds of its cheapest and its costliest step, on one worker's share of the cores."""
  if on_cpu():
    share = sorted(os.sched_getaffinity(0))[: max(1, len(os.sched_getaffinity(0)) // workers)]
    os.sched_setaffinity(0, share)
    jax.config.update("jax_num_cpu_devices", len(share))
  found = {}
  for family in {cell.family: None for cell in cells}:
    own = sorted(
      (c for c in cells if c.family == family), key=lambda c: c.counts.units_per_step * c.counts.flops_per_unit
    )
    found[family] = [measure(cell) for cell in ([own[0], own[-1]] if len(own) > 1 else own)]
  return found


def seconds_of(cell: Cell, known: Sequence[Speed]) -> float:
  """Seconds of the steps that the cell itself runs, by a line through the measured seconds a step over FLOP a step."""
  flops = cell.counts.units_per_step * cell.counts.flops_per_unit
  slope = (known[-1].seconds - known[0].seconds) / max(known[-1].flops - known[0].flops, 1.0)
  return max(known[0].seconds + slope * (flops - known[0].flops), 0.0) * own_flops(cell) / flops


def print_plan(plan: Sweep, cells: Sequence[Cell], *, sweep_dir: Path, workers: int) -> None:
  """Prints the cells, their ids, N, D, C and state, and an estimate of time and memory. Starts and writes nothing."""
  done = {cell.id for cell in cells if cell_state(sweep_dir, cell)["state"] == "done"}
  left = [cell for cell in cells if cell.id not in done]
  known = speeds(left, workers=workers) if left else {}
  print(f"sweep {plan.name}: {len(cells)} runs, {len(done)} done, {workers} at a time")
  print(f"{'id':12}  {'family':12} {'role':8} {'N':>10} {'D':>10} {'C (FLOP)':>9} {'own time':>8}  overrides")
  for cell in cells:
    own = "done" if cell.id in done else clock(seconds_of(cell, known[cell.family]))
    shown = ", ".join(
      f"{name}={value}" for name, value in cell.overrides.items() if name in ("seed", "steps") or "model." in name
    )
    role = "branch" if cell.trunk != cell.id else cell.role
    print(
      f"{cell.id:12}  {cell.family:12} {role:8} {cell.counts.n:10,} {cell.units:10,} {cell.flops:9.2e} {own:>8}  {shown}"
    )
  if left:
    compiled = {cell.program: known[cell.family][-1].compile_s for cell in left}
    each = [seconds_of(cell, known[cell.family]) for cell in left]
    total = max((sum(each) + sum(compiled.values())) / workers, max(each))
    memory = max(speed.bytes for found in known.values() for speed in found) * min(workers, len(left))
    print(f"about {clock(total)} in all by a short measurement, and {memory / 2**20:,.0f} MiB of arrays at most")
