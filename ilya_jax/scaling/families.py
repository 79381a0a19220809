"""From measured rows to what a report shows of a family: its points, fits, compute-optimal frontier and training curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ilya_jax.errors import UserError
from ilya_jax.scaling import curves, fitting, plots
from ilya_jax.scaling.curves import Curve, Run
from ilya_jax.scaling.document import percent
from ilya_jax.scaling.drawing import short
from ilya_jax.scaling.fitted import FittedLaw, frontier
from ilya_jax.scaling.fitting import FittedTable
from ilya_jax.scaling.rows import Options, rows_of_form
from ilya_jax.scaling.sweep import Sweep
from ilya_jax.scaling.table import Table, read_table

Array = np.ndarray

_FEWEST_FOR_TEST = 8  # rows that a family without a held-out run needs, to hold out its largest one
_BEYOND = 100.0  # how far past the largest run the frontier is drawn, in compute
_NO_FIT: dict[str, Any] = {"forms": [], "ranking": [], "checklist": {}}


class Family(NamedTuple):
  """What is known of one family of runs, or of the one table of a fit.

  result: the content of its fit.json, with no forms where nothing could be fitted. laws: form -> law. used: form -> [n]
  the points that it was fitted to. frontier: the compute-optimal allocation by the law that the ranking puts first among
  those that have one, named `frontier_of`. curves: training curves. remarks: what is missing, and which rule left out
  what. dropped, held_out: ids of the cells left out by the rule, and set aside. test_note: what to know of the latter.
  """

  name: str
  measured: plots.Measured
  result: Mapping[str, Any]
  laws: Mapping[str, FittedLaw]
  used: Mapping[str, Array]
  frontier: plots.Frontier | None = None
  frontier_of: str = ""
  curves: Sequence[Curve] = ()
  remarks: Sequence[str] = ()
  dropped: Sequence[str] = ()
  held_out: Sequence[str] = ()
  test_note: str = ""

  @property
  def best(self) -> Mapping[str, Any] | None:
    """The record of the form that the ranking puts first."""
    return self.result["forms"][0] if self.result["forms"] else None

  @property
  def has_held_out(self) -> bool:
    """Whether points were set aside to grade the laws."""
    return bool((self.measured.part == "held_out").any())


def sweep_family(sweep: Sweep, runs: Sequence[Run], *, family: str, sweep_dir: Path) -> Family:
  """Fits the final rows of a family in the sweep's cells.csv; a family too small for any law comes with the reason.

  Held out are the runs of that role; a family without one, and with rows enough, has its largest-compute run set aside
  instead. Raises UserError where the sweep's `fit` holds an unknown option.
  """
  unknown = set(sweep.fit) - set(Options._fields)
  if unknown:
    known = ", ".join(Options._fields)
    raise UserError(f"fit option {sorted(unknown)[0]!r} of {sweep.name}", f"one of {known}", "`fit` of the sweep file")
  mine = [run for run in runs if run.cell.family == family]
  unit = loss_unit(mine)
  drawn = curves.curves(mine)
  table = read_table([sweep_dir])
  table = table.take(table.columns["family"] == family)
  table = table.take(
    table.columns["final"] == "1", reason="not the end of a schedule: a trunk or an intermediate evaluation"
  )
  held = table.columns["role"] == "held_out"
  remarks, note = [], ""
  if not held.any() and table.n_rows >= _FEWEST_FOR_TEST:
    held = np.arange(table.n_rows) == int(table.values["C"].argmax())
    note = "No larger run was made for this family, so its run of largest compute was set aside from the fits instead."
  elif not held.any():
    remarks.append("No run was held out, and there are too few to set one aside.")
  options = Options(**{"command": f"ilya-jax sweep (workdir {sweep_dir.name})", **sweep.fit, "hold_out": held})
  try:
    fitted = fitting.fit_table(table, options)
  except UserError as error:
    remarks.append(f"No law could be fitted: {str(error).partition(';')[0]}.")
    part = np.where(held, "held_out", "fit")
    return Family(family, measured_points(table, part, unit=unit), _NO_FIT, {}, {}, curves=drawn, remarks=remarks)
  made = table_family(fitted, table, name=family, unit=unit)
  cells = table.columns["cell"]
  return made._replace(
    curves=drawn, remarks=[*remarks, *made.remarks], test_note=note,
    dropped=list(cells[fitted.part == "dropped"]), held_out=list(cells[fitted.part == "held_out"]),
  )  # fmt: skip


def table_family(fitted: FittedTable, table: Table, *, name: str, unit: str) -> Family:
  """The family of any fitted table; `unit` is that of its losses."""
  measured = measured_points(table, fitted.part, unit=unit)
  used = {form: rows_of_form(table, fitted.part == "fit", form) for form in fitted.laws}
  known = fitted.result["forms"]
  first = next((form["form"] for form in known if form["optimal"] is not None), "")
  frontier = _frontier(fitted.laws[first], measured, known) if first and np.isfinite(measured.C).all() else None
  return Family(
    name, measured, fitted.result, fitted.laws, used, frontier, first if frontier else "", remarks=_rule_remarks(fitted)
  )


def measured_points(table: Table, part: Array, *, unit: str) -> plots.Measured:
  """The points of a table for the figures; quantities that it lacks are nan."""
  missing = np.full(table.n_rows, np.nan)
  N, D, C, errors = (table.values.get(name, missing) for name in ("N", "D", "C", "loss_se"))
  return plots.Measured(N, D, C, table.values["loss"], errors, part, unit)


def loss_unit(runs: Sequence[Run]) -> str:
  """Nats per byte or token in language, else the task's own loss per example."""
  for run in runs:
    if run.cell.config.get("task", "language") != "language":
      return f"loss per {run.cell.counts.unit.removesuffix('s')}"
    tokenizer = run.cell.config.get("data", {}).get("tokenizer", "")
    return f"nats per {'byte' if tokenizer == 'bytes' else run.cell.counts.unit.removesuffix('s')}"
  return "nats per token"


def _frontier(law: FittedLaw, measured: plots.Measured, forms: Sequence[Mapping[str, Any]]) -> plots.Frontier:
  """The optimum from the smallest run's compute to the targets, at most a hundred times past the largest run's."""
  compute = measured.C_6ND
  targets = [target["C"] for form in forms if form["optimal"] for target in form["optimal"]["targets"]]
  top = min(max([3.0 * compute.max(), *targets]), _BEYOND * compute.max())
  grid = np.geomspace(compute.min() / 1.5, top, 50)
  with np.errstate(all="ignore"):
    found = frontier(law, grid)
  limited = {}
  for name, values in found.items():
    low, high = values[0] * 1e-9, values[0] * 1e9  # resamples may leave an end of a band open: drawn far, but finite
    bounded = np.clip(np.nan_to_num(values, nan=np.inf), low, high)
    limited[name] = np.where(np.isnan(values), np.nan, bounded) if law.draws is None else bounded
  return plots.Frontier(grid, limited["N"], limited["D"], limited["loss"], limited["tokens_per_parameter"])


def _rule_remarks(fitted: FittedTable) -> list[str]:
  """What the rule on short trainings did, in words."""
  rule = fitted.result["data"].get("rule")
  remarks = [f"{name} was not fitted: {reason}." for name, reason in fitted.result["not_fitted"].items()]
  if not rule:
    return remarks
  if rule.get("why"):
    return [
      *remarks,
      f"The shortest training length was kept: there are {rule['why']}, so the rule that would drop it has no measure.",
    ]
  spread = percent(100 * rule["seed_spread"])
  for entry in rule["lengths"]:
    dropped = entry["D"] in rule["dropped_lengths"]
    verdict = "dropped" if dropped else "kept"
    remarks.append(
      f"Runs of {short(entry['D'])} tokens, the shortest, were {verdict}: their mean |residual| in the {entry['form']} fit is "
      f"{percent(100 * entry['mean_abs_residual'])}, {'over' if dropped else 'within'} twice the spread between seeds ({spread}); the "
      f"other runs' is {percent(100 * entry['others'])}."
    )
  return remarks
