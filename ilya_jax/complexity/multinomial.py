"""Universal codes for sequences over K symbols, in bits: maximum likelihood, KT, Laplace, two-part, and NML with its complexity.

Grünwald 2004, "A Tutorial Introduction to the Minimum Description Length Principle", https://arxiv.org/abs/math/0406077,
sections 2.4 (two parts) to 2.6 (NML, Bayes, prediction). The complexity of NML by the recurrence of Kontkanen & Myllymäki 2007,
"A linear-time algorithm for computing the multinomial stochastic complexity": C(n, K + 2) = C(n, K + 1) + (n / K) C(n, K); its
asymptotics by Szpankowski 1998. KT: Krichevsky & Trofimov 1981, the Bayes mixture with Jeffreys' prior.

Axes: K symbols; leading axes are of sequences. Lengths are of sequences, not of counts, and in bits, not rounded up.
"""

import functools

import numpy as np
from scipy import special

from ilya_jax.errors import UserError

Array = np.ndarray

_BITS = np.log(2.0)  # nats in a bit


def ml_length(counts: Array) -> Array:
  """Σ n_j log2(n / n_j), the shortest that a code for independent symbols can be in hindsight; itself not a code. [..., K] -> [...]."""
  counts = np.asarray(counts, np.float64)
  return (special.xlogy(counts.sum(-1), counts.sum(-1)) - special.xlogy(counts, counts).sum(-1)) / _BITS


def dirichlet_length(counts: Array, concentration: float) -> Array:
  """The Bayes mixture with a symmetric Dirichlet prior: next symbol j with chance (n_j + c) / (n + K c). [..., K] -> [...]."""
  counts = np.asarray(counts, np.float64)
  total, symbols = counts.sum(-1), counts.shape[-1]
  ratio = special.gammaln(total + symbols * concentration) - special.gammaln(symbols * concentration)
  own = special.gammaln(counts + concentration) - special.gammaln(concentration)
  return (ratio - own.sum(-1)) / _BITS


def kt_length(counts: Array) -> Array:
  """Krichevsky and Trofimov's code: (n_j + 1/2) / (n + K/2)."""
  return dirichlet_length(counts, 0.5)


def laplace_length(counts: Array) -> Array:
  """Laplace's rule of succession: (n_j + 1) / (n + K)."""
  return dirichlet_length(counts, 1.0)


def enumerative_length(counts: Array) -> Array:
  """The two-part code that names the number of ones, then the sequence among those with as many: equals Laplace's for K = 2."""
  counts = np.asarray(counts, np.float64)
  zeros, ones = counts[..., 0], counts[..., 1]
  total = zeros + ones
  return (
    np.log2(total + 1) + (special.gammaln(total + 1) - special.gammaln(zeros + 1) - special.gammaln(ones + 1)) / _BITS
  )


def bernoulli_length(counts: Array, chance: Array) -> Array:
  """-log2 of the probability of a binary sequence under a given chance of a one: infinite where it is impossible."""
  counts = np.asarray(counts, np.float64)
  return -(special.xlogy(counts[..., 0], 1 - chance) + special.xlogy(counts[..., 1], chance)) / _BITS


def rounded_chance(counts: Array, precision: int) -> Array:
  """The chance of a one of greatest likelihood among the 2^d midpoints (i + 1/2) / 2^d, d = `precision` bits; 1/2 for d = 0."""
  counts = np.asarray(counts, np.float64)
  total = np.maximum(counts.sum(-1), 1.0)
  cells = 2.0**precision
  index = np.clip(np.floor(counts[..., 1] / total * cells), 0, cells - 1)
  candidates = np.stack(
    [np.clip(index + k, 0, cells - 1) for k in (-1, 0, 1)], axis=-1
  )  # the nearest need not be the best
  chances = (candidates + 0.5) / cells
  lengths = bernoulli_length(counts[..., None, :], chances)
  return np.take_along_axis(chances, lengths.argmin(-1)[..., None], axis=-1)[..., 0]


def two_part_length(counts: Array, precision: int) -> Array:
  """The crude code of a binary sequence: a parameter of `precision` bits, then the sequence given it."""
  return precision + bernoulli_length(counts, rounded_chance(counts, precision))


@functools.cache
def log2_complexity(n: int, symbols: int) -> float:
  """log2 C(n, K): how much longer the NML code is than the maximum likelihood of any sequence of length n.

  Raises UserError for a negative length and fewer than one symbol.
  """
  if n < 0 or symbols < 1:
    raise UserError(
      f"sequences of length {n} over {symbols} symbols", "length 0 and more, 1 symbol and more", "n, symbols"
    )
  if n == 0 or symbols == 1:
    return 0.0
  ones = np.arange(n + 1.0)
  binomial = special.gammaln(n + 1) - special.gammaln(ones + 1) - special.gammaln(n - ones + 1)
  terms = binomial + special.xlogy(ones, ones / n) + special.xlogy(n - ones, (n - ones) / n)  # 0^0 = 1
  before, last = 0.0, float(special.logsumexp(terms) / _BITS)
  for k in range(1, symbols - 1):
    before, last = last, float(np.logaddexp2(last, np.log2(n / k) + before))
  return last


def log2_complexities(totals: Array, symbols: int) -> Array:
  """`log2_complexity` of each of the lengths, int [...] -> float64 [...]."""
  different, which = np.unique(totals, return_inverse=True)
  return np.array([log2_complexity(int(n), symbols) for n in different])[which].reshape(np.shape(totals))


def nml_length(counts: Array) -> Array:
  """The normalised maximum likelihood code, ML + log2 C(n, K): least in the worst case, the same regret for each sequence."""
  counts = np.asarray(counts, np.int64)
  return ml_length(counts) + log2_complexities(counts.sum(-1), counts.shape[-1])


def first_order_complexity(n: Array, symbols: int) -> Array:
  """(k / 2) log2(n / 2π) + log2 ∫ sqrt(det I), k = K - 1: the asymptotics of the tutorial, the integral being π^(K/2) / Γ(K/2)."""
  k = symbols - 1
  volume = symbols / 2 * np.log(np.pi) - special.gammaln(symbols / 2)
  return (k / 2 * np.log(np.asarray(n, np.float64) / (2 * np.pi)) + volume) / _BITS


def refined_complexity(n: Array, symbols: int) -> Array:
  """Szpankowski's expansion of log2 C(n, K) up to terms of 1 / n."""
  n, K = np.asarray(n, np.float64), symbols
  ratio = np.exp(special.gammaln(K / 2) - special.gammaln((K - 1) / 2))
  half = np.sqrt(2) * K * ratio / 3
  whole = (3 + K * (K - 2) * (2 * K + 1)) / 36 - (ratio * K) ** 2 / 9
  return first_order_complexity(n, symbols) + (half / np.sqrt(n) + whole / n) / _BITS
