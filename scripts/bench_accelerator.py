"""Training steps of GPT forms on an accelerator: tokens/s, share of the peak, memory beside the plan's, and same bits twice.

The loop's own programs on random tokens, in bfloat16, one device. A line of JSON for each form and choice:
  - 124m and 350m (GPT-2 small and medium, context 1,024), with our attention and with cuDNN's flash attention, recomputed by layer or not,
    at the largest of some batches that fits: tokens/s (median of dispatches), MFU by our FLOP count over the chip's peak,
    peak memory of the device, and the compiler's figure beforehand (planned over used);
  - determinism: two processes train the same small run, with and without --xla_gpu_deterministic_ops=true: same digest or not.
`scripts/bench sweep` times packed cells beside one after another. --record writes experiments/results/accelerator.json.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ilya_jax.config import load_config
from ilya_jax.errors import UserError
from ilya_jax.parallel.devices import prepare_devices, use_compilation_cache
from ilya_jax.task import Source
from ilya_jax.tasks import language
from ilya_jax.train.metrics import read_json, write_json
from ilya_jax.train.programs import make_programs
from ilya_jax.train.workdir import git_commit, hardware, versions

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "experiments" / "results" / "accelerator.json"
FORMS = {  # layers, width, heads, context, vocabulary, batches to try
  "124m": (12, 768, 12, 1024, 50_304, (64, 32, 16, 8)),
  "350m": (24, 1024, 16, 1024, 50_304, (32, 16, 8, 4)),
  "tiny": (2, 64, 2, 128, 512, (8,)),  # to try this script on anything
}
# Dense bfloat16 peak, FLOP/s: NVIDIA's data sheets of the H100 and H200 (SXM: 1,979e12 with sparsity, half without) and A100 (312e12).
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}


def peak_of(device: Any) -> float | None:
  """FLOP/s of a device whose name is known; None otherwise."""
  return next((peak for name, peak in PEAKS.items() if name in device.device_kind), None)


def make_config(form: str, *, batch: int, kernel: str, remat: bool, dtype: str) -> Any:
  """The config of a form on random tokens."""
  layers, width, heads, context, vocabulary, _ = FORMS[form]
  return load_config("configs/transformer_lm.py", {
    "model.n_layers": layers, "model.d_model": width, "model.n_heads": heads, "data.context": context, "batch_size": batch,
    "data.tokenizer": "bpe", "data.vocab_size": vocabulary, "dtype": dtype, "execution.attention_kernel": kernel,
    "execution.remat": remat, "execution.steps_per_dispatch": 4, "mesh.data": 1,
  })  # fmt: skip


def random_tokens(config: Any) -> Source:
  """The shapes of the config's text, filled with random tokens."""
  shapes = language.make_stand_in(config)
  size = (config.batch_size, config.data.context + 1)
  tokens = np.random.default_rng(0).integers(shapes.info["vocab_size"], size=size).astype(np.uint16)
  return shapes._replace(batch=lambda step, *, split, rows=slice(None): {"tokens": tokens[rows]})


def measure(config: Any, *, dispatches: int) -> dict[str, Any]:
  """Trains some dispatches; returns the figures of the last ones."""
  source = random_tokens(config)
  task = language.make_task(config, source)
  programs = make_programs(config, task=task, source=source)
  capacity = config.execution.steps_per_dispatch
  drawn = source.batch(0, split="train")
  batches = jax.device_put({k: np.stack([v] * capacity) for k, v in drawn.items()}, programs.batches_sharding)
  rates, count = np.full(capacity, 1e-4, np.float32), np.int32(capacity)
  memory = programs.steps.lower(programs.abstract_state, batches, rates, count).compile().memory_analysis()
  planned = (
    memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
  )
  state, seconds = programs.init(np.uint32(0)), []
  for _ in range(dispatches):
    began = time.perf_counter()
    state, _ = programs.steps(state, batches, rates, count)
    jax.block_until_ready(state)
    seconds.append((time.perf_counter() - began) / capacity)
  step, device = statistics.median(seconds[1:]), jax.devices()[0]
  used, peak = (device.memory_stats() or {}).get("peak_bytes_in_use"), peak_of(device)
  rate = task.counts.units_per_step / step
  return {
    "parameters": task.counts.n_total, "ms_a_step": 1e3 * step, "tokens_per_s": rate,
    "mfu": rate * task.counts.flops_per_unit / peak if peak else None,
    "planned_gib": planned / 2**30, "used_gib": used and used / 2**30, "planned_over_used": used and planned / used,
  }  # fmt: skip


def steps(forms: list[str], *, dispatches: int, dtype: str) -> Iterator[dict[str, Any]]:
  """Figures of every form and choice, each at the largest batch that fits."""
  for form in forms:
    for kernel in ("", "cudnn"):
      for remat in (False, True):
        for batch in FORMS[form][-1]:
          choice = {"form": form, "attention": kernel or "ours", "remat": remat, "batch": batch, "dtype": dtype}
          config = make_config(form, batch=batch, kernel=kernel, remat=remat, dtype=dtype)
          try:
            yield {**choice, **measure(config, dispatches=dispatches)}
            break
          except UserError as error:
            yield {**choice, "refused": str(error)}
            break
          except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
              raise
            yield {**choice, "refused": "out of memory"}


def determinism(*, length: int) -> Iterator[dict[str, Any]]:
  """Whether two processes end with the same parameters, with and without the flag."""
  for flag in ("", "--xla_gpu_deterministic_ops=true"):
    environment = {**os.environ, "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()}
    digests = []
    with tempfile.TemporaryDirectory() as folder:
      for index in range(2):
        workdir = Path(folder) / str(index)
        command = [sys.executable, "-m", "ilya_jax.cli", "train", "--config", "configs/transformer_lm.py:tiny", "--workdir", str(workdir),
                   f"--config.steps={length}", "--config.mesh.data=1", "--config.execution.tensorboard=false"]  # fmt: skip
        subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
        digests.append((read_json(workdir / "status.json") or {}).get("params_digest"))
    yield {"determinism": flag or "no flag", "steps": length, "same_bits": digests[0] == digests[1]}


def main() -> None:
  """Prints a line of JSON for each measurement."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--forms", default="124m,350m")
  parser.add_argument("--dispatches", type=int, default=8)
  parser.add_argument("--dtype", default="bfloat16")
  parser.add_argument("--length", type=int, default=200, help="steps of the runs that are compared bit by bit")
  parser.add_argument("--record", action="store_true")
  arguments = parser.parse_args()
  prepare_devices()
  use_compilation_cache()
  common = {"hardware": hardware(), "versions": versions(), "commit": git_commit()}
  found = []
  forms = arguments.forms.split(",")
  for figures in itertools.chain(
    steps(forms, dispatches=arguments.dispatches, dtype=arguments.dtype), determinism(length=arguments.length)
  ):
    print(json.dumps({**figures, "hardware": common["hardware"]}), flush=True)
    found.append(figures)
  if arguments.record:
    write_json(
      RESULTS, {**common, "command": " ".join(["scripts/bench accelerator", *sys.argv[1:]]), "measured": found}
    )


if __name__ == "__main__":
  main()
