"""Fits a scaling law to rows of (N, D, C, loss): the optimum of a named objective, from many starts in one batch.

>>> import numpy as np
>>> from ilya_jax.scaling import fit
>>> N, D = (a.ravel() for a in np.meshgrid(np.geomspace(1e6, 1e9, 7), np.geomspace(1e8, 1e11, 6)))
>>> result = fit.fit_law("chinchilla", 1.7 + 406.4 / N**0.34 + 410.7 / D**0.28, N=N, D=D)
>>> round(result.parameters["alpha"], 6)
0.34

The starts are the best cells of a variable-projection grid and random points. Huber's objective with delta 1e-3 is
nearly a sum of absolute values, with many kinks: half of the starts reach it along a path of shrinking deltas from
0.1 (on which the objective is smooth and its valley wide), the others enter late or directly and find what the path
misses; a last round perturbs the best. The tests compare with scipy's minimisers from hundreds of starts.

Axis letters: S starts, B refits, n rows, P parameters.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, special

from ilya_jax.errors import UserError
from ilya_jax.scaling import newton, starts
from ilya_jax.scaling.laws import FORMS, Form
from ilya_jax.scaling.objectives import SMOOTHED_LAD, Points, centred, check_objective, problem

Array = np.ndarray

SAME_OPTIMUM = 1e-9  # relative difference of two objective values that counts as the same
_PATH = tuple(10.0 ** np.arange(-1.0, -9.6, -0.5))  # the deltas of the path, widest first
_LATE = 3e-3  # a third of the starts joins the path here


class Optimum(NamedTuple):
  """A local minimum: its objective value, its printed parameters, and the share of the starts that ended there."""

  value: float
  parameters: dict[str, float]
  share: float


class Fit(NamedTuple):
  """A fitted law.

  form: its name in `laws.FORMS`. objective, delta: as in `objectives`. value: the objective at the optimum, a sum.
  parameters: printed name -> value. theta [P]: the same in internal coordinates about `points.centre`.
  points: the rows fitted. residuals [n]: ln(measured) - ln(fitted).
  starts: how many; share_at_best: of them, within 1e-9 of the best value; second_optimum: the next distinct local
  minimum, None where all agree. at_bound: names of parameters that ended at a bound of the search.
  aicc: corrected Akaike criterion (see `aicc`), to compare forms fitted to the same rows by the same objective.
  """

  form: str
  objective: str
  delta: float
  value: float
  parameters: dict[str, float]
  theta: Array
  points: Points
  residuals: Array
  starts: int
  share_at_best: float
  second_optimum: Optimum | None
  at_bound: tuple[str, ...]
  aicc: float

  def predict(self, *, N: Any = None, D: Any = None, C: Any = None) -> Array:
    """The loss that the law gives at these parameters N, tokens D and FLOP C (whichever it takes)."""
    return FORMS[self.form].loss(self.parameters, N=N, D=D, C=C)


def fit_law(
  form: str,
  loss: Array,
  *,
  N: Array | None = None,
  D: Array | None = None,
  C: Array | None = None,
  weights: Array | None = None,
  objective: str = "huber",
  delta: float = 1e-3,
  start_count: int = 64,
  seed: int = 0,
) -> Fit:
  """Fits `form` to n rows.

  form: a name in `laws.FORMS`. loss [n], and N, D, C [n] whichever the form takes (parameters, tokens, FLOP).
  weights [n]: how much each row counts (1). objective: huber, lad, lsq_log or lsq; delta: of huber.
  start_count: random starts and grid cells together. Raises UserError for an unknown form or objective, for rows that
  are not positive and finite, and where the rows cannot determine the law (`check_identifiable`).
  """
  law = get_form(form)
  check_objective(objective, delta)
  if start_count < 1:
    raise UserError(f"{start_count} starts", "at least 1", "change --starts")
  variables = {name: value for name, value in (("N", N), ("D", D), ("C", C)) if name in law.variables}
  check_rows(law, loss, variables)
  points = centred(law, loss, {v: np.asarray(a, np.float64) for v, a in variables.items()})
  counts = np.ones((1, len(points))) if weights is None else np.asarray(weights, np.float64)[None]
  found = _search(law, points, counts, objective=objective, delta=delta, count=start_count, seed=seed)
  theta, value, share, second = found
  low, high = starts.bounds(law, points)
  fitted = law.log_loss(theta[None], points.logs)[0][0]
  return Fit(
    form=form,
    objective=objective,
    delta=delta,
    value=value,
    parameters=_printed(law, theta, points),
    theta=theta,
    points=points,
    residuals=np.log(points.loss) - fitted,
    starts=start_count,
    share_at_best=share,
    second_optimum=second,
    at_bound=tuple(name for name, at in zip(law.names, (theta <= low) | (theta >= high), strict=True) if at),
    aicc=aicc(value, points=len(points), parameters=len(law.parameters), objective=objective, delta=delta),
  )


def refit(
  form: Form,
  points: Points,
  *,
  theta: Array,
  weights: Array,
  targets: Array | None = None,
  objective: str = "huber",
  delta: float = 1e-3,
) -> newton.Minimum:
  """B fits of `form` to reweighted rows or to other losses, all from `theta` [B, P], along the last part of the path.

  weights: [1, n] or [B, n]; targets: ln(loss) [B, n]. Least absolute deviations are smoothed at delta 1e-6, far below
  any spread of refits. Returns theta [B, P], the objective [B], and whether each converged [B].
  """
  low, high = starts.bounds(form, points)
  last = {"huber": delta, "lad": 1e-6}.get(objective, 1.0)
  path = [d for d in _PATH if last < d <= 1.5e-2] if objective in ("huber", "lad") else []
  for width in [*path, last]:
    task = problem(form, points, weights=weights, targets=targets, objective=objective, delta=width)
    final = width == last
    found = newton.minimise(
      task.value, task.derivatives, theta=theta, low=low, high=high,
      iterations=100 if final else 10, tolerance=1e-10 if final else 1e-4,
    )  # fmt: skip
    theta = found.theta
  return found._replace(value=found.value * task.unit)


def aicc(value: float, *, points: int, parameters: int, objective: str, delta: float) -> float:
  """The corrected Akaike criterion (Hurvich & Tsai 1989) of an optimum, infinite where rows are too few for it.

  The likelihood is exp(-objective/scale) with its scale fitted: Gaussian for the squares, Laplace for lad, and for
  huber the density exp(-Huber(r)/scale) at the fixed delta, whose normaliser is known. The scale is fitted after the
  optimum and never moves it; it counts as one parameter.
  """
  count = parameters + 1
  if points <= count + 1:
    return float("inf")
  value = max(value, 1e-30)
  if objective in ("lsq_log", "lsq"):
    deviance = points * (np.log(2.0 * np.pi * value / points) + 1.0)
  elif objective == "lad":
    deviance = 2.0 * points * (np.log(2.0 * value / points) + 1.0)
  else:

    def minus_two_log_likelihood(log_scale: float) -> float:
      scale = np.exp(log_scale)
      centre = np.sqrt(2.0 * np.pi * scale) * special.erf(delta / np.sqrt(2.0 * scale))
      tails = 2.0 * scale / delta * np.exp(-(delta**2) / (2.0 * scale))
      return 2.0 * value / scale + 2.0 * points * np.log(centre + tails)

    middle = np.log(value / points)
    deviance = optimize.minimize_scalar(
      minus_two_log_likelihood, bounds=(middle - 3.0, middle + 3.0), method="bounded", options={"xatol": 1e-8}
    ).fun
  return float(deviance + 2.0 * count + 2.0 * count * (count + 1) / (points - count - 1))


def get_form(name: str) -> Form:
  """The form of this name; UserError names those there are."""
  if name not in FORMS:
    raise UserError(f"form {name!r}", f"auto or one of {', '.join(FORMS)}", "change --form")
  return FORMS[name]


def check_rows(form: Form, loss: Array, variables: dict[str, Any]) -> None:
  """Raises UserError unless every array is [n], positive and finite, and the rows can determine the law."""
  arrays = {"loss": loss} | variables
  shape = np.shape(loss)
  for name, values in arrays.items():
    if values is None or np.shape(values) != shape or len(shape) != 1:
      got = "nothing" if values is None else f"shape {np.shape(values)}"
      raise UserError(
        f"{got} for {name}", f"one value per row, like the loss, shape {shape}", f"give {name} for {form.name}"
      )
    values = np.asarray(values, np.float64)
    bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
    if len(bad):
      raise UserError(f"{values[bad[0]]} in {name}, row {bad[0] + 1}", "positive finite numbers", f"correct {name}")
  reason = why_not_identifiable(form, np.asarray(loss), {v: np.asarray(a, np.float64) for v, a in variables.items()})
  if reason:
    raise UserError(reason[0], reason[1], "add rows or choose a form with fewer parameters by --form")


def why_not_identifiable(form: Form, loss: Array, variables: dict[str, Array]) -> tuple[str, str] | None:
  """What the rows lack for this form (what was got, what is needed), or None where they can determine it.

  Needed: more rows than parameters; two values of every variable (three for a law with a floor and one variable); for
  a law of N and D, ln N and ln D not on one line (a constant D/N determines neither exponent).
  """
  count = len(form.parameters)
  if len(loss) <= count:
    return f"{len(loss)} rows for {form.name}", f"more rows than its {count} parameters"
  need = 3 if form.names[0] == "E" and len(form.variables) == 1 else 2
  logs = []
  for v in form.variables:
    x = np.log(variables[v])
    distinct = 1 + int((np.diff(np.sort(x)) > 1e-9).sum())
    if distinct < need:
      plural = "" if distinct == 1 else "s"
      return f"{distinct} distinct value{plural} of {v}", f"at least {need} for {form.name}"
    logs.append((x - x.mean()) / x.std())
  if len(logs) == 2 and 1.0 - abs(float(np.mean(logs[0] * logs[1]))) < 1e-9:
    return "N and D on one line (such as a constant D/N)", f"N and D that vary separately for {form.name}"
  return None


def _search(
  form: Form, points: Points, weights: Array, *, objective: str, delta: float, count: int, seed: int
) -> tuple[Array, float, float, Optimum | None]:
  """The best theta [P], its objective, the share of the starts at it, and the second optimum."""
  rng = np.random.default_rng(seed)
  low, high = starts.bounds(form, points)
  last = {"huber": delta, "lad": SMOOTHED_LAD}.get(objective, 1.0)
  robust = objective in ("huber", "lad")
  make = lambda width: problem(form, points, weights=weights, objective=objective, delta=width)  # noqa: E731
  theta = _starting_points(form, points, make(max(last, 1e-2)), rng, count=count)
  entry = np.array([0.1, 0.1, _LATE, last])[np.arange(count) % 4]
  path = [d for d in _PATH if d > 1.0001 * last] if robust else []
  for width in [*path, last]:
    joined = np.flatnonzero(entry >= width) if width != last else np.arange(count)
    found = _minimise(make(width), theta[joined], low, high, final=width == last)
    theta[joined] = found.theta
  task = make(last)
  ends = found
  for _ in range(4 if robust else 1):
    k = int(ends.value.argmin())
    nearby = _perturbed(form, points, ends.theta[k], rng, count=32)
    more = _minimise(task, np.clip(nearby, low, high), low, high, final=True)
    gained = more.value.min() < ends.value[k] * (1.0 - SAME_OPTIMUM) - 1e-15 * len(points)
    ends = newton.Minimum(*[np.concatenate(pair) for pair in zip(ends, more, strict=True)])
    if not gained:
      break
  best = int(ends.value.argmin())
  limit = ends.value[best] * (1.0 + SAME_OPTIMUM) + 1e-12 * len(points)
  share = float((found.value <= limit).mean())
  value = float(_true_value(form, points, ends.theta[best], weights, objective=objective, delta=delta))
  return ends.theta[best], value, share, _second(form, points, ends, found, task.unit)


def _minimise(task: Any, theta: Array, low: Array, high: Array, *, final: bool) -> newton.Minimum:
  """One stage of the path: to full accuracy at the last delta, roughly before."""
  return newton.minimise(
    task.value,
    task.derivatives,
    theta=theta,
    low=low,
    high=high,
    iterations=300 if final else 40,
    tolerance=1e-14 if final else 1e-6,
  )


def _starting_points(form: Form, points: Points, task: Any, rng: np.random.Generator, *, count: int) -> Array:
  """[S, P]: the best grid cells (an eighth of the starts), the others random, mixed over the entries of the path."""
  low, high = starts.bounds(form, points)
  grid = np.clip(starts.projected_starts(form, points), low, high)
  cost = task.value(grid, np.arange(len(grid)))
  chosen = grid[np.argsort(cost)[: max(1, count // 8)]]
  others = starts.random_starts(form, points, rng, count=count - len(chosen))
  theta = np.concatenate([chosen, np.clip(others, low, high)])
  return theta[rng.permutation(count)] if count > 1 else theta


def _perturbed(form: Form, points: Points, theta: Array, rng: np.random.Generator, *, count: int) -> Array:
  """Points [count, P] about `theta`, spread as estimates would be if the noise were one to eight times the residuals."""
  log_loss, jacobian = form.log_loss(theta[None], points.logs)
  noise = np.abs(log_loss[0] - np.log(points.loss)).mean() + 1e-12
  gram = jacobian[0] @ jacobian[0].T
  size = np.sqrt(np.diag(gram)) + 1e-300
  values, vectors = np.linalg.eigh(gram / np.outer(size, size))
  root = vectors / np.sqrt(np.maximum(values, 1e-6))
  factors = noise * 2.0 ** rng.uniform(0.0, 3.0, (count, 1))
  return theta + factors * (rng.standard_normal((count, len(theta))) @ root.T) / size


def _true_value(form: Form, points: Points, theta: Array, weights: Array, *, objective: str, delta: float) -> float:
  """The objective by its definition, without smoothing or units."""
  if objective != "lad":
    task = problem(form, points, weights=weights, objective=objective, delta=delta)
    # problem() measures squares by halves of r^2 over a width of 1e-2, hence its unit
    return float(task.value(theta[None], np.zeros(1, int))[0] * task.unit)
  return float((weights[0] * np.abs(form.log_loss(theta[None], points.logs)[0][0] - np.log(points.loss))).sum())


def _printed(form: Form, theta: Array, points: Points) -> dict[str, float]:
  return {name: float(value) for name, value in form.decode(theta, points.centre).items()}


def _second(form: Form, points: Points, ends: newton.Minimum, found: newton.Minimum, unit: float) -> Optimum | None:
  """The lowest converged optimum that is neither the best value nor the best law (ln L differs by 1e-6 somewhere)."""
  best = int(ends.value.argmin())
  laws = form.log_loss(ends.theta, points.logs)[0]
  apart = np.abs(laws - laws[best]).max(-1) > 1e-6
  higher = ends.value > ends.value[best] * (1.0 + SAME_OPTIMUM) + 1e-12 * len(points)
  others = np.flatnonzero(ends.converged & apart & higher)
  if not len(others):
    return None
  k = others[int(ends.value[others].argmin())]
  share = float((np.abs(found.value / ends.value[k] - 1.0) < 1e-7).mean())
  return Optimum(float(ends.value[k] * unit), _printed(form, ends.theta[k], points), share)
