"""The measures against direct means, golden arrays, and laws of the quantiser and of the adjustment."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ilya_jax.complexity import apparent
from ilya_jax.complexity.automaton import interacting_mean, log_times, start
from ilya_jax.errors import UserError


def golden():
  i, j = np.indices((12, 12))
  return (((3 * i + 5 * j + i * j) % 7) < 3).astype(np.uint8)


def test_golden_pipeline():
  picture = golden()
  smoothed = apparent.smooth(picture, grain=4)
  assert picture.sum() == 50
  np.testing.assert_allclose(
    smoothed[0], [0.5, 0.5, 0.625, 0.5, 0.375, 0.375, 0.25, 0.375, 0.5, 0.625, 0.5, 0.5], atol=1e-14
  )
  assert smoothed.sum() == pytest.approx(51.6319444444, abs=1e-10)
  three, seven = (apparent.quantise(smoothed, buckets=buckets) for buckets in (3, 7))
  np.testing.assert_array_equal(np.bincount(three.ravel(), minlength=3), [51, 93, 0])
  np.testing.assert_array_equal(np.bincount(seven.ravel(), minlength=7), [1, 32, 79, 30, 2, 0, 0])
  np.testing.assert_array_equal(seven[0], [3, 3, 4, 3, 2, 2, 1, 2, 3, 4, 3, 3])
  adjusted = apparent.adjust(seven)
  np.testing.assert_array_equal(adjusted[0], [3, 3, 3, 3, 3, 3, 1, 3, 3, 3, 3, 3])
  np.testing.assert_array_equal(np.bincount(adjusted.ravel(), minlength=7), [0, 14, 96, 34, 0, 0, 0])


def test_the_start_is_smoothed_as_on_the_card():
  column = apparent.smooth(start(12), grain=4)[:, 3]
  np.testing.assert_allclose(column, [1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0, 0, 0, 0], atol=1e-14)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 9), grain=st.integers(1, 9))
def test_smoothing_is_the_mean_of_the_clipped_window(seed, n, grain):
  grain = min(grain, n)
  pictures = np.random.default_rng(seed).integers(0, 5, (2, n, n))
  found = apparent.smooth(pictures, grain=grain)
  for row in range(n):
    for column in range(n):
      top, left = row - grain // 2, column - grain // 2
      window = pictures[:, max(top, 0) : top + grain, max(left, 0) : left + grain]
      np.testing.assert_allclose(found[:, row, column], window.mean(axis=(1, 2)), atol=1e-12)


@pytest.mark.parametrize("buckets", [3, 7])
def test_buckets_are_equal_and_hold_their_lower_edge(buckets):
  edges = np.arange(buckets) / buckets
  np.testing.assert_array_equal(apparent.quantise(edges, buckets=buckets), np.arange(buckets))
  np.testing.assert_array_equal(apparent.quantise(edges[1:] - 1e-6, buckets=buckets), np.arange(buckets - 1))
  assert apparent.quantise(np.array(0.5), buckets=buckets) == buckets // 2
  np.testing.assert_array_equal(apparent.quantise(np.array([1.0, 1.3, 7.0]), buckets=buckets), buckets - 1)


@pytest.mark.parametrize("buckets", [3, 7])
def test_no_rounding_moves_a_fraction_of_cells_to_another_bucket(buckets):
  """Every mean of a window of up to 40 x 40 cells falls where whole numbers say."""
  for cells in range(1, 1601):
    counts = np.arange(cells + 1)
    exact = np.minimum(buckets * counts // cells, buckets - 1)
    np.testing.assert_array_equal(apparent.quantise(counts / cells, buckets=buckets), exact)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 12))
def test_adjusting_again_changes_nothing_and_each_row_goes_to_its_own_majority(seed, n):
  quantised = np.random.default_rng(seed).integers(0, 7, (3, n, n)).astype(np.uint8)
  adjusted = apparent.adjust(quantised)
  np.testing.assert_array_equal(apparent.adjust(adjusted), adjusted)
  for row, found in zip(quantised.reshape(-1, n), adjusted.reshape(-1, n), strict=True):
    majority = min(range(7), key=lambda value: (-(row == value).sum(), value))
    expected = [majority if abs(int(value) - majority) <= 1 else value for value in row]
    np.testing.assert_array_equal(found, expected)


def test_adjusting_to_a_reference():
  quantised = np.array([[0, 1, 2, 3, 6]], np.uint8)
  np.testing.assert_array_equal(apparent.adjust_to(quantised, np.array([[2]])), [[0, 2, 2, 2, 6]])


def test_compressed_sizes():
  for n, size in ((20, 15), (50, 26), (100, 34)):
    assert abs(apparent.compressed_size(start(n)) - size) <= 3  # of zlib 1.2.13
  noise = np.random.default_rng(0).integers(0, 2, (100, 100))
  for compressor in apparent.COMPRESSORS:
    assert 1250 <= apparent.compressed_size(noise, compressor=compressor) < 2200  # 10,000 fair bits
  np.testing.assert_array_equal(apparent.sizes(np.stack([start(20), noise[:20, :20]])[:, None]).shape, (2, 1))


def test_apparent_complexity_is_the_size_of_the_coarse_picture():
  picture = golden()
  by_hand = apparent.compressed_size(apparent.adjust(apparent.quantise(apparent.smooth(picture, grain=4), buckets=7)))
  assert apparent.apparent_complexity(picture[None], grain=4, buckets=7, adjusted=True).tolist() == [by_hand]


def test_rounding_of_the_exact_mean_leaves_rows_constant():
  n, grain = 40, 20
  pictures = apparent.mean_pictures(interacting_mean(n, log_times(3 * n**4, count=200)))
  for buckets in (3, 7):
    quantised = apparent.coarse_picture(pictures, grain=grain, buckets=buckets)
    np.testing.assert_array_equal(quantised, np.repeat(quantised[..., :1], n, axis=-1))
  assert apparent.quantise(np.array(-1e-12), buckets=7) == 0


def test_mean_pictures_are_constant_along_rows():
  profiles = np.linspace(0, 1, 6).reshape(2, 3)
  pictures = apparent.mean_pictures(profiles)
  assert pictures.shape == (2, 3, 3)
  np.testing.assert_array_equal(pictures[1, :, 2], profiles[1])


def test_bad_pictures_and_grains_are_refused():
  with pytest.raises(UserError, match="grain 13"):
    apparent.smooth(golden(), grain=13)
  for bad in (np.full((2, 2), 0.5), np.full((2, 2), 256)):
    with pytest.raises(UserError, match="0 to 255"):
      apparent.compressed_size(bad)
