"""Where fits start: variable projection on a grid of exponents, and random points.

At fixed exponents a law is linear in its other parameters, so each cell of the grid is solved exactly by non-negative
least squares (Golub & Pereyra 1973, https://doi.org/10.1137/0710036); Kaplan's eq. 1.5 becomes linear in N_c^(alpha_N/
alpha_D) and D_c after taking the power 1/alpha_D of the loss above the floor, which is one more axis of the grid.

Axis letters: S starts, G grid cells, n rows, P parameters, K linear coefficients.
"""

import itertools

import numpy as np

from ilya_jax.scaling.laws import Form
from ilya_jax.scaling.objectives import Points

Array = np.ndarray

SMALLEST_EXPONENT, LARGEST_EXPONENT = 1e-3, 10.0
SMALLEST_CONSTANT, LARGEST_CONSTANT = 1e-2, 1e4
_CONSTANT = 10.0  # where projected starts put constants: a law that has any is projected as if it had none
_GRID = {1: 128, 2: 32, 3: 14}  # points an axis, by the number of exponents
_FLOORS = (0.0, 0.2, 0.4, 0.6, 0.75, 0.9, 0.97)  # of the smallest loss, where the floor is not linear


def bounds(form: Form, points: Points) -> tuple[Array, Array]:
  """The box [P], [P] of the search in internal coordinates.

  Floors: 0 to the largest loss. Exponents: 1e-3 to 10. Constants: 1e-2 to 1e4. Terms at the centre: e^-30 to e^10 times the loss.
  """
  low, high = [], []
  level = np.log(points.loss)
  for parameter in form.parameters:
    if parameter.kind == "floor":
      low.append(0.0)
      high.append(points.loss.max())
    elif parameter.kind == "exponent":
      low.append(SMALLEST_EXPONENT)
      high.append(LARGEST_EXPONENT)
    elif parameter.kind == "constant":
      low.append(np.log(SMALLEST_CONSTANT))
      high.append(np.log(LARGEST_CONSTANT))
    else:
      low.append(level.min() - 30.0)
      high.append(level.max() + 10.0)
  return np.array(low), np.array(high)


def random_starts(form: Form, points: Points, rng: np.random.Generator, *, count: int) -> Array:
  """Random points [count, P]: floors uniform below the smallest loss, exponents log-uniform in 0.03 to 2."""
  columns = []
  level = np.log(np.median(points.loss))
  for parameter in form.parameters:
    if parameter.kind == "floor":
      columns.append(points.loss.min() * rng.uniform(0.0, 1.0, count))
    elif parameter.kind == "exponent":
      columns.append(np.exp(rng.uniform(np.log(0.03), np.log(2.0), count)))
    elif parameter.kind == "constant":
      columns.append(rng.uniform(0.0, np.log(100.0), count))
    else:
      columns.append(level + rng.uniform(-3.0, 0.3, count))
  return np.stack(columns, axis=-1)


def projected_starts(form: Form, points: Points) -> Array:
  """The best linear coefficients at every cell of a grid of exponents: [G, P] in internal coordinates."""
  exponents = [p.name for p in form.parameters if p.kind == "exponent"]
  terms = [p for p in form.parameters if p.kind in ("coefficient", "scale")]
  has_floor = any(p.kind == "floor" for p in form.parameters)
  size = _GRID[len(exponents)] // (2 if form.outer and has_floor else 1)
  axis = np.exp(np.linspace(np.log(0.02), np.log(2.5), size))
  shares = np.array(_FLOORS if form.outer and has_floor else (0.0,))
  cells = np.array(list(itertools.product(shares, *[axis] * len(exponents))))
  value = {name: cells[:, 1 + k] for k, name in enumerate(exponents)}
  floor = cells[:, :1] * points.loss.min()
  outer = value[form.outer][:, None] if form.outer else np.ones_like(floor)
  target = np.log(points.loss - floor) / outer  # [G, n]
  columns = [-value[t.exponent][:, None] / outer * points.logs[t.variable] - target for t in terms]
  if has_floor and not form.outer:
    columns.append(-target)
  heights = np.stack([column.max(-1) for column in columns], axis=-1)  # [G, K]
  relative = outer * (1.0 - floor / points.loss)  # turns errors of the target into errors of ln(loss)
  design = np.exp(np.stack(columns, axis=-1) - heights[:, None]) * relative[..., None]  # [G, n, K]
  solution = np.log(np.maximum(_non_negative(design, np.broadcast_to(relative, target.shape)), 1e-12)) - heights
  place = {p.name: np.full(len(cells), np.log(_CONSTANT)) for p in form.parameters if p.kind == "constant"}
  place |= {t.name: outer[:, 0] * solution[:, k] for k, t in enumerate(terms)} | value
  for parameter in form.parameters:
    if parameter.kind == "floor":
      place[parameter.name] = floor[:, 0] if form.outer else np.exp(solution[:, -1])
  return np.stack([place[parameter.name] for parameter in form.parameters], axis=-1)


def _non_negative(design: Array, target: Array) -> Array:
  """Non-negative least squares for every cell, [G, n, K] and [G, n] to [G, K]: the best of all supports."""
  gram = design.swapaxes(1, 2) @ design
  moment = (design.swapaxes(1, 2) @ target[..., None])[..., 0]
  count = design.shape[-1]
  ridge = 1e-12 * np.einsum("gkk->gk", gram).max(-1)[:, None, None] * np.eye(count)
  best = np.zeros_like(moment)
  lowest = np.zeros(len(moment))  # the sum of squares less its constant: zero for no column at all
  for support in itertools.product((False, True), repeat=count):
    used = np.flatnonzero(support)
    if not len(used):
      continue
    part = (gram + ridge)[:, used[:, None], used]
    solution = np.zeros_like(moment)
    solution[:, used] = np.linalg.solve(part, moment[:, used, None])[..., 0]
    cost = np.einsum("gk,gkl,gl->g", solution, gram, solution) - 2.0 * (solution * moment).sum(-1)
    better = (solution >= 0).all(-1) & (cost < lowest)
    best[better], lowest[better] = solution[better], cost[better]
  return best
