"""The look-up language: its entropies by brute force over all texts, its samples against its tables, its streams."""

import itertools

import jax
import numpy as np
import pytest

from ilya_jax.data import lookup
from ilya_jax.errors import UserError


def make_source(number=3, **changes):
  return lookup.lookup_source(
    number, **{"vocab_size": 8, "batch_size": 4, "context": 16, "seed": 0, "eval_tokens": 1024, **changes}
  )


def log_probability(language, text):
  """ln p of a text [n] that begins with a record, token by token: the definition, summed over what is not yet seen."""
  vocab_size, answers = language.tables.shape[-1], language.tables.shape[2]
  total = 0.0
  for start in range(0, len(text), answers + 2):
    part = text[start : start + answers + 2]
    if len(part) == 1:
      total += np.log(language.keys[part[0]].sum())
      continue
    a, b = part[:2]
    total += np.log(language.keys[a, b])
    total += sum(np.log(language.tables[a, b, m, c]) for m, c in enumerate(part[2:]))
  assert vocab_size > max(text)
  return total


@pytest.mark.parametrize("length", [1, 2, 3, 5, 7])
def test_entropy_equals_the_sum_over_all_texts(length):
  language = lookup.lookup_language(1, vocab_size=2, answers=2, concentration=0.5)
  log_p = np.array([log_probability(language, text) for text in itertools.product(range(2), repeat=length)])
  assert np.exp(log_p).sum() == pytest.approx(1, abs=1e-12)
  by_token = lookup.token_entropies(language)
  expected = sum(by_token[k % 4] for k in range(length))
  assert -np.exp(log_p) @ log_p == pytest.approx(expected, abs=1e-12)
  if length > 1:  # the first token is input alone
    assert lookup.mean_entropy(language, context=length - 1) == pytest.approx((expected - by_token[0]) / (length - 1))


def test_keys_follow_a_zipf_law_in_random_order():
  language = lookup.lookup_language(5, vocab_size=16, exponent=0.8)
  falling = np.sort(language.keys.ravel())[::-1]
  np.testing.assert_allclose(np.diff(np.log(falling)) / np.diff(np.log(np.arange(1, 257))), -1.8, rtol=1e-9)
  assert falling.sum() == pytest.approx(1.0)
  assert (np.diff(language.keys.ravel()) > 0).any()


def test_what_the_unknown_keys_cost_is_a_power_law():
  """A model that knows n keys and the mean row of the others: its excess falls as n^-s where n is far from K."""
  from scipy.special import entr

  language = lookup.lookup_language(2, vocab_size=64, exponent=1.0)
  p, rows = language.keys.ravel(), language.tables.reshape(64 * 64, -1, 64)
  order = np.argsort(-p)
  excess = []
  for n in (8, 16, 32, 64, 128, 256):
    rest = order[n:]
    weight = p[rest].sum()
    mean = (p[rest, None, None] * rows[rest]).sum(0) / weight
    excess.append(weight * entr(mean).sum() - (p[rest, None] * entr(rows[rest]).sum(-1)).sum())
  slope = np.polyfit(np.log([8, 16, 32, 64, 128, 256]), np.log(excess), 1)[0]
  assert slope == pytest.approx(-1.0, abs=0.12)


def test_frequencies_of_keys_and_answers_are_within_four_standard_errors():
  source = make_source(batch_size=2048, context=63)
  language = lookup.lookup_language(3, vocab_size=8)
  tokens = np.asarray(jax.jit(source.batch)(3)["tokens"]).reshape(-1, 8)  # records of 8 tokens
  assert language.record == 8
  counts = np.zeros((8, 8))
  np.add.at(counts, (tokens[:, 0], tokens[:, 1]), 1)
  n = len(tokens)
  error = np.sqrt(language.keys * (1 - language.keys) / n)
  assert (np.abs(counts / n - language.keys) < 4 * error + 1 / n).all()
  a, b = np.unravel_index(language.keys.argmax(), (8, 8))
  own = tokens[(tokens[:, 0] == a) & (tokens[:, 1] == b), 2:]
  for m in range(6):
    row = language.tables[a, b, m]
    frequencies = np.bincount(own[:, m], minlength=8) / len(own)
    assert (np.abs(frequencies - row) < 4 * np.sqrt(row * (1 - row) / len(own)) + 1 / len(own)).all()


def test_true_model_reaches_the_entropy_on_the_held_out_set():
  source = make_source(context=128, eval_tokens=65536)
  language = lookup.lookup_language(3, vocab_size=8)
  draw = jax.jit(source.batch, static_argnames="split")
  losses = []
  for step in range(source.eval_batches["heldout"]):
    for row in np.asarray(draw(step, split="heldout")["tokens"]):
      losses.append(-(log_probability(language, row) - log_probability(language, row[:1])) / 128)
  assert len(losses) * 128 == source.info["heldout_tokens"] == 65536
  assert abs(np.mean(losses) - source.info["entropy"]) < 4 * np.std(losses) / np.sqrt(len(losses))


def test_batches_are_functions_of_seed_and_step_and_the_held_out_set_of_the_language_alone():
  source, other = make_source(), make_source(seed=9, batch_size=7)
  first = source.batch(5)["tokens"]
  assert first.shape == (4, 17)
  assert first.dtype == np.int32
  np.testing.assert_array_equal(first, jax.jit(source.batch)(5)["tokens"])
  assert not np.array_equal(first, source.batch(6)["tokens"])
  assert not np.array_equal(first, make_source(seed=1).batch(5)["tokens"])
  np.testing.assert_array_equal(source.batch(0, split="heldout")["tokens"], other.batch(0, split="heldout")["tokens"])
  assert source.info["fingerprint"] == other.info["fingerprint"] != make_source(4).info["fingerprint"]


@pytest.mark.parametrize("changes", [
  {"batch_size": 0}, {"context": 0}, {"eval_tokens": 3}, {"vocab_size": 1}, {"number": -1},
])  # fmt: skip
def test_bad_sizes_are_refused(changes):
  with pytest.raises(UserError):
    make_source(**changes)
