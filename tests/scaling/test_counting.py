"""Counts by formula against the real parameter trees, the cards' numbers, and XLA's own count of FLOP."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ilya_jax.models import lstm_lm, transformer_lm
from ilya_jax.models.lstm_lm import LstmLM
from ilya_jax.models.transformer_lm import FORMS, TransformerLM
from ilya_jax.scaling.counting import lstm_counts, transformer_counts

NOT_IN_N = ("embedding", "bias", "scale", "head_bias")


def parameter_tree(model):
  tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
  return jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), tokens)["params"]


def sizes_of(model):
  leaves = jax.tree_util.tree_leaves_with_path(parameter_tree(model))
  names = [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf.size) for path, leaf in leaves]
  n = sum(size for name, size in names if name.split("/")[-1] not in NOT_IN_N and not name.startswith("head"))
  return n, sum(size for _, size in names)


SHAPES = [  # layers, width, heads, feed-forward width, context, vocabulary
  (1, 8, 2, 0, 5, 11),
  (2, 16, 4, 40, 32, 7),
  (5, 24, 2, 0, 16, 256),
]
SWITCHES = [
  dict(zip(("positions", "norm", "activation", "use_bias", "qk_norm", "tied"), values, strict=True))
  for values in itertools.product(
    ("learned", "rotary"), ("layernorm", "rmsnorm"), ("gelu", "swiglu"), (True, False), (True, False), (True, False)
  )
]


@pytest.mark.parametrize(
  ("shape", "switches"),
  [(SHAPES[index % 3], switches) for index, switches in enumerate(SWITCHES)]
  + [(shape, switches) for shape in SHAPES for switches in FORMS.values()],
)
def test_transformer_equals_the_tree(shape, switches):
  n_layers, d_model, n_heads, d_ff, context, vocab_size = shape
  model = TransformerLM(
    vocab_size=vocab_size, context=context, n_layers=n_layers, d_model=d_model, n_heads=n_heads, d_ff=d_ff, **switches
  )
  counted = transformer_lm.count(model)
  assert (counted.n, counted.n_total) == sizes_of(model)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("n_layers", "d_model", "vocab_size"), [(1, 8, 11), (3, 16, 256)])
def test_lstm_equals_the_tree(n_layers, d_model, vocab_size, tied):
  model = LstmLM(vocab_size=vocab_size, n_layers=n_layers, d_model=d_model, tied=tied)
  counted = lstm_lm.count(model)
  assert (counted.n, counted.n_total) == sizes_of(model)


@pytest.mark.parametrize(
  ("n_layers", "d_model", "vocab_size", "context", "n_total", "n"),
  [
    (12, 768, 50_257, 1024, 124_439_808, 84_934_656),  # GPT-2 small
    (2, 32, 256, 256, 41_856, 24_576),
    (2, 64, 256, 256, 132_864, 98_304),
    (4, 128, 256, 256, 858_880, 786_432),
    (8, 256, 256, 256, 6_449_664, 6_291_456),
  ],
)
def test_transformer_numbers_of_the_card(n_layers, d_model, vocab_size, context, n_total, n):
  shape = {"n_layers": n_layers, "d_model": d_model, "vocab_size": vocab_size, "context": context}
  counted = transformer_counts(**shape, d_ff=4 * d_model, n_heads=1)
  assert (counted.n_total, counted.n) == (n_total, n)
  assert counted.n == 12 * n_layers * d_model**2
  kaplan_forward = 2 * n + 2 * n_layers * context * d_model  # eq. 2.2: half of the attention, no head
  assert counted.forward_flops == kaplan_forward + counted.attention // 2 + 2 * d_model * vocab_size


@pytest.mark.parametrize(("d_model", "n_total"), [(200, 4_651_600), (650, 19_775_200), (1500, 66_022_000)])
def test_lstm_numbers_of_zaremba(d_model, n_total):
  assert lstm_counts(vocab_size=10_000, n_layers=2, d_model=d_model).n_total == n_total


def compiled_flops(model, length, *, batch=2):
  """XLA's FLOP of (logits, gradient of the mean log likelihood): products, element-wise operations, reductions."""
  params = parameter_tree(model)
  tokens = jax.ShapeDtypeStruct((batch, length), jnp.int32)

  def loss(params, tokens):
    logits = model.apply({"params": params}, tokens, train=False)
    return -jnp.mean(jax.nn.log_softmax(logits)[..., 0])

  def flops(function):
    cost = jax.jit(function).lower(params, tokens).compile().cost_analysis()
    return cost["flops"] / (batch * length)

  forward = flops(lambda params, tokens: model.apply({"params": params}, tokens, train=False))
  return forward, flops(jax.grad(loss))


@pytest.mark.parametrize("form", FORMS)
def test_transformer_flops_against_the_compiler(form):
  model = TransformerLM(vocab_size=256, context=64, n_layers=2, d_model=256, n_heads=4, **FORMS[form])
  counted = transformer_lm.count(model)
  forward, gradient = compiled_flops(model, 64)
  # XLA adds what the formula leaves out: softmax, norms, GELU, biases, rotary turns.
  assert 1.0 <= forward / counted.forward_flops < 1.1
  assert 1.0 <= gradient / counted.training_flops < 1.1


def test_lstm_flops_against_the_compiler():
  """One more time step adds what the formula says. The first step is left out: XLA drops its products with the zero state."""
  short, long = (
    np.array(compiled_flops(LstmLM(vocab_size=256, n_layers=2, d_model=128, time_unroll=length), length)) * length
    for length in (6, 8)
  )
  forward, gradient = (long - short) / 2
  counted = lstm_lm.count(LstmLM(vocab_size=256, n_layers=2, d_model=128))
  assert 1.0 <= forward / counted.forward_flops < 1.1
  assert 1.0 <= gradient / counted.training_flops < 1.1


def test_attention_term_against_the_compiler():
  """Doubling the context adds what the formula says, softmax aside."""
  short, long = (
    TransformerLM(vocab_size=64, context=context, n_layers=1, d_model=128, n_heads=1, **FORMS["gpt2"])
    for context in (64, 128)
  )
  measured = compiled_flops(long, 128)[0] - compiled_flops(short, 64)[0]
  counted = transformer_lm.count(long).attention - transformer_lm.count(short).attention
  np.testing.assert_allclose(measured, counted, rtol=0.1)
