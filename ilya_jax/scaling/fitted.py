"""A fitted law with its resamples, and its compute-optimal allocation as fit.json holds it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ilya_jax.scaling import allocation, optimal, uncertainty
from ilya_jax.scaling.fit import Fit
from ilya_jax.scaling.laws import FORMS, VARIABLES
from ilya_jax.scaling.rows import Options, fit_rows, lacking
from ilya_jax.scaling.table import Table

Array = np.ndarray


class FittedLaw(NamedTuple):
  """A law with its resamples, for figures: `predict` and `band` take arrays [k] of its variables."""

  fit: Fit
  draws: uncertainty.Draws | None

  @property
  def name(self) -> str:
    """The form's name."""
    return self.fit.form

  @property
  def equation(self) -> str:
    """The form's equation."""
    return FORMS[self.fit.form].equation

  @property
  def variables(self) -> tuple[str, ...]:
    """Which of N, D, C it takes."""
    return FORMS[self.fit.form].variables

  def predict(self, **variables: Array) -> Array:
    """The loss [k]."""
    return self.fit.predict(**{v: variables[v] for v in self.variables})

  def band(self, **variables: Array) -> tuple[Array, Array] | None:
    """The 95 % interval of the law, [k] and [k]; None without resamples."""
    if self.draws is None:
      return None
    return uncertainty.law_band(self.fit.form, self.draws, self.fit.points.centre, **variables)

  def run_interval(self, **variables: float) -> tuple[float, float] | None:
    """The 95 % interval of a new run's loss; None without resamples."""
    if self.draws is None:
      return None
    return uncertainty.prediction_band(self.fit.form, self.draws, self.fit.points.centre, **variables)


def optimum(law: FittedLaw, table: Table, options: Options) -> dict[str, Any] | None:
  """Exponents a and b, and the optimum at each target compute (at the table's largest if there is none).

  Beside each optimum stand the published rules: what they would train, its loss and deadweight compute by this law.
  """
  found = optimal.exponents(law.name, law.fit.parameters)
  if found is None:
    return None
  targets = list(options.target_compute) or ([float(table.values["C"].max())] if "C" in table.values else [])
  drawn = None if law.draws is None else optimal.exponents(law.name, law.draws.parameters)
  record: dict[str, Any] = {}
  for k, name in enumerate(("a", "b")):
    low, high = (None, None) if drawn is None else uncertainty.interval(np.asarray(drawn[k]))
    record[name] = {"value": float(found[k]), "low": low, "high": high}
  record["targets"] = [_target(law, compute) for compute in targets]
  return record


def _target(law: FittedLaw, compute: float) -> dict[str, Any]:
  """N, D, loss and tokens_per_parameter at one compute, with their intervals, and N* by minimisation."""
  record: dict[str, Any] = {"C": compute}
  for name, (value, low, high) in frontier(law, np.array([compute])).items():
    record |= {name: float(value[0]), f"{name}_low": float(low[0]), f"{name}_high": float(high[0])}
  try:
    record["numeric_N"] = optimal.minimise(law.name, law.fit.parameters, compute=compute).N
  except ValueError:
    record["numeric_N"] = None
  record["rules"] = rules(law, compute, allocation.published(np.array([compute])))
  return record


def rules(law: FittedLaw, compute: float, sizes: Mapping[str, Array]) -> list[dict[str, Any]]:
  """What each rule, name -> N [1], would train with `compute` FLOP, and what that is worth by the law."""
  records = []
  for name, N in sizes.items():
    D = compute / optimal.FLOP_PER_PARAMETER_AND_TOKEN / N
    lost = allocation.deadweight(law.name, law.fit.parameters, N=N, D=D)
    loss = law.predict(N=N, D=D, D_unique=D)
    records.append({
      "rule": name, "N": float(N[0]), "D": float(D[0]), "loss": float(loss[0]),
      "deadweight": None if lost is None else float(lost[0]),
    })  # fmt: skip
  return records


def compare_optima(
  laws: Mapping[str, FittedLaw], records: Mapping[str, dict[str, Any]], ranking: Sequence[str]
) -> None:
  """Adds to the targets of the best law with an optimum what the other laws would train there."""
  with_optimum = [name for name in ranking if records[name]["optimal"]]
  for target in records[with_optimum[0]]["optimal"]["targets"] if with_optimum else ():
    sizes = {}
    for name in with_optimum[1:]:
      best = optimal.allocate(name, laws[name].fit.parameters, compute=np.array([target["C"]]))
      assert best is not None
      sizes[name] = best.N
    target["rules"] += rules(laws[with_optimum[0]], target["C"], sizes)


def between_forms(records: Mapping[str, dict[str, Any]], ranking: Sequence[str]) -> list[dict[str, Any]]:
  """How far the laws of more than one variable lie apart, where each can say something: an interval of one law leaves that out.

  Each record: `what` (prediction, held_out, N, D or loss at an optimum), `at` (its variables), `low` and `high` over the laws,
  `forms` (how many), and `within` (the interval of the first law, None without resamples).
  """
  joint = [records[name] for name in ranking if len(FORMS[name].variables) > 1]
  said: dict[tuple[str, str], tuple[dict[str, Any], list[float], Any]] = {}
  for record in joint:
    points = [("prediction", each) for each in record["predictions"]]
    points += [("held_out", each) for each in record["held_out"]["points"]]
    for what, each in points:
      at = {v: each[v] for v in VARIABLES if v in each}
      said.setdefault((what, str(at)), (at, [], (each["low"], each["high"])))[1].append(each["predicted"])
    for target in (record["optimal"] or {"targets": []})["targets"]:
      for what in ("N", "D", "loss"):
        within = (target[f"{what}_low"], target[f"{what}_high"])
        said.setdefault((f"optimal {what}", str(target["C"])), ({"C": target["C"]}, [], within))[1].append(target[what])
  return [
    {"what": what, "at": at, "low": min(values), "high": max(values), "forms": len(values), "within": list(within)}
    for (what, _), (at, values, within) in said.items()
    if len(values) > 1
  ]


def counted_both_ways(table: Table, rows: Array, options: Options) -> dict[str, Any] | None:
  """The exponent of N* with and without embeddings, and the slope that the latter has on this ladder; None where N_total is lacking.

  A Chinchilla law in N_total is fitted; `allocation.ladder_slope` says how its optimum looks where N and C leave embeddings out.
  """
  if "N_total" not in table.columns or not {"N", "D"} <= set(table.values):
    return None
  N, total = table.values["N"][rows], table.columns["N_total"].astype(float)
  if not (np.isfinite(total) & (total > table.values["N"])).all() or lacking(table, rows, "chinchilla"):
    return None
  own = fit_rows(table, rows, name="chinchilla", options=options).parameters
  counted = table._replace(values={**table.values, "N": total})
  both = fit_rows(counted, rows, name="chinchilla", options=options).parameters
  slope = allocation.ladder_slope(both["alpha"], both["beta"], N=N, N_total=total[rows])
  return {
    "form": "chinchilla", "a_N": own["beta"] / (own["alpha"] + own["beta"]), "a_N_total": slope.of_total,
    "ladder_slope": slope.of_ladder, "g": slope.embeddings.g, "power": slope.embeddings.power, "g_error": slope.embeddings.error,
    "alpha": slope.alpha, "beta": slope.beta,
    "local_slope": [{"N": n, "x": x, "slope": each} for n, x, each in zip(slope.N, slope.x, slope.slope, strict=True)],
  }  # fmt: skip


def frontier(law: FittedLaw, compute: Array) -> dict[str, Array]:
  """N, D, loss and tokens_per_parameter of the optimum at compute [k] FLOP, each [3, k] as value, low, high.

  low and high are nan without resamples. Raises ValueError for a law of one variable.
  """
  best = optimal.allocate(law.name, law.fit.parameters, compute=compute)
  if best is None:
    raise ValueError(f"{law.name} has no optimum at C = 6 N D")
  values = {"N": best.N, "D": best.D, "loss": best.loss, "tokens_per_parameter": best.D / best.N}
  if law.draws is None:
    return {name: np.stack([value, *[np.full_like(value, np.nan)] * 2]) for name, value in values.items()}
  columns = {name: drawn[:, None] for name, drawn in law.draws.parameters.items()}
  drawn = optimal.allocate(law.name, columns, compute=compute[None])
  assert drawn is not None
  log_n, log_d = np.log(drawn.N) - law.fit.points.centre["N"], np.log(drawn.D) - law.fit.points.centre["D"]  # [S, k]
  of = FORMS[law.name].log_loss
  at = [{"N": n, "D": d, "D_unique": d} for n, d in zip(log_n, log_d, strict=True)]
  losses = [of(theta[None], at[s])[0][0] for s, theta in enumerate(law.draws.theta)]
  samples = {"N": drawn.N, "D": drawn.D, "loss": np.exp(losses), "tokens_per_parameter": drawn.D / drawn.N}
  return {name: np.stack([values[name], *np.quantile(samples[name], [0.025, 0.975], axis=0)]) for name in values}
