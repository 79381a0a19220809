"""Markov chain codes: tables of the card, sums over all sequences, the Bernoulli case, recovery of what was sampled."""

from itertools import product

import numpy as np
import pytest

from ilya_jax.complexity import chains, multinomial
from ilya_jax.errors import UserError

ALL = np.array(list(product((0, 1), repeat=10)), np.uint8)


def repeated(pattern, times):
  return np.tile(np.array(pattern, np.uint8), times)[None]


def test_rows_of_the_card():
  """The card's ML column leaves out the k bits of the first symbols, which every other column has."""
  sequence = repeated([0, 0, 0, 1], 25)
  table = {
    "KT": [84.779897, 76.443297, 61.406375, 15.532118, 16.502971], "Laplace": [84.340657, 77.403166, 63.805249, 21.632008, 22.575425],
    "fNML": [84.851367, 76.171003, 60.796861, 14.111230, 15.084798], "BIC": [84.449741, 76.516044, 65.287712, 29.575425, 57.150850],
    "AIC": [82.570507, 72.757578, 57.770780, 14.541560, 27.083121], "ML": [81.127812, 69.872188, 52, 3, 4],
  }  # fmt: skip
  for code, expected in table.items():
    found = [chains.lengths(sequence, order, code=code)[0] for order in range(5)]
    np.testing.assert_allclose(found, expected, atol=6e-7)
  long = repeated([0, 0, 0, 1], 2500)
  found = [chains.lengths(long, order, code="KT")[0] for order in range(5)]
  np.testing.assert_allclose(found, [8119.750893, 6901.450281, 5021.408452, 28.877840, 29.877551], atol=6e-7)
  assert chains.lengths(long, 3, code="fNML")[0] == pytest.approx(26.938818, abs=6e-7)
  found = [chains.lengths(repeated([0, 1], 50), order, code="KT")[0] for order in range(4)]
  np.testing.assert_allclose(found, [103.651283, 8.288066, 9.273567, 10.258770], atol=6e-7)


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_kraft_sums_over_all_sequences(order):
  for code in ("KT", "Laplace"):
    assert (2.0 ** -chains.lengths(ALL, order, code=code)).sum() == pytest.approx(1, abs=1e-12)
  # Factorised, it wastes a little: the sums of the contexts' codes do not know that their lengths add up to n.
  total = (2.0 ** -chains.lengths(ALL, order, code="fNML")).sum()
  assert total == pytest.approx(1, abs=1e-12) if order == 0 else 0.98 < total < 1
  for precision in (1, 3):
    assert (2.0 ** -chains.crude_lengths(ALL, order, precision=precision)).sum() < 1


def test_the_crude_code_is_one_over_orders_and_precisions_together():
  total = sum(
    (2.0 ** -chains.crude_lengths(ALL[:, :6][::16], order, precision=precision)).sum()
    for order in range(4)
    for precision in range(8)
  )
  assert total < 1


def test_order_0_is_the_bernoulli_code():
  counts = np.stack([(ALL == 0).sum(1), (ALL == 1).sum(1)], axis=-1)
  for code, plain in (
    ("KT", multinomial.kt_length),
    ("Laplace", multinomial.laplace_length),
    ("fNML", multinomial.nml_length),
  ):
    np.testing.assert_allclose(chains.lengths(ALL, 0, code=code), plain(counts), atol=1e-12)


def test_contexts_are_counted_by_hand():
  found = chains.context_counts(np.array([[0, 1, 1, 0, 1]], np.uint8), 2)
  expected = np.zeros((1, 4, 2), int)
  expected[0, 0b01, 1] += 1  # 0 1 then 1
  expected[0, 0b11, 0] += 1
  expected[0, 0b10, 1] += 1
  np.testing.assert_array_equal(found, expected)


def test_kt_is_the_product_of_its_predictions():
  sequence, order = chains.sample((0.2, 0.7, 0.5, 0.9), shape=(1, 60), rng=np.random.default_rng(0)), 2
  counts, total = np.zeros((4, 2)), float(order)
  for t in range(order, 60):
    context = 2 * sequence[0, t - 2] + sequence[0, t - 1]
    total -= np.log2((counts[context, sequence[0, t]] + 0.5) / (counts[context].sum() + 1))
    counts[context, sequence[0, t]] += 1
  assert chains.lengths(sequence, order, code="KT")[0] == pytest.approx(total, abs=1e-10)


def test_samples_have_their_chances():
  chances = (0.1, 0.5, 0.3, 0.7, 0.6, 0.2, 0.8, 0.45)
  made = chains.sample(chances, shape=(200, 1000), rng=np.random.default_rng(0))
  counts = chains.context_counts(made, 3).sum(0)
  error = np.sqrt(np.array(chances) * (1 - np.array(chances)) / counts.sum(-1))
  assert (np.abs(counts[:, 1] / counts.sum(-1) - chances) < 4 * error).all()
  assert made.dtype == np.uint8
  assert made.shape == (200, 1000)


def test_the_order_is_found_and_named_by_its_index():
  made = chains.sample((0.15, 0.6, 0.4, 0.85), shape=(40, 3000), rng=np.random.default_rng(1))
  for code in ("KT", "fNML", "BIC"):
    assert (chains.chosen_orders(made, code=code, largest=5) == 2).mean() >= 0.9
  uniform, star = (
    chains.chosen_orders(made[:, :60], code="KT", largest=5, index=index) for index in ("uniform", "log_star")
  )
  assert (star <= uniform).all()
  assert (star < uniform).any()


def test_bad_codes_are_refused():
  with pytest.raises(UserError, match="one of ML, KT, Laplace, fNML, BIC, AIC"):
    chains.lengths(ALL, 1, code="NML")
  with pytest.raises(UserError, match="uniform or log_star"):
    chains.chosen_orders(ALL, code="KT", largest=1, index="gamma")
  with pytest.raises(UserError, match="2\\^k"):
    chains.sample((0.1, 0.2, 0.3), shape=(1, 5), rng=np.random.default_rng(0))
