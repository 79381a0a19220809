"""Codes for binary sequences by Markov chains of order k, in bits, and the criteria that choose an order.

Grünwald 2004, "A Tutorial Introduction to the Minimum Description Length Principle", https://arxiv.org/abs/math/0406077: the
first example (section 1.2) and Markov chains of any order (sections 2.3, 2.4). The first k symbols cost a bit each; each context
then has a code of its own. A context is its k symbols read as a binary number, the oldest the most significant.

Deviations: NML is per context ("factorised": the sum of log2 C(n_context, 2)), not the joint one of the chain, whose sum over
all sequences has no such short form. Factorised it is a code that wastes about a hundredth of a bit: Σ 2^-L is .99 at n = 10.

Axes: S sequences, n symbols.
"""

from collections.abc import Callable, Sequence

import numpy as np

from ilya_jax.complexity import multinomial
from ilya_jax.complexity.codes import log_star
from ilya_jax.errors import UserError

Array = np.ndarray


def sample(chances: Sequence[float], *, shape: tuple[int, int], rng: np.random.Generator) -> Array:
  """Sequences uint8 [S, n] of the chain whose chance of a one after context c is chances[c], all 2^k; it begins with k fair bits.

  Raises UserError where the number of chances is no power of two.
  """
  order = len(chances).bit_length() - 1
  if len(chances) != 2**order:
    raise UserError(f"{len(chances)} chances", "2^k, one for each context", "chances")
  count, n = shape
  uniform, table = rng.random((n, count)), np.asarray(chances)
  made = np.empty((n, count), np.uint8)
  context = np.zeros(count, np.int64)
  for t in range(n):
    made[t] = uniform[t] < (0.5 if t < order else table[context])
    context = (2 * context + made[t]) % 2**order
  return made.T


def context_counts(sequences: Array, order: int) -> Array:
  """How often 0 and 1 follow each context: int64 [S, 2^order, 2], of sequences uint8 [S, n]."""
  count, n = sequences.shape
  context = np.zeros((count, max(n - order, 0)), np.int64)
  for k in range(order):
    context = 2 * context + sequences[:, k : n - order + k]
  cell = (context * 2 + sequences[:, order:]) + 2 ** (order + 1) * np.arange(count)[:, None]
  found = np.bincount(cell.ravel(), minlength=count * 2 ** (order + 1))
  return found.reshape(count, 2**order, 2)


# Of the counts [S, contexts, 2]: the length for each context. BIC and AIC are per parameter, visited or not.
CODES: dict[str, Callable[[Array], Array]] = {
  "ML": multinomial.ml_length,
  "KT": multinomial.kt_length,
  "Laplace": multinomial.laplace_length,
  "fNML": multinomial.nml_length,
}
_PENALTIES: dict[str, Callable[[int], float]] = {
  "BIC": lambda n: 0.5 * np.log2(n),
  "AIC": lambda n: 1 / np.log(2),
}


def lengths(sequences: Array, order: int, *, code: str) -> Array:
  """The length of each sequence by chains of this order, bits [S]; `code` is one of CODES, BIC or AIC.

  The order itself is not encoded. Raises UserError for an unknown code.
  """
  counts = context_counts(sequences, order)
  first = min(order, sequences.shape[1])
  if code in CODES:
    return first + CODES[code](counts).sum(-1)
  if code not in _PENALTIES:
    raise UserError(f"code {code!r}", f"one of {', '.join([*CODES, *_PENALTIES])}", "code")
  return first + multinomial.ml_length(counts).sum(-1) + 2**order * _PENALTIES[code](sequences.shape[1])


def crude_lengths(sequences: Array, order: int, *, precision: int) -> Array:
  """The crude two-part code: order, precision d, a d-bit parameter for each context, then the sequence given these, bits [S].

  Order and precision by Rissanen's prior, of one more than each.
  """
  counts = context_counts(sequences, order)
  heading = float(log_star(np.asarray(order + 1)) + log_star(np.asarray(precision + 1)))
  parts = multinomial.two_part_length(counts, precision)  # [S, contexts]
  return heading + min(order, sequences.shape[1]) + parts.sum(-1)


def chosen_orders(sequences: Array, *, code: str, largest: int, index: str = "uniform") -> Array:
  """The order of 0 … largest by which each sequence is shortest, the smallest on ties, int64 [S].

  index: how the order is encoded: "uniform" (the same for all, hence left out) or "log_star" (of order + 1).
  Raises UserError for another index.
  """
  if index not in ("uniform", "log_star"):
    raise UserError(f"index {index!r}", "uniform or log_star", "index")
  found = np.stack([lengths(sequences, order, code=code) for order in range(largest + 1)])  # [orders, S]
  if index == "log_star":
    found = found + log_star(np.arange(1, largest + 2))[:, None]
  return found.argmin(axis=0)
