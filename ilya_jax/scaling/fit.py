"""Fits a scaling law to rows of (N, D, C, loss): the optimum of a named objective, from many starts in one batch.

>>> import numpy as np
>>> from ilya_jax.scaling import fit
>>> N, D = (a.ravel() for a in np.meshgrid(np.geomspace(1e6, 1e9, 7), np.geomspace(1e8, 1e11, 6)))
>>> result = fit.fit_law("chinchilla", 1.7 + 406.4 / N**0.34 + 410.7 / D**0.28, N=N, D=D)
>>> round(result.parameters["alpha"], 6)
0.34

The search is described in `search`; the tests compare it with scipy's minimisers from hundreds of starts.

Axis letters: n rows, P parameters.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, special

from ilya_jax.errors import UserError, did_you_mean
from ilya_jax.scaling import search, starts
from ilya_jax.scaling.laws import FORMS, Form, for_variables
from ilya_jax.scaling.objectives import Points, centred, check_objective

Array = np.ndarray


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

  def predict(self, **variables: Any) -> Array:
    """The loss that the law gives at these N, D, C, S, D_unique (whichever it takes)."""
    return FORMS[self.form].loss(self.parameters, **variables)


def fit_law(
  form: str,
  loss: Array,
  *,
  N: Array | None = None,
  D: Array | None = None,
  C: Array | None = None,
  S: Array | None = None,
  D_unique: Array | None = None,
  weights: Array | None = None,
  objective: str = "huber",
  delta: float = 1e-3,
  start_count: int = 64,
  seed: int = 0,
) -> Fit:
  """Fits `form` to n rows.

  form: a name in `laws.FORMS`; `power` and `power_floor` take the first of N, D, C that is given. loss [n], and N, D, C, S,
  D_unique [n] whichever the form takes (parameters, tokens, FLOP, optimizer steps, different tokens).
  weights [n]: how much each row counts (1). objective: huber, lad, lsq_log or lsq; delta: of huber.
  start_count: random starts and grid cells together. Raises UserError for an unknown form or objective, for rows that
  are not positive and finite, and where the rows cannot determine the law (`check_identifiable`).
  """
  given = {"N": N, "D": D, "C": C, "S": S, "D_unique": D_unique}
  form = for_variables(form, [name for name, values in given.items() if values is not None])
  law = get_form(form)
  check_objective(objective, delta)
  if start_count < 1:
    raise UserError(f"{start_count} starts", "at least 1", "change --starts")
  variables = {name: given[name] for name in law.variables}
  check_rows(law, loss, variables)
  points = centred(law, loss, {v: np.asarray(a, np.float64) for v, a in variables.items()})
  counts = np.ones(len(points)) if weights is None else np.asarray(weights, np.float64)
  best, second = search.search(
    law, points, weights=counts, objective=objective, delta=delta, count=start_count, seed=seed
  )
  theta = best.theta
  low, high = starts.bounds(law, points)
  fitted = law.log_loss(theta[None], points.logs)[0][0]
  return Fit(
    form=form,
    objective=objective,
    delta=delta,
    value=best.value,
    parameters=_printed(law, theta, points),
    theta=theta,
    points=points,
    residuals=np.log(points.loss) - fitted,
    starts=start_count,
    share_at_best=best.share,
    second_optimum=second and Optimum(second.value, _printed(law, second.theta, points), second.share),
    at_bound=tuple(name for name, at in zip(law.names, (theta <= low) | (theta >= high), strict=True) if at),
    aicc=aicc(best.value, points=len(points), parameters=len(law.parameters), objective=objective, delta=delta),
  )


def deviance(value: float, *, points: int, objective: str, delta: float) -> float:
  """-2 ln likelihood of an optimum of this value over so many points.

  The likelihood is exp(-objective/scale) with its scale fitted: Gaussian for the squares, Laplace for lad, and for
  huber the density exp(-Huber(r)/scale) at the fixed delta, whose normaliser is known. The scale is fitted after the
  optimum and never moves it.
  """
  value = max(value, 1e-30)
  if objective in ("lsq_log", "lsq"):
    return float(points * (np.log(2.0 * np.pi * value / points) + 1.0))
  if objective == "lad":
    return float(2.0 * points * (np.log(2.0 * value / points) + 1.0))

  def minus_two_log_likelihood(log_scale: float) -> float:
    scale = np.exp(log_scale)
    centre = np.sqrt(2.0 * np.pi * scale) * special.erf(delta / np.sqrt(2.0 * scale))
    tails = 2.0 * scale / delta * np.exp(-(delta**2) / (2.0 * scale))
    return 2.0 * value / scale + 2.0 * points * np.log(centre + tails)

  middle = np.log(value / points)
  return float(optimize.minimize_scalar(
    minus_two_log_likelihood, bounds=(middle - 3.0, middle + 3.0), method="bounded", options={"xatol": 1e-8}
  ).fun)  # fmt: skip


def aicc(value: float, *, points: int, parameters: int, objective: str, delta: float) -> float:
  """The corrected Akaike criterion (Hurvich & Tsai 1989) of an optimum, infinite where rows are too few for it.

  The scale of the `deviance` counts as one parameter.
  """
  count = parameters + 1
  if points <= count + 1:
    return float("inf")
  fitted = deviance(value, points=points, objective=objective, delta=delta)
  return fitted + 2.0 * count + 2.0 * count * (count + 1) / (points - count - 1)


def get_form(name: str) -> Form:
  """The form of this name; UserError names those there are."""
  if name not in FORMS:
    raise UserError(f"form {name!r}{did_you_mean(name, FORMS)}", f"auto or one of {', '.join(FORMS)}", "change --form")
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

  Needed: more rows than parameters; two values of every variable, three for a law with a floor; for
  a law of N and D, ln N and ln D not on one line (a constant D/N determines neither exponent); for repeated data, a repeat.
  """
  count = len(form.parameters)
  if len(loss) <= count:
    return f"{len(loss)} rows for {form.name}", f"more rows than its {count} parameters"
  need = 3 if form.names[0] == "E" else 2
  logs = []
  if "D_unique" in variables and not (variables["D"] > variables["D_unique"] * (1 + 1e-9)).any():
    return f"no row with repeated tokens for {form.name}", "rows with D above D_unique"
  for v in form.variables:
    if v == "D_unique":
      continue
    x = np.log(variables[v])
    distinct = 1 + int((np.diff(np.sort(x)) > 1e-9).sum())
    if distinct < need:
      plural = "" if distinct == 1 else "s"
      return f"{distinct} distinct value{plural} of {v}", f"at least {need} for {form.name}"
    logs.append((x - x.mean()) / x.std())
  if len(logs) == 2 and 1.0 - abs(float(np.mean(logs[0] * logs[1]))) < 1e-9:
    pair = " and ".join(form.variables[:2])
    return f"{pair} on one line (such as a constant D/N)", f"{pair} that vary separately for {form.name}"
  return None


def _printed(form: Form, theta: Array, points: Points) -> dict[str, float]:
  return {name: float(value) for name, value in form.decode(theta, points.centre).items()}
