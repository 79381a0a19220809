"""Steps against batch size at one loss: S(B) = S_min (1 + B_crit/B) in logarithms, with resamples and verdicts.

Kaplan et al. 2020, https://arxiv.org/abs/2001.08361, eqs. 5.1 and 5.2: with E = B S tokens, (S/S_min - 1)(E/E_min - 1) = 1 and
B_crit = E_min/S_min. In ln S the law has one nonlinear parameter, ln B_crit; S_min follows in closed form.

Intervals: case bootstrap over runs, expanded percentile (Hesterberg 2015, https://arxiv.org/abs/1411.5279): the tails are
those at which a normal interval would be as wide as Student's with n - 2 degrees of freedom, because few runs resampled spread
less than they should.

Axis letters: R resamples, n runs, G grid.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from ilya_jax.scaling.uncertainty import LEVEL, TOO_WIDE

Array = np.ndarray

FEWEST, ENOUGH = 3, 5  # batch sizes of a fit: refused below, flagged below
NAMES = ("B_crit", "S_min", "E_min")
REACH = 10.0  # B_crit further than this from all batch sizes is extrapolated
_BEYOND = 1e3  # how far outside of the batch sizes B_crit is sought
_GRID, _ZOOM, _ROUNDS = 193, 17, 5


class Hyperbola(NamedTuple):
  """log_B_crit, log_S_min [R] (row 0: the measured runs, then resamples; nan where a resample has too few batch sizes),
  at_bound [R], residuals [n] of ln S, used: batch sizes."""

  log_B_crit: Array
  log_S_min: Array
  at_bound: Array
  residuals: Array
  used: int

  def values(self) -> dict[str, Array]:
    """B_crit, S_min and E_min, each [R]."""
    logs = (self.log_B_crit, self.log_S_min, self.log_B_crit + self.log_S_min)
    return {name: np.exp(log) for name, log in zip(NAMES, logs, strict=True)}


def fit(B: Array, S: Array, weights: Array) -> Hyperbola:
  """Least squares of ln S [n] over runs at batch sizes B [n], for each row of `weights` [R, n] (how often a run counts)."""
  log_b, log_s = np.log(B), np.log(S)
  batches = np.unique(np.round(log_b, 2), return_inverse=True)[1]
  present = np.stack([(weights[:, batches == k] > 0).any(1) for k in range(batches.max() + 1)], axis=1)
  valid = present.sum(1) >= FEWEST
  weights = np.where(valid[:, None], weights, 1.0)
  low, high = log_b.min() - np.log(_BEYOND), log_b.max() + np.log(_BEYOND)
  grid = np.linspace(low, high, _GRID)
  total = weights.sum(1)
  terms = log_s - np.logaddexp(0.0, grid[:, None] - log_b)  # [G, n] ln S_min by each run
  terms = terms - terms.mean(1, keepdims=True)
  cost = weights @ np.square(terms).T - np.square(weights @ terms.T) / total[:, None]  # [R, G]
  best, spacing = grid[cost.argmin(1)], grid[1] - grid[0]
  for _ in range(_ROUNDS):
    near = np.clip(best[:, None] + spacing * np.linspace(-1, 1, _ZOOM), low, high)  # [R, G]
    terms = log_s - np.logaddexp(0.0, near[:, :, None] - log_b)  # [R, G, n]
    off = terms - (np.einsum("rn,rgn->rg", weights, terms) / total[:, None])[:, :, None]
    at = np.einsum("rn,rgn->rg", weights, np.square(off)).argmin(1)
    best, spacing = near[np.arange(len(near)), at], spacing * 2 / (_ZOOM - 1)
  each = log_s - np.logaddexp(0.0, best[:, None] - log_b)  # [R, n]
  log_s_min = (weights * each).sum(1) / total
  bound = (best <= low + 0.1) | (best >= high - 0.1)
  missing = np.where(valid, 0.0, np.nan)
  return Hyperbola(best + missing, log_s_min + missing, bound & valid, each[0] - log_s_min[0], present.shape[1])


def case_weights(groups: Array, rng: np.random.Generator, *, count: int) -> Array:
  """[1 + count, n] how often each run counts: once, then in each resample, drawn within its group (`groups` [n])."""
  weights = np.ones((1 + count, len(groups)))
  for group in np.unique(groups):
    own = np.flatnonzero(groups == group)
    drawn = rng.integers(len(own), size=(count, len(own)))
    weights[1:, own] = (drawn[:, :, None] == np.arange(len(own))).sum(1)
  return weights


def expanded_interval(draws: Array, *, freedom: int, runs: int) -> tuple[float, float]:
  """The percentile interval of `draws`, its tails expanded for `runs` runs with so many degrees of freedom."""
  tail = stats.norm.cdf(np.sqrt(runs / freedom) * stats.t.ppf((1 - LEVEL) / 2, freedom))
  low, high = np.quantile(draws, [tail, 1 - tail])
  return float(low), float(high)


def intervals(found: Hyperbola, B: Array) -> dict[str, dict[str, Any]]:
  """Of B_crit, S_min and E_min: method, level, low, high, identified, why; B [n]: the batch sizes fitted.

  Not identified: B_crit and what it extrapolates to where it lies over ten times above or below every batch size, and what spans a
  factor of ten or has a tenth of its resamples at a bound.
  """
  values, runs = found.values(), len(found.residuals)
  drawn = np.isfinite(found.log_B_crit[1:])
  centre = values["B_crit"][0]
  above, below = centre > REACH * B.max(), centre < B.min() / REACH
  many = "the resamples" if not drawn.any() else ""
  records = {}
  for name in NAMES:
    draws = values[name][1:][drawn]
    low, high = (None, None) if many else expanded_interval(draws, freedom=runs - 2, runs=runs)
    why = ""
    if above and name != "E_min":
      why = "all batch sizes lie far below B_crit: steps fall as 1/B and show E_min alone"
    elif below and name != "S_min":
      why = "all batch sizes lie far above B_crit: steps hardly depend on B and show S_min alone"
    elif many:
      why = "no resamples" if len(drawn) == 0 else "no resample has enough batch sizes"
    elif name == "B_crit" and (found.at_bound[1:][drawn].mean() > 0.1):
      why = "a tenth of the resamples or more lie at a bound of the search"
    elif low is not None and high is not None and not low < high:
      why = "the resamples do not differ: too few runs"
    elif low is not None and high is not None and not high / low < TOO_WIDE:
      why = "the interval spans a factor of 10 or more"
    method = "none" if many else "case bootstrap by run, expanded percentile"
    records[name] = {"method": method, "level": LEVEL, "low": low, "high": high, "identified": not why, "why": why}
  return records
