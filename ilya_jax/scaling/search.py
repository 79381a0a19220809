"""The search for a law's global optimum: many starts in one batch, a path of shrinking deltas, then a look around.

Huber's objective with delta 1e-3 is nearly a sum of absolute values, with many kinks and sometimes several minima
close together. Half of the starts reach it along a path of shrinking deltas from 0.1, on which the objective is smooth
and its valleys wide; a quarter joins the path late and a quarter starts at the last delta, and these find what the
path misses. A last round perturbs the best. Least absolute deviations follow the same path down to delta 1e-11.

Axis letters: S starts, B refits, n rows, P parameters.
"""

from typing import NamedTuple

import numpy as np

from ilya_jax.scaling import newton, starts
from ilya_jax.scaling.laws import Form
from ilya_jax.scaling.objectives import SMOOTHED_LAD, Points, Problem, problem

Array = np.ndarray

SAME_OPTIMUM = 1e-9  # relative difference of two objective values that counts as the same
_PATH = tuple(10.0 ** np.arange(-1.0, -9.6, -0.5))  # the deltas of the path, widest first
_LATE = 3.2e-3  # where a quarter of the starts joins the path
_ROUNDING = 1e-12  # of the objective per row, in units of `Problem`: below it, two values are the same


class Ending(NamedTuple):
  """Where starts ended: theta [P], the objective there, and the share of the starts."""

  theta: Array
  value: float
  share: float


def search(
  form: Form, points: Points, *, weights: Array, objective: str, delta: float, count: int, seed: int
) -> tuple[Ending, Ending | None]:
  """The best optimum from `count` starts, and the lowest other one (None where there is none).

  weights: [n]. An optimum is another one where its objective is higher by more than 1e-9 of the best and its ln L
  differs by more than 1e-6 in some row.
  """
  rng = np.random.default_rng(seed)
  low, high = starts.bounds(form, points)
  robust = objective in ("huber", "lad")
  last = {"huber": delta, "lad": SMOOTHED_LAD}.get(objective, 1.0)

  def task(width: float) -> Problem:
    return problem(form, points, weights=weights[None], objective=objective, delta=width)

  def descend(theta: Array, width: float) -> newton.Minimum:
    final = width == last
    # The tolerance tightens along the path: at a small delta a start can hardly move along a curved valley.
    return newton.minimise(
      *task(width)[:2], theta=theta, low=low, high=high,
      iterations=300 if final else 40, tolerance=1e-14 if final else min(1e-6, 1e-3 * width**2),
    )  # fmt: skip

  theta = _starting_points(form, points, task(max(last, 1e-2)), rng, count=count)
  if robust:
    entry = np.array([np.inf, _LATE, np.inf, 0.0])[np.arange(count) % 4]
    for width in [d for d in _PATH if d > 1.0001 * last]:
      joined = np.flatnonzero(entry >= width)
      if len(joined):
        theta[joined] = descend(theta[joined], width).theta
  found = descend(theta, last)
  ends = found
  for _ in range(4 if robust else 1):
    k = int(ends.value.argmin())
    more = descend(np.clip(_perturbed(form, points, ends.theta[k], rng, count=32), low, high), last)
    gained = more.value.min() < ends.value[k] * (1.0 - SAME_OPTIMUM) - _ROUNDING * len(points)
    ends = newton.Minimum(*[np.concatenate(pair) for pair in zip(ends, more, strict=True)])
    if not gained:
      break
  return _summary(form, points, ends, found, unit=task(last).unit)


def follow(
  form: Form,
  points: Points,
  *,
  theta: Array,
  weights: Array,
  objective: str = "huber",
  delta: float = 1e-3,
  box: tuple[Array, Array] | None = None,
  targets: Array | None = None,
) -> newton.Minimum:
  """B fits of `form` to reweighted rows, from `theta` [B, P] along the last part of the path.

  weights: [1, n] or [B, n]. box: bounds [B, P] in place of those of `starts.bounds`. targets: ln losses [B, n] in place of the
  measured ones. A second pass starts every fit at
  the optimum of another one and keeps the better: refits must be free to change valleys, or their spread is too small.
  Least absolute deviations are smoothed at delta 1e-6, far below any spread of refits. Returns theta [B, P], objective [B],
  converged [B].
  """
  low, high = box or starts.bounds(form, points)
  last = {"huber": delta, "lad": 1e-6}.get(objective, 1.0)
  path = [d for d in _PATH if 1.0001 * last < d <= 0.04] if objective in ("huber", "lad") else []

  def descend(theta: Array, width: float) -> newton.Minimum:
    task = problem(form, points, weights=weights, objective=objective, delta=width, targets=targets)
    final = width == last
    found = newton.minimise(
      *task[:2], theta=theta, low=low, high=high, iterations=100 if final else 10, tolerance=1e-10 if final else 1e-4
    )
    return found._replace(value=found.value * task.unit)

  for width in path:
    theta = descend(theta, width).theta
  first = descend(theta, last)
  second = descend(np.roll(first.theta, 1, axis=0), last)
  better = second.value < first.value
  return newton.Minimum(
    np.where(better[:, None], second.theta, first.theta),
    np.where(better, second.value, first.value),
    np.where(better, second.converged, first.converged),
  )


def _starting_points(form: Form, points: Points, task: Problem, rng: np.random.Generator, *, count: int) -> Array:
  """[S, P]: the best grid cells (an eighth of the starts), the others random, mixed over the entries of the path."""
  low, high = starts.bounds(form, points)
  grid = np.clip(starts.projected_starts(form, points), low, high)
  cost = task.value(grid, np.arange(len(grid)))
  chosen = grid[np.argsort(cost)[: max(1, count // 8)]]
  others = starts.random_starts(form, points, rng, count=count - len(chosen))
  return np.concatenate([chosen, np.clip(others, low, high)])[rng.permutation(count)]


def _perturbed(form: Form, points: Points, theta: Array, rng: np.random.Generator, *, count: int) -> Array:
  """Points [count, P] about `theta`, spread as estimates are when the noise is one to eight times the residuals."""
  log_loss, jacobian = form.log_loss(theta[None], points.logs)
  noise = np.abs(log_loss[0] - np.log(points.loss)).mean() + 1e-12
  gram = jacobian[0] @ jacobian[0].T
  size = np.sqrt(np.diag(gram)) + 1e-300
  values, vectors = np.linalg.eigh(gram / np.outer(size, size))
  root = vectors / np.sqrt(np.maximum(values, 1e-6))
  factors = noise * 2.0 ** rng.uniform(0.0, 3.0, (count, 1))
  return theta + factors * (rng.standard_normal((count, len(theta))) @ root.T) / size


def _summary(
  form: Form, points: Points, ends: newton.Minimum, found: newton.Minimum, *, unit: float
) -> tuple[Ending, Ending | None]:
  """The best of `ends` and the lowest other converged one, with shares of the starts `found`."""
  best = int(ends.value.argmin())
  limit = ends.value[best] * (1.0 + SAME_OPTIMUM) + _ROUNDING * len(points)
  first = Ending(ends.theta[best], float(ends.value[best] * unit), float((found.value <= limit).mean()))
  laws = form.log_loss(ends.theta, points.logs)[0]
  apart = np.abs(laws - laws[best]).max(-1) > 1e-6
  others = np.flatnonzero(ends.converged & apart & (ends.value > limit))
  if not len(others):
    return first, None
  k = others[int(ends.value[others].argmin())]
  share = float((np.abs(found.value / ends.value[k] - 1.0) < 1e-7).mean())
  return first, Ending(ends.theta[k], float(ends.value[k] * unit), share)
