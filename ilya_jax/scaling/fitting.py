"""What `ilya-jax fit` and every sweep's report do: fit the forms to a table, rank, predict, and fill in fit.json.

The order of things keeps the held-out rows honest: they are set aside first; the rule that drops short trainings, the
fits, the ranking and the sensitivity see fitted rows alone; the held-out rows then grade what was chosen.
"""

from collections.abc import Mapping
from importlib import metadata
from typing import Any, NamedTuple

import numpy as np

from ilya_jax import __version__
from ilya_jax.errors import UserError
from ilya_jax.scaling import fitted, optimal, profile, uncertainty
from ilya_jax.scaling.fit import Fit
from ilya_jax.scaling.fitted import FittedLaw
from ilya_jax.scaling.laws import FORMS, VARIABLES, for_variables
from ilya_jax.scaling.rows import (
  Options,
  fit_rows,
  held_out_rows,
  inner_error,
  lacking,
  row_rule,
  rows_of_form,
  seed_spread,
  short_lengths,
  step_error,
)
from ilya_jax.scaling.sensitivity import sensitivity
from ilya_jax.scaling.table import Table

Array = np.ndarray

_AGAIN = ("overtraining", "power", "power_d", "power_c")  # the tied form and Kaplan's laws in other words
_AUTO = tuple(name for name in FORMS if name not in _AGAIN)
_JOINT = tuple(name for name, form in FORMS.items() if len(form.variables) > 1)


class FittedTable(NamedTuple):
  """result: the content of fit.json. laws: form -> law. part [n]: "fit", "held_out" or "dropped" for each row."""

  result: dict[str, Any]
  laws: dict[str, FittedLaw]
  part: Array


def fit_table(table: Table, options: Options) -> FittedTable:
  """Fits the forms that `options` names to `table`. Raises UserError where a named one cannot be fitted."""
  held = held_out_rows(table, options)
  clusters = table.cluster
  spread = seed_spread(table.take(~held))
  kept, dropping = ~held, None
  if options.drop_shortest:
    kept, dropping = short_lengths(table, ~held, spread=spread, options=options)
  auto = options.form == "auto"
  laws: dict[str, FittedLaw] = {}
  records: dict[str, dict[str, Any]] = {}
  skipped = {}
  for name in _AUTO if auto else [for_variables(name.strip(), table.values) for name in options.form.split(",")]:
    rows = rows_of_form(table, kept, name) if auto else kept
    if auto and (reason := lacking(table, rows, name)) is not None:
      skipped[name] = reason
      continue
    fit = fit_rows(table, rows, name=name, options=options)
    draws = None
    if options.bootstrap:
      draws = uncertainty.resample(fit, clusters=clusters[rows], count=options.bootstrap, seed=options.seed)
    laws[name] = FittedLaw(fit, draws)
    records[name] = _record(laws[name], table, rows=rows, held=held, clusters=clusters, options=options)
  if not laws:
    raise UserError(f"a table of which no law can be fitted: {next(iter(skipped.values()))}", "more rows", "TABLE")

  told = [law for law in laws.values() if "S" not in law.variables] or list(laws.values())
  for law in told:  # a law of steps beside others need not be told of them
    for at in options.predict:
      if missing := _unknown(law, at):
        got = f"--predict without {', '.join(missing)} for {law.name}"
        raise UserError(got, f"values of {', '.join(law.variables)}", "--predict")

  def order(name: str) -> tuple[bool, float, float]:
    inner, aicc = records[name]["inner_mape"], records[name]["aicc"]
    return name not in _JOINT, np.inf if inner is None else inner, aicc

  ranking = sorted(records, key=order)
  for name in ranking[:1]:  # of the law that is chosen
    if name in _JOINT or len(laws) == 1:
      records[name]["sensitivity"] = sensitivity(
        table, kept, held, name=name, options=options, shortened=bool(dropping and dropping["dropped_lengths"])
      )
  fitted.compare_optima(laws, records, ranking)
  result = {
    "forms": [records[name] for name in ranking],
    "ranking": ranking,
    "not_fitted": skipped,
    "checklist": checklist(table, options, kept=kept, held=held, clusters=clusters, spread=spread, records=records),
    "between_forms": fitted.between_forms(records, ranking),
    "definitions": fitted.counted_both_ways(table, kept, options),
    "data": _data(table, dropping=dropping, spread=spread, kept=kept, held=held),
    "command": options.command,
    "versions": {"ilya_jax": __version__, **{name: metadata.version(name) for name in ("numpy", "scipy")}},
  }
  return FittedTable(plain(result), laws, np.where(held, "held_out", np.where(kept, "fit", "dropped")))


def _record(
  law: FittedLaw, table: Table, *, rows: Array, held: Array, clusters: Array, options: Options
) -> dict[str, Any]:
  """A form's element of `forms`."""
  fit, name = law.fit, law.name
  inner, used = inner_error(table, rows, name=name, clusters=clusters, options=options)
  step, stepped = step_error(table, rows, name=name, options=options)
  intervals = {} if law.draws is None else uncertainty.parameter_intervals(fit, law.draws)
  for parameter in fit.at_bound if law.draws is None else ():
    why = "at a bound of the search"
    intervals[parameter] = {
      "method": "none", "level": None, "low": None, "high": None, "identified": False, "why": why,
    }  # fmt: skip
  for parameter in () if law.draws is None else profile.wanted(fit):
    intervals[parameter] = _profiled(fit, parameter, resampled=intervals[parameter])
  return {
    "form": name,
    "equation": law.equation,
    "source": FORMS[name].source,
    "objective": {"name": fit.objective, "delta": fit.delta if fit.objective == "huber" else None, "value": fit.value},
    "n_points": int(rows.sum()),
    "n_clusters": len(np.unique(clusters[rows])),
    "rows": row_rule(name, options),
    "parameters": fit.parameters,
    "intervals": intervals,
    "starts": {
      "n": fit.starts,
      "share_at_best": fit.share_at_best,
      "second_optimum": None if fit.second_optimum is None else fit.second_optimum._asdict(),
    },
    "redrawn": 0 if law.draws is None else law.draws.redrawn,
    "aicc": fit.aicc,
    "inner_mape": inner,
    "inner_clusters": used,
    "step_mape": step,
    "step_points": stepped,
    "mean_abs_residual": float(100 * np.abs(fit.residuals).mean()),
    "held_out": _held_out(law, table, rows=rows, held=held),
    "optimal": fitted.optimum(law, table, options),
    "predictions": [_prediction(law, at) for at in options.predict if not _unknown(law, at)],
    "sensitivity": [],
  }


def _profiled(fit: Fit, name: str, *, resampled: Mapping[str, Any]) -> dict[str, Any]:
  """The interval of a parameter by its profile likelihood, the one of the resamples kept beside it."""
  low, high = profile.interval(fit, name)
  open_ends = [word for word, end in (("below", low), ("above", high)) if end is None]
  why = f"the likelihood does not bound it {' or '.join(open_ends)}" if open_ends else ""
  if low is not None and high is not None and not (low > 0 and high / low < uncertainty.TOO_WIDE):
    why = "the interval spans a factor of 10 or more"
  return {
    "method": "profile likelihood", "level": profile.LEVEL, "low": low, "high": high, "identified": not why, "why": why,
    "resampled": {"method": resampled["method"], "low": resampled["low"], "high": resampled["high"]},
  }  # fmt: skip


def _completed(at: Mapping[str, float]) -> dict[str, float]:
  """A new run's variables with C = 6 N D and all tokens different where nothing else is said."""
  derived = {}
  if {"N", "D"} <= set(at):
    derived["C"] = optimal.FLOP_PER_PARAMETER_AND_TOKEN * at["N"] * at["D"]
  if "D" in at:
    derived["D_unique"] = at["D"]
  return {**derived, **at}


def _unknown(law: FittedLaw, at: Mapping[str, float]) -> list[str]:
  """The variables of the law that are not known of a new run."""
  return [v for v in law.variables if v not in _completed(at)]


def _prediction(law: FittedLaw, at: Mapping[str, float]) -> dict[str, Any]:
  """The loss that the law predicts for a new run, with its interval."""
  values = _completed(at)
  band = law.run_interval(**{v: values[v] for v in law.variables})
  predicted = float(law.predict(**{v: np.asarray(values[v]) for v in law.variables}))
  return {**at, "predicted": predicted, "loss": predicted, "low": band and band[0], "high": band and band[1]}


def _held_out(law: FittedLaw, table: Table, *, rows: Array, held: Array) -> dict[str, Any]:
  if not held.any():
    return {"n": 0, "mape": None, "c_ratio": None, "points": []}
  points = []
  for k in np.flatnonzero(held):
    at = {v: float(column[k]) for v in VARIABLES if (column := table.values.get(v)) is not None}
    points.append({**_prediction(law, at), "loss": float(table.values["loss"][k])})
  errors = [abs(point["predicted"] / point["loss"] - 1) for point in points]
  C = table.values.get("C")
  ratio = None if C is None else float(C[held].max() / C[rows].max())
  return {"n": len(points), "mape": float(100 * np.mean(errors)), "c_ratio": ratio, "points": points}


def _data(table: Table, *, dropping: Any, spread: float | None, kept: Array, held: Array) -> dict[str, Any]:
  return {
    **table.record,
    "rule": dropping,
    "seed_spread": spread,
    "n_fitted": int(kept.sum()),
    "n_held_out": int(held.sum()),
  }


def checklist(
  table: Table, options: Options, *, kept: Array, held: Array, clusters: Array, spread: float | None,
  records: Mapping[str, Any],
) -> dict[str, str]:  # fmt: skip
  """The questions of Li et al. 2025 ("(Mis)Fitting", arXiv 2502.18969) that a table can answer, with its answers."""
  final, rates = table.columns.get("final"), table.columns.get("lr")
  methods = [each["method"] for record in records.values() for each in record["intervals"].values()]
  ends = (
    f"{int((final[kept] == '1').sum())} of {int(kept.sum())} at the end of their schedule" if final is not None else ""
  )
  chosen = f"{len(np.unique(rates[kept]))} rates, see the notes of the sweep" if rates is not None else ""
  objective = f"sum of Huber({options.delta:g}) of log residuals" if options.objective == "huber" else options.objective
  seeds = "no cells that differ in their seed alone" if spread is None else f"{100 * spread:.2f} % of the loss"
  tested = f"{int(held.sum())} held-out rows; they never enter the choice" if held.any() else "no held-out rows"
  reasons = [each["reason"] for each in table.record["dropped"]]
  left_out = [f"{reasons.count(reason)}: {reason}" for reason in dict.fromkeys(reasons)]
  derived = table.record.get("derived")
  counted = f"{', '.join(derived)}; the others as in the table" if derived else "as in the table"
  if "N_total" in table.columns:
    counted = "N without embeddings, biases and norms; C by exact count of matrix products with attention and head"
  return {
    "What form is fitted?": "; ".join(f"{name}: {record['equation']}" for name, record in records.items()),
    "How are N, D and C counted?": counted,
    "How many points and runs are fitted?": f"{int(kept.sum())} points of {len(np.unique(clusters[kept]))} clusters",
    "Final or intermediate checkpoints?": ends or "not known",
    "How was the learning rate chosen?": chosen or "not in the table",
    "Which points were left out, and why?": "; ".join(left_out) or "none",
    "What is minimised?": objective,
    "How are rows weighted?": "all equally",
    "Which optimiser, from how many starts?": f"damped Newton from {options.starts} (grid of exponents, and random)",
    "How are intervals made?": f"{methods[0]}, {options.bootstrap} resamples" if methods else "none made",
    "What is the noise between seeds?": seeds,
    "Is the law tested on runs it did not see?": tested,
  }


def plain(value: Any) -> Any:
  """JSON values: NumPy numbers made plain, what is not finite made null."""
  if isinstance(value, Mapping):
    return {str(k): plain(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [plain(v) for v in value]
  if isinstance(value, np.generic):
    value = value.item()
  return None if isinstance(value, float) and not np.isfinite(value) else value
