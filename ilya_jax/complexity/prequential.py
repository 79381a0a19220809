"""Codes for the labels of examples that both sides know: prequential by a learner, two-part by its parameters, uniform; in bits.

Grünwald 2004, "A Tutorial Introduction to the Minimum Description Length Principle", https://arxiv.org/abs/math/0406077, section
2.6.4 (prequential codes); with networks as learners: Blier & Ollivier 2018, "The Description Length of Deep Learning models",
https://arxiv.org/abs/1802.07044: the first chunk of labels is coded uniformly, each further one by the learner trained on all
before it. The order of the examples and the ends of the chunks are part of the code.
"""

from collections.abc import Callable, Sequence

import numpy as np

from ilya_jax.errors import UserError

Array = np.ndarray

FLOAT_BITS = 32  # of a parameter in the two-part code


def doubling_ends(examples: int, *, chunks: int) -> Array:
  """Ends of chunks, each the double of the one before and the last `examples`, int64 [chunks].

  Raises UserError where the first chunk would be empty.
  """
  if chunks < 1 or examples < 2 ** (chunks - 1):
    raise UserError(f"{chunks} doubling chunks of {examples} examples", "1 chunk or more, none of them empty", "chunks")
  return np.round(examples * 0.5 ** np.arange(chunks - 1, -1, -1)).astype(np.int64)


def uniform_bits(labels: Array, *, classes: int) -> float:
  """n log2 K."""
  return len(labels) * float(np.log2(classes))


def chunk_bits(
  labels: Array, *, classes: int, ends: Sequence[int] | Array, predict: Callable[[int, int], Array]
) -> Array:
  """Bits of each chunk of the labels int [n], float64 [chunks]; their sum is the length of the prequential code.

  predict(seen, until) -> float [until - seen, classes]: ln of the probabilities of the labels from `seen` to `until`, by a
    learner that saw the first `seen` labels and no other. Raises UserError on ends that do not rise to n, and ValueError on
    probabilities that do not sum to 1.
  """
  ends = np.asarray(ends)
  if len(ends) == 0 or ends[0] < 1 or (np.diff(ends) < 1).any() or ends[-1] != len(labels):
    raise UserError(f"chunks that end at {ends.tolist()}", f"rising ends, the last of them {len(labels)}", "ends")
  bits = [uniform_bits(labels[: ends[0]], classes=classes)]
  for seen, until in zip(ends[:-1], ends[1:], strict=True):
    log_chances = np.asarray(predict(int(seen), int(until)), np.float64)
    if not np.allclose(np.exp(log_chances).sum(-1), 1, atol=1e-4):
      raise ValueError("the probabilities of the labels of an example do not sum to 1")
    bits.append(log_loss_bits(log_chances, labels[seen:until]))
  return np.array(bits)


def log_loss_bits(log_chances: Array, labels: Array) -> float:
  """-Σ log2 of the chance of each label: ln of the chances [n, classes], labels int [n]."""
  return -float(np.take_along_axis(log_chances, np.asarray(labels)[:, None], axis=1).sum() / np.log(2))


def two_part_bits(log_chances: Array, labels: Array, *, parameters: int, precision: int = FLOAT_BITS) -> float:
  """So many parameters of so many bits each, then the labels given them."""
  return parameters * precision + log_loss_bits(log_chances, labels)
