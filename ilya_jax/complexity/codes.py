"""Lengths of codes for whole numbers, in bits: uniform, Elias's two, Rissanen's universal prior.

Grünwald 2004, "A Tutorial Introduction to the Minimum Description Length Principle", https://arxiv.org/abs/math/0406077,
sections 2.2 and 2.4; Elias 1975, "Universal codeword sets and representations of the integers"; Rissanen 1983, "A universal prior for
integers and estimation by minimum description length". No length is rounded up to a whole number of bits, but Elias's are whole.
"""

import numpy as np

from ilya_jax.errors import UserError

Array = np.ndarray

RISSANEN = 2.865064  # Σ 2^-(log2 n + log2 log2 n + …) over n: makes the prior sum to 1


def _positive(numbers: Array) -> Array:
  """The numbers as int64 [...]. Raises UserError for one below 1."""
  numbers = np.asarray(numbers, np.int64)
  if (numbers < 1).any():
    raise UserError(f"a code for {numbers.min()}", "whole numbers of 1 and more", "n")
  return numbers


def uniform(outcomes: int) -> float:
  """log2 M bits for one of M outcomes."""
  return float(np.log2(_positive(np.asarray(outcomes))))


def elias_gamma(numbers: Array) -> Array:
  """2 floor(log2 n) + 1 bits: the number in binary after as many zeros as it has further digits; int64 [...]."""
  return 2 * _floor_log2(_positive(numbers)) + 1


def elias_delta(numbers: Array) -> Array:
  """floor(log2 n) + 2 floor(log2(floor(log2 n) + 1)) + 1 bits: the number of digits by the gamma code, then the digits."""
  digits = _floor_log2(_positive(numbers))
  return digits + 2 * _floor_log2(digits + 1) + 1


def log_star(numbers: Array) -> Array:
  """Rissanen's universal prior for n >= 1: log2 c + log2 n + log2 log2 n + …, the positive terms alone, float64 [...]."""
  term = _positive(numbers).astype(np.float64)
  total = np.full(term.shape, np.log2(RISSANEN))
  while (term > 1).any():
    term = np.log2(np.maximum(term, 1.0))
    total += term
  return total


def _floor_log2(numbers: Array) -> Array:
  """floor(log2 n), exact: of a float64, the exponent is one less than that of `frexp`."""
  return np.frexp(numbers.astype(np.float64))[1].astype(np.int64) - 1
