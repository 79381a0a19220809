"""Times one training step of the language models, ours against torch eager and torch.compile, in interleaved rounds.

One step: forward, backward, clipping by the global norm and AdamW, in float32, on the same model, batch and optimizer.
Every contender lives in a process of its own and computes only when it is its turn; a round runs each of them once.
Prints one JSON line per preset and contender: the median over rounds of ms per step, and the median ratio to the faster
torch form of the same round. `workers` are independent cells of a sweep, one process pinned to each core: their figure is
wall time per cell and step, to be held against torch running the same cells one after another with all cores. `pack` is
eight of them side by side in one program on all cores, per cell and step. `scripts/bench sweep` times whole sweeps.

  scripts/bench lm [--presets tiny,small,lstm] [--contenders torch,torch_compile,ours,...] [--rounds 12] [--seconds 2]
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

STEPS_PER_DISPATCH = 16
LEARNING_RATE, BETAS, WEIGHT_DECAY, CLIP = 1e-3, (0.9, 0.95), 0.1, 1.0


class Preset(NamedTuple):
  """Sizes of a model and its batch; `heads` 0 stands for the LSTM."""

  layers: int
  width: int
  heads: int
  context: int
  batch: int
  vocabulary: int = 256


PRESETS = {
  "tiny": Preset(layers=2, width=64, heads=2, context=128, batch=32),
  "small": Preset(layers=4, width=256, heads=4, context=256, batch=16),
  "lstm": Preset(layers=2, width=128, heads=0, context=128, batch=32),
}


class Contender(NamedTuple):
  """build(preset) -> run(steps), which trains that many steps and waits for them; `processes` run at the same time, and
  each trains `cells` models side by side."""

  build: Callable[..., Callable[[int], None]]
  devices: int = 1
  processes: int = 1
  cells: int = 1
  reference: bool = False


def build_torch(preset: Preset, *, compiled: bool = False) -> Callable[[int], None]:
  """The plain torch program: nn modules, scaled_dot_product_attention or nn.LSTM, fused AdamW."""
  import torch

  torch.manual_seed(0)
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  model = _torch_lstm(preset) if not preset.heads else _torch_transformer(preset)
  optimizer = torch.optim.AdamW(
    model.parameters(), lr=LEARNING_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True
  )
  tokens = torch.randint(preset.vocabulary, (STEPS_PER_DISPATCH, preset.batch, preset.context + 1))
  forward = torch.compile(model) if compiled else model

  def step(batch):
    loss = torch.nn.functional.cross_entropy(forward(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step()

  def run(steps):
    for index in range(steps):
      step(tokens[index % STEPS_PER_DISPATCH])

  return run


def _torch_transformer(preset: Preset):
  import torch
  from torch import nn

  width, heads = preset.width, preset.heads

  class Block(nn.Module):
    def __init__(self):
      super().__init__()
      self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
      self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
      self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))

    def forward(self, x):
      batch, time, _ = x.shape
      query, key, value = self.qkv(self.norm1(x)).view(batch, time, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
      mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
      x = x + self.out(mixed.transpose(1, 2).reshape(batch, time, width))
      return x + self.mlp(self.norm2(x))

  class Model(nn.Module):
    def __init__(self):
      super().__init__()
      self.embed, self.positions = nn.Embedding(preset.vocabulary, width), nn.Embedding(preset.context, width)
      self.blocks, self.norm = nn.Sequential(*(Block() for _ in range(preset.layers))), nn.LayerNorm(width)
      nn.init.normal_(self.embed.weight, std=0.02)

    def forward(self, tokens):
      x = self.embed(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
      return self.norm(self.blocks(x)) @ self.embed.weight.T

  return Model()


def _torch_lstm(preset: Preset):
  from torch import nn

  class Model(nn.Module):
    def __init__(self):
      super().__init__()
      self.embed = nn.Embedding(preset.vocabulary, preset.width)
      self.lstm = nn.LSTM(preset.width, preset.width, num_layers=preset.layers, batch_first=True)
      self.head = nn.Linear(preset.width, preset.vocabulary)

    def forward(self, tokens):
      return self.head(self.lstm(self.embed(tokens))[0])

  return Model()


def build_ours(preset: Preset, *, pack: int = 1) -> Callable[[int], None]:
  """The programs of the training loop itself, on real text: 16 steps a dispatch, state donated, metrics kept."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from ilya_jax.config import load_config
  from ilya_jax.train.loop import next_chunk, prepare
  from ilya_jax.train.programs import make_programs

  sizes = {
    "model.n_layers": preset.layers, "model.d_model": preset.width, "data.context": preset.context,
    "batch_size": preset.batch, "optim.learning_rate": LEARNING_RATE, "optim.clip_norm": CLIP,
    "execution.steps_per_dispatch": STEPS_PER_DISPATCH,
  }  # fmt: skip
  if preset.heads:
    config = load_config("configs/transformer_lm.py:tiny", {**sizes, "model.n_heads": preset.heads})
  else:
    if preset.vocabulary != 256:
      sizes |= {"data.tokenizer": "bpe", "data.vocab_size": preset.vocabulary}
    config = load_config("configs/lstm_lm.py:tiny", sizes)
  task, source, _ = prepare(config)
  programs = make_programs(config, task=task, source=source, pack=pack)
  state = programs.join([programs.init(jnp.uint32(seed)) for seed in range(pack)])
  rates = np.full(10 * STEPS_PER_DISPATCH, LEARNING_RATE, np.float32)

  def run(count):
    nonlocal state
    for start in range(0, count, STEPS_PER_DISPATCH):
      # The input pipeline is part of the step: every dispatch draws its batches anew.
      drawn = [
        next_chunk(config, source, rates, step=start % 64, end=start % 64 + STEPS_PER_DISPATCH) for _ in range(pack)
      ]
      batches, chunk_rates = drawn[0] if pack == 1 else jax.tree.map(lambda *leaves: np.stack(leaves), *drawn)
      batches = jax.device_put(batches, programs.batches_sharding)
      state, metrics = programs.steps(state, batches, chunk_rates, np.int32(min(STEPS_PER_DISPATCH, count - start)))
    jax.block_until_ready((state, metrics))

  return run


CORES = len(os.sched_getaffinity(0))
CONTENDERS = {
  "torch": Contender(build_torch, reference=True),
  "torch_compile": Contender(lambda preset: build_torch(preset, compiled=True), reference=True),
  "ours": Contender(build_ours, devices=CORES),
  "one_device": Contender(build_ours),
  "workers": Contender(build_ours, processes=CORES),
  "pack": Contender(lambda preset: build_ours(preset, pack=8), devices=CORES, cells=8),
}


def serve(contender: Contender, *, preset: NamedTuple, core: int) -> None:
  """The process of a contender: reads a number of steps a line, answers with the seconds they took."""
  if contender.processes > 1:
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[core]})
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(contender.devices))
  run = contender.build(preset)
  for line in sys.stdin:
    start = time.perf_counter()
    run(int(line))
    print(time.perf_counter() - start, flush=True)


class Team:
  """The processes of one contender, which step together; `script` serves it with `--serve NAME --presets PRESET --core K`."""

  def __init__(self, name: str, *, preset: str, contenders: dict[str, Contender] = CONTENDERS, script: str = __file__):
    self._cells = contenders[name].processes * contenders[name].cells
    command = [sys.executable, os.path.abspath(script), "--serve", name, "--presets", preset, "--core"]
    processes = range(contenders[name].processes)
    self._processes = [
      subprocess.Popen([*command, str(core)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
      for core in processes
    ]

  def run(self, steps: int) -> float:
    """Seconds until every cell has taken so many steps, per step and cell."""
    start = time.perf_counter()
    for process in self._processes:
      assert process.stdin
      print(steps, file=process.stdin, flush=True)
    for process in self._processes:
      assert process.stdout
      if not process.stdout.readline():
        raise SystemExit(f"a contender's process died: {process.args}")
    return (time.perf_counter() - start) / steps / self._cells

  def close(self) -> None:
    """Ends the processes."""
    for process in self._processes:
      process.communicate()


def measure(
  preset: str, names: list[str], *, rounds: int, seconds: float, contenders: dict[str, Contender] = CONTENDERS,
  script: str = __file__, dispatch: int = STEPS_PER_DISPATCH,
) -> list[dict]:  # fmt: skip
  """Rows of results: each contender warmed up, then `rounds` turns of about `seconds` each, in whole dispatches."""
  teams = {name: Team(name, preset=preset, contenders=contenders, script=script) for name in names}
  steps = {}
  for name, team in teams.items():
    team.run(dispatch)  # compiles
    once = team.run(dispatch) * contenders[name].processes * contenders[name].cells
    steps[name] = dispatch * max(round(seconds / once / dispatch), 1)
  table: dict[str, list[float]] = {name: [] for name in names}
  for _ in range(rounds):
    for name in names:
      table[name].append(teams[name].run(steps[name]))
  for team in teams.values():
    team.close()
  references = [table[name] for name in names if contenders[name].reference]
  fastest = min(references, key=statistics.median) if references else None
  rows = []
  for name in names:
    row = {"preset": preset, "contender": name, "ms_per_step": round(1e3 * statistics.median(table[name]), 2)}
    if fastest:
      row["ratio"] = round(statistics.median(a / b for a, b in zip(table[name], fastest, strict=True)), 3)
    rows.append({**row, "rounds": rounds, "steps": steps[name], **hardware()})
  return rows


def hardware() -> dict:
  """The processor's name, the cores this process may use, and the load of the machine."""
  name = platform.processor()
  if os.path.exists("/proc/cpuinfo"):
    with open("/proc/cpuinfo") as lines:
      name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
  return {"hardware": f"{name}, {CORES} cores", "load": round(os.getloadavg()[0], 2)}


def main(
  *, description: str | None = __doc__, presets: dict[str, Preset] = PRESETS, timed: Sequence[str] = tuple(PRESETS),
  script: str = __file__,
) -> None:  # fmt: skip
  """Runs the benchmark `script` on the presets that are `timed`, or serves as one contender's process."""
  parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--presets", default=",".join(timed))
  parser.add_argument("--contenders", default=",".join(CONTENDERS))
  parser.add_argument("--rounds", type=int, default=12)
  parser.add_argument("--seconds", type=float, default=2.0, help="length of a contender's turn in a round")
  parser.add_argument("--serve", help=argparse.SUPPRESS)
  parser.add_argument("--core", type=int, help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.serve:
    serve(CONTENDERS[options.serve], preset=presets[options.presets], core=options.core)
    return
  for preset in options.presets.split(","):
    names = options.contenders.split(",")
    for row in measure(preset, names, rounds=options.rounds, seconds=options.seconds, script=script):
      print(json.dumps(row), flush=True)


if __name__ == "__main__":
  main()
