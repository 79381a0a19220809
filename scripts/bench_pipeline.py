"""What the pipeline costs: memory against stages and micro-batches, FLOP of re-materialisation, time beside a hand-driven one.

- `memory`: temporaries of one gradient per device (XLA's memory analysis; nothing runs) for 16 residual tanh layers of width
  256 (hidden 1024) on 2,048 examples in float32, K stages x M micro-batches, with and without re-materialisation, and the
  fit a + b (M + K - 1) / M + c / (K M) of the re-materialised ones with K of 2 or more.
- `flop`: re-materialised over plain, ticks written out so that XLA's cost analysis counts each.
- `time`: 2 virtual devices, K = 2, M = 16, re-materialised, beside the same two stages driven by hand as programs on one device
  each from two threads, and beside one device stepping through the micro-batches; interleaved rounds, median of ratios.
  Reported, not gated: the devices share the cores of one machine.

  scripts/bench pipeline [--rounds 10] [--parts memory,flop,time]
"""

import argparse
import functools
import json
import os
import queue
import statistics
import threading
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")

import jax
import jax.numpy as jnp
import numpy as np
from bench_lm import hardware
from jax.sharding import AxisType

from ilya_jax.parallel.layers import in_turn
from ilya_jax.parallel.mesh import AXES
from ilya_jax.parallel.pipeline import Plan, pipelined, ticks
from ilya_jax.task import Counts, Layers, Stack, Task
from ilya_jax.train.state import TrainState
from ilya_jax.train.step import gradients

LENGTH, WIDTH, HIDDEN, EXAMPLES = 16, 256, 1024, 2048


def apply(params, state, x, rng, *, train):
  """One residual layer."""
  return x + jnp.tanh(x @ params["a"]) @ params["b"], state


def mean_square(params, x, batch, rng, *, train):
  """The loss."""
  square = jnp.square(x).sum(1)
  return square.mean() / WIDTH, {"loss": (square.sum(), jnp.float32(square.size * WIDTH))}


LAYERS = Layers(lambda params, batch, rng, *, train: batch["x"], Stack("layers", LENGTH, apply), mean_square)


def arguments():
  """(parameters, batch)."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape) * 0.02, jnp.float32)  # noqa: E731
  return {"layers": {"a": draw(LENGTH, WIDTH, HIDDEN), "b": draw(LENGTH, HIDDEN, WIDTH)}}, {"x": draw(EXAMPLES, WIDTH)}


def gradient(stages, micro, **plan):
  """The jitted gradient of the pipelined loss."""
  mesh = jax.make_mesh((1, 1, 1, stages), AXES, axis_types=(AxisType.Auto,) * 4, devices=jax.devices()[:stages])
  loss = pipelined(LAYERS, mesh=mesh, plan=Plan(micro, (LENGTH // stages,) * stages, **plan))
  grad = jax.grad(lambda params, batch: loss(params, {}, batch, jax.random.key(0), train=True)[0])
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("stage"))
  return jax.jit(grad, in_shardings=(rows, None), out_shardings=rows)


def memory():
  """Prints MiB of temporaries and the fit."""
  params, batch = arguments()
  measured = {}
  for remat in (False, True):
    for stages in (1, 2, 4, 8):
      for micro in (1, 4, 8, 16):
        compiled = gradient(stages, micro, remat=remat).lower(params, batch).compile()
        measured[remat, stages, micro] = compiled.memory_analysis().temp_size_in_bytes / 2**20
      row = {f"M={m}": round(measured[remat, stages, m], 1) for m in (1, 4, 8, 16)}
      print(json.dumps({"part": "memory", "unit": "MiB a device", "remat": remat, "K": stages, **row}), flush=True)
  plain = jax.jit(jax.grad(lambda p, b: in_turn(LAYERS)(p, {}, b, jax.random.key(0), train=True)[0]))
  whole = plain.lower(params, batch).compile().memory_analysis().temp_size_in_bytes / 2**20
  points = [(k, m, measured[True, k, m]) for k in (2, 4, 8) for m in (1, 4, 8, 16)]
  design = np.array([[1.0, (m + k - 1) / m, 1 / (k * m)] for k, m, _ in points])
  values = np.array([value for _, _, value in points])
  solution = np.linalg.lstsq(design, values, rcond=None)[0]
  residual = values - design @ solution
  fit = {
    "a": solution[0],
    "b": solution[1],
    "c": solution[2],
    "r2": 1 - residual @ residual / np.square(values - values.mean()).sum(),
  }
  ratio = measured[True, 8, 16] / whole
  print(json.dumps({"part": "memory", "plain_mib": round(whole, 1), "remat_k8_m16_over_plain": round(ratio, 3)}))
  print(
    json.dumps({"part": "memory", "fit": {name: round(float(value), 4) for name, value in fit.items()}}), flush=True
  )


def flop():
  """Prints FLOP of a gradient, and ticks."""
  params, batch = arguments()
  for stages, micro in ((2, 4), (4, 8)):
    steps = ticks(Plan(micro, (1,) * stages), stages=stages)
    found = {}
    for remat in (False, True):
      lowered = gradient(stages, micro, remat=remat, tick_unroll=steps).lower(params, batch)
      found[remat] = lowered.compile().cost_analysis()["flops"]
    print(
      json.dumps(
        {
          "part": "flop",
          "K": stages,
          "M": micro,
          "ticks": steps,
          "remat_over_plain": round(found[True] / found[False], 3),
        }
      )
    )


class ByHand:
  """Two stages as programs on one device each, driven by two threads: all micro-batches forward, then all back."""

  def __init__(self, params, batch, *, micro):
    devices, half = jax.devices()[:2], LENGTH // 2
    self.micro = micro
    rows = [jax.tree.map(lambda leaf: leaf[part], params["layers"]) for part in (slice(half), slice(half, None))]  # noqa: B023
    self.params = [jax.device_put(own, device) for own, device in zip(rows, devices, strict=True)]
    self.devices, self.x = devices, [jax.device_put(batch["x"][m::micro], devices[0]) for m in range(micro)]

    def run(own, x):
      return jax.lax.scan(lambda x, row: (apply(row, {}, x, None, train=True)[0], None), x, own)[0]

    def last(own, x):
      return jnp.square(run(own, x)).sum(1).mean() / WIDTH

    def back(own, x, cotangent, total):
      grads, d_x = jax.vjp(run, own, x)[1](cotangent)
      return jax.tree.map(jnp.add, total, grads), d_x

    def back_last(own, x, total):
      grads, d_x = jax.grad(last, argnums=(0, 1))(own, x)
      return jax.tree.map(jnp.add, total, grads), d_x

    self.run, self.last, self.back, self.back_last = jax.jit(run), jax.jit(last), jax.jit(back), jax.jit(back_last)

  def step(self):
    """One gradient of both stages."""
    there, back, totals = queue.Queue(), queue.Queue(), [None, None]

    def first():
      for x in self.x:
        there.put(jax.block_until_ready(jax.device_put(self.run(self.params[0], x), self.devices[1])))
      total = jax.tree.map(jnp.zeros_like, self.params[0])
      for x in reversed(self.x):
        total, _ = self.back(self.params[0], x, back.get(), total)
        jax.block_until_ready(total)
      totals[0] = total

    def second():
      held = []
      for _ in range(self.micro):
        held.append(there.get())
        jax.block_until_ready(self.last(self.params[1], held[-1]))
      total = jax.tree.map(jnp.zeros_like, self.params[1])
      for x in reversed(held):
        total, d_x = self.back_last(self.params[1], x, total)
        back.put(jax.block_until_ready(jax.device_put(d_x, self.devices[0])))
      totals[1] = total

    threads = [threading.Thread(target=run) for run in (first, second)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    return totals


def times(rounds):
  """Prints seconds a gradient and ratios."""
  params, batch = arguments()
  micro = 16
  ours = functools.partial(gradient(2, micro), params, batch)
  by_hand = ByHand(params, batch, micro=micro)
  one = jax.make_mesh((1, 1, 1, 1), AXES, axis_types=(AxisType.Auto,) * 4, devices=jax.devices()[:1])
  task = Task(init=None, loss=in_turn(LAYERS), counts=Counts(1, 1, 1.0, 1))
  state = TrainState(jnp.int32(0), params, {}, {}, jax.random.key(0))
  in_steps = functools.partial(jax.jit(lambda s, b: gradients(task, s, b, accumulate=micro, mesh=one)[0]), state, batch)
  contenders = {"pipeline": ours, "by_hand": by_hand.step, "one_device_in_micro_batches": in_steps}
  seconds = {name: [] for name in contenders}
  for turn in range(rounds + 1):
    for name, run in contenders.items():
      began = time.perf_counter()
      jax.block_until_ready(run())
      if turn:
        seconds[name].append(time.perf_counter() - began)
  for name, values in seconds.items():
    ratio = statistics.median(a / b for a, b in zip(values, seconds["by_hand"], strict=True))
    row = {
      "part": "time",
      "contender": name,
      "ms": round(1e3 * statistics.median(values), 1),
      "over_by_hand": round(ratio, 3),
    }
    print(json.dumps({**row, "K": 2, "M": micro, "rounds": rounds, **hardware()}), flush=True)


def main() -> None:
  """Runs the parts asked for."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--rounds", type=int, default=10)
  parser.add_argument("--parts", default="memory,flop,time")
  options = parser.parse_args()
  for part in options.parts.split(","):
    {"memory": memory, "flop": flop, "time": functools.partial(times, options.rounds)}[part]()


if __name__ == "__main__":
  main()
