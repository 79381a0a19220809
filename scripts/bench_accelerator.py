"""Training steps of GPT forms on an accelerator: tokens/s, share of the peak, memory beside the plan's, and same bits twice.

In bfloat16 on one device, random tokens, every measurement in a process of its own; a line of JSON for each:
  - 124m and 350m (GPT-2 small and medium, context 1,024) by the loop's own programs, with our attention and with cuDNN's flash
    attention, recomputed by layer or not, and by torch (nn modules under autocast, its flash attention, fused AdamW; eager and
    compiled), at the largest of some batches that fits: tokens/s (median of dispatches), MFU by our FLOP count over the chip's
    peak, peak memory of the device, and for ours the compiler's figure beforehand (planned over used);
  - packs: models of `scripts/bench lm --presets tiny`, 1, 8 and 64 side by side in one program, in float32: ms a step and cell;
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
from ilya_jax.models import transformer_lm
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
PACKS = (1, 8, 64)  # models side by side
OURS = {
  "ours": ("ours", False),
  "ours_remat": ("ours", True),
  "cudnn": ("cudnn", False),
  "cudnn_remat": ("cudnn", True),
}
CONTENDERS = (*OURS, "torch", "torch_compile", "packs", "determinism")
# Dense bfloat16 peak, FLOP/s: NVIDIA's data sheets of the H100 and H200 (SXM: 1,979e12 with sparsity, half without) and A100 (312e12).
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}


def peak_of(kind: str) -> float | None:
  """FLOP/s of a device whose name is known; None otherwise."""
  return next((peak for name, peak in PEAKS.items() if name in kind), None)


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
  used = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
  return {
    **figures(seconds[1:], config=config, peak=peak_of(jax.devices()[0].device_kind), used=used),
    "planned_gib": planned / 2**30, "planned_over_used": used and planned / used,
  }  # fmt: skip


def figures(seconds: list[float], *, config: Any, peak: float | None, used: int | None) -> dict[str, Any]:
  """What steps of so many seconds come to."""
  counts = transformer_lm.counts(config, vocab_size=config.data.vocab_size)
  step = statistics.median(seconds)
  rate = counts.units_per_step / step
  return {
    "parameters": counts.n_total, "ms_a_step": 1e3 * step, "tokens_per_s": rate,
    "mfu": rate * counts.flops_per_unit / peak if peak else None, "used_gib": used and used / 2**30,
  }  # fmt: skip


def measure_torch(config: Any, *, dispatches: int, compiled: bool) -> dict[str, Any]:
  """The same form and batch by torch: as many steps, timed in as many pieces."""
  import torch
  from bench_lm import BETAS, CLIP, Preset, _torch_transformer

  torch.manual_seed(0)
  torch.set_float32_matmul_precision("high")
  where = "cuda" if torch.cuda.is_available() else "cpu"
  model, data = config.model, config.data
  preset = Preset(model.n_layers, model.d_model, model.n_heads, data.context, config.batch_size, data.vocab_size)
  net = _torch_transformer(preset).to(where)
  optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, betas=BETAS, weight_decay=0.1, fused=True)
  tokens = torch.randint(preset.vocabulary, (preset.batch, preset.context + 1), device=where)
  forward = torch.compile(net) if compiled else net

  def step():
    with torch.autocast(where, dtype=getattr(torch, config.dtype)):
      loss = torch.nn.functional.cross_entropy(forward(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), CLIP)
    optimizer.step()

  capacity, seconds = config.execution.steps_per_dispatch, []
  for _ in range(dispatches):
    began = time.perf_counter()
    for _ in range(capacity):
      step()
    if where == "cuda":
      torch.cuda.synchronize()
    seconds.append((time.perf_counter() - began) / capacity)
  used = torch.cuda.max_memory_allocated() if where == "cuda" else None
  peak = peak_of(torch.cuda.get_device_name()) if where == "cuda" else None
  return figures(seconds[1:], config=config, peak=peak, used=used)


def measure_pack(cells: int, *, dispatches: int) -> dict[str, Any]:
  """Milliseconds of a step of one of so many models that train side by side in one program."""
  from bench_lm import PRESETS, STEPS_PER_DISPATCH, build_ours

  run = build_ours(PRESETS["tiny"], pack=cells)
  run(STEPS_PER_DISPATCH)
  seconds = []
  for _ in range(dispatches):
    began = time.perf_counter()
    run(4 * STEPS_PER_DISPATCH)
    seconds.append((time.perf_counter() - began) / (4 * STEPS_PER_DISPATCH))
  return {"ms_a_step": 1e3 * statistics.median(seconds), "ms_a_step_and_cell": 1e3 * statistics.median(seconds) / cells}


def measure_one(choice: dict[str, Any], *, dispatches: int) -> dict[str, Any]:
  """The figures of one choice, at the largest batch that fits; {"refused": …} where it cannot be had."""
  if "pack" in choice:
    return measure_pack(choice["pack"], dispatches=dispatches)
  by = choice["by"]
  kernel, remat = OURS.get(by, ("", False))
  for batch in FORMS[choice["form"]][-1]:
    config = make_config(choice["form"], batch=batch, kernel=kernel, remat=remat, dtype=choice["dtype"])
    try:
      if by in OURS:
        return {"batch": batch, **measure(config, dispatches=dispatches)}
      return {"batch": batch, **measure_torch(config, dispatches=dispatches, compiled=by == "torch_compile")}
    except UserError as error:
      return {"refused": str(error)}
    except RuntimeError as error:  # of JAX and of torch
      if not any(word in str(error) for word in ("RESOURCE_EXHAUSTED", "out of memory")):
        raise
  return {"refused": "out of memory at every batch"}


def choices(forms: list[str], dtype: str, contenders: list[str]) -> Iterator[dict[str, Any]]:
  """What is measured, a choice a process."""
  for form, by in itertools.product(forms, contenders):
    if by in (*OURS, "torch", "torch_compile"):
      yield {"form": form, "by": by, "dtype": dtype}
  if "packs" in contenders:
    yield from ({"pack": cells} for cells in PACKS)


def in_a_process(choice: dict[str, Any], *, dispatches: int) -> dict[str, Any]:
  """`measure_one` in a process of its own, whose peak memory is then this choice's."""
  command = [sys.executable, os.path.abspath(__file__), "--only", json.dumps(choice), "--dispatches", str(dispatches)]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  if done.returncode:
    return {**choice, "failed": (done.stderr.strip().splitlines() or ["no word"])[-1]}
  return {**choice, **json.loads(done.stdout.splitlines()[-1])}


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
  parser.add_argument("--contenders", default=",".join(CONTENDERS))
  parser.add_argument("--dispatches", type=int, default=8)
  parser.add_argument("--dtype", default="bfloat16")
  parser.add_argument("--length", type=int, default=200, help="steps of the runs that are compared bit by bit")
  parser.add_argument("--record", action="store_true")
  parser.add_argument("--only", help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  if arguments.only:
    prepare_devices()
    use_compilation_cache()
    print(json.dumps(measure_one(json.loads(arguments.only), dispatches=arguments.dispatches)))
    return
  contenders = arguments.contenders.split(",")
  measured = (
    in_a_process(choice, dispatches=arguments.dispatches)
    for choice in choices(arguments.forms.split(","), arguments.dtype, contenders)
  )
  same_bits = determinism(length=arguments.length) if "determinism" in contenders else ()
  found = []
  for each in itertools.chain(measured, same_bits):
    print(json.dumps(each), flush=True)
    found.append(each)
  if arguments.record:
    prepare_devices()
    record(found, {"hardware": hardware(), "versions": versions(), "commit": git_commit()})


def record(found: list[dict[str, Any]], common: dict[str, Any]) -> None:
  """Writes the measurements, each with its commit, beside those on record for the same hardware and versions not made again."""
  former = read_json(RESULTS) or {}
  names = ("form", "by", "dtype", "pack", "determinism")
  commit = {"commit": common.pop("commit")}
  made = {tuple(each.get(name) for name in names): {**each, **commit} for each in found}
  same = all(former.get(name) == common[name] for name in ("hardware", "versions"))
  for each in former["measured"] if same else ():
    made.setdefault(tuple(each.get(name) for name in names), each)
  write_json(RESULTS, {**common, "command": "scripts/bench accelerator --record", "measured": list(made.values())})


if __name__ == "__main__":
  main()
