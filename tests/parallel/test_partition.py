"""Partitions of layer costs into cells: against exhaustive search, and the card's worked cases."""

import itertools

import numpy as np
import pytest

from ilya_jax.errors import UserError
from ilya_jax.parallel.partition import cell_costs, check_counts, smallest_maximum, smallest_variance


def every_partition(layers, cells):
  for cuts in itertools.combinations(range(1, layers), cells - 1):
    yield tuple(b - a for a, b in itertools.pairwise((0, *cuts, layers)))


@pytest.mark.parametrize(("costs", "cells", "maximum", "variance"), [
  ((2, 3, 5, 7, 11, 13, 17, 19, 23, 29), 4, [41, 36, 23, 29], [28, 30, 42, 29]),
  (tuple(range(1, 10)), 3, [15, 13, 17], [15, 13, 17]),
  ((4, 1, 1, 1, 1, 4), 3, [4, 4, 4], [4, 4, 4]),
])  # fmt: skip
def test_worked_cases(costs, cells, maximum, variance):
  assert cell_costs(costs, smallest_maximum(costs, cells)) == maximum
  assert cell_costs(costs, smallest_variance(costs, cells)) == variance


@pytest.mark.parametrize("seed", range(20))
def test_against_exhaustive_search(seed):
  rng = np.random.default_rng(seed)
  layers = int(rng.integers(3, 12))
  cells = int(rng.integers(1, layers + 1))
  costs = rng.integers(1, 40, layers).tolist()
  found = {counts: cell_costs(costs, counts) for counts in every_partition(layers, cells)}
  best = smallest_maximum(costs, cells)
  least = min(max(each) for each in found.values())
  assert max(cell_costs(costs, best)) == least
  assert np.var(cell_costs(costs, best)) == pytest.approx(min(np.var(e) for e in found.values() if max(e) == least))
  assert np.var(cell_costs(costs, smallest_variance(costs, cells))) == pytest.approx(min(map(np.var, found.values())))
  assert sum(best) == layers
  assert min(best) >= 1


def test_refusals():
  with pytest.raises(UserError, match="3 pipeline stages for 2 layers"):
    smallest_maximum([1, 1], 3)
  for counts in [(1, 2), (0, 2, 2), (1, 1, 1, 1)]:
    with pytest.raises(UserError, match="partition"):
      check_counts(counts, layers=4, cells=3)
  assert check_counts([2, 1, 1], layers=4, cells=3) == (2, 1, 1)
