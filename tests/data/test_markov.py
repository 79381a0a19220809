"""The Markov language: its entropies by brute force, its samples against its transition matrix, its streams."""

import itertools

import jax
import numpy as np
import pytest

from ilya_jax.data import markov
from ilya_jax.errors import UserError


def _source(**changes):
  return markov.markov_source(**{"batch_size": 4, "context": 16, "seed": 0, "eval_tokens": 1024, **changes})


def test_entropies_equal_the_sum_over_all_sequences():
  language = markov.markov_language(vocab_size=4, concentration=0.5)
  for length in (1, 2, 5):
    sequences = np.asarray(list(itertools.product(range(4), repeat=length)))
    log_p = np.log(language.stationary[sequences[:, 0]])
    log_p = log_p + np.log(language.transition[sequences[:, :-1], sequences[:, 1:]]).sum(axis=1)
    assert np.exp(log_p).sum() == pytest.approx(1, abs=1e-12)
    assert markov.mean_entropy(language, length=length) == pytest.approx(-np.exp(log_p) @ log_p / length, abs=1e-12)


def test_stationary_distribution_is_the_limit_of_the_chain():
  transition = markov.markov_language(vocab_size=32, concentration=0.1).transition
  expected = np.linalg.matrix_power(transition, 4096)
  np.testing.assert_allclose(markov.stationary_distribution(transition), expected[7], atol=1e-12)


def test_entropy_rate_is_near_the_expectation_of_the_dirichlet_distribution():
  """E H(row) = ψ(V a + 1) − ψ(a + 1); the mean over rows of 200 rows is close to it."""
  from scipy.special import digamma, entr

  language = markov.markov_language(vocab_size=200, concentration=0.1)
  entropies = entr(language.transition).sum(axis=1)
  expected = digamma(200 * 0.1 + 1) - digamma(1.1)
  assert abs(entropies.mean() - expected) < 4 * entropies.std() / np.sqrt(200)


def test_bigram_frequencies_are_within_four_standard_errors():
  vocab_size = 8
  source = _source(vocab_size=vocab_size, concentration=0.5, batch_size=512, context=255)
  language = markov.markov_language(vocab_size=vocab_size, concentration=0.5)
  tokens = np.asarray(jax.jit(source.batch)(3)["tokens"])
  counts = np.zeros((vocab_size, vocab_size))
  np.add.at(counts, (tokens[:, :-1].ravel(), tokens[:, 1:].ravel()), 1)
  visits = counts.sum(axis=1, keepdims=True)
  error = np.sqrt(language.transition * (1 - language.transition) / visits)
  assert np.all(np.abs(counts / visits - language.transition) < 4 * error + 1 / visits)


def test_first_tokens_are_stationary():
  source = _source(vocab_size=8, concentration=0.5, batch_size=20000, context=1)
  pi = markov.markov_language(vocab_size=8, concentration=0.5).stationary
  tokens = np.asarray(source.batch(0)["tokens"])
  for position in (0, 1):
    frequencies = np.bincount(tokens[:, position], minlength=8) / 20000
    assert np.all(np.abs(frequencies - pi) < 4 * np.sqrt(pi * (1 - pi) / 20000))


def test_true_model_reaches_the_entropy_rate_on_the_held_out_set():
  source = _source(context=128, eval_tokens=262144)
  language = markov.markov_language(vocab_size=32, concentration=0.1)
  draw = jax.jit(source.batch, static_argnames="split")
  losses = []
  for step in range(source.eval_batches["heldout"]):
    tokens = np.asarray(draw(step, split="heldout")["tokens"])
    losses.append(-np.log(language.transition[tokens[:, :-1], tokens[:, 1:]]).mean(axis=1))
  losses = np.concatenate(losses)
  assert losses.size * 128 == source.info["heldout_tokens"] == 262144
  assert abs(losses.mean() - source.info["entropy_rate"]) < 4 * losses.std() / np.sqrt(losses.size)


def test_batches_are_functions_of_seed_and_step_inside_and_outside_jit():
  source = _source()
  draw = jax.jit(source.batch)
  first = source.batch(5)["tokens"]
  assert first.shape == (4, 17)
  assert first.dtype == np.int32
  np.testing.assert_array_equal(first, draw(5)["tokens"])
  assert not np.array_equal(first, draw(6)["tokens"])
  assert not np.array_equal(first, jax.jit(_source(seed=1).batch)(5)["tokens"])


def test_held_out_set_depends_on_neither_seed_nor_batch_size():
  source, other = _source(), _source(seed=9, batch_size=7)
  assert source.eval_batches == other.eval_batches
  np.testing.assert_array_equal(source.batch(0, split="heldout")["tokens"], other.batch(0, split="heldout")["tokens"])


def test_streams_are_disjoint():
  source = _source(batch_size=64, seed=markov._LANGUAGE_SEED)
  rows = [source.batch(step, split=split)["tokens"] for split in ("train", "heldout") for step in range(2)]
  rows = np.concatenate([np.asarray(row) for row in rows])
  assert len(np.unique(rows, axis=0)) == len(rows)


@pytest.mark.parametrize(
  "changes", [{"vocab_size": 1}, {"concentration": 0.0}, {"batch_size": 0}, {"context": 0}, {"eval_tokens": 15}]
)
def test_bad_sizes_are_refused(changes):
  with pytest.raises(UserError):
    _source(**changes)


def test_language_that_falls_apart_is_refused():
  with pytest.raises(UserError, match="separate parts"):
    markov.markov_language(vocab_size=42, concentration=1e-4)
