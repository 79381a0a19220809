"""Which rows of a table enter a fit: held out, dropped for being too short, belonging to a law; and the fit itself."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ilya_jax.errors import UserError
from ilya_jax.scaling.fit import Fit, fit_law, get_form, why_not_identifiable
from ilya_jax.scaling.laws import FORMS
from ilya_jax.scaling.table import Table

Array = np.ndarray

STEP = 3.0  # the factor in compute from the fitted to the predicted rows of `step_error`
LEFT_OUT = 3  # clusters of largest compute that are left out in turn for the inner error
_FEWEST_LENGTHS = 3  # training lengths that the dropping rule leaves


class Options(NamedTuple):
  """Options of a fit, as on the command line.

  hold_out: "none", "largest-compute", a number of rows or clusters, or a boolean array of the held-out rows. predict:
  dicts of N, D (C). drop_shortest: apply the rule of `short_lengths`. Unset names stand for the defaults of `fit --help`.
  """

  form: str = "auto"
  objective: str = "huber"
  delta: float = 1e-3
  hold_out: Any = "none"
  bootstrap: int = 1000
  seed: int = 0
  starts: int = 64
  predict: Sequence[Mapping[str, float]] = ()
  target_compute: Sequence[float] = ()
  drop_shortest: bool = False
  command: str = ""


def held_out_rows(table: Table, options: Options) -> Array:
  """[n] true for the rows that grade the fits: those of largest compute, or as `options.hold_out` says."""
  wanted = options.hold_out
  if isinstance(wanted, np.ndarray):
    return wanted
  if wanted == "none":
    return np.zeros(table.n_rows, bool)
  text = str(wanted)
  if (text != "largest-compute" and not (text.isdigit() and int(text) >= 1)) or "C" not in table.values:
    got = f"--hold-out {wanted}" + ("" if "C" in table.values else " for a table without compute")
    raise UserError(got, "none, largest-compute, or a number of rows (clusters)", "--hold-out")
  count = 1 if text == "largest-compute" else int(text)
  labels = table.cluster
  largest = {label: float(table.values["C"][labels == label].max()) for label in np.unique(labels)}
  if count >= len(largest):
    raise UserError(f"--hold-out {wanted} of {len(largest)} clusters", "rows left to fit", "--hold-out")
  chosen = sorted(largest, key=lambda label: largest[label])[-count:]
  return np.isin(labels, chosen)


def fit_rows(table: Table, rows: Array, *, name: str, options: Options, count: int | None = None) -> Fit:
  """The fit of the form `name` to the rows where `rows` [n] holds; `count` starts instead of the options'."""
  columns = variables_of(table, rows, name)
  return fit_law(
    name, table.values["loss"][rows], **columns, objective=options.objective, delta=options.delta,
    start_count=count or options.starts, seed=options.seed,
  )  # fmt: skip


def variables_of(table: Table, rows: Array, name: str) -> dict[str, Array]:
  """The variables of a form at the rows. Raises UserError where the table lacks one."""
  columns = {}
  for v in get_form(name).variables:
    column = table.values.get(v)
    if column is None:
      raise UserError(f"no column {v} for {name}", f"a table with {v}", f"--columns '{v}=…'")
    columns[v] = column[rows]
  return columns


def lacking(table: Table, rows: Array, name: str) -> str | None:
  """Why the rows cannot determine the law; None where they can."""
  if any(v not in table.values for v in FORMS[name].variables):
    return f"no column {' or '.join(FORMS[name].variables)}"
  reason = why_not_identifiable(FORMS[name], table.values["loss"][rows], variables_of(table, rows, name))
  return None if reason is None else f"{reason[0]} ({reason[1]})"


def short_lengths(table: Table, rows: Array, *, spread: float | None, options: Options) -> tuple[Array, dict[str, Any]]:
  """The rows left by the rule: drop the shortest training while its mean |residual| is over twice the seed spread.

  Residuals are of the Chinchilla form (Kaplan's 1.5 where the rows are too few for it), refitted after each drop; three
  lengths are left at least. Held-out rows play no part. Returns (rows, what was dropped and why).
  """
  rule = "drop the shortest length while its mean |residual| exceeds twice the spread between seeds"
  record: dict[str, Any] = {"rule": rule, "seed_spread": spread, "dropped_lengths": [], "lengths": []}
  if spread is None or "D" not in table.values:
    record["why"] = "no cells that differ in their seed alone"
    return rows, record
  D = table.values["D"]
  while True:
    name = next((n for n in ("chinchilla", "kaplan_nd") if lacking(table, rows, n) is None), None)
    lengths = np.unique(D[rows])
    if name is None or len(lengths) <= _FEWEST_LENGTHS:
      return rows, record
    residuals = np.abs(fit_rows(table, rows, name=name, options=options).residuals)
    shortest = D[rows] == lengths[0]
    error, others = float(residuals[shortest].mean()), float(residuals[~shortest].mean())
    record["lengths"].append({"D": float(lengths[0]), "mean_abs_residual": error, "others": others, "form": name})
    if error <= 2 * spread:
      return rows, record
    record["dropped_lengths"].append(float(lengths[0]))
    rows = rows & (D != lengths[0])


def rows_of_form(table: Table, rows: Array, name: str) -> Array:
  """The rows to which a law of one variable applies: those that the other one binds least.

  L(N): the longest training of each size; L(D): the largest size at each length; L(C): the rows that no row with less
  compute beats. A law of N and D takes all.
  """
  variables = FORMS[name].variables
  N, D, C = (table.values.get(v) for v in ("N", "D", "C"))
  if len(variables) > 1 or N is None or D is None or C is None:
    return rows
  keep = np.zeros(table.n_rows, bool)
  for k in np.flatnonzero(rows):
    if variables == ("N",):
      keep[k] = D[k] == D[rows & (N == N[k])].max()
    elif variables == ("D",):
      keep[k] = N[k] == N[rows & (D == D[k])].max()
    else:
      keep[k] = table.values["loss"][k] <= table.values["loss"][rows & (C <= C[k])].min()
  return keep


def row_rule(name: str, options: Options) -> str:
  """`rows_of_form` in words."""
  variables = FORMS[name].variables
  if options.form != "auto" or len(variables) > 1:
    return "all"
  rules = {
    "N": "longest training of each size", "D": "largest size at each length", "C": "lowest loss so far by compute",
  }  # fmt: skip
  return rules[variables[0]]


def inner_error(table: Table, rows: Array, *, name: str, clusters: Array, options: Options) -> tuple[float | None, int]:
  """(mean absolute error in %, units) of predicting the units of largest compute among `rows`, left out in turn.

  A unit is a cluster with the clusters that repeat its runs under other seeds: were these left in, a law would only have to
  interpolate what they hold.
  """
  size = next(column for v in ("C", "N", "D") if (column := table.values.get(v)) is not None)
  units = _with_repeats(table, clusters)
  labels = sorted(np.unique(units[rows]), key=lambda label: -float(size[rows & (units == label)].max()))
  errors: list[Array] = []
  for label in labels:
    out = rows & (units == label)
    if len(errors) == LEFT_OUT or lacking(table, rows & ~out, name) is not None:
      continue
    law = fit_rows(table, rows & ~out, name=name, options=options, count=min(options.starts, 24))
    errors.append(np.abs(law.predict(**variables_of(table, out, name)) / table.values["loss"][out] - 1))
  return (float(100 * np.concatenate(errors).mean()) if errors else None), len(errors)


def step_error(table: Table, rows: Array, *, name: str, options: Options) -> tuple[float | None, int]:
  """(mean absolute error in %, rows) of predicting all of `rows` above a third of their largest compute from the rest.

  A step up in size and length at once, as to a larger run; `inner_error` leaves sizes or lengths like those left out in. None
  where the table has no compute, or the rest does not determine the law.
  """
  C = table.values.get("C")
  if C is None:
    return None, 0
  above = rows & (C > C[rows].max() / STEP)
  if lacking(table, rows & ~above, name) is not None:
    return None, 0
  law = fit_rows(table, rows & ~above, name=name, options=options)
  errors = np.abs(law.predict(**variables_of(table, above, name)) / table.values["loss"][above] - 1)
  return float(100 * errors.mean()), int(above.sum())


def _with_repeats(table: Table, clusters: Array) -> Array:
  """[n] a name per row: its cluster, or the first of the clusters that share a run with it but for the seed."""
  same = _settings(table)
  if same is None:
    return clusters
  units = np.asarray(clusters).copy()
  for key in set(same):
    members = np.isin(units, units[[known == key for known in same]])
    units[members] = units[members].min()
  return units


def _settings(table: Table) -> list[tuple[Any, ...]] | None:
  """Per row what runs that differ in their seed alone share; None where the table tells of no seeds, or lacks N or D."""
  if "seed" not in table.columns or not {"N", "D"} <= set(table.values):
    return None
  told = [table.columns[name] for name in ("family", "lr", "batch") if name in table.columns]
  return list(zip(table.values["N"].tolist(), table.values["D"].tolist(), *told, strict=True))


def seed_spread(table: Table) -> float | None:
  """Pooled standard deviation of ln(loss) between runs that differ in their seed alone; None without any."""
  same = _settings(table)
  if same is None:
    return None
  groups: dict[tuple[Any, ...], dict[str, float]] = {}
  for k, key in enumerate(same):
    groups.setdefault(key, {})[table.columns["seed"][k]] = float(np.log(table.values["loss"][k]))
  squares, freedom = 0.0, 0
  for losses in groups.values():
    values = np.array(list(losses.values()))
    squares += float(((values - values.mean()) ** 2).sum())
    freedom += len(values) - 1
  return float(np.sqrt(squares / freedom)) if freedom else None
