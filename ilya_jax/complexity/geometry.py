"""Two laws of psychophysics with two parameters each: best fits in a box, and the geometric complexity of the box.

Grünwald 2004, "A Tutorial Introduction to the Minimum Description Length Principle", https://arxiv.org/abs/math/0406077, sections
1.4 and 2.6 (after Myung, Balasubramanian & Pitt 2000): Stevens y = a x^b + Z and Fechner y = a ln(x + b) + Z, Z normal with known σ.
The complexity of a model of k parameters is (k / 2) ln(n / 2π) + ln ∫ sqrt(det I), I the mean Fisher information of an observation:

  I = (1 / n) Σ ∇f(x_i) ∇f(x_i)ᵀ / σ²,  sqrt(det I) = a g(b) / σ² for both laws,

so the integral over a in [0, A], b in [low, high] is A² / 2 ∫ g(b) db / σ². It depends on the box, which is always to be named.

Axes: D data sets, n points, G values of b.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import integrate

Array = np.ndarray

_GRID = 400  # values of b that a fit starts from
_GOLDEN = (np.sqrt(5) - 1) / 2
_CUTS = 60  # of the bracket around the best: its width falls by .618 each time


class Law(NamedTuple):
  """f(x) = a curve(x, b). slope: the derivative of curve by b. box: a in [0, box[0]], b in [0, box[1]]."""

  name: str
  curve: Callable[[Array, Array], Array]
  slope: Callable[[Array, Array], Array]
  box: tuple[float, float]


STEVENS = Law("Stevens", lambda x, b: x**b, lambda x, b: x**b * np.log(x), (10.0, 3.0))
FECHNER = Law("Fechner", lambda x, b: np.log(x + b), lambda x, b: 1 / (x + b), (10.0, 10.0))
LAWS = (STEVENS, FECHNER)


def density(law: Law, b: Array, x: Array) -> Array:
  """g(b) of sqrt(det I) = a g(b) / σ²: b [G], points x [n] -> [G].

  The gradient is (curve, a slope), so det I = a² (Σ c² Σ s² - (Σ c s)²) / n².
  """
  curve, slope = (part(x, np.asarray(b)[..., None]) for part in (law.curve, law.slope))
  determinant = (curve**2).sum(-1) * (slope**2).sum(-1) - (curve * slope).sum(-1) ** 2
  return np.sqrt(np.maximum(determinant, 0.0)) / len(x)


def log_volume(law: Law, x: Array, *, sigma: float) -> float:
  """ln ∫ sqrt(det I) over the law's box, nats."""
  inner, _ = integrate.quad(lambda b: float(density(law, np.array(b), x)), 0.0, law.box[1], epsabs=0, epsrel=1e-11)
  return float(np.log(law.box[0] ** 2 / 2 * inner / sigma**2))


def jeffreys_sample(law: Law, x: Array, *, count: int, rng: np.random.Generator) -> tuple[Array, Array]:
  """Parameters a and b [count] drawn from Jeffreys' prior on the box: density proportional to a g(b)."""
  grid = np.linspace(0.0, law.box[1], 20_001)
  cumulative = integrate.cumulative_trapezoid(density(law, grid, x), grid, initial=0.0)
  b = np.interp(rng.random(count), cumulative / cumulative[-1], grid)
  return law.box[0] * np.sqrt(rng.random(count)), b


def residual(law: Law, y: Array, x: Array, b: Array) -> Array:
  """Least sum of squares over a in [0, A]: y [D, n], b [D, G] -> [D, G]. For a given b the best a is a projection, cut to the box."""
  curve = law.curve(x, b[..., None])  # [D, G, n]
  product, power = np.einsum("dn,dgn->dg", y, curve), (curve**2).sum(-1)
  a = np.clip(product / power, 0.0, law.box[0])
  return (y**2).sum(-1)[:, None] - 2 * a * product + a**2 * power


def best_fit(law: Law, y: Array, x: Array) -> Array:
  """Least sums of squares in the box, [D], of data sets y [D, n] at points x [n], none of which may be 1 alone.

  b is sought on a grid, then by golden sections between the neighbours of its best value.
  """
  rows = np.arange(len(y))
  grid = np.linspace(0.0, law.box[1], _GRID)
  start = residual(law, y, x, np.broadcast_to(grid, (len(y), _GRID))).argmin(-1)
  low, high = grid[np.maximum(start - 1, 0)], grid[np.minimum(start + 1, _GRID - 1)]
  for _ in range(_CUTS):
    inner = np.stack([high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)], axis=-1)  # [D, 2]
    left = residual(law, y, x, inner).argmin(-1) == 0
    low, high = np.where(left, low, inner[rows, 0]), np.where(left, inner[rows, 1], high)
  ends = np.stack([low, (low + high) / 2, high], axis=-1)
  return residual(law, y, x, ends).min(-1)
