"""Compute-optimal allocation: how a law of N and D splits a budget C = 6 N D between parameters N and tokens D.

With the terms X = N-term and Y = D-term of a law and their exponents a and b, the optimum is where a X = b Y: Hoffmann
et al. 2022, https://arxiv.org/abs/2203.15556, eq. 4, for E + A/N^alpha + B/D^beta; Kaplan et al. 2020,
https://arxiv.org/abs/2001.08361, eq. 1.5, has a = alpha_N/alpha_D and b = 1 inside its bracket, whose outer exponent
and floor move no optimum. So N* ~ C^(b/(a+b)) and D* ~ C^(a/(a+b)).

Kaplan's own budget line (N ~ C^0.73) is another question: its runs stop early and see data many times, C is not 6 N D.

Axis letters: S parameter vectors (the fit, or its resamples), K budgets, P parameters.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ilya_jax.scaling.laws import FORMS, LARGEST_LOGARITHM, Form

Array = np.ndarray

_WIDEST = 60.0  # the search looks at N from e^-60 to e^60 times the balanced size


class Allocation(NamedTuple):
  """The optimum at budgets C [K] in FLOP: N parameters, D tokens, the loss there, each [S, K] (or [K]).

  a, b: exponents of N* ~ C^a and D* ~ C^b, [S] (or scalars).
  """

  C: Array
  N: Array
  D: Array
  loss: Array
  a: Array
  b: Array


def has_optimum(form: Form) -> bool:
  """Whether the form is a law of N and D, so that a budget can be split."""
  return form.variables == ("N", "D")


def allocate(form: str, parameters: Mapping[str, Any], /, *, C: Any) -> Allocation:
  """The optimum of a law at printed constants, in closed form.

  form: a name in `laws.FORMS` of a law of N and D. C: [K] FLOP. Raises ValueError for another form. Example, with the
  constants of Hoffmann et al. 2022 at 1e21 FLOP:

  >>> at = allocate("chinchilla", {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}, C=[1e21])
  >>> f"{at.N[0]:.5e} {at.D[0]:.5e} {at.loss[0]:.6f}"
  '1.82422e+09 9.13634e+10 2.328883'
  """
  law = FORMS[form]
  centre = dict.fromkeys(law.variables, 0.0)
  found = allocate_all(law, law.encode(parameters, centre).reshape(1, -1), centre=centre, C=C)
  return Allocation(found.C, *[part[0] for part in found[1:]])


def allocate_all(form: Form, theta: Array, *, centre: Mapping[str, float], C: Any) -> Allocation:
  """The optima of S laws in internal coordinates [S, P] about `centre`, at budgets C [K], in closed form."""
  if not has_optimum(form):
    raise ValueError(f"{form.name} is no law of N and D")
  flops = np.atleast_1d(np.asarray(C, np.float64))
  budget = _budget(flops, centre)
  log_ratio, inner, outer_d = _terms(form, theta)
  size = (log_ratio + np.log(inner / outer_d) + outer_d * budget) / (inner + outer_d)  # [S, K]
  return _allocation(form, theta, size, flops=flops, centre=centre, exponents=(inner, outer_d))


def minimise_numerically(form: Form, theta: Array, *, centre: Mapping[str, float], C: Any) -> Allocation:
  """The same by a search that knows nothing of the form: the lowest of a grid of sizes, then bisection of the slope.

  Its exponents a and b are differences of the optima at budgets 1 % lower and higher.
  """
  flops = np.atleast_1d(np.asarray(C, np.float64))
  sizes = [_lowest(form, theta, _budget(c, centre)) for c in (flops, flops * 1.01, flops / 1.01)]
  a = ((sizes[1] - sizes[2]) / (2.0 * np.log(1.01)))[:, 0]
  found = _allocation(form, theta, sizes[0], flops=flops, centre=centre, exponents=(1.0, 1.0))
  return found._replace(a=a, b=1.0 - a)


def _budget(flops: Array, centre: Mapping[str, float]) -> Array:
  """ln(N D) about the centre at C = 6 N D, [1, K]."""
  return (np.log(flops / 6.0) - centre["N"] - centre["D"])[None]


def _terms(form: Form, theta: Array) -> tuple[Array, Array, Array]:
  """ln of N-term over D-term at the centre, and the exponents of N and D in them, each [S, 1]."""
  value = {name: theta[:, k, None] for k, name in enumerate(form.names)}
  if form.name == "chinchilla":
    return value["A"] - value["B"], value["alpha"], value["beta"]
  outer = value["alpha_D"]
  return (value["N_c"] - value["D_c"]) / outer, value["alpha_N"] / outer, np.ones_like(outer)


def _allocation(
  form: Form, theta: Array, size: Array, *, flops: Array, centre: Mapping[str, float], exponents: tuple[Any, Any]
) -> Allocation:
  """The allocation at centred ln N `size` [S, K]."""
  tokens = _budget(flops, centre) - size
  log_loss = form.log_loss(theta, {"N": size, "D": tokens})[0]
  n, d = (
    np.exp(np.clip(part + centre[v], -LARGEST_LOGARITHM, LARGEST_LOGARITHM)) for part, v in ((size, "N"), (tokens, "D"))
  )
  inner, other = exponents
  a = np.broadcast_to(other / (inner + other), (len(theta), 1))[:, 0]
  return Allocation(flops, n, d, np.exp(log_loss), a, 1.0 - a)


def _lowest(form: Form, theta: Array, budget: Array) -> Array:
  """The centred ln N [S, K] of lowest loss along ln N + ln D = budget."""

  def log_loss(size: Array) -> Array:
    return form.log_loss(theta, {"N": size, "D": budget - size})[0]

  def slope(size: Array) -> Array:
    h = 3e-3  # a five-point difference: exact to 1e-12 for laws this smooth
    near = log_loss(size + h) - log_loss(size - h)
    return (8.0 * near - (log_loss(size + 2 * h) - log_loss(size - 2 * h))) / (12.0 * h)

  steps = np.linspace(-_WIDEST, _WIDEST, 481)
  best = np.full((len(theta), budget.shape[1]), np.inf)
  place = np.zeros_like(best)
  for step in steps:
    size = np.broadcast_to(budget / 2.0 + step, best.shape)
    at = log_loss(size)
    place, best = np.where(at < best, size, place), np.minimum(at, best)
  low, high = place - (steps[1] - steps[0]), place + (steps[1] - steps[0])
  for _ in range(60):
    middle = (low + high) / 2.0
    rising = slope(middle) > 0
    low, high = np.where(rising, low, middle), np.where(rising, middle, high)
  return (low + high) / 2.0
