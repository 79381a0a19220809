"""Profile-likelihood intervals: how far one parameter can be moved, all others refitted, before the fit is significantly worse.

For parameters that a bootstrap serves badly: those at a bound of the search, whose resamples pile up there, and all of a law
with a second optimum nearly as good, which resamples may never visit. By Wilks' theorem the deviance (`fit.deviance`) rises
by less than a chi-squared quantile of one degree of freedom inside the interval.

Axis letters: G values of the parameter, P parameters.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from ilya_jax.scaling import search, starts
from ilya_jax.scaling.fit import Fit, deviance
from ilya_jax.scaling.laws import FORMS

Array = np.ndarray

LEVEL = 0.95
_POINTS = 33  # of a grid; the grid is refined about each end of the interval
_REFINED = 5  # times


class Interval(NamedTuple):
  """low and high, None where the likelihood allows all up to the bound of the search on that side."""

  low: float | None
  high: float | None


def can(form: str, name: str) -> bool:
  """Whether the parameter is one of the search's own coordinates, so that it can be held fixed: a floor, exponent or constant."""
  law = FORMS[form]
  return law.reprint is None and any(
    p.name == name and p.kind in ("floor", "exponent", "constant") for p in law.parameters
  )


def wanted(fit: Fit) -> list[str]:
  """The parameters whose interval should come from here: those at a bound; all, where a second optimum lies inside the interval."""
  names = [name for name in FORMS[fit.form].names if can(fit.form, name)]
  second = fit.second_optimum
  if second is not None and _deviance(fit, second.value) - _deviance(fit, fit.value) < _threshold():
    return names
  return [name for name in names if name in fit.at_bound]


def interval(fit: Fit, name: str) -> Interval:
  """The interval of a parameter that `can` be profiled. Raises ValueError for another one."""
  if not can(fit.form, name):
    raise ValueError(f"{name} of {fit.form} is no coordinate of the search")
  law = FORMS[fit.form]
  column = law.column(name)
  logarithmic = law.parameters[column].kind == "exponent"  # constants are logarithms already
  low, high = (float(side[column]) for side in starts.bounds(law, fit.points))
  grid = np.geomspace(low, high, _POINTS) if logarithmic else np.linspace(low, high, _POINTS)
  grid = np.unique(np.append(grid, fit.theta[column]))
  within = _rise(fit, column, grid) <= _threshold()
  sides = []
  for ends in (np.arange(len(grid)), np.arange(len(grid))[::-1]):
    first = next(k for k in ends if within[k] or grid[k] == fit.theta[column])
    sides.append(
      None if first == ends[0] else _refined(fit, column, float(grid[first]), float(grid[first - (ends[1] - ends[0])]))
    )
  printed = [
    None if side is None else float(np.exp(side)) if law.parameters[column].kind == "constant" else side
    for side in sides
  ]
  return Interval(*printed)


def _refined(fit: Fit, column: int, inside: float, outside: float) -> float:
  """Where the rise crosses the threshold, between a value inside the interval and one outside."""
  for _ in range(_REFINED):
    grid = np.linspace(inside, outside, 9)
    within = _rise(fit, column, grid) <= _threshold()
    within[0] = True
    last = int(np.flatnonzero(within).max()) if not within[-1] else len(grid) - 2
    inside, outside = float(grid[last]), float(grid[last + 1])
  return (inside + outside) / 2


def _rise(fit: Fit, column: int, grid: Array) -> Array:
  """[G] the deviance above the fit's, with the parameter held at each value and all others refitted."""
  law = FORMS[fit.form]
  low, high = (np.tile(side, (len(grid), 1)) for side in starts.bounds(law, fit.points))
  low[:, column] = high[:, column] = grid
  theta = np.tile(fit.theta, (len(grid), 1))
  theta[:, column] = grid
  weights = np.ones((1, len(fit.points)))
  found = search.follow(
    law, fit.points, theta=theta, weights=weights, objective=fit.objective, delta=fit.delta, box=(low, high)
  )
  best = _deviance(fit, fit.value)
  return np.array([max(_deviance(fit, value) - best, 0.0) for value in found.value])


def _deviance(fit: Fit, value: Any) -> float:
  return deviance(float(value), points=len(fit.points), objective=fit.objective, delta=fit.delta)


def _threshold() -> float:
  return float(stats.chi2.ppf(LEVEL, 1))
