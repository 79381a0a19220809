"""isoFLOP analysis: the best size at each of several budgets by five methods side by side, their exponents, and their biases.

Approach 2 of Hoffmann et al. 2022, https://arxiv.org/abs/2203.15556: a valley of the loss over ln N at each compute C, its
minimum N*(C), and a line through ln N* against ln C (`views`). Methods: `valleys` has four; the fifth is the fitted law's own
minimum (`surface`). Rows held out or dropped from the fits take no part; seeds at one (C, N) are averaged.

Intervals are made by a residual bootstrap: every row's loss gets noise, and everything is done anew on the budgets that the
measured losses bracket. Resampling cases would drop sizes and with them a side of the few that bracket a minimum. The noise is
the spread between seeds, where there are seeds, else the scatter about a cubic in every budget; its own uncertainty enters by
a chi-squared draw in each resample (so that few degrees of freedom give intervals as wide as Student's). Akima's minimum is the
median over these resamples, as in Porian et al. 2024, https://arxiv.org/abs/2406.19146.

Bias: the fitted law's losses, without noise, on the table's own grid go through the same methods; exponent found minus the
law's own is the method's bias on this grid, if the law is right. To leading order a parabola over sizes with moments m2, m4
about the minimum has its vertex at -(skew/6) m4/m2, skew = beta - alpha, beside it; a grid whose centre drifts against the
optimum turns this into a wrong exponent.

`analyse` gives the key `isoflop` of fit.json:
  grouping: rule, tolerance, span_limit, compute, widest, too_wide, rows_of_one_size (`budgets.record`)
  tokens: how D* follows from N*.  surface: form, parameters, flop_factor (C/(6 N D), least and largest, where it is not 1)
  noise: sd (of ln loss), dof, source, scatter (sd about cubics), seeds.  resampling: method, count, why
  budgets: for each C, rows, span, points (N, D, loss, seeds), methods: name -> N, D, loss, usable, reason, and 95 % bounds N_low,
    N_high, D_low, D_high; surface_curve (N, loss)
  exponents: method -> {a, b}: value, low, high, identified, why; prefactor (N* = prefactor C^a), budgets (how many were usable)
  bias: method -> a and b: found, exact, bias; log_shift per budget;  grid_drift, skew and leading_shift per budget
  definitions: the exponents again for other counts of N and C;  difference: a by N and 6 N D minus a by N_total
  envelope: `envelope.analyse`.  warnings: sentences.

Axis letters: R versions of the losses (measured, then resamples), n rows, B budgets.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ilya_jax.scaling import budgets as grouping
from ilya_jax.scaling import envelope, uncertainty, valleys
from ilya_jax.scaling.budgets import Budgets
from ilya_jax.scaling.fitted import FittedLaw
from ilya_jax.scaling.fitting import FittedTable, plain
from ilya_jax.scaling.rows import Options, fit_rows, lacking
from ilya_jax.scaling.surface import flop_factor
from ilya_jax.scaling.table import Table
from ilya_jax.scaling.valleys import METHODS, REASONS
from ilya_jax.scaling.views import FEWEST, Noise, Solution, View, make_view, means, noise_of, slope, solve, versions

Array = np.ndarray

_LOST = 0.2  # share of the resamples that may lack two usable budgets
_BIAS = 0.01  # of an exponent: above it a warning
_APART = 0.05  # in ln N, between the vertices of two methods: above it a warning, where noise does not explain it
_CURVE = 61  # sizes of a drawn valley
_WHY_RESIDUALS = "a budget has few sizes; resampling cases would drop a side of its bracket"


def of_fit(
  fit: FittedTable, table: Table, *, options: Options, trainings: Sequence[envelope.Training] = ()
) -> dict[str, Any]:
  """`analyse` of a fitted table, with the law of smallest inner error that has an optimum as the surface."""
  name = next((form["form"] for form in fit.result["forms"] if form["optimal"] is not None), None)
  return analyse(table, fit.part, law=None if name is None else fit.laws[name], options=options, trainings=trainings)


def analyse(
  table: Table, part: Array, *, law: FittedLaw | None, options: Options, trainings: Sequence[envelope.Training] = ()
) -> dict[str, Any]:
  """The isoFLOP analysis of the rows whose `part` [n] is "fit"; module docstring: what it holds.

  law: the fitted law that serves as the surface, None where none has an optimum. options: bootstrap resamples, seed, and how
  the law is refitted where sizes count otherwise. trainings: loss curves for the envelope, where the table's own
  intermediate rows are too few.
  Raises UserError where no two sizes have equal compute.
  """
  rows = np.asarray(part) == "fit"
  found = grouping.find(table, rows)
  view = make_view(table, found, size="N", compute=found.compute, law=law)
  noise = noise_of(view, table.values["loss"])
  losses = versions(table.values["loss"], noise, options)
  solved = solve(view, losses)
  slopes, exponents = _exponents(view, solved)
  bias = bias_of(view, solved)
  others = [] if law is None else _definitions(table, found, rows, law=law, losses=losses, options=options)
  views = [(view, slopes, exponents), *others]
  resampled = len(losses) > 1
  record: dict[str, Any] = {
    "grouping": grouping.record(found, table),
    "tokens": "C/(6 N)" if view.factor.is_6nd else "C over the FLOP of a token, 6 N times a factor interpolated in N",
    "surface": _surface_record(view),
    "noise": noise._asdict(),
    "resampling": {
      "method": "residual bootstrap, percentile" if resampled else "none", "count": len(losses) - 1,
      "why": _WHY_RESIDUALS if resampled else "no measure of noise" if options.bootstrap else "--bootstrap 0",
    },
    "budgets": [_budget_record(view, table, solved, b) for b in range(len(view.groups))],
    "exponents": exponents,
    "bias": bias,
    "definitions": [_definition_record(*each) for each in views],
    "difference": _difference(views),
    "envelope": envelope.analyse(envelope.choose(envelope.trainings_of(table, rows), trainings)),
  }  # fmt: skip
  record["warnings"] = [*found.notes, *_warnings(view, solved, noise, record)]
  return plain(record)


def _exponents(view: View, solved: Mapping[str, Solution]) -> tuple[dict[str, Array], dict[str, Any]]:
  """(method -> the exponent a [R], method -> its record)."""
  slopes, records = {}, {}
  for method, found in solved.items():
    usable = (found.code == 0) & (found.code[:1] == 0)
    log_d = view.factor.log_tokens(np.where(usable, found.at, view.log_c / 2), view.log_c)
    a, intercept = slope(view.log_c, found.at, usable)
    b, _ = slope(view.log_c, log_d, usable)
    slopes[method] = a
    records[method] = {
      "a": _interval(a), "b": _interval(b), "prefactor": float(np.exp(intercept[0])), "budgets": int(usable[0].sum()),
    }  # fmt: skip
  return slopes, records


def _interval(values: Array, *, any_value: bool = False) -> dict[str, Any]:
  """value, low, high, identified, why of an exponent [R], or of any other number."""
  record: dict[str, Any] = {"value": float(values[0]), "low": None, "high": None, "identified": True, "why": ""}
  drawn = values[1:][np.isfinite(values[1:])]
  if not np.isfinite(values[0]):
    return record | {"identified": False, "why": f"fewer than {FEWEST} usable budgets"}
  if len(values) == 1:
    return record | {"why": "no resamples"}
  lost = 1 - len(drawn) / (len(values) - 1)
  if lost <= _LOST or len(drawn) > 1:
    record["low"], record["high"] = uncertainty.interval(drawn)
  if lost > _LOST:
    record |= {
      "identified": False,
      "why": f"{100 * lost:.0f} % of the resamples have fewer than {FEWEST} usable budgets",
    }
  elif not any_value and record["low"] <= 0 and record["high"] >= 1:
    record |= {"identified": False, "why": "the interval holds all from 0 to 1"}
  return record


def bias_of(view: View, solved: Mapping[str, Solution]) -> dict[str, Any] | None:
  """What each method finds, on this grid, of losses that are the surface's own; None without a surface."""
  surface = view.surface
  if surface is None:
    return None
  log_n, rows = np.log(view.N), np.concatenate(view.groups)
  exact, _ = surface.optimum(view.log_c)
  synthetic = np.ones(len(view.N))
  synthetic[rows] = np.exp(surface.log_loss(log_n[rows], np.log(view.D[rows])))
  again = solve(view, synthetic[None])
  record: dict[str, Any] = {}
  for method in METHODS:
    at = again[method].at[:1]
    usable = (solved[method].code[:1] == 0) & np.isfinite(at) & np.isfinite(exact[:1])
    shown = {}
    tokens, exact_tokens = _tokens(view, at, usable), _tokens(view, exact[:1], usable)
    for name, found, own in (("a", at, exact[:1]), ("b", tokens, exact_tokens)):
      values = [float(slope(view.log_c, each, usable)[0][0]) for each in (found, own)]
      shown[name] = {"found": values[0], "exact": values[1], "bias": values[0] - values[1]}
    record[method] = shown | {"log_shift": list(np.where(usable, at - exact[:1], np.nan)[0])}
  centres = np.array([np.unique(log_n[group]).mean() for group in view.groups])[None]
  there = np.isfinite(centres)
  record["grid_drift"] = float((slope(view.log_c, centres, there)[0] - slope(view.log_c, exact[:1], there)[0])[0])
  record["skew"] = [surface.skew(float(c), float(x)) for c, x in zip(view.log_c, exact[0], strict=True)]
  record["leading_shift"] = [
    _leading_shift(np.unique(log_n[group]) - x, skew)
    for group, x, skew in zip(view.groups, exact[0], record["skew"], strict=True)
  ]
  return record


def _tokens(view: View, at: Array, usable: Array) -> Array:
  return view.factor.log_tokens(np.where(usable, at, view.log_c / 2), view.log_c)


def _leading_shift(u: Array, skew: float) -> float:
  """Where the parabola over sizes at `u` in ln N from the minimum has its vertex, for the valley u^2/2 + skew u^3/6."""
  return float(valleys.minimum("parabola", u, (u**2 / 2 + skew * u**3 / 6)[None]).at[0])


def _definitions(
  table: Table, found: Budgets, rows: Array, *, law: FittedLaw, losses: Array, options: Options
) -> list[tuple[View, dict[str, Array], dict[str, Any]]]:
  """The analysis again for N with 6 N D and, with the law refitted, for N_total with the table's C and with 6 N_total D."""
  both = _law_of_total(table, rows, law=law, options=options)
  wanted = [("N", compute, law) for compute in ("C", "6ND") if compute != found.compute]
  wanted += [("N_total", compute, both) for compute in ("C", "6ND") if both is not None]
  views: list[tuple[View, dict[str, Array], dict[str, Any]]] = []
  for size, compute, surface in wanted:
    view = make_view(table, found, size=size, compute=compute, law=surface)
    if compute == "C" and view.factor.is_6nd:
      continue  # the same as 6ND
    if size == "N" and compute == "6ND" and flop_is_6nd(table, rows):
      continue
    views.append((view, *_exponents(view, solve(view, losses))))
  return views


def flop_is_6nd(table: Table, rows: Array) -> bool:
  """Whether the table's C is 6 N D."""
  N, D, C = (table.values[name][rows] for name in ("N", "D", "C"))
  return flop_factor(N, D, C).is_6nd


def _law_of_total(table: Table, rows: Array, *, law: FittedLaw, options: Options) -> FittedLaw | None:
  """The law refitted with N_total for N; None where the table lacks it or it does not determine the law."""
  if "N_total" not in table.columns:
    return None
  try:
    total = table.columns["N_total"].astype(float)
  except ValueError:
    return None
  counted = table._replace(values={**table.values, "N": total})
  if not (np.isfinite(total[rows]) & (total[rows] > 0)).all() or lacking(counted, rows, law.name):
    return None
  fit = fit_rows(counted, rows, name=law.name, options=options)
  if law.draws is None:
    return FittedLaw(fit, None)
  draws = uncertainty.resample(fit, clusters=table.cluster[rows], count=options.bootstrap, seed=options.seed)
  return FittedLaw(fit, draws)


def _definition_record(view: View, slopes: Mapping[str, Array], exponents: Mapping[str, Any]) -> dict[str, Any]:
  """One element of `definitions`; moved: the widest spread of ln C in a budget of the other count that the law bridged."""
  spread = max(float(np.ptp(np.log(view.C[group]))) for group in view.groups)
  return {
    "size": view.size, "compute": "C" if view.compute == "C" else f"6 {view.size} D", "exponents": exponents,
    "moved": spread if view.move.any() else 0.0,
  }  # fmt: skip


def _difference(views: Sequence[tuple[View, Mapping[str, Array], Mapping[str, Any]]]) -> dict[str, Any] | None:
  """a of N against 6 N D minus a of N_total against 6 N_total D, method by method, by the same resamples."""
  by_count = {(view.size, "6ND" if view.factor.is_6nd else "C"): slopes for view, slopes, _ in views}
  first, second = by_count.get(("N", "6ND")), by_count.get(("N_total", "6ND"))
  if first is None or second is None:
    return None
  return {method: _interval(first[method] - second[method], any_value=True) for method in first if method in second}


def _surface_record(view: View) -> dict[str, Any] | None:
  """The law, its parameters, and C/(6 N D) on the sizes."""
  if view.surface is None:
    return None
  factor, fit = view.factor, view.surface.law.fit
  ratio = None if factor.is_6nd else [float(np.exp(factor.log_factor.min())), float(np.exp(factor.log_factor.max()))]
  return {"form": fit.form, "parameters": fit.parameters, "flop_factor": ratio}


def _budget_record(view: View, table: Table, solved: Mapping[str, Solution], b: int) -> dict[str, Any]:
  """One element of `budgets`."""
  group, log_c = view.groups[b], view.log_c[b]
  log_n, losses = means(view.N[group], table.values["loss"][None, group])
  counts = [int(np.isclose(np.log(view.N[group]), x, atol=1e-9, rtol=0).sum()) for x in log_n]
  tokens = [float(view.D[group][np.isclose(np.log(view.N[group]), x, atol=1e-9, rtol=0)].mean()) for x in log_n]
  points = [
    {"N": float(np.exp(x)), "D": d, "loss": float(loss), "seeds": count}
    for x, d, loss, count in zip(log_n, tokens, losses[0], counts, strict=True)
  ]
  methods = {}
  for method, found in solved.items():
    at, code = found.at[:, b], found.code[:, b]
    drawn = at[1:][code[1:] == 0]
    N, log_d = np.exp(at), view.factor.log_tokens(np.where(np.isfinite(at), at, 0.0), log_c)
    entry = {
      "N": float(N[0]), "D": float(np.exp(log_d[0])) if np.isfinite(at[0]) else None, "loss": float(found.loss[0, b]),
      "usable": bool(code[0] == 0), "reason": REASONS[code[0]] if method != "surface" else _outside(log_n, at[0]),
    }  # fmt: skip
    for name, values in (("N", np.exp(drawn)), ("D", np.exp(log_d[1:][code[1:] == 0]))):
      low, high = uncertainty.interval(values) if len(drawn) > 1 and code[0] == 0 else (None, None)
      entry |= {f"{name}_low": low, f"{name}_high": high}
    methods[method] = entry
  record = {
    "C": float(np.exp(log_c)), "rows": len(group), "span": float(np.ptp(np.log(view.C[group]))), "points": points,
    "methods": methods,
  }  # fmt: skip
  if view.surface is not None:
    grid = np.linspace(log_n[0] - 0.3, log_n[-1] + 0.3, _CURVE)
    record["surface_curve"] = {"N": list(np.exp(grid)), "loss": list(view.surface.valley(grid, float(log_c)))}
  return record


def _outside(log_n: Array, at: float) -> str:
  """What the bracket test says of the law's minimum, which needs no bracket."""
  if not np.isfinite(at):
    return "the law has no minimum near these sizes"
  code = int(valleys.bracket(log_n, np.array([at]))[0])
  return REASONS[code]


def _warnings(view: View, solved: Mapping[str, Solution], noise: Noise, record: Mapping[str, Any]) -> list[str]:
  """What a reader must know before the numbers."""
  texts = []
  for method in METHODS:
    refused = int((solved[method].code[0] > 0).sum())
    if refused:
      texts.append(
        f"{refused} of {len(view.groups)} budgets are refused by {method.replace('_', ' ')}: see their reasons."
      )
    bias = (record["bias"] or {}).get(method, {}).get("a", {}).get("bias", np.nan)
    if abs(bias) > _BIAS:
      texts.append(
        f"{method.replace('_', ' ').capitalize()}: on this grid the law's own losses give an exponent a off by {bias:+.3f} "
        "(valley skew and drift of the grid against the optimum)."
      )
  texts += _vertex_warning(solved)
  if view.surface is None:
    texts.append("No fitted law has an optimum at C = 6 N D: there is no surface, and biases are not known.")
  if noise.seeds and noise.scatter > 2 * noise.sd:
    texts.append(
      f"The scatter about a cubic ({100 * noise.scatter:.2f} % of the loss) is over twice the spread between seeds "
      f"({100 * noise.sd:.2f} %): intervals from seeds are too narrow, or valleys are no cubics."
    )
  if view.factor.spread > 0.05:
    texts.append("C/(6 N D) differs between rows of one size: its mean is taken.")
  moved = max((each["moved"] for each in record["definitions"]), default=0.0)
  if moved > np.log(2):
    texts.append(
      f"Budgets of the other counts spread over a factor {np.exp(moved):.1f} in compute; the law bridged it."
    )
  return texts


def _vertex_warning(solved: Mapping[str, Solution]) -> list[str]:
  """A sentence where the parabola's vertex lies beside the local quadratic's by more than their noise."""
  whole, local = solved["parabola"], solved["local_quadratic"]
  usable = (whole.code == 0) & (local.code == 0) & (whole.code[:1] == 0) & (local.code[:1] == 0)
  if not usable[0].any():
    return []
  apart = np.where(usable, whole.at - local.at, 0.0).sum(1) / np.maximum(usable.sum(1), 1)
  spread = float(apart[1:].std()) if len(apart) > 2 else 0.0
  if abs(apart[0]) <= max(_APART, 2 * spread):
    return []
  return [
    f"The parabola's vertices lie {np.exp(abs(apart[0])):.2f} times {'above' if apart[0] > 0 else 'below'} those of the local "
    "quadratic: the valleys are skewed."
  ]
