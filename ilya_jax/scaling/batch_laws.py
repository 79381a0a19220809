"""What B_crit follows: power laws in the loss, the size or the tokens, compared by what each predicts of a target or size left out.

Kaplan et al. 2020, https://arxiv.org/abs/2001.08361, eq. 1.4: B_crit(L) = B_star / L^(1/alpha_B), whatever the size. Later work has it
follow the tokens. All three are lines in logarithms, fitted by least squares to the points (target, size) whose B_crit is
identified.

Axis letters: R resamples (row 0: the measured runs), k points.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ilya_jax.scaling.uncertainty import LEVEL, TOO_WIDE, interval

Array = np.ndarray

LAWS: Mapping[str, str] = {"L": "B_crit = B_star / L^(1/alpha_B)", "N": "B_crit = b N^p", "D": "B_crit = b D^p"}
NAMES: Mapping[str, tuple[str, str]] = {"L": ("B_star", "alpha_B"), "N": ("b", "p"), "D": ("b", "p")}
_FEWEST = 3  # points of a law


class Points(NamedTuple):
  """x: law -> ln of its variable [k]. log_B [R, k], nan where a resample has none. target, size [k]: which ones they are of."""

  x: Mapping[str, Array]
  log_B: Array
  target: Array
  size: Array


def line(x: Array, y: Array) -> tuple[Array, Array]:
  """Intercept and slope [R] of least squares of y [R, k] on x [k]; nan in y counts as absent; slope 0 where x does not vary."""
  there = np.isfinite(y)
  count = np.maximum(there.sum(1), 1)
  mean_x, mean_y = (there * x).sum(1) / count, np.where(there, y, 0.0).sum(1) / count
  dx = there * (x - mean_x[:, None])
  spread = np.square(dx).sum(1)
  slope = np.where(spread > 1e-12, (dx * np.where(there, y, 0.0)).sum(1) / np.maximum(spread, 1e-12), 0.0)
  return mean_y - slope * mean_x, slope


def printed(law: str, intercept: Array, slope: Array) -> dict[str, Array]:
  """The constants of a law from its line in logarithms."""
  first, second = NAMES[law]
  if law != "L":
    return {first: np.exp(np.clip(intercept, -700, 700)), second: slope}
  with np.errstate(divide="ignore"):
    return {first: np.exp(np.clip(intercept, -700, 700)), second: -1.0 / slope}


def fit(points: Points, law: str) -> dict[str, Any] | None:
  """One law: equation, parameters with intervals, n_points, residual_sd (of ln B_crit); None with fewer than three points, or two x."""
  x = points.x[law]
  if len(x) < _FEWEST or len(np.unique(np.round(x, 6))) < 2:
    return None
  intercept, slope = line(x, points.log_B)
  values = printed(law, intercept, slope)
  residuals = points.log_B[0] - intercept[0] - slope[0] * x
  intervals = {}
  for name, drawn in values.items():
    kept = drawn[1:][np.isfinite(drawn[1:])]
    low, high = interval(kept) if len(kept) else (None, None)
    why = ""
    if low is None or high is None:
      why = "no resamples"
    elif name in ("B_star", "b", "alpha_B") and not (low > 0 and high / low < TOO_WIDE):
      why = "the interval spans a factor of 10 or more" if low > 0 else "the interval reaches 0"
    intervals[name] = {
      "method": "case bootstrap by run, percentile", "level": LEVEL, "low": low, "high": high, "identified": not why, "why": why,
    }  # fmt: skip
  return {
    "equation": LAWS[law],
    "parameters": {name: float(drawn[0]) for name, drawn in values.items()},
    "intervals": intervals,
    "n_points": len(x),
    "residual_sd": float(np.sqrt(np.square(residuals).sum() / max(len(x) - 2, 1))),
  }


def left_out_errors(points: Points, law: str, groups: Array) -> Array | None:
  """[R] mean |error| of ln B_crit at the points of each group (`groups` [k]) by the law of the others; None with one group alone."""
  labels = np.unique(groups)
  x, errors, count = points.x[law], np.zeros(len(points.log_B)), np.zeros(len(points.log_B))
  if len(labels) < 2:
    return None
  for label in labels:
    out = groups == label
    intercept, slope = line(x, np.where(out, np.nan, points.log_B))
    off = np.abs(points.log_B[:, out] - intercept[:, None] - slope[:, None] * x[out])
    errors += np.nansum(off, axis=1)
    count += np.isfinite(off).sum(1)
  return errors / np.maximum(count, 1)


def compare(points: Points) -> dict[str, Any]:
  """The laws by their mean error in ln B_crit with a target, then a size, left out; and the spread between sizes and targets.

  errors: law -> target, size, mean (of the two that there are). preferred: the law of smallest mean error, None where there are
  fewer than two sizes or four points, which cannot tell L, N and D apart. share: of the resamples that prefer it, too.
  between_sizes: mean |ln ratio| of B_crit of two sizes at equal loss; between_targets: of the highest and lowest loss at one size.
  """
  errors: dict[str, dict[str, float | None]] = {}
  means = []
  for law in LAWS:
    by = {"target": left_out_errors(points, law, points.target), "size": left_out_errors(points, law, points.size)}
    known = [error for error in by.values() if error is not None]
    mean = np.mean(known, axis=0) if known else None
    errors[law] = {name: None if error is None else float(error[0]) for name, error in (*by.items(), ("mean", mean))}
    means.append(mean)
  separable = len(np.unique(points.size)) > 1 and len(points.size) > 3
  known_means = [mean for mean in means if mean is not None]
  winners = np.argmin(known_means, axis=0) if separable and len(known_means) == len(LAWS) else None
  return {
    "errors": errors,
    "preferred": None if winners is None else list(LAWS)[winners[0]],
    "share": None if winners is None or len(winners) < 2 else float((winners[1:] == winners[0]).mean()),
    "why": ""
    if winners is not None
    else "one size, or fewer than four points: loss, size and tokens cannot be told apart",
    "between_sizes": _spread(points, by=points.target, along=points.size),
    "between_targets": _spread(points, by=points.size, along=-points.target),
  }


def _spread(points: Points, *, by: Array, along: Array) -> float | None:
  """The mean |ln ratio| of B_crit of the first and last along one quantity, over the groups of the other."""
  ratios: list[float] = []
  for label in np.unique(by):
    own: Sequence[int] = sorted(np.flatnonzero(by == label), key=lambda k: along[k])
    if len(own) > 1:
      ratios.append(abs(float(points.log_B[0, own[-1]] - points.log_B[0, own[0]])))
  return float(np.mean(ratios)) if ratios else None
