"""Greedy and beam search against all sequences there are."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ilya_jax.models.sequence_search import beam_search, greedy_search, length_penalty, spread

V, T, BEGIN, END = 3, 4, 0, 2


def chain(seed, *, rows=2):
  """A made-up model whose next token depends on the row, the step and the last two tokens; its table of logits, and its step."""
  table = np.random.default_rng(seed).normal(0, 1.5, (rows, T, V, V, V)).astype(np.float32)

  def step(tokens, state, index):
    row, before = state
    return jnp.asarray(table)[row, index, before, tokens], (row, tokens)

  return table, step, (jnp.arange(rows), jnp.zeros(rows, jnp.int32))


def all_of(table, alpha):
  """(score, tokens with zeros after the end) of every sequence that ends within T tokens, best first."""
  found = []
  for n in range(1, T + 1):
    for head in itertools.product([token for token in range(V) if token != END], repeat=n - 1):
      tokens, total, before, last = (*head, END), 0.0, 0, BEGIN
      for index, token in enumerate(tokens):
        logits = table[index, before, last].astype(np.float64)
        total += logits[token] - np.log(np.exp(logits).sum())
        before, last = last, token
      found.append((total / ((5 + n) / 6) ** alpha, (*tokens, *[0] * (T - n))))
  return sorted(found, reverse=True)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 3.0])
def test_a_beam_of_all_sequences_finds_the_best_of_them_all_and_may_stop_early(alpha):
  search = jax.jit(lambda early, state, *, step, beams: beam_search(
    step, spread(state, beams), rows=2, beams=beams, length=T, begin=BEGIN, end=END, alpha=alpha, stops_early=early
  ), static_argnames=("early", "step", "beams"), static_argnums=0)  # fmt: skip
  for seed in range(2):
    table, step, state = chain(seed)
    whole = search(False, state, step=step, beams=V**T)
    stopped = search(True, state, step=step, beams=V**T)
    for row in range(2):
      score, tokens = all_of(table[row], alpha)[0]
      assert tuple(np.asarray(whole.tokens[row]).tolist()) == tokens
      assert float(whole.scores[row]) == pytest.approx(score, abs=1e-5)
    np.testing.assert_array_equal(whole.tokens, stopped.tokens)
    np.testing.assert_array_equal(whole.scores, stopped.scores)


def test_a_beam_of_one_without_penalty_is_greedy_search():
  for seed in range(6):
    _, step, state = chain(seed)
    search = jax.jit(lambda state, step=step: (
      greedy_search(step, state, rows=2, length=T, begin=BEGIN, end=END),
      beam_search(step, state, rows=2, beams=1, length=T, begin=BEGIN, end=END, alpha=0.0),
    ))  # fmt: skip
    greedy, beam = search(state)
    np.testing.assert_array_equal(greedy.tokens, beam.tokens)
    np.testing.assert_allclose(greedy.scores, beam.scores, atol=1e-5)


def test_greedy_takes_the_likeliest_token_until_the_end():
  table, step, state = chain(4)
  found = greedy_search(step, state, rows=2, length=T, begin=BEGIN, end=END)
  for row in range(2):
    before, last, tokens = 0, BEGIN, []
    while len(tokens) < T and END not in tokens:
      before, last = last, int(table[row, len(tokens), before, last].argmax())
      tokens.append(last)
    assert np.asarray(found.tokens[row]).tolist() == tokens + [0] * (T - len(tokens))


def test_tokens_that_are_never_to_be_written_are_not():
  _, step, state = chain(1)
  for found in (
    greedy_search(step, state, rows=2, length=T, begin=BEGIN, end=END, never=(1,)),
    beam_search(step, spread(state, 3), rows=2, beams=3, length=T, begin=BEGIN, end=END, never=(1,)),
  ):
    assert 1 not in np.asarray(found.tokens)


def test_what_has_not_ended_counts_where_nothing_has():
  _, step, state = chain(2)
  found = beam_search(step, spread(state, 2), rows=2, beams=2, length=T, begin=BEGIN, end=END, never=(END,))
  assert np.isfinite(found.scores).all()


def test_length_penalty():
  assert float(length_penalty(jnp.int32(6), 0.6)) == pytest.approx(1.438616, abs=1e-6)
  assert float(length_penalty(jnp.int32(1), 0.6)) == 1.0
