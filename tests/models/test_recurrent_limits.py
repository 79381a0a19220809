"""Limits of recurrent cells: shut gates, the error carousel, bounds of gradients and outputs; memory blocks of 1997."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ilya_jax.models.recurrent_cells import CELLS, MemoryBlocks, Recurrent, memory_blocks, recurrence
from ilya_jax.nn.lstm import LstmState
from tests.models.recurrent_oracle import BATCH, LENGTH, WIDTH, double, drawn, run_all, sequence, sigmoid


def gated(name, gates, *, length, width=2, cell=(0.3, -2.0)):
  """Runs a cell without recurrent weights whose gates have these net inputs; returns (hidden states, final state)."""
  kind = CELLS[name]
  inputs = np.zeros((length, 1, len(kind.gates), width), np.float32)
  for gate, value in gates.items():
    inputs[:, :, kind.gates.index(gate)] = value
  weights = {product.name: np.zeros((width, len(product.blocks), width), np.float32) for product in kind.products}
  weights |= {vector: np.zeros((rows, width), np.float32) for vector, rows in kind.vectors}
  first = jnp.array([cell], jnp.float32)
  state = LstmState(first, jnp.zeros_like(first)) if kind.state is LstmState else kind.state(first)
  shown, final = jax.jit(lambda inputs, state: recurrence(kind, inputs, weights=weights, state=state))(inputs, state)
  return np.asarray(shown), jax.tree.map(np.asarray, final)


KEEPS = {
  "lstm": {"input": -1e3, "forget": 1e3, "candidate": 1.0},
  "lstm_no_forget": {"input": -1e3, "candidate": 1.0},
  "lstm_coupled": {"forget": 1e3, "candidate": 1.0},
  "lstm_peephole": {"input": -1e3, "forget": 1e3, "candidate": 1.0},
  "lstm_peephole_full": {"input": -1e3, "forget": 1e3, "candidate": 1.0},
}


@pytest.mark.parametrize("name", KEEPS)
def test_shut_gates_keep_the_cell_bit_for_bit(name):
  _, final = gated(name, KEEPS[name], length=1000)
  np.testing.assert_array_equal(final.cell, np.array([[0.3, -2.0]], np.float32))


def test_other_limits():
  _, final = gated("lstm", {"input": 1e3, "forget": -1e3, "candidate": 0.7}, length=3)
  np.testing.assert_allclose(final.cell, np.tanh(0.7), rtol=1e-6)
  shown, _ = gated("lstm", {"output": -1e3, "candidate": 1.0, "input": 1e3}, length=3)
  np.testing.assert_array_equal(shown, 0)
  _, final = gated("gru", {"update": -1e3, "candidate": 1.0}, length=1000)
  np.testing.assert_array_equal(final.hidden, np.array([[0.3, -2.0]], np.float32))


def test_peepholes_of_zero_are_none():
  plain = drawn(double("lstm"))
  none = {**plain, "peephole": np.zeros((3, WIDTH))}
  matrices = {
    **plain, "peephole": {"kernel": np.zeros((WIDTH, 2, WIDTH))}, "peephole_output": {"kernel": np.zeros((WIDTH, 1, WIDTH))},
  }  # fmt: skip
  expected = run_all("lstm", plain, sequence())
  np.testing.assert_allclose(run_all("lstm_peephole", none, sequence()), expected, rtol=0, atol=1e-6)
  np.testing.assert_allclose(run_all("lstm_peephole_full", matrices, sequence()), expected, rtol=0, atol=1e-6)


def test_the_output_gate_looks_at_the_new_cell():
  """All weights zero but the output peephole: o = s(p C_t)."""
  weights = {"recurrent": np.zeros((2, 4, 2), np.float32), "peephole": np.zeros((3, 2), np.float32)}
  weights["peephole"][2] = 1.7
  inputs = np.zeros((1, 1, 4, 2), np.float32)
  inputs[:, :, 2] = 0.9
  state = LstmState(jnp.array([[0.3, -2.0]]), jnp.zeros((1, 2)))
  shown, _ = recurrence(CELLS["lstm_peephole"], jnp.asarray(inputs), weights=weights, state=state)
  new = 0.5 * np.array([0.3, -2.0]) + 0.5 * np.tanh(0.9)
  np.testing.assert_allclose(np.asarray(shown)[0, 0], sigmoid(1.7 * new) * np.tanh(new), rtol=1e-6)


@pytest.mark.parametrize("name", KEEPS)
def test_the_error_carousel_has_gradient_one_over_200_steps(name):
  kind = CELLS[name]
  inputs = np.zeros((200, 1, len(kind.gates), 2), np.float32)
  for gate, value in KEEPS[name].items():
    inputs[:, :, kind.gates.index(gate)] = value
  weights = {product.name: np.zeros((2, len(product.blocks), 2), np.float32) for product in kind.products}
  weights |= {vector: np.zeros((rows, 2), np.float32) for vector, rows in kind.vectors}

  def cells(first):  # C_1 .. C_200, summed: the gradient counts the steps that pass it on
    state = LstmState(first, jnp.zeros((1, 2)))

    def step(state, inputs_t):
      state, _ = kind.step(weights, state, inputs_t)
      return state, state.cell

    return jax.lax.scan(step, state, inputs)[1].sum()

  np.testing.assert_array_equal(np.asarray(jax.jit(jax.grad(cells))(jnp.array([[0.3, -2.0]]))), 200.0)


@pytest.mark.parametrize("name", ["lstm", "lstm_coupled", "lstm_no_forget"])
def test_the_direct_path_never_amplifies(name):
  """dC_t / dC_{t-1} without the paths through the gates is f, which is at most 1: exactly 1 without a forget gate."""
  layer = double(name)
  cell, params = CELLS[name], drawn(layer)
  gates = np.einsum("tbi,igd->tbgd", sequence(), params["input"]["kernel"]) + params["input"]["bias"]
  weights = {"recurrent": np.zeros((WIDTH, len(cell.gates), WIDTH))}
  with jax.enable_x64(True):
    for inputs in gates:
      state = LstmState(jnp.asarray(sequence(7, inputs=WIDTH)[0]), jnp.zeros((BATCH, WIDTH)))

      def new_cell(old, inputs=inputs, state=state):
        return cell.step(weights, state._replace(cell=old), jnp.asarray(inputs))[0].cell

      _, back = jax.vjp(new_cell, state.cell)
      (direct,) = back(jnp.ones((BATCH, WIDTH)))
      expected = sigmoid(inputs[:, cell.gates.index("forget")]) if "forget" in cell.gates else np.ones((BATCH, WIDTH))
      np.testing.assert_allclose(np.asarray(direct), expected, rtol=0, atol=1e-12)
      assert np.asarray(direct).max() <= 1


@pytest.mark.parametrize("name", CELLS)
def test_bounds(name):
  """|h| < 1 and, from zeros, |C_t| <= t."""
  layer = Recurrent(name, WIDTH)
  params = jax.tree.map(lambda leaf: np.asarray(5 * leaf, np.float32), drawn(double(name)))
  for length in (1, LENGTH):
    shown, state = jax.jit(layer.apply)({"params": params}, sequence(8).astype(np.float32)[:length])
    assert np.abs(shown).max() <= 1
    if isinstance(state, LstmState):
      assert np.abs(state.cell).max() <= length


def blocks_transcribed(params, x, *, blocks, size):
  """The hidden layer of 1997, unit by unit: what the cells put out [T, B, cells]."""
  w, b, u = params["input"]["kernel"][:, 0], params["input"]["bias"][0], params["recurrent"]["kernel"][:, 0]
  cells = blocks * size
  inner, put_out, shown = np.zeros((x.shape[1], cells)), np.zeros((x.shape[1], len(b))), []
  for x_t in x:
    net = x_t @ w + put_out @ u + b
    after = np.zeros_like(put_out)
    for j in range(blocks):
      enter, leave = sigmoid(net[:, cells + j]), sigmoid(net[:, cells + blocks + j])
      after[:, cells + j], after[:, cells + blocks + j] = enter, leave
      for v in range(j * size, (j + 1) * size):
        inner[:, v] = inner[:, v] + enter * (4 * sigmoid(net[:, v]) - 2)
        after[:, v] = leave * (2 * sigmoid(inner[:, v]) - 1)
    put_out = after
    shown.append(put_out[:, :cells].copy())
  return np.stack(shown)


def test_memory_blocks_equal_their_transcription():
  layer = MemoryBlocks(2, 3, dtype=jnp.float64)
  with jax.enable_x64(True):
    shown, _ = jax.jit(layer.apply)({"params": drawn(layer)}, sequence())
  expected = blocks_transcribed(drawn(layer), sequence(), blocks=2, size=3)
  np.testing.assert_allclose(np.asarray(shown), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("truncated", [False, True])
def test_gradients_of_memory_blocks_are_those_of_the_whole_net_or_cut_where_errors_leave_the_cells(truncated):
  layer = MemoryBlocks(2, 2, truncated=truncated, dtype=jnp.float64)
  cell = memory_blocks(2, 2, truncated)

  def written_out(params, x):
    state, weights = (
      cell.state(jnp.zeros((BATCH, 4)), jnp.zeros((BATCH, 8))),
      {"recurrent": params["recurrent"]["kernel"]},
    )
    inputs = jnp.einsum("tbi,igd->tbgd", x, params["input"]["kernel"]) + params["input"]["bias"][None, None]
    for t in range(LENGTH):
      state, _ = cell.step(weights, state, inputs[t])
    return cell.read(state)

  def grads(run):
    return jax.jit(jax.grad(lambda params, x: jnp.sum(jnp.sin(run(params, x))), argnums=(0, 1)))

  params, x = drawn(layer), sequence()
  with jax.enable_x64(True):
    expected = grads(written_out)(params, x)
    got = grads(lambda params, x: layer.apply({"params": params}, x)[0][-1])(params, x)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-10), expected, got)


def test_truncation_leaves_the_path_through_the_cells_alone():
  """With no weights between units there is nothing to cut; with them the inputs' gradients differ."""
  whole, cut = (MemoryBlocks(2, 2, truncated=flag, dtype=jnp.float64) for flag in (False, True))
  params = drawn(whole)
  apart = {**params, "recurrent": {"kernel": np.zeros((8, 1, 8))}}

  def grad(layer, params):
    return np.asarray(jax.jit(jax.grad(lambda x: jnp.sum(layer.apply({"params": params}, x)[0][-1])))(sequence()))

  with jax.enable_x64(True):
    np.testing.assert_allclose(grad(whole, apart), grad(cut, apart), rtol=0, atol=1e-12)
    assert np.abs(grad(whole, params) - grad(cut, params)).max() > 1e-3


def test_biases_of_the_input_gates_begin_where_they_are_told_to():
  layer = MemoryBlocks(2, 2, (-3.0, -6.0))
  params = jax.jit(layer.init)(jax.random.key(0), np.zeros((1, 1, 2), np.float32))["params"]
  bias = np.asarray(params["input"]["bias"])[0]
  np.testing.assert_array_equal(bias[4:6], [-3, -6])
  assert np.abs(np.delete(bias, [4, 5])).max() <= 0.1
