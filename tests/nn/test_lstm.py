"""The LSTM recurrence: its formula, its limits, and its backward pass against plain differentiation, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from ilya_jax.nn.lstm import LstmState, lstm_recurrence, lstm_step

LENGTH, BATCH, WIDTH = 4, 3, 4


def draw(seed, *, batch=BATCH):
  rng = np.random.default_rng(seed)
  inputs = rng.normal(size=(LENGTH, batch, 4, WIDTH))
  recurrent = rng.normal(size=(WIDTH, 4, WIDTH))
  return inputs, recurrent, LstmState(*rng.normal(size=(2, batch, WIDTH)))


def plain(inputs, recurrent, state):
  hidden = []
  for gates in inputs:
    gates = gates + jnp.einsum("bk,kgd->bgd", state.hidden, recurrent)
    state, _ = lstm_step(state, gates)
    hidden.append(state.hidden)
  return jnp.stack(hidden), state


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def test_formula():
  inputs, recurrent, state = draw(0)
  with jax.enable_x64(True):
    hidden, final = jax.jit(lstm_recurrence)(inputs, recurrent, state)
  cell, h = state
  for t in range(LENGTH):
    i, f, g, o = np.moveaxis(inputs[t] + np.einsum("bk,kgd->bgd", h, recurrent), 1, 0)
    cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(cell)
    np.testing.assert_allclose(np.asarray(hidden[t]), h, rtol=0, atol=1e-12)
  np.testing.assert_allclose(np.asarray(final.cell), cell, rtol=0, atol=1e-12)
  np.testing.assert_array_equal(np.asarray(final.hidden), np.asarray(hidden[-1]))


@pytest.mark.parametrize("unroll", [1, 3])
def test_gradients_equal_plain_differentiation(unroll):
  def loss(run):
    def value(inputs, recurrent, state):
      hidden, final = run(inputs, recurrent, state)
      return jnp.sum(jnp.sin(3 * hidden)) + jnp.sum(jnp.cos(final.cell)) + jnp.sum(final.hidden**3)

    return jax.jit(jax.grad(value, argnums=(0, 1, 2)))

  with jax.enable_x64(True):
    expected = loss(plain)(*draw(1))
    got = loss(lambda *args: lstm_recurrence(*args, unroll))(*draw(1))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-10), expected, got)


def test_shared_weights_get_the_whole_gradient_from_devices_with_parts_of_the_batch():
  inputs, recurrent, state = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), draw(4, batch=4))
  mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
  specs = (PartitionSpec(None, "data"), PartitionSpec(), LstmState(PartitionSpec("data"), PartitionSpec()))

  def loss(inputs, recurrent, state):
    state = LstmState(state.cell, jnp.zeros_like(state.cell))
    return jnp.sum(lstm_recurrence(inputs, recurrent, state)[0] ** 3)

  def parts(*args):
    return jax.lax.psum(loss(*args), "data")

  run = jax.shard_map(parts, mesh=mesh, in_specs=specs, out_specs=PartitionSpec())
  got = jax.jit(jax.grad(run, argnums=1))(inputs, recurrent, state)
  expected = jax.jit(jax.grad(loss, argnums=1))(inputs, recurrent, state)
  np.testing.assert_allclose(np.asarray(got), np.asarray(expected), rtol=1e-5, atol=1e-6)


def test_open_forget_and_closed_input_gate_keep_the_cell_bit_for_bit():
  state = LstmState(jnp.array([[0.3, -2.0]]), jnp.zeros((1, 2)))
  inputs = jnp.broadcast_to(jnp.array([-1e3, 1e3, 1.0, 0.0])[None, None, :, None], (1000, 1, 4, 2))
  _, final = jax.jit(lstm_recurrence)(inputs, jnp.zeros((2, 4, 2)), state)
  np.testing.assert_array_equal(np.asarray(final.cell), np.asarray(state.cell))


def test_error_carousel_has_gradient_one():
  inputs = jnp.broadcast_to(jnp.array([-1e3, 1e3, 1.0, 0.0])[None, None, :, None], (200, 1, 4, 2))

  def last_cell(cell):
    _, final = lstm_recurrence(inputs, jnp.zeros((2, 4, 2)), LstmState(cell, jnp.zeros((1, 2))))
    return jnp.sum(final.cell)

  np.testing.assert_array_equal(np.asarray(jax.jit(jax.grad(last_cell))(jnp.array([[0.3, -2.0]]))), np.ones((1, 2)))


def test_vmap_over_replicas():
  inputs, recurrent, state = jax.tree.map(lambda a, b: np.stack([a, b]), draw(2), draw(3))

  def loss(*args):
    return jnp.sum(lstm_recurrence(*args)[0] ** 2)

  with jax.enable_x64(True):
    together = jax.jit(jax.vmap(jax.grad(loss, argnums=1)))(inputs, recurrent, state)
    one = jax.jit(jax.grad(loss, argnums=1))(*draw(3))
  np.testing.assert_allclose(np.asarray(together[1]), np.asarray(one), rtol=0, atol=1e-12)
