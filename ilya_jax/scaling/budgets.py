"""Which rows of a table form isoFLOP budgets: groups of equal compute with two sizes or more, found by gaps in ln C.

Axis letters: n rows of the table.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ilya_jax.errors import UserError
from ilya_jax.scaling.optimal import FLOP_PER_PARAMETER_AND_TOKEN
from ilya_jax.scaling.table import Table

Array = np.ndarray

TOLERANCE = 0.1  # in ln C: a wider gap between neighbours begins a new budget
SPAN = 0.25  # in ln C: a group that is wider is a chain of runs and no budget
RULE = (
  f"runs sorted by ln C; a gap over {TOLERANCE:g} begins a new group; a group wider than {SPAN:g} or of one size is no budget; "
  "its C is the geometric mean"
)


class Budgets(NamedTuple):
  """compute: "C" (the table's) or "6ND", by which the groups were found. groups: row indices of each budget, by rising compute.

  skipped: groups of several sizes that are too wide, and lone [rows of one size]. notes: what was left out, in words.
  """

  compute: str
  groups: list[Array]
  skipped: list[dict[str, Any]]
  lone: int
  notes: list[str]


def compute_of(table: Table, compute: str) -> Array:
  """C [n] as the table has it, or 6 N D."""
  if compute == "C":
    return table.values["C"]
  return FLOP_PER_PARAMETER_AND_TOKEN * table.values["N"] * table.values["D"]


def find(table: Table, rows: Array) -> Budgets:
  """The budgets among the rows where `rows` [n] holds that are final; intermediate losses are not those of a finished run.

  The table's C decides, or 6 N D where only that gives a budget of three sizes. Of several learning rates at one size and budget
  the best one stays. Raises UserError where there is no budget.
  """
  notes = []
  usable = {"N", "C", "D"} <= set(table.values)
  kept = np.asarray(rows, bool).copy()
  if "final" in table.columns:
    final = np.array([_is_one(cell) for cell in table.columns["final"]])
    if (kept & ~final).any():
      notes.append(f"{int((kept & ~final).sum())} rows that are not final are left out of the budgets.")
    kept &= final
  found = [_group(table, kept, compute, notes) for compute in ("C", "6ND")] if usable and kept.any() else []
  for fewest in (3, 2):
    for each in found:
      if any(len(np.unique(table.values["N"][group])) >= fewest for group in each.groups):
        return each
  lacks = "without N and C" if not usable else "without two sizes at one compute"
  raise UserError(
    f"a table {lacks} for --isoflop", f"final rows of two or more N whose C agree within {100 * TOLERANCE:.0f} %",
    "add runs of several sizes at equal C, or leave out --isoflop",
  )  # fmt: skip


def _group(table: Table, rows: Array, compute: str, notes: list[str]) -> Budgets:
  """The budgets by one definition of compute."""
  index = np.flatnonzero(rows)
  log_c = np.log(compute_of(table, compute)[index])
  index = index[np.argsort(log_c, kind="stable")]
  log_c = np.sort(log_c)
  groups: list[Array] = []
  skipped: list[dict[str, Any]] = []
  lone = 0
  notes = list(notes)
  for group in np.split(np.arange(len(index)), np.flatnonzero(np.diff(log_c) > TOLERANCE) + 1):
    members, span = np.sort(index[group]), float(log_c[group[-1]] - log_c[group[0]])
    sizes = len(np.unique(table.values["N"][members]))
    if sizes < 2:
      lone += len(members)
    elif span > SPAN:
      skipped.append({"C": float(np.exp(log_c[group].mean())), "span": span, "rows": len(members)})
    else:
      groups.append(_best_rates(table, members, notes))
  if skipped:
    notes.append(f"{len(skipped)} groups of runs whose compute spreads over more than {SPAN:g} in ln C are no budgets.")
  return Budgets(compute, groups, skipped, lone, notes)


def _best_rates(table: Table, members: Array, notes: list[str]) -> Array:
  """The members without those that another learning rate of the same size beats."""
  if "lr" not in table.columns:
    return members
  rates, kept = table.columns["lr"], []
  for n in np.unique(table.values["N"][members]):
    mine = members[table.values["N"][members] == n]
    means = {rate: float(table.values["loss"][mine[rates[mine] == rate]].mean()) for rate in dict.fromkeys(rates[mine])}
    kept.append(mine[rates[mine] == min(means, key=lambda rate: means[rate])])
  chosen = np.sort(np.concatenate(kept))
  note = "Of several learning rates at one size and budget the one of lowest mean loss is taken."
  if len(chosen) < len(members) and note not in notes:
    notes.append(note)
  return chosen


def _is_one(cell: Any) -> bool:
  try:
    return float(cell) == 1.0
  except ValueError:
    return False


def record(budgets: Budgets, table: Table) -> Mapping[str, Any]:
  """How the budgets were found, as fit.json holds it."""
  log_c = np.log(compute_of(table, budgets.compute))
  return {
    "rule": RULE,
    "tolerance": TOLERANCE,
    "span_limit": SPAN,
    "compute": budgets.compute,
    "widest": max(float(np.ptp(log_c[group])) for group in budgets.groups),
    "too_wide": budgets.skipped,
    "rows_of_one_size": budgets.lone,
  }
