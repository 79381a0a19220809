"""Where to cut a list of layers into consecutive cells: the smallest largest cost, the smallest variance, or by hand.

Source: Huang et al. 2018 (GPipe), https://arxiv.org/abs/1811.06965, section 2.2 (variance); the largest cell bounds the
clock of a pipeline.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from ilya_jax.errors import UserError


def smallest_maximum(costs: Sequence[float], cells: int) -> tuple[int, ...]:
  """Layers per cell such that the costliest cell is as cheap as possible; no cell is empty.

  Among the equally good ones the one with the smallest variance of cell costs. Dynamic programming, O(L^2 K) each.
  Raises UserError where there are fewer layers than cells.
  """
  largest = _best(costs, cells, combine=max, cost=lambda total: total)[0]
  return _best(costs, cells, combine=lambda a, b: a + b, cost=lambda total: total**2, limit=largest)[1]


def smallest_variance(costs: Sequence[float], cells: int) -> tuple[int, ...]:
  """Layers per cell such that the variance of the cells' costs is smallest: of equal sums, the sum of squares."""
  return _best(costs, cells, combine=lambda a, b: a + b, cost=lambda total: total**2)[1]


def cell_costs(costs: Sequence[float], counts: Sequence[int]) -> list[float]:
  """The cost of each cell of a partition."""
  ends = list(itertools.accumulate(counts, initial=0))
  return [float(sum(costs[a:b])) for a, b in itertools.pairwise(ends)]


def check_counts(counts: Sequence[int], *, layers: int, cells: int) -> tuple[int, ...]:
  """`counts` given by hand; raises UserError where they do not put every layer into one of the cells, none empty."""
  if len(counts) != cells or sum(counts) != layers or min(counts) < 1:
    expected = f"{cells} counts of 1 or more that add up to the {layers} layers"
    raise UserError(f"pipeline.partition = {tuple(counts)}", expected, "--config.pipeline.partition")
  return tuple(int(count) for count in counts)


def _best(costs, cells, *, combine, cost, limit=np.inf):
  """(value, counts) of the cheapest partition whose cells cost at most `limit`; value combines cost(cell) over cells."""
  layers = len(costs)
  if not 1 <= cells <= layers:
    raise UserError(
      f"{cells} pipeline stages for {layers} layers", "no more stages than layers",
      "--config.mesh.stage or --config.pipeline.virtual_stages",
    )  # fmt: skip
  sums = np.concatenate([[0.0], np.cumsum(np.asarray(costs, float))])
  allowed = limit * (1 + 1e-12)
  best: dict[tuple[int, int], tuple[float, int]] = {(0, 0): (0.0, 0)}  # (cells, layers so far) -> value, last cut
  for cell in range(1, cells + 1):
    for end in range(cell, layers - (cells - cell) + 1):
      found = [
        (combine(best[cell - 1, cut][0], cost(sums[end] - sums[cut])), cut)
        for cut in range(cell - 1, end)
        if (cell - 1, cut) in best and sums[end] - sums[cut] <= allowed
      ]
      if found:
        best[cell, end] = min(found)
  counts, end = [], layers
  for cell in range(cells, 0, -1):
    cut = best[cell, end][1]
    counts.append(end - cut)
    end = cut
  return best[cells, layers][0], tuple(reversed(counts))
