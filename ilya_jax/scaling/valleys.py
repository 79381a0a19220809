"""The minimum of one isoFLOP valley, the losses of several sizes trained with equal compute, by four methods, with its bracket test.

Hoffmann et al. 2022, https://arxiv.org/abs/2203.15556, section 3.2 (approach 2), fit a parabola in ln N. A valley of a law
A N^-alpha + B D^-beta is skewed wherever alpha differs from beta, so that the vertex of a parabola over all sizes lies beside the
minimum; a parabola over the five sizes around the lowest, a cubic and Akima's interpolation (Akima 1970) follow the skew and pay
with more noise.

Axis letters: R versions of the losses (the measured one, then resamples), n sizes in ascending order.
"""

from typing import NamedTuple

import numpy as np
from scipy.interpolate import Akima1DInterpolator

Array = np.ndarray

METHODS = ("parabola", "local_quadratic", "akima", "cubic")
LOCAL_POINTS = 5
EACH_SIDE = 2  # sizes that a minimum needs below it, and above it
_SAME = 1e-9  # in ln N: a size this near to the minimum lies on neither side
_GRID = 801  # places where Akima's interpolant is looked at

# What a code of `Minima` stands for.
REASONS = (
  "",
  "fewer than 3 sizes",
  "fewer than 4 sizes, which a cubic needs",
  "opens downwards",
  "the cubic has no minimum",
  "minimum not inside the sizes",
  f"fewer than {EACH_SIDE} sizes below the minimum",
  f"fewer than {EACH_SIDE} sizes above the minimum",
)
USABLE, TOO_FEW, TOO_FEW_FOR_CUBIC, DOWNWARDS, NO_MINIMUM, OUTSIDE, LACKS_BELOW, LACKS_ABOVE = range(len(REASONS))


class Minima(NamedTuple):
  """at [R]: ln N of the minimum; loss [R] there, both nan where there is none; code [R]: index of REASONS, 0 where usable."""

  at: Array
  loss: Array
  code: Array


def minimum(method: str, log_n: Array, losses: Array) -> Minima:
  """The minimum of each row of `losses` [R, n] over `log_n` [n], ascending and distinct, by one of METHODS.

  A minimum is usable when it lies inside the sizes (for the local quadratic: inside its own five) with two sizes at least on each
  side; the code says what is lacking. Any unit of the loss gives the same minimum.
  """
  log_n, losses = np.asarray(log_n, np.float64), np.asarray(losses, np.float64)
  few = TOO_FEW if len(log_n) < 3 else TOO_FEW_FOR_CUBIC if method == "cubic" and len(log_n) < 4 else USABLE
  if few:
    nothing = np.full(len(losses), np.nan)
    return Minima(nothing, nothing, np.full(len(losses), few))
  finder = {"parabola": _parabola, "local_quadratic": _local_quadratic, "akima": _akima, "cubic": _cubic}[method]
  with np.errstate(divide="ignore", invalid="ignore"):
    found = finder(log_n, losses)
  return found._replace(code=np.where(found.code > 0, found.code, bracket(log_n, found.at)))


def bracket(log_n: Array, at: Array) -> Array:
  """The code [R] of minima `at` [R]: whether the sizes `log_n` [n] hold them, two on each side."""
  below = (log_n[None] < at[:, None] - _SAME).sum(1)
  above = (log_n[None] > at[:, None] + _SAME).sum(1)
  code = np.where(above < EACH_SIDE, LACKS_ABOVE, USABLE)
  code = np.where(below < EACH_SIDE, LACKS_BELOW, code)
  return np.where((below == 0) | (above == 0), OUTSIDE, code)


def polynomial_residuals(log_n: Array, losses: Array) -> tuple[Array, int]:
  """Residuals [n] of `losses` [n] from a cubic in ln N (a parabola where there are four sizes), and how many are free (0: none)."""
  degree = min(3, len(log_n) - 2)
  if degree < 2:
    return np.zeros(len(log_n)), 0
  u, _, _ = _scaled(log_n)
  powers = np.vander(u, degree + 1, increasing=True)
  return losses - powers @ np.linalg.lstsq(powers, losses, rcond=None)[0], len(log_n) - degree - 1


def _scaled(log_n: Array) -> tuple[Array, float, float]:
  """ln N moved to its middle and scaled to 1, with what was taken off and divided by."""
  middle, half = (log_n[0] + log_n[-1]) / 2, (log_n[-1] - log_n[0]) / 2
  return (log_n - middle) / half, float(middle), float(half)


def _parabola(log_n: Array, losses: Array) -> Minima:
  """Least squares over all sizes."""
  u, middle, half = _scaled(log_n)
  c0, c1, c2 = (losses @ np.linalg.pinv(np.vander(u, 3, increasing=True)).T).T
  code = np.where(c2 > 0, USABLE, DOWNWARDS)
  vertex = np.where(c2 > 0, -c1 / (2 * c2), np.nan)
  return Minima(middle + half * vertex, c0 + c1 * vertex / 2, code)


def _local_quadratic(log_n: Array, losses: Array) -> Minima:
  """The parabola through the five sizes around the lowest loss (all where there are fewer; shifted inwards at an end)."""
  count = min(LOCAL_POINTS, len(log_n))
  first = np.clip(losses.argmin(1) - count // 2, 0, len(log_n) - count)
  at, loss, code = np.full(len(losses), np.nan), np.full(len(losses), np.nan), np.zeros(len(losses), int)
  for k in np.unique(first):
    rows, part = first == k, slice(k, k + count)
    found = _parabola(log_n[part], losses[rows, part])
    inside = (found.at > log_n[part][0]) & (found.at < log_n[part][-1])
    at[rows], loss[rows] = found.at, found.loss
    code[rows] = np.where(found.code > 0, found.code, np.where(inside, USABLE, OUTSIDE))
  return Minima(at, loss, code)


def _akima(log_n: Array, losses: Array) -> Minima:
  """The lowest point of Akima's interpolant, by a fine grid and the parabola through the three places around its lowest."""
  grid = np.linspace(log_n[0], log_n[-1], _GRID)
  values = Akima1DInterpolator(log_n, losses, axis=1)(grid)  # [R, grid]
  lowest = values.argmin(1)
  inside = (lowest > 0) & (lowest < _GRID - 1)
  k, rows = np.clip(lowest, 1, _GRID - 2), np.arange(len(losses))
  before, here, after = values[rows, k - 1], values[rows, k], values[rows, k + 1]
  step = np.where(inside, 0.5 * (before - after) / (before - 2 * here + after), 0.0)
  step = np.nan_to_num(step)  # a flat bottom
  at = np.where(inside, grid[k] + step * (grid[1] - grid[0]), grid[lowest])
  loss = np.where(inside, here - 0.25 * (before - after) * step, values[rows, lowest])
  return Minima(at, loss, np.where(inside, USABLE, OUTSIDE))


def _cubic(log_n: Array, losses: Array) -> Minima:
  """The local minimum of a cubic by least squares over all sizes."""
  u, middle, half = _scaled(log_n)
  c0, c1, c2, c3 = (losses @ np.linalg.pinv(np.vander(u, 4, increasing=True)).T).T
  inner = c2**2 - 3 * c1 * c3
  root = np.sqrt(np.where(inner > 0, inner, np.nan))
  # Two ways to write the root with a positive second derivative, each exact where the other cancels.
  place = np.where(c2 > 0, -c1 / (c2 + root), (root - c2) / (3 * c3))
  there = np.isfinite(place)
  loss = c0 + place * (c1 + place * (c2 + place * c3))
  return Minima(middle + half * np.where(there, place, np.nan), loss, np.where(there, USABLE, NO_MINIMUM))
