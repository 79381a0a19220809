"""What a fit minimises: four named objectives over a table's rows, with gradient and Hessian, many problems at once.

| name | the sum over rows of | residual |
|---|---|---|
| huber | r^2/2 where abs(r) <= delta, else delta (abs(r) - delta/2) (Hoffmann et al. 2022, eq. 3; delta 1e-3) | log |
| lad | abs(r): least absolute deviations, the limit delta -> 0 of huber/delta | log |
| lsq_log | r^2 | log |
| lsq | r^2 | raw |

The log residual is ln(predicted) - ln(measured), the raw one predicted - measured. Sums, never means: the optimum is
the same, and the tolerances of the minimiser hold for sums.

Axis letters: S problems, n rows, P parameters.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from ilya_jax.errors import UserError
from ilya_jax.scaling.laws import Form
from ilya_jax.scaling.newton import Derivatives

Array = np.ndarray

OBJECTIVES = ("huber", "lad", "lsq_log", "lsq")
SMOOTHED_LAD = 1e-11  # delta at which Huber/delta stands for least absolute deviations: off by at most n * 5e-12
_STEP = 1e-6  # of the internal coordinates (near 1), for the curvature of the law itself


class Points(NamedTuple):
  """The rows that a form is fitted to.

  logs: variable -> [n], natural logarithm minus its mean. centre: variable -> that mean. loss: [n].
  """

  logs: Mapping[str, Array]
  centre: Mapping[str, float]
  loss: Array

  def __len__(self) -> int:
    return len(self.loss)


class Problem(NamedTuple):
  """The functions that `newton.minimise` takes: both in units of `unit`, so that a value is near n times 0.01."""

  value: Callable[[Array, Array], Array]
  derivatives: Callable[[Array, Array], Derivatives]
  unit: float


def check_objective(objective: str, delta: float) -> None:
  """Raises UserError for an unknown objective or a delta that is not positive and finite."""
  if objective not in OBJECTIVES:
    raise UserError(f"objective {objective!r}", f"one of {', '.join(OBJECTIVES)}", "change --objective")
  if not (np.isfinite(delta) and delta > 0):
    raise UserError(f"delta {delta}", "a positive number (a log residual, 1e-3 is usual)", "change --delta")


def centred(form: Form, loss: Array, variables: Mapping[str, Array]) -> Points:
  """Points of `form` from arrays [n] in natural units: loss, and variable -> values for every variable of the form."""
  logs = {v: np.log(np.asarray(variables[v], np.float64)) for v in form.variables}
  centre = {v: float(logs["D" if v == "D_unique" else v].mean()) for v in logs}  # tokens have one centre
  return Points({v: x - centre[v] for v, x in logs.items()}, centre, np.asarray(loss, np.float64))


def problem(
  form: Form, points: Points, *, weights: Array, objective: str, delta: float, targets: Array | None = None
) -> Problem:
  """S fits of one form to the same rows, as functions of theta.

  weights: [1, n] or [S, n], how often each row counts. delta: of `huber`; `lad` takes it as its smoothing. targets: [S, n],
  ln losses of each fit in place of those that were measured. The value returned by `Problem.value` times `unit` is the
  objective of the table above.
  """
  measured = np.log(points.loss)[None] if targets is None else targets
  raw, quadratic = objective == "lsq", objective in ("lsq", "lsq_log")
  size = float(np.exp(np.log(points.loss).mean())) if raw else 1.0  # raw residuals in units of the mean loss
  unit = {"huber": delta, "lad": 1.0, "lsq_log": 2e-2, "lsq": 2e-2 * size**2}[objective]
  width = 1e-2 if quadratic else delta

  def residual(log_loss: Array, rows: Array) -> Array:
    own = _of(measured, rows)
    return (np.exp(log_loss) - np.exp(own)) / size if raw else log_loss - own

  def penalty(r: Array) -> Array:
    a = np.abs(r)
    return r * r / (2 * width) if quadratic else np.where(a <= width, r * r / (2 * width), a - width / 2)

  def jacobian(log_loss: Array, jac: Array) -> Array:
    return jac * (np.exp(log_loss) / size)[:, None] if raw else jac

  def value(theta: Array, rows: Array) -> Array:
    r = residual(form.log_loss(theta, points.logs)[0], rows)
    return (_of(weights, rows) * penalty(r)).sum(-1)

  def derivatives(theta: Array, rows: Array) -> Derivatives:
    log_loss, jac = form.log_loss(theta, points.logs)
    r, jac, weight = residual(log_loss, rows), jacobian(log_loss, jac), _of(weights, rows)
    a = np.abs(r)
    slope = weight * (r / width if quadratic else np.clip(r / width, -1.0, 1.0))
    curvature = weight / width * (1.0 if quadratic else a <= width)
    gradient = _contract(jac, slope)
    hessian = (jac * curvature[:, None]) @ jac.swapaxes(1, 2)
    bend = np.empty_like(hessian)  # sum of slope times the second derivative of the law, by differences of the gradient
    for k in range(theta.shape[1]):
      moved = theta.copy()
      moved[:, k] += _STEP
      bend[:, k] = (_contract(jacobian(*form.log_loss(moved, points.logs)), slope) - gradient) / _STEP
    hessian += (bend + bend.swapaxes(1, 2)) / 2
    majorant = weight / width if quadratic else weight / np.maximum(a, width)  # of iteratively reweighted least squares
    metric = (jac * majorant[:, None]) @ jac.swapaxes(1, 2) + 1e-12 * np.eye(theta.shape[1])
    return Derivatives((weight * penalty(r)).sum(-1), gradient, hessian, metric)

  return Problem(value, derivatives, unit)


def _of(rows: Array, problems: Array) -> Array:
  """The rows that belong to these problems: [1, n] is shared by all."""
  return rows if len(rows) == 1 else rows[problems]


def _contract(jacobian: Array, slope: Array) -> Array:
  """[S, P, n] times [S, n] to [S, P]."""
  return (jacobian @ slope[..., None])[..., 0]
