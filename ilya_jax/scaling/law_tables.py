"""What a report says of fitted laws: their parameters, ranking, held-out run, optimum, and what other choices give."""

from collections.abc import Mapping, Sequence
from typing import Any

from ilya_jax.scaling.document import Row, Table, equation, interval, loss_interval, loss_text, number, percent, symbol
from ilya_jax.scaling.drawing import short
from ilya_jax.scaling.laws import FORMS


def variables(form: Mapping[str, Any]) -> tuple[str, ...]:
  """Which of N, D, C, S and D_unique a form takes."""
  return FORMS[form["form"]].variables


def parameter_table(form: Mapping[str, Any]) -> Table:
  """The parameters of a form with intervals, and whether the points determine them."""
  rows = []
  for name, value in form["parameters"].items():
    known = (form.get("intervals") or {}).get(name, {})
    if known.get("identified") is False:
      verdict = f"not identified: {known.get('why') or 'the interval is too wide'}"
    else:
      verdict = "yes" if known else "no interval"
    rows.append(Row([symbol(name), number(value), interval(known.get("low"), known.get("high")), verdict]))
  starts, objective = form.get("starts") or {}, form.get("objective") or {}
  some: Mapping[str, Any] = next(iter((form.get("intervals") or {}).values()), {})
  second = starts.get("second_optimum")
  note = f"{form['n_points']} points. Objective: {objective.get('name')}"
  note += f" with δ = {objective['delta']:g}" if objective.get("name") == "huber" else ""
  note += f", {number(objective.get('value'), 5)} at the optimum. "
  if starts:
    note += f"{starts['n']} starts, {100 * starts['share_at_best']:.0f} % of them at the best optimum"
    if second and objective.get("value"):
      note += f"; the next local optimum is {percent(100 * (second['value'] / objective['value'] - 1))} higher"
    note += "."
  if some.get("method"):
    note += f" Intervals: {some['method']}."
  return Table(
    "Parameters", ("parameter", "value", "95 % interval", "identified"), rows, ("parameter", "identified"), note
  )


def single_table(forms: Sequence[Mapping[str, Any]]) -> Table:
  """Several small laws in one table: their parameters with intervals, the rows that they are fitted to."""
  rows = []
  for form in forms:
    for k, (name, value) in enumerate(form["parameters"].items()):
      known = (form.get("intervals") or {}).get(name, {})
      first = [form["form"], equation(form["equation"])] if k == 0 else ["", ""]
      verdict = (
        f"not identified: {known.get('why')}" if known.get("identified") is False else "yes" if known else "no interval"
      )
      which = str(form["n_points"]) if k == 0 else ""
      bounds = interval(known.get("low"), known.get("high"))
      rows.append(Row([*first, which, symbol(name), number(value), bounds, verdict]))
  header = ("form", "law", "points", "parameter", "value", "95 % interval", "identified")
  return Table("Parameters of the laws of one variable", header, rows, ("form", "law", "parameter", "identified"))


def ranking_table(result: Mapping[str, Any]) -> Table:
  """The forms in the order of the ranking: inner error, AICc, and the held-out error that grades the choice."""
  by_name = {form["form"]: form for form in result["forms"]}
  rows = []
  for place, name in enumerate(result["ranking"]):
    form = by_name[name]
    held = form.get("held_out") or {}
    first = held_out_point(form)
    rows.append(Row(
      [str(place + 1), name, equation(form["equation"]), str(len(form["parameters"])), percent(form.get("inner_mape")),
       percent(form.get("step_mape")), number(form.get("aicc")), percent(held.get("mape")), loss_text(first.get("predicted")),
       loss_interval(first.get("low"), first.get("high"))],
      "chosen" if place == 0 else "",
    ))  # fmt: skip
  header = (
    "rank",
    "form",
    "law",
    "parameters",
    "inner error",
    "error of a step",
    "AICc",
    "held-out error",
    "predicted",
    "95 % band",
  )
  note = (
    "Inner error: the mean error in % on the fitted runs or trunks of largest compute, each left out in turn, with its "
    "repeats of other seeds. It orders the "
    "laws, AICc decides ties; the held-out run enters neither, so its error grades a choice made without it. Laws of one "
    "variable describe some of the runs (AICc does not compare across) and come after those of N and D. Error of a step: the mean "
    "error on all fitted rows above a third of the largest compute, predicted from the others. Band: where one new run "
    "should lie, by the law's uncertainty and the noise of a run together."
  )
  return Table("Forms by inner error", header, rows, ("form", "law"), note)


def held_out_point(form: Mapping[str, Any]) -> dict[str, Any]:
  """The held-out point of a form; of runs repeated with other seeds one with their mean loss; {} of none or of several settings."""
  points = (form.get("held_out") or {}).get("points") or []
  settings = {tuple(point.get(name) for name in ("N", "D", "C", "predicted")) for point in points}
  if len(settings) != 1:
    return {}
  return {**points[0], "loss": sum(point["loss"] for point in points) / len(points), "runs": len(points)}


def held_out_sentence(form: Mapping[str, Any], unit: str) -> str:
  """What the law said of the held-out run and what was measured, in words."""
  held = form.get("held_out") or {}
  points = held.get("points") or []
  if not points:
    return "No run was held out, so the law is not tested on a larger run."
  point = held_out_point(form)
  if not point:
    inside = sum(1 for p in points if p.get("low") is not None and p["low"] <= p["loss"] <= p["high"])
    return (
      f"On {len(points)} held-out points, up to {number(held.get('c_ratio'), 2)} times the largest fitted compute, its mean "
      f"error is {percent(held.get('mape'))}; {inside} of them lie inside their own 95 % band."
    )
  error = 100.0 * (point["predicted"] / point["loss"] - 1.0)
  inside = point.get("low") is not None and point["low"] <= point["loss"] <= point["high"]
  band = ""
  if point.get("low") is not None:
    band = f" (95 % band {loss_text(point['low'])} to {loss_text(point['high'])})"
  sizes = [f"{short(point[q])} {what}" for q, what in (("N", "parameters"), ("D", "tokens")) if q in point]
  nats = f" {unit}" if unit.startswith("nats") else ""
  run = "the held-out run" if point["runs"] == 1 else f"the {point['runs']} held-out runs"
  named = f"{run} of {' and '.join(sizes)}" if sizes else run
  ratio = f", {number(held['c_ratio'], 2)} times the compute of the largest fitted run," if held.get("c_ratio") else ""
  return (
    f"For {named}{ratio} it predicted {loss_text(point['predicted'])}{nats}{band}; measured: "
    f"{loss_text(point['loss'])}{'' if point['runs'] == 1 else ' in the mean'}. Error: {percent(error, signed=True)}"
    + (f", {'inside' if inside else 'outside'} the band." if band else ".")
  )


def optimal_table(form: Mapping[str, Any]) -> Table | None:
  """N*, D*, L* and tokens per parameter at the target computes, with intervals; None for a form without an optimum."""
  best = form.get("optimal")
  if best is None:
    return None
  rows = []
  for target in best["targets"]:
    cells = [number(target["C"], 3)]
    for name in ("N", "D", "loss", "tokens_per_parameter"):
      cells += [number(target[name], 3), interval(target.get(f"{name}_low"), target.get(f"{name}_high"), 3)]
    rows.append(Row(cells))
  header = ("C = 6ND (FLOP)", "N*", "95 %", "D* (tokens)", "95 %", "L*", "95 %", "D*/N*", "95 %")
  powers = [
    f"{quantity} ∝ C^{name} with {name} = {number(best[name]['value'], 3)} {interval(best[name]['low'], best[name]['high'], 3)}"
    for quantity, name in (("N*", "a"), ("D*", "b"))
  ]
  note = f"{'; '.join(powers)}. What lies far beyond the runs is extrapolation: the bands leave out that the form may be wrong."
  return Table(f"Compute-optimal allocation by {form['form']}", header, rows, (), note)


def rules_table(form: Mapping[str, Any]) -> Table | None:
  """What published rules and the other laws would train at the largest target, and what that costs by this law."""
  targets = (form.get("optimal") or {}).get("targets") or []
  if not targets:
    return None
  target = max(targets, key=lambda each: each["C"])
  shown = [
    {
      "rule": f"{form['form']} (this law)",
      "N": target["N"],
      "D": target["D"],
      "loss": target["loss"],
      "deadweight": 0.0,
    }
  ]
  rows = [
    Row([rule["rule"], number(rule["N"], 3), number(rule["D"], 3), number(rule["D"] / rule["N"], 3), number(rule["loss"]),
         percent(None if rule["deadweight"] is None else 100 * rule["deadweight"])], "chosen" if k == 0 else "")
    for k, rule in enumerate([*shown, *target["rules"]])
  ]  # fmt: skip
  note = (
    "Deadweight: the share of the compute that a run of that size and length wastes by this law, since the best run with the "
    "same loss costs so much less. Published rules were found on other text and are extrapolated here; they are no rivals of a fit."
  )
  title = f"Other recommendations at C = {number(target['C'], 3)} FLOP"
  return Table(title, ("rule", "N", "D", "D/N", "loss", "deadweight"), rows, ("rule",), note)


def between_table(result: Mapping[str, Any]) -> Table | None:
  """The spread between forms beside the interval within the first one; None where there is nothing to compare."""
  records = result.get("between_forms") or []
  if not records:
    return None
  rows = []
  for each in records:
    at = ", ".join(f"{name} {short(value) if name != 'C' else number(value, 3)}" for name, value in each["at"].items())
    what = (
      each["what"]
      .replace("held_out", "held-out loss")
      .replace("prediction", "predicted loss")
      .replace("optimal loss", "optimal L")
    )
    show = loss_interval if "loss" in what or what == "optimal L" else interval
    rows.append(Row([f"{what.replace('optimal N', 'N*').replace('optimal D', 'D*').replace('optimal L', 'L*')} at {at}", str(each["forms"]),
                     show(each["low"], each["high"]), show(*each["within"])]))  # fmt: skip
  note = (
    "An interval of one law says what the noise of the runs allows, as if its form were known. Where the laws lie further apart "
    "than that, the form is the larger doubt."
  )
  header = ("quantity", "laws", "lowest to highest over the laws", "95 % interval of the first law")
  return Table("Between the laws and within one", header, rows, ("quantity",), note)


def definitions_sentence(result: Mapping[str, Any]) -> str:
  """What the count of parameters does to the exponent of N*; "" where the table has no second count."""
  known = result.get("definitions")
  if not known:
    return ""
  return (
    f"With embeddings counted (N_total), the Chinchilla fit has N* ∝ C^{number(known['a_N_total'], 3)}; without them "
    f"{number(known['a_N'], 3)}. Where the loss is a law of N_total, a count without embeddings must show a local slope of "
    f"{number(known['ladder_slope'], 3)} over these sizes (Pearce & Song 2024; N_total = N + {number(known['g'], 3)} "
    f"N^{number(known['power'], 2)} within {percent(100 * known['g_error'])}): a small ladder bends the exponent by its count alone."
  )


def sensitivity_table(form: Mapping[str, Any]) -> Table | None:
  """The form refitted under other choices; None where none was tried."""
  variants = form.get("sensitivity") or []
  if not variants:
    return None
  names = list(form["parameters"])
  rows = [
    Row([v["what"], str(v["n_points"]), *(number(v["parameters"][name], 3) for name in names), number(v.get("a"), 3),
         percent(v["held_out_error"], signed=True)],
        "chosen" if k == 0 else "")
    for k, v in enumerate(variants)
  ]  # fmt: skip
  note = "The same form after one change at a time. A number that jumps depends on a choice, not on the runs."
  header = ("change", "points", *map(symbol, names), "a of N* ∝ C^a", "held-out error")
  return Table("Sensitivity to the choices of the fit", header, rows, ("change",), note)
