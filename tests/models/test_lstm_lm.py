"""The LSTM language model: where dropout acts, state carried over a border, parity with torch.nn.LSTM, sharding."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec
from ml_collections import ConfigDict

from ilya_jax.errors import UserError
from ilya_jax.models import lstm_lm
from ilya_jax.models.lstm_lm import LstmLayer, LstmLM
from ilya_jax.nn.lstm import LstmState
from ilya_jax.parallel.sharding import shardings

VOCAB, LENGTH, WIDTH, LAYERS, BATCH = 32, 8, 16, 2, 4
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (BATCH, LENGTH)).astype(np.int32)


def make(**fields):
  return LstmLM(**{"vocab_size": VOCAB, "n_layers": LAYERS, "d_model": WIDTH, "layer_unroll": 1, **fields})


@functools.cache
def random_params(*, tied=False, layers=LAYERS):
  model = make(tied=tied, n_layers=layers)
  shapes = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), TOKENS)["params"]
  rng = np.random.default_rng(1)
  return jax.tree.map(lambda leaf: rng.uniform(-0.5, 0.5, leaf.shape).astype(np.float32), shapes)


def random_state(seed, layers=LAYERS):
  return LstmState(*np.random.default_rng(seed).uniform(-0.9, 0.9, (2, layers, BATCH, WIDTH)).astype(np.float32))


@functools.cache
def _resume(model, train):
  def run(params, tokens, state, key):
    return model.apply({"params": params}, tokens, state, train=train, rngs={"dropout": key}, method="resume")

  return jax.jit(run)


def resume(model, params, tokens, state, *, train=False, key=0):
  logits, state = _resume(model, train)(params, tokens, state, jax.random.key(key))
  return np.asarray(logits), jax.tree.map(np.asarray, state)


@functools.cache
def _loss_and_grads(model):
  def loss(params):
    return jnp.mean(jnp.square(jax.nn.log_softmax(model.apply({"params": params}, TOKENS, train=False))))

  return jax.jit(jax.value_and_grad(loss))


def assert_close(expected, got, *, atol):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=atol), expected, got)


def test_call_starts_from_zeros():
  model, params = make(), random_params()
  logits = jax.jit(functools.partial(model.apply, train=False))({"params": params}, TOKENS)
  zeros = jax.tree.map(np.zeros_like, random_state(0))
  np.testing.assert_allclose(np.asarray(logits), resume(model, params, TOKENS, zeros)[0], rtol=0, atol=1e-6)
  assert logits.shape == (BATCH, LENGTH, VOCAB)
  assert logits.dtype == jnp.float32


def test_later_tokens_leave_earlier_logits_bit_equal():
  changed = TOKENS.copy()
  changed[:, 5:] = (changed[:, 5:] + 1) % VOCAB
  before, _ = resume(make(), random_params(), TOKENS, random_state(0))
  after, _ = resume(make(), random_params(), changed, random_state(0))
  np.testing.assert_array_equal(before[:, :5], after[:, :5])
  assert np.abs(before[:, 5:] - after[:, 5:]).max() > 1e-3


def test_two_halves_with_the_state_carried_equal_the_whole():
  whole, end = resume(make(), random_params(), TOKENS, random_state(0))
  first, state = resume(make(), random_params(), TOKENS[:, : LENGTH // 2], random_state(0))
  second, last = resume(make(), random_params(), TOKENS[:, LENGTH // 2 :], state)
  np.testing.assert_allclose(np.concatenate([first, second], axis=1), whole, rtol=0, atol=1e-6)
  assert_close(end, last, atol=1e-6)


def test_execution_choices_change_nothing():
  params = random_params()
  expected = _loss_and_grads(make())(params)
  assert_close(expected, _loss_and_grads(make(layer_unroll=0, time_unroll=3))(params), atol=1e-6)


def dropout_shapes(function, *args):
  """Shapes of what dropout is applied to while `function` is traced once."""
  shapes = []

  def spy(next_function, args, kwargs, context):
    if isinstance(context.module, nn.Dropout) and not kwargs["deterministic"]:
      shapes.append(args[0].shape)
    return next_function(*args, **kwargs)

  with nn.intercept_methods(spy):
    jax.eval_shape(function, *args)
  return shapes


def test_dropout_is_applied_once_a_layer_and_once_above_and_never_to_the_state():
  hidden = (LENGTH, BATCH, WIDTH)  # a fresh mask for every step; a state would be [B, D]
  rngs = {"dropout": jax.random.key(0)}
  layer = LstmLayer(d_model=WIDTH, dropout=0.5, forget_bias=0.0, init_scale=0.1, dtype=jnp.float32, time_unroll=1)
  one = jax.tree.map(lambda leaf: leaf[0], random_params()["layers"])
  state = jax.tree.map(lambda leaf: leaf[0], random_state(0))
  run = functools.partial(layer.apply, {"params": one}, train=True, rngs=rngs)
  assert dropout_shapes(run, np.zeros(hidden, np.float32), state) == [hidden]

  def without_layers(next_function, args, kwargs, context):
    if isinstance(context.module, LstmLayer) and context.method_name == "__call__":
      return args[0], args[1]
    return next_function(*args, **kwargs)

  with nn.intercept_methods(without_layers):
    run = functools.partial(make(dropout=0.5).apply, {"params": random_params()}, train=True, rngs=rngs)
    assert dropout_shapes(run, TOKENS) == [hidden]


def drop_everything(next_function, args, kwargs, context):
  """The limit of dropping with probability 1."""
  if isinstance(context.module, nn.Dropout):
    return jnp.zeros_like(args[0])
  return next_function(*args, **kwargs)


def test_dropping_everything_hides_the_words_and_leaves_the_state_evolving():
  model, params = make(dropout=0.5), random_params()

  def run(tokens, state):
    with nn.intercept_methods(drop_everything):
      return jax.jit(functools.partial(model.apply, train=True, method="resume"))({"params": params}, tokens, state)

  logits, state = run(TOKENS, random_state(0))
  others, same = run((TOKENS + 7) % VOCAB, random_state(0))
  np.testing.assert_array_equal(np.asarray(logits), np.asarray(others))
  assert_close(state, same, atol=0)
  _, different = run(TOKENS, random_state(3))
  assert np.abs(np.asarray(state.cell) - np.asarray(different.cell)).max() > 1e-3
  assert np.abs(np.asarray(state.cell) - random_state(0).cell).max() > 1e-3


def test_dropout_is_off_in_evaluation_and_fresh_by_key():
  model, params = make(dropout=0.5), random_params()
  plain, _ = resume(make(), params, TOKENS, random_state(0))
  np.testing.assert_array_equal(plain, resume(model, params, TOKENS, random_state(0))[0])
  first, again, other = (resume(model, params, TOKENS, random_state(0), train=True, key=key)[0] for key in (1, 1, 2))
  np.testing.assert_array_equal(first, again)
  assert np.abs(first - other).max() > 1e-3


def test_initial_values():
  model = make(d_model=64, forget_bias=1.0)
  params = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), TOKENS)["params"]
  bias = np.asarray(params["layers"]["input"]["bias"]) - np.array([0, 1, 0, 0])[None, :, None]
  scale = 64**-0.5
  for leaf in (bias, params["layers"]["input"]["kernel"], params["layers"]["recurrent"]["kernel"]):
    values = np.asarray(leaf)
    assert np.abs(values).max() <= scale + 1e-6
    np.testing.assert_allclose(values.std(), scale / 3**0.5, rtol=0.06)
  first, second = np.asarray(params["layers"]["recurrent"]["kernel"])
  assert (first != second).any()


def test_sharded_over_three_axes_equals_unsharded():
  params = random_params()
  mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
  layout = shardings(params, rules=lstm_lm.RULES, mesh=mesh)
  assert sum(leaf.spec != PartitionSpec() for leaf in jax.tree.leaves(layout)) >= 5
  expected = _loss_and_grads(make())(params)
  assert_close(expected, _loss_and_grads(make())(jax.device_put(params, layout)), atol=1e-5)


def test_every_rule_fits_a_parameter():
  leaves = [
    (jax.tree_util.keystr(path, simple=True, separator="/"), leaf.ndim)
    for path, leaf in jax.tree_util.tree_leaves_with_path(random_params())
  ]
  for pattern, spec in lstm_lm.RULES:
    assert {ndim for name, ndim in leaves if re.search(pattern, name)} == {len(spec)}, pattern


@pytest.mark.parametrize("tied", [False, True])
def test_equals_two_layers_of_torch(tied):
  torch = pytest.importorskip("torch", reason="needs torch: pip install 'ilya-jax[parity]'")
  params, state = random_params(tied=tied), random_state(2)
  theirs = torch.nn.LSTM(WIDTH, WIDTH, num_layers=LAYERS, batch_first=True)
  gates = params["layers"]
  with torch.no_grad():
    for layer in range(LAYERS):
      for name, kernel in (("ih", gates["input"]["kernel"]), ("hh", gates["recurrent"]["kernel"])):
        weight = kernel[layer].reshape(WIDTH, 4 * WIDTH).T
        getattr(theirs, f"weight_{name}_l{layer}").copy_(torch.from_numpy(np.ascontiguousarray(weight)))
      getattr(theirs, f"bias_ih_l{layer}").copy_(torch.from_numpy(gates["input"]["bias"][layer].reshape(-1)))
      getattr(theirs, f"bias_hh_l{layer}").zero_()
    embedding = params["embed"]["embedding"]
    hidden, (h, c) = theirs(
      torch.from_numpy(embedding[TOKENS]), (torch.from_numpy(state.hidden), torch.from_numpy(state.cell))
    )
  head = (embedding.T, params["head_bias"]) if tied else (params["head"]["kernel"], params["head"]["bias"])
  expected = hidden.numpy() @ head[0] + head[1]
  logits, last = resume(make(tied=tied), params, TOKENS, state)
  np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)
  np.testing.assert_allclose(last.hidden, h.numpy(), rtol=0, atol=1e-6)
  np.testing.assert_allclose(last.cell, c.numpy(), rtol=0, atol=1e-6)


def config_of(**model):
  fields = {"n_layers": 2, "d_model": 64, "dropout": 0.0, "forget_bias": 1.0, "init_scale": 0.0, "tied": False}
  return ConfigDict(
    {
      "batch_size": 8,
      "dtype": "bfloat16",
      "data": {"context": 32},
      "model": {**fields, **model},
      "execution": {"layer_unroll": 0, "time_unroll": 5},
    }
  )


def test_config_and_counts():
  assert lstm_lm.from_config(config_of(), vocab_size=256).dtype == jnp.bfloat16
  counts = lstm_lm.counts(config_of(), vocab_size=256)
  assert (counts.n, counts.units_per_step) == (16 * 64**2, 256)
  assert counts.flops_per_unit == 3 * (2 * 16 * 64**2 + 2 * 64 * 256)


@pytest.mark.parametrize("field", [{"n_layers": 0}, {"d_model": 0}, {"dropout": -0.1}])
def test_bad_sizes_name_the_field(field):
  (name,) = field
  with pytest.raises(UserError, match=f"model.{name}"):
    lstm_lm.from_config(config_of(**field), vocab_size=256)
