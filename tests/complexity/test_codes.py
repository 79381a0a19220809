"""Codes of whole numbers against real codewords, the table of the card, and Kraft's inequality."""

import numpy as np
import pytest

from ilya_jax.complexity import codes
from ilya_jax.errors import UserError

NUMBERS = np.array([1, 2, 3, 4, 5, 10, 16, 100, 1000])


def gamma_word(n):
  digits = f"{n:b}"
  return "0" * (len(digits) - 1) + digits


def delta_word(n):
  digits = f"{n:b}"
  return gamma_word(len(digits)) + digits[1:]


def test_elias_lengths_are_those_of_prefix_free_words():
  numbers = range(1, 600)
  for word, length in ((gamma_word, codes.elias_gamma), (delta_word, codes.elias_delta)):
    words = [word(n) for n in numbers]
    np.testing.assert_array_equal([len(each) for each in words], length(np.array(numbers)))
    ordered = sorted(words)
    assert not any(after.startswith(before) for before, after in zip(ordered, ordered[1:], strict=False))


def test_table_of_the_card():
  np.testing.assert_array_equal(codes.elias_gamma(NUMBERS), [1, 3, 3, 5, 5, 7, 9, 13, 19])
  np.testing.assert_array_equal(codes.elias_delta(NUMBERS), [1, 4, 4, 5, 5, 8, 9, 11, 16])
  expected = [1.518567, 2.518567, 3.767979, 4.518567, 5.337159, 7.364973, 8.518567, 12.880434, 17.321872]
  np.testing.assert_allclose(codes.log_star(NUMBERS), expected, atol=6e-7)


def test_lengths_are_exact_beside_powers_of_two():
  powers = 2 ** np.arange(1, 50)
  np.testing.assert_array_equal(codes.elias_gamma(powers), 2 * np.arange(1, 50) + 1)
  np.testing.assert_array_equal(codes.elias_gamma(powers - 1), 2 * np.arange(50 - 1) + 1)


def test_kraft_sums_stay_below_one():
  numbers = np.arange(1, 2**20)
  for length in (codes.elias_gamma, codes.elias_delta, codes.log_star):
    assert 0.6 < (2.0 ** -length(numbers)).sum() < 1
  assert (2.0 ** -codes.elias_gamma(numbers)).sum() == pytest.approx(1 - 2.0**-20, abs=1e-12)


def test_uniform_and_bad_numbers():
  assert codes.uniform(8) == 3
  for length in (codes.elias_gamma, codes.elias_delta, codes.log_star, codes.uniform):
    with pytest.raises(UserError, match="1 and more"):
      length(np.array(0))
