"""Recurrent cells against transcriptions in NumPy, torch and flax; counts, gradients, masks and directions."""

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
  parameters,
  reverse,
  zero_state,
)
from tests.models.recurrent_oracle import (
  BATCH,
  ENDED,
  INPUTS,
  LENGTH,
  WIDTH,
  double,
  drawn,
  run_all,
  sequence,
  single,
  transcribed,
)


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


@pytest.mark.parametrize("make", [
  lambda: Recurrent("ltsm", 4), lambda: Recurrent("lstm", 0), lambda: MemoryBlocks(0, 2),
  lambda: MemoryBlocks(2, 2, (-1.0,)),
])  # fmt: skip
def test_bad_sizes_are_refused(make):
  with pytest.raises(UserError):
    make()
