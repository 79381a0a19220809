"""Times one training step of the CIFAR ResNets, ours against torch eager, in interleaved rounds.

One step: forward, backward, L2 on all parameters, momentum, in float32, on pictures of 32x32x3 in batches of 128. Ours are the
programs of the training loop with what it does to a picture (a shift, a mirror image, the mean); torch gets pictures made ready.
As `scripts/bench lm`: every contender lives in a process of its own, a round runs each of them once, one JSON line each.

- `torch`, `torch_last`: nn modules in eager mode, channels first and last. - `ours`: batches split over as many virtual devices
as cores, four steps written out in a dispatch. - `one_device`: the same on one. - `single_steps`: a step a dispatch. - `workers`:
cells of a sweep, one process a core, per cell and step.

  scripts/bench resnet [--presets resnet20] [--contenders torch,ours,...] [--rounds 6] [--seconds 4]
"""

import argparse
import json
import os
from collections.abc import Callable
from typing import NamedTuple

from bench_lm import CORES, Contender, measure, serve

DISPATCH = 4
LEARNING_RATE, MOMENTUM, L2 = 0.1, 0.9, 1e-4
PICTURES = 2048


class Preset(NamedTuple):
  """Sizes of a net of the CIFAR family, and its batch."""

  depth: int
  width: int = 16
  side: int = 32
  batch: int = 128


PRESETS = {
  "resnet20": Preset(20),
  "resnet56": Preset(56),
  "digits20": Preset(20, width=8, side=8, batch=64),
  "smoke": Preset(8, 4, 8, 8),
}


def build_torch(preset: Preset, *, channels_last: bool = False) -> Callable[[int], None]:
  """The plain torch program: nn modules, option A shortcuts, SGD with momentum and weight decay."""
  import torch

  torch.manual_seed(0)
  torch.set_num_threads(CORES)
  order = torch.channels_last if channels_last else torch.contiguous_format
  model = _torch_net(preset).to(memory_format=order).train()
  optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=L2)
  images = [
    torch.randn(preset.batch, 3, preset.side, preset.side).contiguous(memory_format=order) for _ in range(DISPATCH)
  ]
  labels = torch.randint(10, (DISPATCH, preset.batch))

  def run(steps):
    for index in range(steps):
      loss = torch.nn.functional.cross_entropy(model(images[index % DISPATCH]), labels[index % DISPATCH])
      optimizer.zero_grad(set_to_none=True)
      loss.backward()
      optimizer.step()

  return run


def _torch_net(preset: Preset):
  import torch
  from torch import nn

  class Block(nn.Module):
    def __init__(self, inputs, features, stride):
      super().__init__()
      self.conv1, self.norm1 = nn.Conv2d(inputs, features, 3, stride, 1, bias=False), nn.BatchNorm2d(features)
      self.conv2, self.norm2 = nn.Conv2d(features, features, 3, 1, 1, bias=False), nn.BatchNorm2d(features)
      self.stride, self.missing = stride, features - inputs

    def forward(self, x):
      y = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
      if self.stride > 1:
        x = nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.missing))
      return torch.relu(y + x)

  blocks, inputs = [], preset.width
  for stage in range(3):
    for k in range((preset.depth - 2) // 6):
      features = preset.width * 2**stage
      blocks.append(Block(inputs, features, 2 if stage and not k else 1))
      inputs = features
  stem = [nn.Conv2d(3, preset.width, 3, 1, 1, bias=False), nn.BatchNorm2d(preset.width), nn.ReLU()]
  return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


def build_ours(preset: Preset, *, dispatch: int = DISPATCH) -> Callable[[int], None]:
  """The programs of the training loop itself: drawn on the host, augmented inside the step, state donated, metrics kept."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from ilya_jax.config import load_config
  from ilya_jax.task import Source
  from ilya_jax.tasks.classify import make_task
  from ilya_jax.train.loop import next_chunk
  from ilya_jax.train.programs import make_programs

  config = load_config("configs/resnet.py", {
    "model.depth": preset.depth, "model.width": preset.width, "batch_size": preset.batch,
    "optim.learning_rate": LEARNING_RATE, "optim.l2": L2, "execution.steps_per_dispatch": dispatch,
    "execution.unroll_steps": True,
  })  # fmt: skip
  rng = np.random.default_rng(0)
  images = rng.integers(256, size=(PICTURES, preset.side, preset.side, 3), dtype=np.uint8)
  labels = rng.integers(10, size=PICTURES).astype(np.int32)

  def batch(step, *, split, rows=slice(None)):
    chosen = np.random.default_rng(step).integers(PICTURES, size=preset.batch)[rows]
    return {"image": images[chosen], "label": labels[chosen]}

  info = {"fingerprint": "noise", "shape": images.shape[1:], "classes": 10, "mean": images.mean(0), "std": 74.0}
  source = Source(batch, {}, info)
  programs = make_programs(config, task=make_task(config, source), source=source)
  state, rates = programs.init(jnp.uint32(0)), np.full(10**6, LEARNING_RATE, np.float32)
  done = 0

  def run(count):
    nonlocal state, done
    for _ in range(count // dispatch):
      batches, chunk_rates = next_chunk(config, source, rates, step=done, end=done + dispatch)
      batches = jax.device_put(batches, programs.batches_sharding)
      state, metrics = programs.steps(state, batches, chunk_rates, np.int32(dispatch))
      done += dispatch
    jax.block_until_ready((state, metrics))

  return run


CONTENDERS = {
  "torch": Contender(build_torch, reference=True),
  "torch_last": Contender(lambda preset: build_torch(preset, channels_last=True), reference=True),
  "ours": Contender(build_ours, devices=CORES),
  "one_device": Contender(build_ours),
  "single_steps": Contender(lambda preset: build_ours(preset, dispatch=1), devices=CORES),
  "workers": Contender(build_ours, processes=CORES),
}


def main() -> None:
  """Runs the benchmark, or serves as one contender's process."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--presets", default="resnet20")
  parser.add_argument("--contenders", default=",".join(CONTENDERS))
  parser.add_argument("--rounds", type=int, default=6)
  parser.add_argument("--seconds", type=float, default=4.0, help="length of a contender's turn in a round")
  parser.add_argument("--serve", help=argparse.SUPPRESS)
  parser.add_argument("--core", type=int, help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.serve:
    serve(CONTENDERS[options.serve], preset=PRESETS[options.presets], core=options.core)
    return
  for preset in options.presets.split(","):
    rows = measure(
      preset, options.contenders.split(","), rounds=options.rounds, seconds=options.seconds, contenders=CONTENDERS,
      script=os.path.abspath(__file__), dispatch=DISPATCH,
    )  # fmt: skip
    for row in rows:
      print(json.dumps(row), flush=True)


if __name__ == "__main__":
  main()
