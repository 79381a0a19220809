"""Times whole sweeps and what a cell costs beside its steps, on the preset `tiny` of `scripts/bench lm`.

- `sweep`: eight cells of one shape, from the start of the launcher to the last saved checkpoint (processes, imports, compiling
  with a cold and a warm cache, evaluation, checkpoints), against torch training the same models one after another in
  one process on all cores (import and steps alone).
- `start`: a second cell of a shape within a process, from its config to the end of its first dispatch, less the steps.
- `batch`: drawing one batch of text, against one step.

  scripts/bench sweep [--cells 8] [--steps 200] [--rounds 2] [--pack 1]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench_lm import PRESETS, STEPS_PER_DISPATCH, Team, hardware

TINY = PRESETS["tiny"]
SETTINGS = {
  "model.n_layers": TINY.layers, "model.d_model": TINY.width, "model.n_heads": TINY.heads, "data.context": TINY.context,
  "batch_size": TINY.batch, "execution.steps_per_dispatch": STEPS_PER_DISPATCH, "execution.tensorboard": False,
}  # fmt: skip


def run_sweep(folder: str, *, cells: int, steps: int, pack: int) -> None:
  """Runs the cells as `ilya-jax sweep` does, without fits and report."""
  from ilya_jax.parallel.devices import use_compilation_cache
  from ilya_jax.scaling import launch, sweep
  from ilya_jax.scaling.launch_local import LocalPool

  use_compilation_cache()
  plan = [
    sweep.make_cell(
      "configs/transformer_lm.py:tiny", {**SETTINGS, "steps": steps, "seed": seed}, family="t", role="fit"
    )
    for seed in range(cells)
  ]
  packs = sweep.make_packs(plan, size=pack)
  engine = LocalPool(launch.default_workers())
  outcome = launch.run_packs(packs, Path(folder), engine=engine, report=lambda line: None)
  assert len(outcome.done) == cells, outcome.failed


def run_start() -> None:
  """Prints seconds of start-up of a second cell, of a batch, and of a step."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from ilya_jax.config import load_config
  from ilya_jax.train.loop import next_chunk, prepare
  from ilya_jax.train.programs import make_programs

  def first_dispatch(seed):
    """(seconds to the end of the first dispatch, seconds of a further one, source)."""
    began = time.perf_counter()
    config = load_config(
      "configs/transformer_lm.py:tiny", {**SETTINGS, "seed": seed, "optim.learning_rate": 1e-3 + seed}
    )
    task, source, _ = prepare(config)
    programs = make_programs(config, task=task, source=source)
    state = programs.init(jnp.uint32(seed))
    ends = []
    for _ in range(2):
      batches, rates = next_chunk(config, source, np.full(64, 1e-3, np.float32), step=0, end=STEPS_PER_DISPATCH)
      batches = jax.device_put(batches, programs.batches_sharding)
      state, metrics = programs.steps(state, batches, rates, np.int32(STEPS_PER_DISPATCH))
      jax.block_until_ready((state, metrics))
      ends.append(time.perf_counter())
    return ends[0] - began, ends[1] - ends[0], source

  first, _, _ = first_dispatch(0)
  second, steps, source = first_dispatch(1)
  began = time.perf_counter()
  for step in range(2_000):
    source.batch(step, split="train")
  batch = (time.perf_counter() - began) / 2_000
  print(
    json.dumps({"first": first - steps, "second": second - steps, "batch": batch, "step": steps / STEPS_PER_DISPATCH})
  )


def timed(arguments: list[str], *, environment: dict[str, str]) -> tuple[float, str]:
  """(seconds, last line printed) of this file run with arguments."""
  began = time.perf_counter()
  command = [sys.executable, os.path.abspath(__file__), *arguments]
  done = subprocess.run(command, env={**os.environ, **environment}, check=True, stdout=subprocess.PIPE, text=True)
  return time.perf_counter() - began, (done.stdout.splitlines() or [""])[-1]


def main() -> None:
  """Runs the benchmark, or one of its parts in a process of its own."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--cells", type=int, default=8)
  parser.add_argument("--steps", type=int, default=200)
  parser.add_argument("--rounds", type=int, default=2)
  parser.add_argument("--pack", type=int, default=1)
  parser.add_argument("--part", choices=["sweep", "start"], help=argparse.SUPPRESS)
  parser.add_argument("--folder", help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.part == "start":
    return run_start()
  if options.part == "sweep":
    return run_sweep(options.folder, cells=options.cells, steps=options.steps, pack=options.pack)
  sizes = ["--cells", str(options.cells), "--steps", str(options.steps), "--pack", str(options.pack)]
  seconds: dict[str, list[float]] = {"torch": [], "cold": [], "warm": []}
  with tempfile.TemporaryDirectory() as scratch:
    for turn in range(options.rounds):
      began = time.perf_counter()
      team = Team("torch", preset="tiny")
      team.run(options.cells * options.steps)
      seconds["torch"].append(time.perf_counter() - began)
      team.close()
      for cache in ("cold", "warm"):
        environment = {"JAX_COMPILATION_CACHE_DIR": f"{scratch}/{turn}/xla", "JAX_PLATFORMS": "cpu"}
        part = ["--part", "sweep", "--folder", f"{scratch}/{turn}/{cache}", *sizes]
        seconds[cache].append(timed(part, environment=environment)[0])
  for name, values in seconds.items():
    ratio = statistics.median(a / b for a, b in zip(values, seconds["torch"], strict=True))
    row = {"part": "sweep", "contender": name, "seconds": round(statistics.median(values), 1), "ratio": round(ratio, 3)}
    print(
      json.dumps({**row, "cells": options.cells, "steps": options.steps, "pack": options.pack, **hardware()}),
      flush=True,
    )
  rows = [json.loads(timed(["--part", "start"], environment={"JAX_PLATFORMS": "cpu"})[1]) for _ in range(3)]
  second, first, batch, step = (statistics.median(row[k] for row in rows) for k in ("second", "first", "batch", "step"))
  print(json.dumps({"part": "start", "first_s": round(first, 2), "second_s": round(second, 3), **hardware()}))
  print(
    json.dumps({"part": "batch", "us": round(1e6 * batch, 1), "step_over_batch": round(step / batch), **hardware()})
  )
  return None


if __name__ == "__main__":
  main()
