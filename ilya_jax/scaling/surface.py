"""A fitted law of N and D seen along lines of equal compute: the loss of a size, the best size, and the skew of the valley.

Where compute is 6 N D, the best size is the closed form of `optimal`. Where a table counts FLOP otherwise (attention and head
included), each of its sizes spends its own number of FLOP on a token; `FlopFactor` interpolates it in N, and the best size
is found numerically.

Axis letters: S resamples, B budgets, G sizes of a grid.
"""

from typing import NamedTuple

import numpy as np
from scipy.interpolate import PchipInterpolator

from ilya_jax.scaling import optimal
from ilya_jax.scaling.fitted import FittedLaw
from ilya_jax.scaling.laws import FORMS
from ilya_jax.scaling.optimal import FLOP_PER_PARAMETER_AND_TOKEN

Array = np.ndarray

_LOG_SIX = float(np.log(FLOP_PER_PARAMETER_AND_TOKEN))
_EQUAL = 1e-3  # in ln C: C counts as 6 N D
_GRID, _MARGIN = 601, float(np.log(30.0))  # sizes looked at, and how far past the table's own
_STEP = 0.05  # in ln N, of the differences that give the skew


class FlopFactor(NamedTuple):
  """ln(C/(6 N D)) against ln N: at the table's sizes [m], and between them by a monotone cubic. Empty where C is 6 N D."""

  log_n: Array
  log_factor: Array
  spread: float = 0.0  # largest difference of ln(C/(6 N D)) between rows of one size

  @property
  def is_6nd(self) -> bool:
    """Whether C is 6 N D."""
    return len(self.log_n) == 0

  def log_tokens(self, log_n: Array, log_c: Array) -> Array:
    """ln D of a model of this ln N trained with this ln C, arrays that broadcast. Past the table's sizes the factor stays as it is."""
    plain = log_c - _LOG_SIX - log_n
    if self.is_6nd:
      return plain
    between = PchipInterpolator(self.log_n, self.log_factor)
    return plain - between(np.clip(log_n, self.log_n[0], self.log_n[-1]))


def flop_factor(N: Array, D: Array, C: Array) -> FlopFactor:
  """The factor of rows N, D, C [n]."""
  log_n, ratio = np.log(N), np.log(C) - _LOG_SIX - np.log(N) - np.log(D)
  if np.abs(ratio).max() < _EQUAL:
    return FlopFactor(np.empty(0), np.empty(0))
  sizes, which = np.unique(np.round(log_n, 9), return_inverse=True)
  if len(sizes) < 2:
    sizes, which = np.array([sizes[0], sizes[0] + 1.0]), np.zeros(len(log_n), int)
  counts = np.bincount(which, minlength=len(sizes))
  means = np.where(counts > 0, np.bincount(which, ratio, minlength=len(sizes)) / np.maximum(counts, 1), ratio.mean())
  return FlopFactor(sizes, means, float(2 * np.abs(ratio - means[which]).max()))


class Surface(NamedTuple):
  """A law with an optimum at equal compute, and how that compute is counted."""

  law: FittedLaw
  factor: FlopFactor

  def log_loss(self, log_n: Array, log_d: Array) -> Array:
    """ln of the law's loss at ln N and ln D, arrays of one shape; all tokens are taken as new."""
    N, D = np.exp(log_n), np.exp(log_d)
    return np.log(self.law.predict(N=N, D=D, D_unique=D))

  def valley(self, log_n: Array, log_c: float) -> Array:
    """The loss [G] of sizes ln N [G] trained with e^log_c FLOP."""
    return np.exp(self.log_loss(log_n, self.factor.log_tokens(log_n, np.full_like(log_n, log_c))))

  def optimum(self, log_c: Array) -> tuple[Array, Array]:
    """(ln N* [1 + S, B], first of the fit, then of its resamples; loss [B] of the fit) at log_c [B]; nan where there is none."""
    if self.factor.is_6nd:
      at = self._closed(log_c)
    else:
      at = np.stack([self._numeric(float(c)) for c in log_c], axis=1)
    known = np.isfinite(at[0])
    log_d = self.factor.log_tokens(np.where(known, at[0], 0.0), log_c)
    return at, np.where(known, np.exp(self.log_loss(np.where(known, at[0], 0.0), log_d)), np.nan)

  def skew(self, log_c: float, at: float) -> float:
    """f'''/f'' of the valley f(ln N) at its minimum `at`: beta - alpha for Chinchilla's law at C = 6 N D."""
    f = self.valley(at + _STEP * np.array([-2.0, -1.0, 0.0, 1.0, 2.0]), log_c)
    second = (-f[0] + 16 * f[1] - 30 * f[2] + 16 * f[3] - f[4]) / (12 * _STEP**2)
    third = (f[4] - 2 * f[3] + 2 * f[1] - f[0]) / (2 * _STEP**3)
    return float(third / second)

  def _closed(self, log_c: Array) -> Array:
    name, compute = self.law.name, np.exp(log_c)
    best = optimal.allocate(name, self.law.fit.parameters, compute=compute)
    assert best is not None, f"{name} has no optimum"
    rows = [np.log(best.N)[None]]
    if self.law.draws is not None:
      columns = {key: drawn[:, None] for key, drawn in self.law.draws.parameters.items()}
      with np.errstate(all="ignore"):
        drawn = optimal.allocate(name, columns, compute=compute[None])
      assert drawn is not None
      rows.append(np.log(drawn.N))
    return np.concatenate(rows)

  def _numeric(self, log_c: float) -> Array:
    """ln N* [1 + S] at one compute: the lowest of a grid, moved to the vertex of the parabola through its neighbours."""
    fit, sizes = self.law.fit, self.factor.log_n
    grid = np.linspace(sizes[0] - _MARGIN, sizes[-1] + _MARGIN, _GRID)
    log_d = self.factor.log_tokens(grid, np.full_like(grid, log_c))
    logs = {"N": grid, "D": log_d, "D_unique": log_d}
    logs = {v: logs[v] - fit.points.centre[v] for v in FORMS[fit.form].variables}
    theta = fit.theta[None] if self.law.draws is None else np.concatenate([fit.theta[None], self.law.draws.theta])
    values = FORMS[fit.form].log_loss(theta, logs)[0]  # [1 + S, G]
    lowest = values.argmin(1)
    k, rows = np.clip(lowest, 1, _GRID - 2), np.arange(len(values))
    before, here, after = values[rows, k - 1], values[rows, k], values[rows, k + 1]
    with np.errstate(all="ignore"):
      step = 0.5 * (before - after) / (before - 2 * here + after)
    return np.where(k == lowest, grid[k] + step * (grid[1] - grid[0]), np.nan)
