"""A batched minimiser for small problems: damped Newton steps inside a box, many problems at once in float64.

The Levenberg-Marquardt damping (Marquardt 1963, https://doi.org/10.1137/0111030) is applied to the eigenvalues of the
full Hessian, their absolute values taken (a step never climbs along a direction of negative curvature); parameters at
a bound whose gradient points outwards are frozen for the step (Bertsekas 1982, https://doi.org/10.1137/0320018).

Axis letters: S problems (starts or resamples), P parameters.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Array = np.ndarray


class Derivatives(NamedTuple):
  """value [S], gradient [S, P], hessian [S, P, P] and a positive definite metric [S, P, P] for the damping."""

  value: Array
  gradient: Array
  hessian: Array
  metric: Array


class Minimum(NamedTuple):
  """theta [S, P], value [S], and whether each problem converged [S]."""

  theta: Array
  value: Array
  converged: Array


def minimise(
  value: Callable[[Array, Array], Array],
  derivatives: Callable[[Array, Array], Derivatives],
  *,
  theta: Array,
  low: Array,
  high: Array,
  iterations: int = 100,
  tolerance: float = 1e-13,
) -> Minimum:
  """Minimises S functions of P parameters from the points `theta` [S, P].

  value(theta [s, P], problems [s]) -> [s]; derivatives(theta, problems) -> Derivatives: both are called with the
  indices of the problems still running. low, high: [P], or [S, P] where each problem has its own box (low = high fixes a
  parameter). A problem has converged when the reduction that its quadratic model promises falls under `tolerance` times
  (its value + 1e-6); one that stalls at rounding counts as converged when the promise is under 1e-9 of its value.
  """
  low, high = (np.broadcast_to(side, theta.shape) for side in (low, high))
  theta = np.clip(theta, low, high)
  running = np.arange(len(theta))
  best = value(theta, running)
  damping = np.full(len(theta), 1e-3)
  converged = np.zeros(len(theta), bool)
  at = derivatives(theta, running)
  for _ in range(iterations):
    step, promise, decrement = _step(theta[running], at, damping[running], low[running], high[running])
    trial = theta[running] + step
    reached = value(trial, running)
    gained = best[running] - reached
    lower = gained > 0
    ratio = gained / np.maximum(promise, 1e-300)
    size = best[running] + 1e-6
    theta[running[lower]], best[running[lower]] = trial[lower], reached[lower]
    damping[running] *= np.where(~lower, 8.0, np.where(ratio > 0.75, 0.1, np.where(ratio < 0.25, 4.0, 1.0)))
    damping[running] = np.maximum(damping[running], 1e-14)
    done = decrement <= tolerance * size
    stalled = damping[running] > 1e10
    converged[running[done | stalled & (decrement <= 1e-9 * size)]] = True
    keep = ~(done | stalled)
    running, lower = running[keep], lower[keep]
    if not len(running):
      break
    moved = derivatives(theta[running[lower]], running[lower])
    at = Derivatives(*[_replaced(old[keep], lower, new) for old, new in zip(at, moved, strict=True)])
  return Minimum(theta, best, converged)


def _replaced(old: Array, rows: Array, new: Array) -> Array:
  """`old` with these rows (a mask) replaced, as a new array."""
  result = old.copy()
  result[rows] = new
  return result


def _step(theta: Array, at: Derivatives, damping: Array, low: Array, high: Array) -> tuple[Array, Array, Array]:
  """The damped step [S, P], cut at the box, and what it (with the Hessian) and an undamped one promise to gain [S]."""
  at_low, at_high = theta <= low, theta >= high
  free = ~(at_low & (at.gradient > 0) | at_high & (at.gradient < 0))
  for _ in range(theta.shape[1]):
    step, decrement = _free_step(at, free, damping)
    outward = free & (at_low & (step < 0) | at_high & (step > 0))
    if not outward.any():
      break
    free &= ~outward
  step = np.where(outward, 0.0, step)
  room = np.where(step < 0, low - theta, high - theta)
  fraction = np.where(np.abs(step) > np.abs(room), np.abs(room) / np.maximum(np.abs(step), 1e-300), 1.0)
  step = fraction.min(-1, keepdims=True) * step
  step = np.where(np.abs(room - step) <= 1e-12 * np.abs(room), room, step)
  promise = -(at.gradient * step).sum(-1) - 0.5 * np.einsum("sp,spq,sq->s", step, at.hessian, step)
  return step, promise, decrement


def _free_step(at: Derivatives, free: Array, damping: Array) -> tuple[Array, Array]:
  """The damped Newton step [S, P] in the free parameters, and the reduction that an undamped one promises [S]."""
  pairs = free[:, :, None] & free[:, None, :]
  identity = np.eye(free.shape[1])
  root = np.sqrt(np.einsum("spp->sp", at.metric))
  metric = np.where(pairs, at.metric / (root[:, :, None] * root[:, None, :]), identity) + 1e-9 * identity
  to_white = np.linalg.inv(np.linalg.cholesky(metric)) / root[:, None, :]  # [S, P, P]
  hessian = to_white @ np.where(pairs, at.hessian, 0.0) @ to_white.swapaxes(1, 2)
  eigenvalues, vectors = np.linalg.eigh(hessian)
  gradient = to_white @ np.where(free, at.gradient, 0.0)[..., None]
  along = (vectors.swapaxes(1, 2) @ gradient)[..., 0]
  curvature = np.abs(eigenvalues) + damping[:, None]
  step = -(to_white.swapaxes(1, 2) @ (vectors @ (along / curvature)[..., None]))[..., 0]
  decrement = 0.5 * (along**2 / np.maximum(np.abs(eigenvalues), 1e-12)).sum(-1)
  return np.where(free, step, 0.0), decrement
