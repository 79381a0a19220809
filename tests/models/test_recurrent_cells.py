"""Recurrent cells against transcriptions in NumPy, torch and flax; their limits, counts, gradients, masks and directions."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ilya_jax.errors import UserError
from ilya_jax.models.recurrent_cells import (
  CELLS,
  Bidirectional,
  MemoryBlocks,
  Recurrent,
  memory_blocks,
  parameters,
  recurrence,
  reverse,
  zero_state,
)
from ilya_jax.nn.lstm import LstmState

LENGTH, BATCH, INPUTS, WIDTH = 4, 3, 2, 4
ENDED = np.arange(LENGTH)[:, None] < np.array([4, 2, 3])[None]  # [T, B], False after the end


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


@functools.cache
def drawn(layer, inputs=INPUTS, width=1.0):
  """Random parameters of a layer in float64, as NumPy arrays."""
  layer = layer.clone(dtype=jnp.float32)
  shapes = jax.eval_shape(layer.init, jax.random.key(0), np.zeros((LENGTH, BATCH, inputs), np.float32))["params"]
  rng = np.random.default_rng(1)
  return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape) * width, shapes)


def sequence(seed=0, *, length=LENGTH, inputs=INPUTS):
  return np.random.default_rng(seed).normal(size=(length, BATCH, inputs))


def double(name, width=WIDTH, **fields):
  return Recurrent(name, width, dtype=jnp.float64, **fields)


def transcribed(name, params, x):
  """The cells' equations step by step: hidden states [T, B, D]."""
  w, b, u = params["input"]["kernel"], params["input"]["bias"], params["recurrent"]["kernel"]
  gates = {gate: k for k, gate in enumerate(CELLS[name].gates)}
  h = c = np.zeros((x.shape[1], w.shape[-1]))
  shown = []
  for x_t in x:
    seen = {gate: x_t @ w[:, k] + b[k] for gate, k in gates.items()}
    before = {gate: seen[gate] + h @ u[:, k] for gate, k in gates.items() if k < u.shape[1]}
    if name == "rnn":
      h = np.tanh(before["hidden"])
    elif name == "gru":
      z, r = sigmoid(before["update"]), sigmoid(before["reset"])
      n = np.tanh(seen["candidate"] + (r * h) @ params["candidate"]["kernel"][:, 0])
      h = (1 - z) * h + z * n
    elif name == "gru_torch":
      z, r = sigmoid(before["update"]), sigmoid(before["reset"])
      n = np.tanh(seen["candidate"] + r * (h @ u[:, 2] + params["candidate_bias"]))
      h = (1 - z) * n + z * h
    else:
      peephole = {"input": 0.0, "forget": 0.0, "output": 0.0}
      if name == "lstm_peephole":
        peephole = dict(zip(("input", "forget", "output"), (np.diag(p) for p in params["peephole"]), strict=True))
      if name == "lstm_peephole_full":
        p = params["peephole"]["kernel"]
        peephole = {"input": p[:, 0], "forget": p[:, 1], "output": params["peephole_output"]["kernel"][:, 0]}

      def gate(which, cell, before=before, peephole=peephole):
        return sigmoid(before[which] + (cell @ peephole[which] if np.ndim(peephole[which]) else 0.0))

      f = gate("forget", c) if "forget" in gates else 1.0
      i = gate("input", c) if "input" in gates else 1 - f
      c = f * c + i * np.tanh(before["candidate"])
      h = gate("output", c) * np.tanh(c)
    shown.append(h)
  return np.stack(shown)


@pytest.mark.parametrize("name", CELLS)
def test_formula(name):
  layer = double(name)
  with jax.enable_x64(True):
    shown, _ = jax.jit(layer.apply)({"params": drawn(layer)}, sequence())
  np.testing.assert_allclose(np.asarray(shown), transcribed(name, drawn(layer), sequence()), rtol=0, atol=1e-12)


def written_out(layer, params, x, mask=None):
  """The layer as a loop in Python over its cell's step, to be differentiated plainly."""
  cell = CELLS[layer.cell]
  w, b = params["input"]["kernel"], params["input"]["bias"]
  inputs = jnp.einsum("tbi,igd->tbgd", x, w) + b[None, None]
  if cell.candidate_bias:
    own = jnp.broadcast_to(params["candidate_bias"], (*x.shape[:2], 1, layer.width))
    inputs = jnp.concatenate([inputs, own], axis=2)
  weights = {name: tree["kernel"] if isinstance(tree, dict) else tree for name, tree in params.items()}
  state, shown = zero_state(cell.state, batch=x.shape[1], width=layer.width, dtype=x.dtype), []
  for t in range(x.shape[0]):
    new, _ = cell.step(weights, state, inputs[t])
    if mask is not None:
      new = jax.tree.map(lambda after, before: jnp.where(mask[t][:, None], after, before), new, state)  # noqa: B023
    state = new
    shown.append(cell.read(state))
  return jnp.stack(shown), state


@pytest.mark.parametrize("name", CELLS)
def test_masks_and_gradients_equal_a_plainly_differentiated_loop_and_differences(name):
  layer = double(name, time_unroll=2)
  params, x = drawn(layer), sequence(1)

  def loss(run, params, x):
    shown, state = run(params, x)
    return jnp.sum(jnp.sin(3 * shown)) + sum(jnp.sum(jnp.cos(part)) for part in state)

  def masked(params, x):
    return layer.apply({"params": params}, x, mask=ENDED)

  def plain(params, x):
    return written_out(layer, params, x, ENDED)

  with jax.enable_x64(True):
    got = jax.jit(jax.value_and_grad(functools.partial(loss, masked), argnums=(0, 1)))
    value, grads = got(params, x)
    expected = jax.jit(jax.value_and_grad(functools.partial(loss, plain), argnums=(0, 1)))(params, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-10), expected, (value, grads))
    rng = np.random.default_rng(2)
    way = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), (params, x))
    ends = [got(*jax.tree.map(lambda a, b, step=step: a + step * b, (params, x), way))[0] for step in (1e-5, -1e-5)]
  slope = sum(np.sum(np.asarray(a) * b) for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(way), strict=True))
  assert float(ends[0] - ends[1]) / 2e-5 == pytest.approx(slope, rel=1e-6)


def test_an_lstm_without_a_mask_takes_the_written_out_backward_pass_to_the_same_gradients():
  layer = double("lstm")
  params, x = drawn(layer), sequence(1)

  def grads(**mask):
    return jax.jit(jax.grad(lambda params: jnp.sum(layer.apply({"params": params}, x, **mask)[0] ** 3)))(params)

  with jax.enable_x64(True):
    one, other = grads(), grads(mask=np.ones((LENGTH, BATCH), bool))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12), one, other)


@pytest.mark.parametrize("name", CELLS)
def test_padded_steps_keep_the_state_and_what_they_hold_does_not_matter(name):
  layer = Recurrent(name, WIDTH)
  params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), drawn(Recurrent(name, WIDTH)))
  x = sequence().astype(np.float32)
  run = jax.jit(functools.partial(layer.apply, {"params": params}, mask=ENDED))
  shown, state = run(x)
  for row, length in enumerate((4, 2, 3)):
    for t in range(length, LENGTH):
      np.testing.assert_array_equal(np.asarray(shown)[t, row], np.asarray(shown)[length - 1, row])
  again, same = run(np.where(ENDED[..., None], x, 1e3).astype(np.float32))
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), (shown, state), (again, same))


@pytest.mark.parametrize(("name", "expected"), [
  ("rnn", 620), ("lstm", 2480), ("lstm_no_forget", 1860), ("lstm_coupled", 1860), ("lstm_peephole", 2540),
  ("lstm_peephole_full", 3680), ("gru", 1860), ("gru_torch", 1880),
])  # fmt: skip
def test_counts(name, expected):
  assert parameters(name, inputs=10, width=20)[1] == expected
  layer = Recurrent(name, 20)
  shapes = jax.eval_shape(layer.init, jax.random.key(0), np.zeros((1, 1, 10), np.float32))["params"]
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == expected
  in_matrices = [leaf.size for path, leaf in jax.tree_util.tree_leaves_with_path(shapes) if path[-1].key == "kernel"]
  assert parameters(name, inputs=10, width=20)[0] == sum(in_matrices)


@pytest.mark.parametrize(("name", "gate"), [("lstm", 1), ("lstm_coupled", 0)])
def test_forget_bias_is_added_to_the_forget_gate_alone(name, gate):
  layer = Recurrent(name, 8, forget_bias=3.0)
  bias = np.array(jax.jit(layer.init)(jax.random.key(0), np.zeros((1, 1, 2), np.float32))["params"]["input"]["bias"])
  bias[gate] -= 3
  assert np.abs(bias).max() <= 8**-0.5 + 1e-6
  assert len(np.unique(bias)) > 8


def single(params):
  return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)


def run_all(name, params, x):
  """Hidden states in float32."""
  layer = Recurrent(name, params["input"]["kernel"].shape[-1])
  return np.asarray(jax.jit(layer.apply)({"params": single(params)}, x.astype(np.float32))[0])


def test_lstm_equals_that_of_torch_and_flax():
  torch = pytest.importorskip("torch")
  params, x = drawn(double("lstm"), width=0.5), sequence(3).astype(np.float32)
  ours = run_all("lstm", params, x)
  w, b, u = (
    single(params)[part][leaf] for part, leaf in (("input", "kernel"), ("input", "bias"), ("recurrent", "kernel"))
  )

  cell = torch.nn.LSTMCell(INPUTS, WIDTH)
  with torch.no_grad():
    cell.weight_ih.copy_(torch.tensor(w.reshape(INPUTS, -1).T))
    cell.weight_hh.copy_(torch.tensor(u.reshape(WIDTH, -1).T))
    cell.bias_ih.copy_(torch.tensor(b.reshape(-1)))
    cell.bias_hh.zero_()
    h = c = torch.zeros(BATCH, WIDTH)
    for t in range(LENGTH):
      h, c = cell(torch.tensor(x[t]), (h, c))
      np.testing.assert_allclose(ours[t], h.numpy(), rtol=0, atol=1e-6)

  flax_params = {}
  for k, gate in enumerate("ifgo"):
    flax_params[f"i{gate}"] = {"kernel": w[:, k]}
    flax_params[f"h{gate}"] = {"kernel": u[:, k], "bias": b[k]}
  carry = (jnp.zeros((BATCH, WIDTH)), jnp.zeros((BATCH, WIDTH)))
  with jax.numpy_rank_promotion("allow"):  # flax relies on it
    for t in range(LENGTH):
      carry, shown = nn.OptimizedLSTMCell(WIDTH).apply({"params": flax_params}, carry, x[t])
      np.testing.assert_allclose(ours[t], np.asarray(shown), rtol=0, atol=1e-6)


def test_gru_torch_equals_that_of_torch_and_flax():
  torch = pytest.importorskip("torch")
  params, x = single(drawn(double("gru_torch"), width=0.5)), sequence(3).astype(np.float32)
  ours = run_all("gru_torch", params, x)
  w, b, u = params["input"]["kernel"], params["input"]["bias"], params["recurrent"]["kernel"]
  order = [1, 0, 2]  # torch: r, z, n

  cell = torch.nn.GRUCell(INPUTS, WIDTH)
  with torch.no_grad():
    cell.weight_ih.copy_(torch.tensor(w[:, order].reshape(INPUTS, -1).T))
    cell.weight_hh.copy_(torch.tensor(u[:, order].reshape(WIDTH, -1).T))
    cell.bias_ih.copy_(torch.tensor(b[order].reshape(-1)))
    cell.bias_hh.zero_()
    cell.bias_hh[2 * WIDTH :] = torch.tensor(params["candidate_bias"])
    h = torch.zeros(BATCH, WIDTH)
    for t in range(LENGTH):
      h = cell(torch.tensor(x[t]), h)
      np.testing.assert_allclose(ours[t], h.numpy(), rtol=0, atol=1e-6)

  flax_params = {f"i{gate}": {"kernel": w[:, k], "bias": b[k]} for k, gate in enumerate("zrn")}
  flax_params |= {f"h{gate}": {"kernel": u[:, k]} for k, gate in enumerate("zrn")}
  flax_params["hn"]["bias"] = params["candidate_bias"]
  carry = jnp.zeros((BATCH, WIDTH))
  with jax.numpy_rank_promotion("allow"):
    for t in range(LENGTH):
      carry, _ = nn.GRUCell(WIDTH).apply({"params": flax_params}, carry, x[t])
      np.testing.assert_allclose(ours[t], np.asarray(carry), rtol=0, atol=1e-6)


def test_the_two_forms_of_the_gru_differ_and_coincide_where_nothing_is_reset():
  post = single(drawn(double("gru")))
  kernel = np.concatenate([post["recurrent"]["kernel"], post["candidate"]["kernel"]], axis=1)
  torch_form = {"input": post["input"], "recurrent": {"kernel": kernel}, "candidate_bias": np.zeros(WIDTH, np.float32)}

  def opposite(params):  # z -> 1 - z
    flipped = jax.tree.map(np.copy, params)
    for leaf in (flipped["input"]["kernel"][:, 0], flipped["input"]["bias"][0], flipped["recurrent"]["kernel"][:, 0]):
      leaf *= -1
    return flipped

  x = sequence(4)
  assert np.abs(run_all("gru", post, x) - run_all("gru_torch", opposite(torch_form), x)).max() > 0.01
  for params in (post, torch_form):
    params["input"]["bias"][1] = 50.0  # r = 1; both share this array
  np.testing.assert_allclose(run_all("gru", post, x), run_all("gru_torch", opposite(torch_form), x), rtol=0, atol=1e-6)


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


def test_reversal_and_both_directions():
  lengths = np.array([4, 2, 3], np.int32)
  x = sequence(9).astype(np.float32)
  turned = np.asarray(reverse(jnp.asarray(x), jnp.asarray(lengths)))
  for row, length in enumerate(lengths):
    np.testing.assert_array_equal(turned[:length, row], x[:length, row][::-1])
    np.testing.assert_array_equal(turned[length:, row], x[length:, row])
  layer = Bidirectional("gru", WIDTH)
  params = jax.jit(layer.init)(jax.random.key(0), x, lengths=lengths)["params"]
  both = np.asarray(jax.jit(layer.apply)({"params": params}, x, lengths=lengths))
  assert both.shape == (LENGTH, BATCH, 2 * WIDTH)
  for row, length in enumerate(lengths):
    own = x[:length, row : row + 1]
    np.testing.assert_allclose(both[:length, row, :WIDTH], run_all("gru", params["onwards"], own)[:, 0], atol=1e-6)
    back = run_all("gru", params["backwards"], own[::-1])[::-1, 0]
    np.testing.assert_allclose(both[:length, row, WIDTH:], back, atol=1e-6)


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


@pytest.mark.parametrize("make", [
  lambda: Recurrent("ltsm", 4), lambda: Recurrent("lstm", 0), lambda: MemoryBlocks(0, 2),
  lambda: MemoryBlocks(2, 2, (-1.0,)),
])  # fmt: skip
def test_bad_sizes_are_refused(make):
  with pytest.raises(UserError):
    make()
