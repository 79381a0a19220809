"""Every mesh of 8 fake devices gives the gradients of one device in float64: four kinds of models, all four axes.

In CI a subset of the 20 shapes: each axis alone, and every pair (and triple) of axes together; ILYA_JAX_MESHES=all runs
all of them and writes the table to experiments/results/meshes.json.
"""

import functools
import itertools
import json
import math
import os
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from ilya_jax.models import lstm_lm, transformer_lm
from ilya_jax.nn.varying import mean_over_batch
from ilya_jax.parallel.layers import in_turn
from ilya_jax.parallel.mesh import AXES, batch_sharding
from ilya_jax.parallel.partition import smallest_maximum
from ilya_jax.parallel.pipeline import Plan, layer_costs, pipelined
from ilya_jax.parallel.sharding import shardings
from ilya_jax.task import Counts, Layer, Layers, Task
from ilya_jax.tasks.language import make_layers
from ilya_jax.train.state import TrainState
from ilya_jax.train.step import gradients

BATCH, MICRO, VOCABULARY, CONTEXT = 32, 4, 32, 6
SHAPES = [shape for shape in itertools.product((1, 2, 4, 8), repeat=4) if math.prod(shape) == 8]
SUBSET = [
  (8, 1, 1, 1), (1, 8, 1, 1), (1, 1, 8, 1), (1, 1, 1, 8), (2, 2, 2, 1), (2, 2, 1, 2), (2, 1, 2, 2), (1, 2, 2, 2),
]  # fmt: skip
ALL = os.environ.get("ILYA_JAX_MESHES") == "all"
RESULTS = Path(__file__).parents[2] / "experiments" / "results" / "meshes.json"


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


def as_float64(tree):
  return jax.tree.map(lambda leaf: leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree)


def language(model, file):
  """(task, params, state, batch) of a language model in float64."""
  tokens = jnp.asarray(np.random.default_rng(0).integers(VOCABULARY, size=(BATCH, CONTEXT + 1)))
  params = model.init(jax.random.key(0), tokens[:, :-1], train=False)["params"]
  layers = make_layers(file.pieces(model), token_bytes=np.ones(VOCABULARY, np.float32))
  return layers, file.RULES, as_float64(params), {}, {"tokens": tokens}


def transformer():
  """Eight blocks with dropout."""
  model = transformer_lm.TransformerLM(
    vocab_size=VOCABULARY,
    context=CONTEXT,
    n_layers=8,
    d_model=16,
    n_heads=8,
    dropout=0.1,
    dtype=jnp.float64,
    layer_unroll=1,
  )
  return language(model, transformer_lm)


def lstm():
  """Eight recurrent layers."""
  model = lstm_lm.LstmLM(vocab_size=VOCABULARY, n_layers=8, d_model=16, dtype=jnp.float64, layer_unroll=1)
  return language(model, lstm_lm)


class ConvLayer(nn.Module):
  """Convolution, batch normalisation, ReLU; a stride halves the image."""

  features: int
  stride: int

  @nn.compact
  def __call__(self, x, train):
    x = nn.Conv(self.features, (3, 3), strides=self.stride, use_bias=False, dtype=jnp.float64)(x)
    mean, var = (
      self.variable("batch_stats", "mean", jnp.zeros, self.features),
      self.variable("batch_stats", "var", jnp.ones, self.features),
    )
    scale = self.param("scale", nn.initializers.ones, (self.features,))
    if not train:
      return nn.relu((x - mean.value) * scale / jnp.sqrt(var.value + 1e-5))
    own_mean = mean_over_batch(x, (0, 1, 2))
    own_var = mean_over_batch(jnp.square(x - own_mean[None, None, None]), (0, 1, 2))
    mean.value, var.value = 0.9 * mean.value + 0.1 * own_mean, 0.9 * var.value + 0.1 * own_var
    return nn.relu((x - own_mean[None, None, None]) * (scale / jnp.sqrt(own_var + 1e-5))[None, None, None])


def conv_net():
  """Eight convolutions with batch normalisation, images that shrink, channels that grow; pooling and a linear head."""
  sizes = [(8, 1), (8, 1), (8, 2), (16, 1), (16, 1), (16, 2), (16, 1), (8, 1)]
  rng = np.random.default_rng(0)
  batch = {"image": jnp.asarray(rng.normal(size=(BATCH, 8, 8, 3))), "label": jnp.asarray(rng.integers(10, size=BATCH))}
  x, params, state, layers = (
    batch["image"],
    {"head": jnp.asarray(0.3 * rng.normal(size=(8, 10)))},
    {"batch_stats": {}},
    [],
  )
  for k, (features, stride) in enumerate(sizes):
    module = ConvLayer(features, stride)
    variables = as_float64(module.init(jax.random.key(k), x, True))
    params[f"conv{k}"], state["batch_stats"][f"conv{k}"] = variables["params"], variables["batch_stats"]

    def apply(own, own_state, x, rng, *, train, module=module):
      if not train:
        return module.apply({"params": own, **own_state}, x, False), own_state
      x, new = module.apply({"params": own, **own_state}, x, True, mutable=["batch_stats"])
      return x, dict(new)

    x, _ = apply(params[f"conv{k}"], {"batch_stats": variables["batch_stats"]}, x, None, train=True)
    layers.append(Layer(f"conv{k}", apply))

  def after(params, x, batch, rng, *, train):
    nll = -jnp.take_along_axis(jax.nn.log_softmax(x.mean((1, 2)) @ params["head"]), batch["label"][:, None], 1)
    return nll.mean(), {"loss": (nll.sum(), jnp.float64(nll.size))}

  rules = ((r"Conv_0/kernel", PartitionSpec(None, None, "fsdp", "tensor")),)
  return Layers(lambda p, b, rng, *, train: b["image"], tuple(layers), after), rules, params, state, batch


def different_list():
  """Eight layers of eight shapes, between an embedding and a head."""
  sizes = [16, 4, 24, 8, 12, 8, 20, 10, 16]
  rng = np.random.default_rng(2)
  params = {"embed": jnp.asarray(rng.normal(size=(16, 16))), "head": jnp.asarray(rng.normal(size=(16, 16)))}
  batch = {name: jnp.asarray(rng.normal(size=(BATCH, 16))) for name in ("x", "y")}
  layers = []
  for k, shape in enumerate(itertools.pairwise(sizes)):
    params[f"l{k}"] = {"w": jnp.asarray(rng.normal(size=shape) / 4)}
    layers.append(Layer(f"l{k}", lambda own, state, x, rng, *, train: (jnp.tanh(x @ own["w"]), state)))

  def after(params, x, batch, rng, *, train):
    error = jnp.square(x @ params["head"] - batch["y"]).sum(1)
    return error.mean(), {"loss": (error.sum(), jnp.float64(error.size))}

  rules = ((r"(embed|head|w)$", PartitionSpec("fsdp", "tensor")),)
  return Layers(lambda p, b, rng, *, train: b["x"] @ p["embed"], tuple(layers), after), rules, params, {}, batch


MODELS = {
  "Transformer": transformer,
  "LSTM": lstm,
  "conv net with BatchNorm": conv_net,
  "heterogeneous list": different_list,
}


@functools.cache
def prepared(name):
  """(layers, rules, state, batch, expected gradients and model state) of a model; expected: one device, micro-batches in turn."""
  with jax.enable_x64(True):
    layers, rules, params, model_state, batch = MODELS[name]()
    state = TrainState(jnp.int32(0), params, model_state, {}, jax.random.key(7))
    expected = step(layers, rules, state, batch, mesh=mesh_of((1, 1, 1, 1)))
    return layers, rules, state, batch, expected


def mesh_of(shape):
  return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 4, devices=jax.devices()[: math.prod(shape)])


def step(layers, rules, state, batch, *, mesh):
  """(gradients, model state) of one step over MICRO micro-batches."""
  stages = mesh.shape["stage"]
  loss, accumulate = in_turn(layers, mesh=mesh, rules=rules), MICRO
  if stages > 1:
    counts = smallest_maximum(layer_costs(layers, state.params, state.model_state, batch), stages)
    plan = Plan(MICRO, counts, tick_unroll=MICRO + stages)
    loss, accumulate = pipelined(layers, mesh=mesh, plan=plan, rules=rules), 1
  task = Task(init=None, loss=loss, counts=Counts(1, 1, 1.0, 1))
  grads, _, model_state = jax.jit(lambda state, batch: gradients(task, state, batch, accumulate=accumulate, mesh=mesh))(
    state, batch
  )
  return grads, model_state


def difference(name, shape):
  """The largest difference of gradients and model state to one device, over the largest gradient."""
  layers, rules, state, batch, expected = prepared(name)
  mesh = mesh_of(shape)
  state = jax.device_put(state, shardings(state, rules=rules, mesh=mesh))
  found = step(layers, rules, state, jax.device_put(batch, batch_sharding(mesh)), mesh=mesh)
  scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected[0]))
  pairs = zip(jax.tree.leaves(jax.device_get(found)), jax.tree.leaves(jax.device_get(expected)), strict=True)
  return max(float(np.abs(one - other).max()) for one, other in pairs) / scale


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shape", SHAPES if ALL else SUBSET, ids=lambda shape: "x".join(map(str, shape)))
def test_a_mesh_gives_the_gradients_of_one_device(name, shape):
  found = difference(name, shape)
  if ALL:
    table = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    table.setdefault(name, {})["x".join(map(str, shape))] = found
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
  assert found <= 1e-10
