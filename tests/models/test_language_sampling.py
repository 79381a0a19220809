"""Writing token by token: caches against whole forward passes, the draws, the end, and a context that is full."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ilya_jax.models.language_sampling import Writer, chosen, continuation, lstm_writer, transformer_writer
from ilya_jax.models.lstm_lm import LstmLM
from ilya_jax.models.transformer_lm import FORMS, TransformerLM

MODELS = {
  "gpt2": TransformerLM(13, 8, 2, 16, 2, **FORMS["gpt2"]),
  "modern": TransformerLM(13, 8, 1, 16, 2, **FORMS["modern"]),
  "lstm": LstmLM(13, 2, 16),
}
TOKENS = np.random.default_rng(0).integers(0, 13, (2, 6)).astype(np.int32)


@pytest.mark.parametrize("name", list(MODELS))
def test_token_by_token_is_one_forward_pass(name):
  model = MODELS[name]
  params = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), TOKENS)["params"]
  whole = jax.jit(functools.partial(model.apply, train=False))({"params": params}, TOKENS)
  writer = lstm_writer(model) if name == "lstm" else transformer_writer(model)
  state, step = writer.begin(2, 6), jax.jit(writer.step)
  for index in range(6):
    logits, state = step(params, TOKENS[:, index], state, jnp.int32(index))
    np.testing.assert_allclose(logits, whole[:, index], atol=1e-5)
  assert writer.context == (0 if name == "lstm" else 8)


def counter(context=0, *, vocab_size=10):
  """A made-up model that has read `index + 1` tokens and is sure that the next is the last one plus 1."""

  def step(params, tokens, state, index):
    return 50.0 * jax.nn.one_hot((tokens + 1) % vocab_size, vocab_size), state

  return Writer(lambda batch, length: jnp.zeros(1), step, context)


OPTIONS = {"temperature": 1.0, "top_k": 0, "seed": 0, "end": 9}


def test_it_writes_so_many_tokens_and_ends_at_the_end():
  assert continuation(counter(), {}, [2, 3], length=4, **OPTIONS) == [4, 5, 6, 7]
  assert continuation(counter(), {}, [2, 3], length=40, **OPTIONS) == [4, 5, 6, 7, 8]
  assert continuation(counter(), {}, [8], length=3, **OPTIONS) == []


@pytest.mark.parametrize("context", [2, 3, 5, 8])
def test_a_full_context_goes_on_with_its_later_half(context):
  options = {**OPTIONS, "end": -1}
  expected = [(3 + k) % 10 for k in range(25)]
  assert continuation(counter(context), {}, [2], length=25, **options) == expected
  assert continuation(counter(context), {}, [7, 8, 9, 0, 1, 2], length=25, **options) == expected


def test_draws_are_of_the_softmax_the_likeliest_or_among_the_top():
  logits = jnp.log(jnp.array([0.1, 0.2, 0.3, 0.4]))
  keys = jax.random.split(jax.random.key(0), 4_000)

  def shares(**options):
    drawn = jax.jit(jax.vmap(lambda rng: chosen(logits, rng, **options)))(keys)
    return np.bincount(np.asarray(drawn), minlength=4) / 4_000

  np.testing.assert_allclose(shares(temperature=1.0, top_k=0), [0.1, 0.2, 0.3, 0.4], atol=0.03)
  np.testing.assert_allclose(shares(temperature=0.5, top_k=0), np.array([1, 4, 9, 16]) / 30, atol=0.03)
  np.testing.assert_allclose(shares(temperature=1.0, top_k=2), [0, 0, 3 / 7, 4 / 7], atol=0.03)
  np.testing.assert_array_equal(shares(temperature=0.0, top_k=0), [0, 0, 0, 1])


def test_a_draw_depends_on_seed_and_place_not_on_how_much_is_asked_for():
  def even(params, tokens, state, index):
    return jnp.zeros((1, 10)), state

  writer = Writer(lambda batch, length: jnp.zeros(1), even, 0)
  options = {"temperature": 1.0, "top_k": 0, "end": -1}
  long = continuation(writer, {}, [2], length=30, seed=0, **options)
  assert continuation(writer, {}, [2], length=12, seed=0, **options) == long[:12]
  assert continuation(writer, {}, [2, *long[:5]], length=25, seed=0, **options) == long[5:]
  assert continuation(writer, {}, [2], length=30, seed=1, **options) != long
