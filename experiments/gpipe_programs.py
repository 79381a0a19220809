"""What the claims of GPipe run on eight fake devices, as a process of its own.

    python -m experiments.gpipe_programs PART ARGUMENTS

Prints one JSON list of rows. The models are residual tanh layers (the card's), and four convolutions with a norm.
"""

import functools
import json
import os
import sys
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from ilya_jax.parallel.layers import in_turn
from ilya_jax.parallel.mesh import AXES
from ilya_jax.parallel.pipeline import Plan, pipelined, ticks
from ilya_jax.task import Layer, Layers, Stack

PyTree = Any
Row = dict[str, Any]


def mesh_of(stages: int) -> jax.sharding.Mesh:
  """A mesh of stages alone."""
  return jax.make_mesh((1, 1, 1, stages), AXES, axis_types=(AxisType.Auto,) * 4, devices=jax.devices()[:stages])


def residual_net(*, length: int, width: int, hidden: int, examples: int, dtype: Any) -> tuple[Layers, PyTree, PyTree]:
  """(layers, params, batch): x + tanh(x A) B, `length` times; the loss is the mean square of the end."""
  rng = np.random.default_rng(0)
  scale = 0.5 / np.sqrt(width)
  params = {
    "layers": {
      "a": jnp.asarray(scale * rng.normal(size=(length, width, hidden)), dtype),
      "b": jnp.asarray(scale * rng.normal(size=(length, hidden, width)), dtype),
    }
  }

  def apply(own, state, x, rng, *, train):
    return x + jnp.tanh(x @ own["a"]) @ own["b"], state

  def after(params, x, batch, rng, *, train):
    square = jnp.square(x).sum(1)
    return square.mean() / width, {"loss": (square.sum(), jnp.asarray(square.size * width, x.dtype))}

  layers = Layers(lambda p, batch, rng, *, train: batch["x"], Stack("layers", length, apply), after)
  return layers, params, {"x": jnp.asarray(rng.normal(size=(examples, width)), dtype)}


def loss_of(layers: Layers, *, stages: int, micro: int, remat: bool = True) -> Any:
  """The pipelined loss of a stack cut evenly."""
  count = layers.layers.length
  return pipelined(layers, mesh=mesh_of(stages), plan=Plan(micro, (count // stages,) * stages, remat=remat))


def largest_difference(one: PyTree, other: PyTree) -> float:
  """The largest difference of two trees, in units of the largest entry of the second."""
  largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(other))
  pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
  return max(float(jnp.abs(a - b).max()) for a, b in pairs) / largest


def exact(*, length: int, width: int, stages: list[int], factors: list[int], steps: int) -> list[Row]:
  """Gradients and parameters after SGD with K stages and M micro-batches, beside the plain model's; float64."""
  layers, params, batch = residual_net(length=length, width=width, hidden=2 * width, examples=96, dtype=jnp.float64)
  key = jax.random.key(0)
  plain = jax.jit(jax.value_and_grad(lambda p: in_turn(layers)(p, {}, batch, key, train=True)[0]))

  def descend(gradient: Any) -> PyTree:
    moved = params
    for _ in range(steps):
      moved = jax.tree.map(lambda p, g: p - 0.1 * g, moved, gradient(moved)[1])
    return moved

  (loss, expected), trained = plain(params), descend(plain)
  rows = []
  for k in stages:
    for m in [factor * k for factor in factors]:
      pipe = loss_of(layers, stages=k, micro=m)
      gradient = jax.jit(jax.value_and_grad(lambda p, pipe=pipe: pipe(p, {}, batch, key, train=True)[0]))
      own_loss, own = gradient(params)
      rows.append({
        "K": k, "M": m, "ticks": ticks(Plan(m, (1,) * k), stages=k), "gradient": largest_difference(own, expected),
        "loss": abs(float(own_loss - loss)) / float(loss), "after_sgd": largest_difference(descend(gradient), trained),
      })  # fmt: skip
  return rows


def memory(*, length: int, width: int, hidden: int, examples: int, stages: list[int], micro: list[int]) -> list[Row]:
  """MiB of temporaries of one float32 gradient a device, by XLA's memory analysis; K = 0 stands for no pipeline."""
  layers, params, batch = residual_net(length=length, width=width, hidden=hidden, examples=examples, dtype=jnp.float32)
  key = jax.random.key(0)

  def mib(loss: Any, **shardings: Any) -> float:
    gradient = jax.grad(lambda p, b: loss(p, {}, b, key, train=True)[0])
    compiled = jax.jit(gradient, **shardings).lower(params, batch).compile()
    return float(compiled.memory_analysis().temp_size_in_bytes) / 2**20

  rows = [{"remat": "no", "K": 0, "M": 1, "mib": mib(in_turn(layers))}]
  for remat in (False, True):
    for k in stages:
      split = jax.sharding.NamedSharding(mesh_of(k), jax.sharding.PartitionSpec("stage"))
      for m in micro:
        loss = loss_of(layers, stages=k, micro=m, remat=remat)
        found = mib(loss, in_shardings=(split, None), out_shardings=split)
        rows.append({"remat": "yes" if remat else "no", "K": k, "M": m, "mib": found})
  return rows


class NormedConvolution(nn.Module):
  """A convolution, a norm (batch: over the examples of the micro-batch; layer: over an example), ReLU."""

  norm: str

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = nn.Conv(6, (3, 3), use_bias=False, param_dtype=jnp.float64)(x)
    axes = (0, 1, 2) if self.norm == "batch" else (1, 2, 3)
    mean = x.mean(axes, keepdims=True)
    variance = jnp.square(x - mean).mean(axes, keepdims=True)
    return nn.relu((x - mean) / jnp.sqrt(variance + 1e-5))


def norms(*, micro: list[int], seeds: list[int]) -> list[Row]:
  """The training loss and gradient of four convolutions on two stages with M micro-batches, against one micro-batch."""
  rows = []
  for seed in seeds:
    for norm in ("batch", "layer"):
      layers, params, batch = _conv_net(norm, seed=seed)
      found = {}
      for m in (1, *micro):
        loss = pipelined(layers, mesh=mesh_of(2), plan=Plan(m, (2, 2), tick_unroll=m + 1))
        gradient = jax.value_and_grad(
          lambda p, loss=loss, batch=batch: loss(p, {}, batch, jax.random.key(0), train=True)[0]
        )
        found[m] = jax.jit(gradient)(params)
      for m in micro:
        rows.append({
          "seed": seed, "norm": norm, "M": m, "loss": abs(float(found[m][0] - found[1][0])) / float(found[1][0]),
          "gradient": largest_difference(found[m][1], found[1][1]),
        })  # fmt: skip
  return rows


def _conv_net(norm: str, *, seed: int) -> tuple[Layers, PyTree, PyTree]:
  """(layers, params, batch) on random images."""
  rng = np.random.default_rng(seed)
  batch = {"image": jnp.asarray(rng.normal(size=(16, 8, 8, 3))), "label": jnp.asarray(rng.integers(10, size=16))}
  params: PyTree = {"head": jnp.asarray(0.3 * rng.normal(size=(6, 10)))}
  layers, x = [], batch["image"]
  for k in range(4):
    module = NormedConvolution(norm)
    params[f"conv{k}"] = module.init(jax.random.key(10 * seed + k), x)["params"]
    x = module.apply({"params": params[f"conv{k}"]}, x)

    def apply(own, state, x, rng, *, train, module=module):
      return module.apply({"params": own}, x), state

    layers.append(Layer(f"conv{k}", apply))

  def after(params, x, batch, rng, *, train):
    nll = -jnp.take_along_axis(jax.nn.log_softmax(x.mean((1, 2)) @ params["head"]), batch["label"][:, None], 1)
    return nll.mean(), {"loss": (nll.sum(), jnp.float64(nll.size))}

  return Layers(lambda p, b, rng, *, train: b["image"], tuple(layers), after), params, batch


PARTS = {"exact": exact, "memory": memory, "norms": norms}


def main() -> None:
  """Runs a part."""
  part, arguments = sys.argv[1], json.loads(sys.argv[2])
  with jax.enable_x64(part != "memory"):
    print(json.dumps(functools.partial(PARTS[part], **arguments)()))


if __name__ == "__main__":
  main()
