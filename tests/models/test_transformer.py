"""The encoder-decoder Transformer: attention against loops, causality, invariances, positions, cache, counts of the paper."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ilya_jax.errors import UserError
from ilya_jax.models import seq2seq, transformer
from ilya_jax.models.transformer import Transformer
from ilya_jax.models.transformer_layers import Attention, KeysValues, TransformerLayer, masked_attention, sinusoids

SMALL = {"vocab_size": 11, "n_layers": 1, "d_model": 16, "n_heads": 4, "d_ff": 24}
SOURCE = jnp.array([[3, 4, 5, 6, 2], [7, 8, 2, 0, 0]])
TARGET = jnp.array([[1, 9, 4, 3], [1, 5, 10, 0]])


def made(**fields):
  """(model, parameters) of a small Transformer."""
  model = Transformer(**{**SMALL, **fields})
  return model, initial(model)


def initial(model):
  """Parameters, of random norms too, so that all matter."""
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), SOURCE, TARGET, train=False))
  leaves, tree = jax.tree.flatten(shapes)
  rng = np.random.default_rng(0)
  return tree.unflatten([rng.normal(0.1, 0.3, leaf.shape).astype(np.float32) for leaf in leaves])


def applied(model, variables, *inputs, **options):
  """model.apply, compiled as a whole."""
  if not options.get("method", "").startswith(("remember", "begin")):
    options = {"train": False, **options}
  return jax.jit(functools.partial(model.apply, **options))(variables, *inputs)


def total(model):
  tokens = [jnp.zeros((1, 3), jnp.int32)] * 2
  shapes = jax.eval_shape(lambda rng: model.init(rng, *tokens, train=False), jax.random.key(0))
  return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_attention_equals_three_loops_over_numbers():
  rng = np.random.default_rng(0)
  b, t, s, h, k, w = 2, 3, 5, 2, 4, 3
  query, keys, values = rng.normal(size=(b, t, h, k)), rng.normal(size=(b, s, h, k)), rng.normal(size=(b, s, h, w))
  visible = rng.random((b, t, s)) < 0.6
  visible[..., 0] = True
  with jax.enable_x64(True):
    memory = KeysValues(jnp.asarray(keys), jnp.asarray(values))
    found = np.asarray(masked_attention(jnp.asarray(query), memory, visible=jnp.asarray(visible)))
  expected = np.zeros((b, t, h, w))
  for row, at, head in itertools.product(range(b), range(t), range(h)):
    scores = [query[row, at, head] @ keys[row, other, head] / np.sqrt(k) for other in range(s)]
    chances = [np.exp(score) if visible[row, at, other] else 0.0 for other, score in enumerate(scores)]
    for other in range(s):
      expected[row, at, head] += chances[other] / sum(chances) * values[row, other, head]
  assert np.abs(found - expected).max() < 1e-10


def test_attention_to_equal_keys_is_the_mean_to_one_key_its_value_and_to_none_is_finite():
  values = jax.random.normal(jax.random.key(0), (1, 4, 2, 3))
  memory = KeysValues(jnp.ones((1, 4, 2, 5)), values)
  query = jax.random.normal(jax.random.key(1), (1, 2, 2, 5))
  every = jnp.ones((1, 1, 4), bool)
  mean = jnp.broadcast_to(values.mean(1, keepdims=True), (1, 2, 2, 3))
  np.testing.assert_allclose(masked_attention(query, memory, visible=every), mean, atol=1e-6)
  one = jnp.arange(4)[None, None] == 2
  np.testing.assert_allclose(masked_attention(query, memory, visible=one)[:, 0], values[:, 2], atol=1e-6)

  def summed(query):
    return jnp.sum(masked_attention(query, memory, visible=jnp.zeros((1, 1, 4), bool)) ** 2)

  value, gradient = jax.value_and_grad(summed)(query)
  assert np.isfinite(value)
  assert np.isfinite(gradient).all()


@pytest.mark.parametrize("norm_first", [False, True])
def test_no_output_depends_on_a_later_token(norm_first):
  """To the bit, and in its derivatives."""
  model, variables = made(norm_first=norm_first, final_norm=norm_first)
  run = jax.jit(lambda target: model.apply(variables, SOURCE, target, train=False))
  before, after = run(TARGET), run(TARGET.at[:, 2:].set(7))
  np.testing.assert_array_equal(before[:, :2], after[:, :2])
  assert np.abs(before[:, 2:] - after[:, 2:]).max() > 1e-3
  layer = TransformerLayer(**transformer.layer_fields(model, 0, crosses=True))
  x, memory, there = jax.random.normal(jax.random.key(1), (1, 4, 16)), jnp.ones((1, 3, 16)), jnp.ones((1, 3))
  params = {"params": variables["params"]["decoder_0"]}
  moved = jax.jit(jax.jacrev(lambda x: layer.apply(params, x, memory, there, False, method="decode")[0]))(x)[:, :, 0]
  for t, s in itertools.product(range(4), range(4)):  # [T, D, T, D]
    assert (np.abs(moved[t, :, s]).max() == 0) == (s > t)


def test_without_positions_the_encoder_is_a_bag_and_with_them_it_is_not():
  order = jnp.array([3, 0, 4, 2, 1])
  whole = SOURCE[:1]
  for positions, is_bag in (("none", True), ("sinusoidal", False), ("learned", False)):
    model, variables = made(positions=positions, max_positions=8)

    @jax.jit
    def both(source, variables=variables, model=model):
      states = model.apply(variables, source, train=False, method="encode")[0]
      return states, model.apply(variables, source, TARGET[:1], train=False)

    (states, logits), (shuffled, others) = both(whole), both(whole[:, order])
    assert bool(np.abs(states[:, order] - shuffled).max() < 1e-5) is is_bag
    assert bool(np.abs(logits - others).max() < 1e-5) is is_bag


def test_padding_changes_neither_logits_nor_gradients():
  model, variables = made()
  weights = jax.random.normal(jax.random.key(3), (2, 4, 11))

  def summed(variables, source, target):
    logits = model.apply(variables, source, target, train=False)[:, :4]
    return jnp.sum(logits * weights), logits

  padded = [jnp.pad(tokens, ((0, 0), (0, 3))) for tokens in (SOURCE, TARGET)]
  grad = jax.jit(jax.grad(summed, has_aux=True))
  (one, logits), (other, with_pads) = grad(variables, SOURCE, TARGET), grad(variables, *padded)
  np.testing.assert_allclose(logits, with_pads, atol=1e-6)
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6 * max(float(np.abs(a).max()), 1))


def test_sinusoids_are_rotations():
  np.testing.assert_allclose(sinusoids(2, 4)[1], [0.841471, 0.540302, 0.0099998, 0.99995], atol=1e-6)
  d, table = 16, sinusoids(200, 16)
  assert np.allclose((table**2).sum(1), d / 2)
  for k in (1, 7, 50):
    angles = k / 10_000.0 ** (np.arange(0, d, 2) / d)
    turn = np.zeros((d, d))
    for i, angle in enumerate(angles):
      turn[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
    assert np.abs(turn @ turn.T - np.eye(d)).max() < 1e-14
    assert np.abs(table[:-k] @ turn.T - table[k:]).max() < 1e-13
  products = table @ table.T
  for k in (0, 3, 90):
    assert np.ptp(np.diagonal(products, k)) < 1e-12
  wavelengths = 2 * np.pi * 10_000.0 ** (np.arange(0, 512, 2) / 512)
  assert wavelengths[0] == pytest.approx(2 * np.pi)
  assert wavelengths[-1] == pytest.approx(60_611, abs=1)


@pytest.mark.parametrize("fields", [
  {}, {"positions": "learned", "max_positions": 8}, {"norm_first": True, "final_norm": True, "d_k": 3, "d_v": 5},
])  # fmt: skip
def test_token_by_token_with_a_cache_is_one_forward_pass(fields):
  model, variables = made(**fields, n_layers=1 if fields else 2)
  whole = applied(model, variables, SOURCE, TARGET)
  memory = applied(model, variables, SOURCE, method="remember")
  cache = model.apply(variables, memory, 4, method="begin")
  if not fields:
    numbers = sum(leaf.size for leaf in jax.tree.leaves((cache, memory.cross)))
    assert numbers == 2 * (2 * 2 * 4 * 16 + 2 * 2 * 5 * 16)  # two sentences
  step = jax.jit(lambda *rest: model.apply(variables, *rest[:2], index=rest[2], memory=memory, method="step"))
  for index in range(4):
    logits, cache = step(TARGET[:, index], cache, jnp.int32(index))
    np.testing.assert_allclose(logits, whole[:, index], atol=1e-5)


@pytest.mark.parametrize("attention", [False, True])
def test_the_lstm_decoder_token_by_token_is_its_forward_pass_and_ignores_padding(attention):
  model = seq2seq.Seq2Seq(11, 8, 12, attention)
  variables = initial(model)
  whole = applied(model, variables, SOURCE, TARGET)
  padded = applied(model, variables, jnp.pad(SOURCE, ((0, 0), (0, 3))), TARGET)
  np.testing.assert_allclose(whole, padded, atol=1e-6)
  memory = applied(model, variables, SOURCE, method="remember")
  state = model.apply(variables, memory, 4, method="begin")
  step = jax.jit(lambda *rest: model.apply(variables, *rest, index=0, memory=memory, method="step"))
  for index in range(4):
    logits, state = step(TARGET[:, index], state)
    np.testing.assert_allclose(logits, whole[:, index], atol=1e-5)


def test_additive_attention_equals_a_loop():
  """The decoder's context of a step, by the formula of Bahdanau et al. 2015."""
  model = seq2seq.Seq2Seq(11, 8, 6, True)
  variables = initial(model)
  params = variables["params"]
  memory = applied(model, variables, SOURCE, method="remember")
  step = jax.jit(lambda *rest: model.apply(variables, *rest, index=0, memory=memory, method="step"))
  new = step(TARGET[:, 0], memory.final)[1]
  p = jax.tree.map(np.asarray, params)
  for row, length in ((0, 5), (1, 3)):
    states, h, c = np.asarray(memory.states)[row], *(np.asarray(memory.final)[k][row] for k in (1, 0))
    energies = [p["energy"] @ np.tanh(h @ p["query"] + states[s] @ p["key"]["kernel"]) for s in range(length)]
    chances = np.exp(energies) / np.exp(energies).sum()
    context = sum(chance * state for chance, state in zip(chances, states, strict=False))
    x = p["embed"]["embedding"][TARGET[row, 0]] * np.sqrt(8)
    gates = np.tensordot(x, p["input"]["kernel"], 1) + p["input"]["bias"]
    gates = gates + np.tensordot(h, p["recurrent"], 1) + np.tensordot(context, p["context"], 1)
    i, f, o = (1 / (1 + np.exp(-gates[k])) for k in (0, 1, 3))
    cell = f * c + i * np.tanh(gates[2])
    np.testing.assert_allclose(new.hidden[row], o * np.tanh(cell), atol=1e-5)


def test_counts_of_the_paper():
  base, big = Transformer(37_000, 6, 512, 8, 2048), Transformer(37_000, 6, 1024, 16, 4096)
  for model, n_total in ((base, 63_045_632), (big, 214_171_648)):
    assert total(model) == transformer.count(model, source=1, target=1)[1] == n_total
  assert total(Transformer(32_000, 6, 512, 8, 2048)) == 60_485_632
  assert total(Transformer(32_000, 6, 1024, 16, 4096)) == 209_051_648
  torch_like = Transformer(11, 6, 512, 8, 2048, attention_bias=True, final_norm=True)
  assert total(torch_like) - 11 * 512 == 44_140_544
  narrow = Transformer(37_000, 6, 512, 8, 2048, d_k=16, d_v=64, positions="learned", max_positions=30)
  assert total(narrow) == transformer.count(narrow, source=1, target=1)[1]


def test_counts_of_what_is_compared_at_small_scale():
  assert total(Transformer(19, 2, 64, 4, 256)) == 233_152
  assert total(Transformer(19, 6, 64, 4, 256)) == 697_024
  assert total(Transformer(2_000, 2, 96, 4, 384)) == 711_936
  for fields, n_total in (
    ((19, 64, 137, False), 231_440),
    ((19, 64, 109, True), 231_379),
    ((2_000, 96, 164, True), 711_812),
  ):
    model = seq2seq.Seq2Seq(*fields)
    assert total(model) == seq2seq.count(model)[1] == n_total


def test_flop_are_those_that_xla_counts():
  """Of matrix products; XLA also counts norms, softmaxes and activations, which stay below a tenth at this width."""
  model = Transformer(64, 2, 128, 4, 512)
  tokens = jax.ShapeDtypeStruct((4, 32), jnp.int32), jax.ShapeDtypeStruct((4, 24), jnp.int32)
  variables = jax.eval_shape(
    lambda r: model.init(r, *(jnp.zeros(t.shape, t.dtype) for t in tokens), train=False), jax.random.key(0)
  )
  run = jax.jit(lambda variables, *tokens: model.apply(variables, *tokens, train=False))
  counted = run.lower(variables, *tokens).compile().cost_analysis()["flops"]
  assert 1.0 <= counted / (4 * transformer.count(model, source=32, target=24)[2]) <= 1.1


def test_initial_values_have_the_variance_of_both_fans_and_queries_unit_variance():
  layer = Attention(512, 8, 64, 64)
  x = jax.random.normal(jax.random.key(0), (1, 64, 512))
  params = jax.jit(functools.partial(layer.init, method=all_of))(jax.random.key(1), x)
  for name in ("query", "key", "value", "out"):
    assert float(params["params"][name]["kernel"].std()) == pytest.approx(512**-0.5, rel=0.01)
  query, keys = jax.jit(functools.partial(layer.apply, method=queries))(params, x)
  assert float(query.std()) == pytest.approx(1, rel=0.05)
  assert float(jnp.einsum("bthk,bshk->bhts", query, keys).std()) == pytest.approx(8, rel=0.05)  # sqrt(d_k)


def all_of(module, x):
  return module(x, module.keys_values(x), visible=jnp.ones((1, 1, 64), bool))


def queries(module, x):
  return module.query(x), module.key(x)


@pytest.mark.parametrize(("fields", "flag"), [
  ({"n_heads": 3}, "n_heads"), ({"positions": "rotary"}, "positions"), ({"d_model": 15, "n_heads": 5}, "d_model"),
  ({"dropout": 1.0}, "dropout"), ({"n_layers": 0}, "n_layers"),
])  # fmt: skip
def test_sizes_that_do_not_fit_are_refused(fields, flag):
  with pytest.raises(UserError, match=rf"model\.{flag}"):
    Transformer(**{**SMALL, **fields})


def test_a_learned_table_is_not_read_past_its_end():
  with pytest.raises(UserError, match="max_positions = 4"):
    made(positions="learned", max_positions=4)
