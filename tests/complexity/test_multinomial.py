"""Codes over K symbols: exact rationals, sums over all sequences, composition sums, scipy, and identities."""

from fractions import Fraction
from itertools import product
from math import comb, factorial, prod

import numpy as np
import pytest
from scipy import stats

from ilya_jax.complexity import multinomial
from ilya_jax.errors import UserError


def all_counts(n):
  ones = np.arange(n + 1)
  return np.stack([n - ones, ones], axis=-1)


def compositions(n, parts):
  if parts == 1:
    yield (n,)
    return
  for first in range(n + 1):
    yield from ((first, *rest) for rest in compositions(n - first, parts - 1))


def exact_complexity(n, symbols):
  """C(n, K) as the sum over compositions, in rational arithmetic."""
  total = Fraction(0)
  for counts in compositions(n, symbols):
    ways = factorial(n) // prod(factorial(count) for count in counts)
    total += ways * prod(Fraction(count, n) ** count for count in counts)
  return total


def test_complexity_is_the_sum_over_compositions():
  expected = {
    (1, 2): "2", (2, 2): "5/2", (2, 3): "9/2", (2, 4): "7", (3, 2): "26/9", (3, 3): "53/9", (3, 4): "92/9",
    (4, 2): "103/32", (4, 3): "231/32", (4, 4): "437/32", (5, 2): "2194/625", (5, 3): "5319/625", (5, 4): "10804/625",
  }  # fmt: skip
  for (n, symbols), value in expected.items():
    assert exact_complexity(n, symbols) == Fraction(value)
  for n in range(1, 13):
    for symbols in (1, 2, 3, 4):
      exact = exact_complexity(n, symbols)
      assert 2 ** multinomial.log2_complexity(n, symbols) == pytest.approx(float(exact), rel=1e-12)


def test_table_of_complexities():
  table = {
    10: [2.2203967260, 3.8738344233, 5.2464572688, 6.4400997412, 10.9576966396, 14.7754199593],
    20: [2.6538819553, 4.7166389319, 6.4794477261, 8.0472329657, 14.2537954105, 19.8138257705],
    50: [3.2544620781, 5.8958630848, 8.2197556603, 10.3337219762, 19.0978004168, 27.4431670331],
    100: [3.7235542618, 6.8228570872, 9.5956453663, 12.1508177411, 23.0302086947, 33.7619312737],
    1000: [5.3328229482, 10.0227883707, 14.3712259793, 18.4891880347, 37.0296594944, 56.6950279823],
  }
  for n, expected in table.items():
    found = [multinomial.log2_complexity(n, symbols) for symbols in (2, 3, 4, 5, 10, 16)]
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_asymptotics():
  for n, symbols, first, refined in (
    (100, 2, 3.647676, 3.723578), (100, 5, 11.702750, 12.151295), (10, 10, 6.689462, 11.047106),
    (1000, 10, 36.586815, 37.029763),
  ):  # fmt: skip
    assert multinomial.first_order_complexity(n, symbols) == pytest.approx(first, abs=1e-6)
    assert multinomial.refined_complexity(n, symbols) == pytest.approx(refined, abs=1e-6)
  for symbols in (2, 3, 7):
    n = np.array([1000, 4000, 16_000])
    error = multinomial.refined_complexity(n, symbols) - [multinomial.log2_complexity(int(each), symbols) for each in n]
    np.testing.assert_allclose(error[1:] / error[:-1], 4**-1.5, rtol=0.2)  # the next term is of order n^-3/2


def test_complexity_rises_in_n_and_in_the_symbols():
  table = np.array([[multinomial.log2_complexity(n, symbols) for symbols in range(1, 8)] for n in range(1, 60)])
  assert (np.diff(table[:, 1:], axis=0) > 0).all()
  assert (np.diff(table, axis=1) > 0).all()
  np.testing.assert_array_equal(
    multinomial.log2_complexities(np.array([[7, 3], [3, 59]]), 3), table[[[6, 2], [2, 58]], 2]
  )
  assert multinomial.log2_complexity(0, 5) == 0


@pytest.mark.parametrize("symbols", [2, 3])
def test_kraft_sums_over_all_sequences(symbols):
  n = {2: 10, 3: 6}[symbols]
  sequences = np.array(list(product(range(symbols), repeat=n)))
  counts = np.stack([(sequences == symbol).sum(1) for symbol in range(symbols)], axis=-1)
  for code in (multinomial.kt_length, multinomial.laplace_length, multinomial.nml_length):
    assert (2.0 ** -code(counts)).sum() == pytest.approx(1, abs=1e-12)
  assert (2.0 ** -multinomial.ml_length(counts)).sum() > 1
  if symbols == 2:
    for precision in (0, 1, 3, 8):
      assert (2.0 ** -multinomial.two_part_length(counts, precision)).sum() <= 1 + 1e-12


def sequential(symbols_seen, *, symbols, concentration):
  """-log2 of the product of the predictions, one symbol after another."""
  counts, total = np.zeros(symbols), 0.0
  for symbol in symbols_seen:
    total -= np.log2((counts[symbol] + concentration) / (counts.sum() + symbols * concentration))
    counts[symbol] += 1
  return total


def test_predictions_multiply_to_the_closed_form_in_any_order():
  rng = np.random.default_rng(0)
  sequence = rng.integers(0, 4, 200)
  counts = np.bincount(sequence, minlength=4)
  for _ in range(3):
    rng.shuffle(sequence)
    found = sequential(sequence, symbols=4, concentration=0.5)
    assert found == pytest.approx(multinomial.kt_length(counts), abs=1e-10)
    found = sequential(sequence, symbols=4, concentration=1.0)
    assert found == pytest.approx(multinomial.laplace_length(counts), abs=1e-10)


def test_kt_values_and_scipy():
  for (zeros, ones), value in {
    (1, 0): "1/2", (1, 1): "1/8", (2, 0): "3/8", (0, 3): "5/16", (2, 2): "3/128", (3, 3): "5/1024", (4, 3): "5/2048",
    (5, 5): "63/262144", (10, 0): "46189/262144",
  }.items():  # fmt: skip
    assert 2 ** -multinomial.kt_length(np.array([zeros, ones])) == pytest.approx(float(Fraction(value)), rel=1e-12)
  n = 40
  expected = -(
    stats.betabinom(n, 0.5, 0.5).logpmf(np.arange(n + 1)) / np.log(2) - np.log2([comb(n, k) for k in range(n + 1)])
  )
  np.testing.assert_allclose(multinomial.kt_length(all_counts(n)), expected, atol=1e-10)


def test_table_of_regrets():
  table = {
    10: (2.220397, 2.504738, 2.022720, 3.459432), 100: (3.723554, 4.149480, 3.651283, 6.658211),
    1000: (5.332823, 5.808821, 5.309001, 9.967226),
  }  # fmt: skip
  for n, (nml, kt_most, kt_least, laplace) in table.items():
    counts = all_counts(n)
    best = multinomial.ml_length(counts)
    regret = multinomial.nml_length(counts) - best
    np.testing.assert_allclose(regret, regret[0], atol=1e-10)
    kt = multinomial.kt_length(counts) - best
    found = (regret[0], kt.max(), kt.min(), (multinomial.laplace_length(counts) - best).max())
    np.testing.assert_allclose(found, (nml, kt_most, kt_least, laplace), atol=6e-7)
    assert kt.argmax() in (0, n)


def test_the_enumerative_code_is_laplaces():
  for n in (1, 7, 100, 3000):
    counts = all_counts(n)
    np.testing.assert_allclose(multinomial.enumerative_length(counts), multinomial.laplace_length(counts), atol=1e-9)
  thirty = np.array([70, 30])
  found = [
    code(thirty)
    for code in (multinomial.enumerative_length, multinomial.kt_length, multinomial.nml_length, multinomial.ml_length)
  ]
  np.testing.assert_allclose(found, [91.260872, 91.780831, 91.852644, 88.129090], atol=6e-7)


def test_rounded_chances_are_the_best_of_all_midpoints():
  counts = all_counts(37)
  for precision in (0, 1, 2, 5, 9):
    grid = (np.arange(2**precision) + 0.5) / 2**precision
    best = multinomial.bernoulli_length(counts[:, None, :], grid).min(axis=1)
    np.testing.assert_allclose(multinomial.two_part_length(counts, precision), precision + best, atol=1e-10)


def test_bad_sizes_are_refused():
  for n, symbols in ((-1, 2), (5, 0)):
    with pytest.raises(UserError, match="1 symbol and more"):
      multinomial.log2_complexity(n, symbols)
