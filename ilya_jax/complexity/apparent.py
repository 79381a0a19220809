"""Compressed sizes of pictures as measures: of the fine one (entropy), of a smoothed and quantised one (apparent complexity).

Aaronson, Carroll, Ouellette 2014, "Quantifying the Rise and Fall of Complexity in Closed Systems: The Coffee Automaton",
https://arxiv.org/abs/1405.6903, section 5 (smoothing, 3 buckets) and section 6 (7 buckets, each row adjusted to its majority).

Axes: N cells along a side; leading axes are of whatever is measured together, as snapshots and replicas.

Deviations: the paper compresses with gzip, whose frame holds a time stamp; zlib at level 9 is the same code without it (12 bytes
less). The window of an even grain reaches one cell further up and left than down and right, and is cut off at the border; the
paper does not say. The oracle adjustment, to the quantised exact mean, is our own.
"""

import bz2
import lzma
import zlib
from collections.abc import Callable

import numpy as np

from ilya_jax.errors import UserError

Array = np.ndarray

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
  "zlib": lambda content: zlib.compress(content, 9),
  "bz2": lambda content: bz2.compress(content, 9),
  "lzma": lambda content: lzma.compress(content, format=lzma.FORMAT_ALONE, preset=9 | lzma.PRESET_EXTREME),
}


def smooth(pictures: Array, *, grain: int) -> Array:
  """The mean over a window of grain x grain cells around each cell, clipped to the grid, float64 [..., N, N].

  The window of row r has rows r - grain // 2 to r - grain // 2 + grain - 1, that of a column likewise. Raises UserError for
  a grain below 1 or wider than the picture.
  """
  n = pictures.shape[-1]
  if not 1 <= grain <= n:
    raise UserError(f"grain {grain} for pictures of {n} x {n}", f"1 to {n} cells", "grain")
  first = np.arange(n) - grain // 2
  low, high = np.clip(first, 0, n), np.clip(first + grain, 0, n)
  table = np.zeros((*pictures.shape[:-2], n + 1, n + 1))
  table[..., 1:, 1:] = pictures.cumsum(axis=-2, dtype=np.float64).cumsum(axis=-1)
  rows = table[..., high, :] - table[..., low, :]
  sums = rows[..., high] - rows[..., low]
  return sums / np.outer(high - low, high - low)


def quantise(values: Array, *, buckets: int) -> Array:
  """The bucket of each value, of equal buckets of [0, 1], uint8; values of 1 and more fall into the highest.

  A value within 1e-9 below an edge counts as on it: summed tables are rounded, and means of cells lie further apart.
  """
  return np.clip(np.floor(buckets * values + 1e-9), 0, buckets - 1).astype(np.uint8)


def adjust(quantised: Array) -> Array:
  """Sets every cell within one bucket of the most frequent value of its row (the smallest on ties) to that value."""
  found = np.arange(int(quantised.max()) + 1, dtype=quantised.dtype)
  counts = (quantised[..., None] == found).sum(axis=-2)  # [..., N, buckets]
  return adjust_to(quantised, found[counts.argmax(axis=-1)][..., None])


def adjust_to(quantised: Array, reference: Array) -> Array:
  """Sets every cell within one bucket of the reference, which is broadcast, to the reference."""
  near = np.abs(quantised.astype(np.int16) - reference.astype(np.int16)) <= 1
  return np.where(near, reference, quantised).astype(quantised.dtype)


def compressed_size(picture: Array, *, compressor: str = "zlib") -> int:
  """Bytes of one picture of whole numbers, written row by row, a byte a cell, and compressed by one of COMPRESSORS.

  Raises UserError for values that a byte cannot hold, and for fractions.
  """
  content = picture.astype(np.uint8)
  if not np.array_equal(content, picture):
    raise UserError(f"a picture of {picture.dtype} up to {picture.max()}", "whole numbers of 0 to 255", "picture")
  return len(COMPRESSORS[compressor](content.tobytes()))


def coarse_picture(pictures: Array, *, grain: int, buckets: int, adjusted: bool = False) -> Array:
  """What is compressed for the apparent complexity: smoothed, quantised, and where asked for adjusted, uint8 [..., N, N]."""
  quantised = quantise(smooth(pictures, grain=grain), buckets=buckets)
  return adjust(quantised) if adjusted else quantised


def sizes(pictures: Array, *, compressor: str = "zlib") -> Array:
  """`compressed_size` of each of the pictures [..., N, N], int64 [...]."""
  flat = pictures.reshape(-1, *pictures.shape[-2:])
  found = np.array([compressed_size(each, compressor=compressor) for each in flat], np.int64)
  return found.reshape(pictures.shape[:-2])


def apparent_complexity(pictures: Array, *, grain: int, buckets: int, adjusted: bool = False) -> Array:
  """Bytes of each coarse picture compressed by zlib, int64 [...]."""
  return sizes(coarse_picture(pictures, grain=grain, buckets=buckets, adjusted=adjusted))


def mean_pictures(profiles: Array) -> Array:
  """The pictures whose every column is the profile: float64 [..., N] -> [..., N, N]."""
  return np.repeat(profiles[..., None], profiles.shape[-1], axis=-1)
