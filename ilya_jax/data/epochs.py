"""The order in which examples of a finite set are seen: epoch after epoch, each a permutation drawn from (seed, epoch)."""

import functools

import numpy as np

_KEPT = 4  # permutations


def order_of_epochs(positions: np.ndarray, *, count: int, seed: int) -> np.ndarray:
  """Which of `count` examples stands at each position int64 [n] of the endless sequence of epochs."""
  epochs, places = positions // count, positions % count
  drawn = np.empty_like(positions)
  for epoch in np.unique(epochs):
    here = epochs == epoch
    drawn[here] = permutation(count, seed, int(epoch))[places[here]]
  return drawn


@functools.lru_cache(maxsize=_KEPT)
def permutation(count: int, seed: int, epoch: int) -> np.ndarray:
  """The order of an epoch, int64 [count]."""
  return np.random.Generator(np.random.Philox(key=np.asarray([seed, epoch], np.uint64))).permutation(count)
