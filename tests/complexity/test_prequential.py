"""Prequential codes of labels: a learner of known predictions, chunks, and what a learner may see."""

import numpy as np
import pytest

from ilya_jax.complexity import multinomial, prequential
from ilya_jax.errors import UserError


def test_a_learner_of_frequencies_gives_the_kt_code():
  """With chunks of one label, predicting by KT's rule costs what the closed form says, but for the first label."""
  labels = np.random.default_rng(0).integers(0, 3, 50)

  def predict(seen, until):
    counts = np.bincount(labels[:seen], minlength=3)
    return np.log(np.tile((counts + 0.5) / (seen + 1.5), (until - seen, 1)))

  bits = prequential.chunk_bits(labels, classes=3, ends=range(1, 51), predict=predict)
  expected = multinomial.kt_length(np.bincount(labels, minlength=3))  # KT's first prediction is uniform as well
  assert bits.sum() == pytest.approx(expected, abs=1e-9)


def test_each_chunk_is_coded_by_what_was_seen_before_it():
  asked = []

  def predict(seen, until):
    asked.append((seen, until))
    return np.log(np.full((until - seen, 4), 0.25))

  bits = prequential.chunk_bits(np.zeros(16, int), classes=4, ends=[2, 4, 8, 16], predict=predict)
  assert asked == [(2, 4), (4, 8), (8, 16)]
  np.testing.assert_allclose(bits, [4, 4, 8, 16])


def test_doubling_ends():
  np.testing.assert_array_equal(prequential.doubling_ends(2000, chunks=8), [16, 31, 62, 125, 250, 500, 1000, 2000])
  with pytest.raises(UserError, match="none of them empty"):
    prequential.doubling_ends(7, chunks=4)


def test_two_parts_and_the_uniform_code():
  log_chances = np.log(np.array([[0.5, 0.5], [0.25, 0.75]]))
  assert prequential.log_loss_bits(log_chances, np.array([0, 0])) == pytest.approx(3)
  assert prequential.two_part_bits(log_chances, np.array([0, 0]), parameters=10) == pytest.approx(323)
  assert prequential.uniform_bits(np.zeros(60_000), classes=10) == pytest.approx(199_315.7, abs=0.1)


def test_bad_ends_and_chances_are_refused():
  def improper(seen, until):
    return np.zeros((until - seen, 2))

  labels = np.zeros(4, int)
  for ends in ([], [0, 4], [2, 2, 4], [2, 3]):
    with pytest.raises(UserError, match="rising ends"):
      prequential.chunk_bits(labels, classes=2, ends=ends, predict=improper)
  with pytest.raises(ValueError, match="sum to 1"):
    prequential.chunk_bits(labels, classes=2, ends=[2, 4], predict=improper)
