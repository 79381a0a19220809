"""Compute-optimal allocation: which N and D give a law's lowest loss at C = 6 N D, in closed form and by minimisation.

A law that is increasing in A N^-alpha + B D^-beta has its optimum at N* = G (C/6)^(beta/(alpha+beta)), D* = (C/6)/N*, with
G = (alpha A/(beta B))^(1/(alpha+beta)) (Hoffmann et al. 2022, eq. 4, https://arxiv.org/abs/2203.15556). So are Chinchilla, tied
or not; over-training (alpha = beta = 2 eta); coupled (A = 1, B = R); and Kaplan's 1.5 with a floor or without (alpha =
alpha_N/alpha_D, A = N_c^alpha, B = D_c, beta = 1). The data-constrained law is taken where every token is new.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize

from ilya_jax.scaling.laws import FORMS

Array = np.ndarray

FLOP_PER_PARAMETER_AND_TOKEN = 6.0


class Allocation(NamedTuple):
  """N* parameters, D* tokens and the loss L* at compute C (FLOP), each an array [k] or a number."""

  C: Any
  N: Any
  D: Any
  loss: Any


def exponents(form: str, parameters: Mapping[str, Any]) -> tuple[Any, Any] | None:
  """(a, b) of N* ~ C^a and D* ~ C^b; None for a law without an optimum at C = 6 N D."""
  found = terms(form, parameters)
  if found is None:
    return None
  alpha, _, beta, _ = found
  return beta / (alpha + beta), alpha / (alpha + beta)


def allocate(form: str, parameters: Mapping[str, Any], *, compute: Any) -> Allocation | None:
  """The optimum in closed form at `compute` FLOP (number or array); None for a law of one variable.

  Parameters may be arrays (resamples) that broadcast with `compute`; the loss is then left nan.
  """
  found = terms(form, parameters)
  if found is None:
    return None
  alpha, log_a, beta, log_b = found
  log_product = np.log(np.asarray(compute, np.float64) / FLOP_PER_PARAMETER_AND_TOKEN)
  log_g = (np.log(alpha) + log_a - np.log(beta) - log_b) / (alpha + beta)
  log_n = log_g + beta / (alpha + beta) * log_product
  N, D = np.exp(log_n), np.exp(log_product - log_n)
  one_law = all(np.ndim(value) == 0 for value in parameters.values())
  return Allocation(
    compute, N, D, FORMS[form].loss(parameters, N=N, D=D, D_unique=D) if one_law else np.full_like(N, np.nan)
  )


def minimise(form: str, parameters: Mapping[str, float], *, compute: float) -> Allocation:
  """The optimum at `compute` FLOP by following the slope of ln L along C = 6 N D to zero: uses the law's values alone.

  Raises ValueError where the law has no minimum for N between 1e-12 and 1e12 times sqrt(C/6).
  """
  product = compute / FLOP_PER_PARAMETER_AND_TOKEN
  middle = 0.5 * np.log(product)

  def log_loss(log_n: Array) -> Array:
    return np.log(
      FORMS[form].loss(parameters, N=np.exp(log_n), **dict.fromkeys(("D", "D_unique"), product / np.exp(log_n)))
    )

  def slope(log_n: float) -> float:  # five-point difference, of fourth order
    h = 2e-3
    f = log_loss(log_n + h * np.array([-2.0, -1.0, 1.0, 2.0]))
    return float((f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * h))

  grid = middle + np.linspace(-12 * np.log(10), 12 * np.log(10), 481)
  lowest = int(np.argmin(log_loss(grid)))
  if lowest in (0, len(grid) - 1):
    raise ValueError(f"no minimum of {form} at C = {compute:g}")
  log_n = optimize.brentq(slope, grid[lowest - 1], grid[lowest + 1], xtol=1e-13)
  N = float(np.exp(log_n))
  return Allocation(compute, N, product / N, float(np.exp(log_loss(np.asarray(log_n)))))


def terms(form: str, parameters: Mapping[str, Any]) -> tuple[Any, Any, Any, Any] | None:
  """(alpha, ln A, beta, ln B) of the two terms whose sum the law increases with."""
  p = parameters
  if form in ("chinchilla", "data_constrained"):  # where every token is new
    return p["alpha"], np.log(p["A"]), p["beta"], np.log(p["B"])
  if form == "chinchilla_tied":
    return p["alpha"], np.log(p["A"]), p["alpha"], np.log(p["B"])
  if form == "overtraining":  # 6^-eta is common to both
    return 2 * p["eta"], np.log(p["a"]), 2 * p["eta"], np.log(p["b"])
  if form == "coupled":
    return p["a"], np.zeros_like(p["a"]), p["b"], np.log(p["R"])
  if form in ("kaplan_nd", "kaplan_nd_floor"):
    alpha = p["alpha_N"] / p["alpha_D"]
    return alpha, alpha * np.log(p["N_c"]), np.ones_like(alpha), np.log(p["D_c"])
  return None
