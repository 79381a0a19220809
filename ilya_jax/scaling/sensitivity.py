"""The chosen law refitted under other choices: which of its numbers depend on how the fit was made, and not on the runs."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ilya_jax.scaling import optimal
from ilya_jax.scaling.laws import FORMS
from ilya_jax.scaling.rows import Options, fit_rows, lacking, variables_of
from ilya_jax.scaling.table import Table

Array = np.ndarray

_WORST = (1, 2, 3)  # rows of largest residual that are left out
_LEAST_RATIOS = (1.0, 5.0, 10.0, 20.0)  # tokens per parameter
_STARTS = 24


class Variant(NamedTuple):
  """One change to the fit: in words, and the table, rows [n] and options that it leads to."""

  what: str
  table: Table
  rows: Array
  options: Options


def sensitivity(
  table: Table, kept: Array, held: Array, *, name: str, options: Options, shortened: bool
) -> list[dict[str, Any]]:
  """The law refitted after one change at a time.

  kept, held [n]: the fitted and the held-out rows. shortened: whether the rule dropped a training length. Each record has
  `what`, `n_points`, `parameters`, `a` (the exponent of N*, None without an optimum) and `held_out_error` (predicted /
  measured - 1, mean, in %). Changes that leave too few rows are left out.
  """
  records = []
  for what, data, rows, changed in _variants(table, kept, held, name=name, options=options, shortened=shortened):
    if lacking(data, rows, name) is None:
      law = fit_rows(data, rows, name=name, options=changed, count=min(options.starts, _STARTS))
      predicted = law.predict(**variables_of(data, held, name)) / data.values["loss"][held] - 1 if held.any() else None
      powers = optimal.exponents(name, law.parameters)
      records.append({
        "what": what, "n_points": int(rows.sum()), "parameters": law.parameters, "a": None if powers is None else powers[0],
        "held_out_error": None if predicted is None else float(100 * predicted.mean()),
      })  # fmt: skip
  return records


def _variants(
  table: Table, kept: Array, held: Array, *, name: str, options: Options, shortened: bool
) -> Iterator[Variant]:
  """The changes, one at a time: objective, rows, learning rates, counts."""
  yield Variant("as fitted", table, kept, options)
  if options.objective == "huber":
    for factor in (0.1, 10.0):
      delta = options.delta * factor
      yield Variant(f"delta {delta:g}", table, kept, options._replace(delta=delta))
  for objective, words in (("lad", "least absolute deviations"), ("lsq_log", "least squares of logs")):
    if objective != options.objective:
      yield Variant(words, table, kept, options._replace(objective=objective))
  if shortened:
    yield Variant("no length dropped", table, ~held, options)
  yield from _row_variants(table, kept, name=name, options=options)
  yield from _rate_variants(table, kept, options=options)
  if "N_total" in table.columns and "N" in table.values:
    counted = {**table.values, "N": table.columns["N_total"].astype(float)}
    yield Variant("N_total for N", table._replace(values=counted), kept, options)
  if "C_6ND" in table.columns and "C" in FORMS[name].variables:
    counted = {**table.values, "C": table.columns["C_6ND"].astype(float)}
    yield Variant("C = 6 N D for C", table._replace(values=counted), kept, options)


def _row_variants(table: Table, kept: Array, *, name: str, options: Options) -> Iterator[Variant]:
  """Rows left out: the worst, the least trained, the largest."""
  if lacking(table, kept, name) is None:
    law = fit_rows(table, kept, name=name, options=options, count=min(options.starts, _STARTS))
    worst = np.flatnonzero(kept)[np.argsort(-np.abs(law.residuals), kind="stable")]
    for count in _WORST:
      rows = kept.copy()
      rows[worst[:count]] = False
      yield Variant(f"{count} worst row{'s' if count > 1 else ''} left out", table, rows, options)
  N, D = table.values.get("N"), table.values.get("D")
  if N is not None and D is not None:
    before = int(kept.sum())
    for least in _LEAST_RATIOS:
      rows = kept & (D / N >= least)
      if rows.sum() < before:
        before = int(rows.sum())
        yield Variant(f"D/N of {least:g} or more", table, rows, options)
  size = table.values.get("C", D)
  if size is not None:
    yield Variant("largest fitted point left out", table, kept & (size < size[kept].max()), options)


def _rate_variants(table: Table, kept: Array, *, options: Options) -> Iterator[Variant]:
  """Where runs differ in their learning rate alone: the best of each, and the minimum of a parabola in its logarithm."""
  groups = _rates(table, kept)
  if not groups:
    return
  best, loss, inside = kept.copy(), table.values["loss"].copy(), kept.copy()
  for members in groups:
    chosen = min(members, key=lambda rate: table.values["loss"][members[rate]].mean())
    for rate, rows in members.items():
      best[rows] = inside[rows] = rate == chosen
    lowest = _parabola(members, table.values["loss"])
    if lowest is not None:
      loss[members[chosen]] *= lowest / loss[members[chosen]].mean()
  yield Variant("best learning rate of each", table, best, options)
  interpolated = table._replace(values={**table.values, "loss": loss})
  yield Variant("learning rate interpolated", interpolated, inside, options)


def _rates(table: Table, kept: Array) -> list[dict[float, Array]]:
  """For each group of runs that differ in learning rate (and seed) alone: rate -> its rows."""
  if "lr" not in table.columns or not {"N", "D"} <= set(table.values):
    return []
  groups: dict[tuple[Any, ...], dict[float, list[int]]] = defaultdict(lambda: defaultdict(list))
  for k in np.flatnonzero(kept):
    same = tuple(table.columns[each][k] for each in ("family", "batch", "schedule") if each in table.columns)
    groups[(table.values["N"][k], table.values["D"][k], *same)][float(table.columns["lr"][k])].append(int(k))
  return [{rate: np.array(rows) for rate, rows in members.items()} for members in groups.values() if len(members) > 1]


def _parabola(members: dict[float, Array], loss: Array) -> float | None:
  """The least loss on the parabola in ln(rate) through the best rate and its neighbours; None where it is at an end."""
  rates = np.array(sorted(members))
  means = np.array([loss[members[rate]].mean() for rate in rates])
  k = int(means.argmin())
  if k in (0, len(rates) - 1):
    return None
  square, linear, constant = np.polyfit(np.log(rates[k - 1 : k + 2] / rates[k]), means[k - 1 : k + 2], 2)
  return float(constant - linear**2 / (4 * square))
