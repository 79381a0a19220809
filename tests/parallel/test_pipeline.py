"""The pipeline against the same layers run in turn: gradients in float64, states, dropout, layer counts, ticks, refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from ilya_jax.errors import UserError
from ilya_jax.parallel import pipeline
from ilya_jax.parallel.layers import in_turn
from ilya_jax.task import Layer, Layers, Stack

BATCH, WIDTH = 24, 6


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


def mesh_of(stages, data=1):
  return jax.make_mesh(
    (data, 1, 1, stages), ("data", "fsdp", "tensor", "stage"), axis_types=(AxisType.Auto,) * 4,
    devices=jax.devices()[: data * stages],
  )  # fmt: skip


def batch_of(seed=0, features=WIDTH):
  rng = np.random.default_rng(seed)
  return {"x": jnp.asarray(rng.normal(size=(BATCH, features))), "y": jnp.asarray(rng.normal(size=(BATCH, WIDTH)))}


def squared_error(params, x, batch, rng, *, train):
  error = jnp.square(x @ params["head"] - batch["y"]).sum(1)
  return error.mean(), {"loss": (error.sum(), jnp.float64(error.size))}


def mlp_stack(count, *, dropout=0.0, with_state=False):
  """(Layers, params, model state): residual tanh layers; with a state, each keeps a running mean and subtracts the batch's."""

  def apply(params, state, x, rng, *, train):
    if state:
      mean = x.mean(0)
      x = x - mean[None]
      state = {"stats": 0.9 * state["stats"] + 0.1 * mean}
    hidden = jnp.tanh(x @ params["a"] + params["bias"][None])
    if dropout and train:
      hidden = jnp.where(jax.random.bernoulli(rng, 1 - dropout, hidden.shape), hidden / (1 - dropout), 0.0)
    return x + hidden @ params["b"], state

  rng = np.random.default_rng(1)
  draw = lambda *shape: jnp.asarray(0.4 * rng.normal(size=shape))  # noqa: E731
  params = {
    "embed": draw(WIDTH, WIDTH), "head": draw(WIDTH, WIDTH),
    "layers": {"a": draw(count, WIDTH, 9), "b": draw(count, 9, WIDTH), "bias": draw(count, 9)},
  }  # fmt: skip
  layers = Layers(lambda p, b, rng, *, train: b["x"] @ p["embed"], Stack("layers", count, apply), squared_error)
  return layers, params, {"stats": {"layers": draw(count, WIDTH)}} if with_state else {}


def different_layers(*, with_state=False):
  """(Layers, params, model state): seven layers of different shapes; activations are trees of different shapes too."""
  sizes = [WIDTH, 4, 11, 3, 8, 5, 7, WIDTH]
  rng = np.random.default_rng(2)
  params = {"embed": jnp.eye(WIDTH), "head": jnp.asarray(rng.normal(size=(WIDTH, WIDTH)))}
  state = {"stats": {}}
  layers = []
  for k, (n, m) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
    params[f"l{k}"] = {"w": jnp.asarray(rng.normal(size=(n, m)) / n**0.5)} | ({"b": jnp.zeros(m)} if k % 2 else {})
    if with_state and k in (1, 4):
      state["stats"][f"l{k}"] = jnp.zeros(m)

    def apply(own, own_state, x, rng, *, train, k=k):
      x = x["even"] if isinstance(x, dict) else x
      y = jnp.tanh(x @ own["w"] + (own["b"][None] if "b" in own else 0.0))
      if own_state:
        mean = y.mean(0)
        y, own_state = y - mean[None], {"stats": 0.9 * own_state["stats"] + 0.1 * mean}
      return {"even": y} if k % 3 == 1 else y, own_state

    layers.append(Layer(f"l{k}", apply))
  before = lambda p, b, rng, *, train: b["x"] @ p["embed"]  # noqa: E731
  return Layers(before, tuple(layers), squared_error), params, state if with_state else {}


def accumulated(layers, params, state, batch, rng, *, micro):
  """Loss, gradients and state of the plain list, micro-batch after micro-batch."""
  grad = jax.value_and_grad(in_turn(layers), has_aux=True)
  total, sums, metrics = None, 0.0, None
  for m in range(micro):
    part = jax.tree.map(lambda leaf: leaf[m::micro], batch)  # noqa: B023
    (loss, (own, state)), grads = grad(
      params, state, part, rng if micro == 1 else jax.random.fold_in(rng, m), train=True
    )
    total = grads if total is None else jax.tree.map(jnp.add, total, grads)
    metrics = own if metrics is None else jax.tree.map(jnp.add, metrics, own)
    sums = sums + loss
  return sums / micro, metrics, state, jax.tree.map(lambda leaf: leaf / micro, total)


def both(model, *, stages, micro, counts, data=1, **plan):
  layers, params, state = model
  batch, rng = batch_of(), jax.random.key(3)
  plan = pipeline.Plan(microbatches=micro, counts=tuple(counts), **plan)
  loss = pipeline.pipelined(layers, mesh=mesh_of(stages, data), plan=plan)
  grad = jax.jit(jax.value_and_grad(functools.partial(loss, train=True), has_aux=True))
  (value, (metrics, new)), grads = grad(params, state, batch, rng)
  wanted = jax.jit(functools.partial(accumulated, layers, micro=micro))(params, state, batch, rng)
  return (value, dict(metrics), new, grads), wanted


def assert_equal(got, wanted, tolerance=1e-12):
  scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(wanted[3]))
  for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
    assert float(jnp.abs(one - other).max()) <= tolerance * max(scale, 1.0)


EQUAL = [(1, 1), (1, 4), (2, 1), (2, 4), (4, 2), (4, 4), (4, 8), (8, 6), (8, 24), (4, 3)]


@pytest.mark.parametrize(("stages", "micro"), EQUAL)
def test_equal_layers(stages, micro):
  assert_equal(*both(mlp_stack(8), stages=stages, micro=micro, counts=[8 // stages] * stages))


@pytest.mark.parametrize("counts", [(3, 1, 2, 1), (1, 1, 1, 4), (5, 2), (1, 6)])
@pytest.mark.parametrize("remat", [True, False])
def test_uneven_counts(counts, remat):
  assert_equal(*both(mlp_stack(7), stages=len(counts), micro=4, counts=counts, remat=remat))


@pytest.mark.parametrize("counts", [(2, 1, 3, 1), (1, 6), (7,), (1,) * 7])
@pytest.mark.parametrize("with_state", [False, True])
def test_layers_of_different_shapes(counts, with_state):
  assert_equal(*both(different_layers(with_state=with_state), stages=len(counts), micro=4, counts=counts))


@pytest.mark.parametrize(("stages", "virtual", "micro"), [(2, 2, 2), (2, 4, 3), (4, 2, 4), (4, 2, 8), (2, 3, 6)])
def test_several_cells_a_stage(stages, virtual, micro):
  cells = stages * virtual
  counts = [9 - cells + 1] + [1] * (cells - 1)
  assert_equal(*both(mlp_stack(9, with_state=True), stages=stages, micro=micro, counts=counts, virtual=virtual))


def test_several_cells_a_stage_of_different_layers():
  model = different_layers(with_state=True)
  assert_equal(*both(model, stages=2, virtual=3, micro=4, counts=(1, 1, 2, 1, 1, 1)))


@pytest.mark.parametrize(("stages", "micro"), [(2, 4), (4, 3), (1, 4)])
def test_batch_statistics_pass_through_the_micro_batches_in_order(stages, micro):
  assert_equal(*both(mlp_stack(4, with_state=True), stages=stages, micro=micro, counts=[4 // stages] * stages))


@pytest.mark.parametrize(("stages", "micro", "virtual"), [(2, 4, 1), (4, 3, 1), (2, 4, 2)])
def test_dropout_is_that_of_the_plain_list(stages, micro, virtual):
  counts = [8 // (stages * virtual)] * stages * virtual
  assert_equal(*both(mlp_stack(8, dropout=0.3), stages=stages, micro=micro, counts=counts, virtual=virtual))


def test_with_a_data_axis():
  assert_equal(*both(mlp_stack(4), stages=4, data=2, micro=3, counts=[1] * 4))


def test_statistics_of_a_part_of_the_batch_are_refused():
  with pytest.raises(UserError, match="l1"):
    both(different_layers(with_state=True), stages=2, data=2, micro=3, counts=(3, 4))


def test_unrolled_ticks_change_nothing():
  got, wanted = both(mlp_stack(4), stages=2, micro=4, counts=(2, 2), tick_unroll=5)
  assert_equal(got, wanted)


@pytest.mark.parametrize("counts", [(3, 1, 2, 1), (2, 2, 2, 1)])
def test_every_layer_acts_exactly_once(counts):
  """Layer i multiplies by the i-th prime: the product tells which layers acted, and how often."""
  primes = jnp.array([2.0, 3.0, 5.0, 7.0, 11.0, 13.0, 17.0])
  stack = Stack("layers", 7, lambda p, s, x, rng, *, train: (x * p, s))

  def after(params, x, batch, rng, *, train):
    return x.mean(), {"loss": (x.sum(), jnp.float64(x.size))}

  layers = Layers(lambda p, b, rng, *, train: jnp.ones((b["x"].shape[0], 1)), stack, after)
  loss = pipeline.pipelined(layers, mesh=mesh_of(4), plan=pipeline.Plan(4, counts))
  assert (
    float(jax.jit(functools.partial(loss, train=True))({"layers": primes}, {}, batch_of(), jax.random.key(0))[0])
    == 510_510
  )


def test_refusals():
  layers, _, _ = mlp_stack(4)
  with pytest.raises(UserError, match="cells"):
    pipeline.pipelined(layers, mesh=mesh_of(2), plan=pipeline.Plan(4, (1, 1, 2)))
  with pytest.raises(UserError, match="cells"):
    pipeline.pipelined(layers, mesh=mesh_of(2), plan=pipeline.Plan(4, (2, 1)))
  with pytest.raises(UserError, match="micro-batches"):
    pipeline.pipelined(layers, mesh=mesh_of(2), plan=pipeline.Plan(1, (1, 1, 1, 1), virtual=2))
