"""The sections of a report: for each family its figures with captions, tables and sentences, then what they share."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ilya_jax.scaling import document, drawing, law_tables, plots, plots_allocation
from ilya_jax.scaling.document import Part, Picture, Section, percent
from ilya_jax.scaling.families import Family
from ilya_jax.scaling.laws import FORMS
from ilya_jax.scaling.table import Table

Draw = Callable[[str, Figure, str, str], Picture]  # (name of the file, figure, title, caption) -> what the report shows


def family_section(family: Family, *, draw: Draw) -> Section:
  """The section of one family."""
  name, best = family.name, family.best
  parts = [_curves_part(family, draw)]
  if best is not None:
    parts += [_chosen_part(family, best, draw), _test_part(family, draw), _errors_part(family, best, draw)]
    table = law_tables.sensitivity_table(best)
    if table is not None:
      figures = _choices_figure(family, best, draw)
      parts.append(Part(f"What moves the {best['form']} fit", f"{name}-sensitivity", figures=figures, tables=[table]))
    others = family.result["forms"][1:]
    parts += [_other_part(family, form, draw) for form in others if len(law_tables.variables(form)) > 1]
    single = [form for form in others if len(law_tables.variables(form)) == 1]
    if single:
      parts.append(_single_part(family, single, draw))
  return Section(document.family_title(name), name, parts)


def _curves_part(family: Family, draw: Draw) -> Part:
  name, measured = family.name, family.measured
  figures = []
  if family.curves:
    figures.append(draw(
      f"{name}_curves", plots.loss_curves(family.curves, measured), "Loss curves and their envelope",
      "Each line is the training loss of one run, smoothed over 6 % of its steps, a colour for each size; dotted ends are "
      "the cooldowns that branch off. Marks are held-out losses at the ends of runs, the star is the held-out run. The dashed "
      "envelope is the lowest training loss reached with a given compute: where a larger model touches it, that model has "
      "become the better buy.",
    ))  # fmt: skip
  if len(measured.loss) and np.isfinite(measured.N).all() and np.isfinite(measured.C).all():
    caption = (
      "Final held-out losses against training compute, by size: at equal compute the lower point is the better choice."
    )
    if family.frontier is not None:
      caption += (
        f" The line is the lowest loss that {family.frontier_of} allows when N and D are chosen best for a compute of 6ND, "
        "without attention and head; runs above it are too small or too large for what was spent on them."
      )
    compute = plots.loss_against_compute(family.frontier, measured, name=family.frontier_of)
    figures.append(draw(f"{name}_compute", compute, "Loss against compute", caption))
  count = {part: int((measured.part == part).sum()) for part in ("fit", "dropped", "held_out")}
  text = f"{count['fit']} points enter the fits"
  text += f", {count['dropped']} were dropped by the rule below" if count["dropped"] else ""
  text += f", {count['held_out']} held out" if count["held_out"] else ""
  return Part("Loss against compute", f"{name}-curves", text=[f"{text}. {_losses_in(measured.loss_unit)}", *family.remarks],
              figures=figures)  # fmt: skip


def _losses_in(unit: str) -> str:
  return f"Losses are in {unit}." if unit.startswith("nats") else f"Losses are {unit}."


def _law_figures(family: Family, form: Mapping[str, Any], draw: Draw) -> list[Picture]:
  """The figures of one law: against N and D where it takes both, else against its variable."""
  law = family.laws.get(form["form"])
  if law is None:
    return []
  stars = " The star is the held-out run, which no fit has seen." if family.has_held_out else ""
  hollow = " Hollow points were dropped from the fit." if (family.measured.part == "dropped").any() else ""
  names = {"N": "parameters", "D": "training tokens", "C": "training compute"}
  if set(law.variables) == {"N", "D"}:
    measured = family.measured
    level = {"N": measured.D, "D": measured.N}  # of which a figure against the other has a line each
    binned = {x: " Each line is at the middle of a range of values." if len(set(values)) > drawing.MOST_LEVELS else ""
              for x, values in level.items()}  # fmt: skip
    return [
      draw(
        f"{family.name}_{law.name}_{x}", plots.law_against(law, family.measured, x=x), f"{law.name} against {names[x]}",
        f"Points are final losses, lines the law at each {'training length D' if x == 'N' else 'size N'}, shades its 95 % "
        f"band. A point on its line is well described.{binned[x]}{hollow}{stars}",
      )
      for x in ("N", "D")
    ]  # fmt: skip
  if len(law.variables) > 1:
    return []
  (x,) = law.variables
  rule = f" It is fitted to the {form['rows']}." if form["rows"] != "all" else ""
  return [draw(
    f"{family.name}_{law.name}", plots.law_of_one(law, family.measured, used=family.used[law.name]), f"{law.name} against {names[x]}",
    f"The law knows the {names[x]} alone.{rule} The shade is its 95 % band; pale points are runs that it does not describe.{stars}",
  )]  # fmt: skip


def _chosen_part(family: Family, form: Mapping[str, Any], draw: Draw) -> Part:
  sentence = law_tables.held_out_sentence(form, family.measured.loss_unit)
  others = [
    other for other in family.result["forms"] if len(law_tables.variables(other)) == len(law_tables.variables(form))
  ]
  left_out = f"{form['inner_clusters']} of the largest fitted runs or trunks left out in turn"
  if form["inner_mape"] is None:
    choice = f"There are too few points to leave some out in turn, so {form['form']} was chosen by AICc."
  elif len(others) > 1:
    choice = f"Of {len(others)} laws, {form['form']} errs least on {left_out}: {percent(form['inner_mape'])}."
  else:
    choice = f"{form['form']} is the law that these points determine; its error on {left_out} is {percent(form['inner_mape'])}."
  return Part(f"The law: {form['form']}", f"{family.name}-law", law=document.equation(form["equation"]), notices=_starts_notice(form),
              text=[f"{choice} {sentence}"], figures=_law_figures(family, form, draw),
              tables=[law_tables.parameter_table(form)])  # fmt: skip


def _starts_notice(form: Mapping[str, Any]) -> list[str]:
  share = (form.get("starts") or {}).get("share_at_best")
  if share is None or share >= 0.5:
    return []
  return [
    f"Only {100 * share:.0f} % of the starts of {form['form']} ended at its best optimum: take its parameters with care."
  ]


def _test_part(family: Family, draw: Draw) -> Part:
  """How every law that can predict the held-out run did, and how far the chosen law's parameters are determined."""
  figures = []
  held, name = family.measured.take("held_out"), family.name
  points = {
    form["form"]: ((form.get("held_out") or {}).get("points") or [None])[0]
    for form in family.result["forms"] if law_tables.variables(form) not in (("N",), ("D",))
  }  # fmt: skip
  if len(held.loss) == 1 and points and all(points.values()):
    rows = [
      [p["predicted"], *(np.nan if p.get(side) is None else p[side] for side in ("low", "high"))]
      for p in points.values()
      if p
    ]
    figure = plots.predictions_by_form(
      list(points), np.array(rows, np.float64), measured=float(held.loss[0]), measured_se=float(held.loss_se[0]),
      unit=family.measured.loss_unit,
    )  # fmt: skip
    figures.append(draw(
      f"{name}_held_out", figure, "The held-out run, predicted by every law",
      "Dots are predictions made from the fitted runs alone, bars their 95 % bands for one new run, best inner error at the "
      "top. The dashed line is the measured loss, its shade the uncertainty of the evaluation. A good law covers it.",
    ))  # fmt: skip
  figures += _resample_figure(family, draw)
  notes = [family.test_note] if family.test_note else []
  title = "Test on the held-out run" if family.has_held_out else "Comparison of the laws"
  return Part(title, f"{name}-test", text=notes, figures=figures, tables=[law_tables.ranking_table(family.result)])


def _resample_figure(family: Family, draw: Draw) -> list[Picture]:
  best = family.best
  law = family.laws[best["form"]] if best is not None else None
  if best is None or law is None or law.draws is None:
    return []
  parameters = best["parameters"]
  powers = FORMS[best["form"]].exponents
  pairs = [(powers[0], powers[1])] if len(powers) > 1 else []
  if "E" in parameters:
    pairs.append((powers[0], "E"))
  if not pairs:
    return []
  labels = {name: f"Exponent {document.plain_symbol(name)} (no unit)" for name in powers}
  labels["E"] = f"Floor E ({family.measured.loss_unit})"
  figure = plots.resamples(law.draws.parameters, parameters, pairs=pairs, labels=labels)
  return [draw(
    f"{family.name}_resamples", figure, f"What the runs say of the parameters of {law.name}",
    "Each dot is the law refitted to one resample of the runs. A small round cloud means well determined; a long thin one means that "
    "the two parameters can be traded for each other.",
  )]  # fmt: skip


def _choices_figure(family: Family, form: Mapping[str, Any], draw: Draw) -> list[Picture]:
  """Exponents, and the floor where there is one, under other choices."""
  names = [*FORMS[form["form"]].exponents, *(["E"] if "E" in form["parameters"] else [])]
  labels = {name: f"Exponent {document.plain_symbol(name)} (no unit)" for name in names}
  labels["E"] = f"Floor E ({family.measured.loss_unit})"
  figure = plots_allocation.choices(form["sensitivity"], names=names, labels=labels)
  return [draw(
    f"{family.name}_choices", figure, "The same law under other choices",
    "Each row is the law refitted after one change to how the fit is made; the dashed line is the fit as reported. What moves "
    "by more than its interval depends on that choice, not on the runs alone.",
  )]  # fmt: skip


def _errors_part(family: Family, form: Mapping[str, Any], draw: Draw) -> Part:
  name, law = family.name, family.laws[form["form"]]
  drawn = set(law.variables) <= {"N", "D", "C"}  # which the points know
  figures = [] if not drawn else [draw(
    f"{name}_residuals", plots.residuals(law, family.measured), "Residuals",
    "How far each measured loss lies above (+) or below (−) the law, against N, D and C. Points scattered about zero mean "
    "that the law's shape is right; a slope or a bow means that it is not.",
  )]  # fmt: skip
  tables = []
  if family.frontier is not None:
    of = next(f for f in family.result["forms"] if f["form"] == family.frontier_of)
    figures += _allocation_figures(family, of, draw)
    tables = [table for table in (law_tables.optimal_table(of), law_tables.rules_table(of)) if table is not None]
  between = law_tables.between_table(family.result)
  counted = law_tables.definitions_sentence(family.result)
  return Part("Residuals and allocation", f"{name}-residuals", text=[counted] if counted else [], figures=figures,
              tables=[*tables, between] if between is not None else tables)  # fmt: skip


def _allocation_figures(family: Family, form: Mapping[str, Any], draw: Draw) -> list[Picture]:
  """What the law with an optimum says of spending compute; with both counts of N, the slope that one of them bends."""
  name, frontier, counted = family.name, family.frontier, family.result.get("definitions")
  assert frontier is not None
  figures = [
    draw(
      f"{name}_allocation", plots_allocation.optima(frontier, family.measured), "Compute-optimal allocation",
      f"The size N*, the tokens D* and their ratio that minimise the loss at each compute by {family.frontier_of}, with 95 % "
      "bands, beside what published rules would train. Dots are the runs, the shade their range: outside it the lines extrapolate. "
      "Kaplan's rule counts N without embeddings, the others all parameters.",
    ),
    draw(
      f"{name}_deadweight", plots_allocation.deadweight(form["form"], form["parameters"], family.measured), "Deadweight compute",
      f"The share of the compute 6ND that buys nothing, by {form['form']}: the same loss could have been had for less with the "
      "best N and D. Lines are the least, a middle and the largest compute of the runs, dots the runs.",
    ),
  ]  # fmt: skip
  if counted:
    slope = plots_allocation.local_slope(counted, alpha=counted["alpha"], beta=counted["beta"])
    figures.append(draw(
      f"{name}_local_slope", slope, "What a count without embeddings does to the exponent",
      "The exponent of N* that a ladder of models of this size shows where N and C leave embeddings out, though the law is one of all "
      "parameters (Pearce & Song 2024). A ladder of small models is steeper by its count alone.",
    ))  # fmt: skip
  return figures


def _other_part(family: Family, form: Mapping[str, Any], draw: Draw) -> Part:
  return Part(f"Also fitted: {form['form']}", f"{family.name}-{form['form']}", law=document.equation(form["equation"]),
              notices=_starts_notice(form), text=[law_tables.held_out_sentence(form, family.measured.loss_unit)],
              figures=_law_figures(family, form, draw), tables=[law_tables.parameter_table(form)])  # fmt: skip


def _single_part(family: Family, forms: Sequence[Mapping[str, Any]], draw: Draw) -> Part:
  """The laws of one variable together: each describes some of the runs."""
  text = (
    "Each of these knows one of N, D and C and is fitted to the runs that the other two bind least. They give the exponents "
    "that Kaplan et al. 2020 print; they are no rivals of the laws of N and D."
  )
  figures = [figure for form in forms for figure in _law_figures(family, form, draw)]
  return Part("Laws of one variable", f"{family.name}-single", notices=[n for form in forms for n in _starts_notice(form)], text=[text],
              figures=figures, tables=[law_tables.single_table(forms)])  # fmt: skip


def sources_section(family: Family, table: Table, *, draw: Draw) -> list[Section]:
  """The tables or sweeps that were joined, over each other; nothing for one alone."""
  measured, names = family.measured, list(dict.fromkeys(table.source))
  if len(names) < 2 or not np.isfinite(measured.C).all():
    return []
  short = _apart(names)
  parts = {short[name]: (measured.where(table.source == name), None) for name in names}
  picture = draw(
    "sources_C", plots.families(parts, x="C"), "The sources over each other",
    "Losses against compute by the table or sweep that each point comes from; one law was fitted to all of them. Points of two "
    "sources that lie apart at equal compute were trained otherwise, or measured on other text.",
  )  # fmt: skip
  return [Section("Sources compared", "sources", [Part(figures=[picture])])]


def _apart(names: Sequence[str]) -> dict[str, str]:
  """Paths without the beginning and the end that all of them share."""
  split = [Path(name).with_suffix("").parts for name in names]
  while len({parts[0] for parts in split}) == 1 and min(map(len, split)) > 1:
    split = [parts[1:] for parts in split]
  while len({parts[-1] for parts in split}) == 1 and min(map(len, split)) > 1:
    split = [parts[:-1] for parts in split]
  return {name: "/".join(parts) for name, parts in zip(names, split, strict=True)}


def families_section(families: Sequence[Family], *, draw: Draw) -> Section:
  """Several families over each other."""
  figures = []
  for x, form, what in (("C", "kaplan_c", "compute"), ("N", "kaplan_n", "parameters")):
    parts = {document.family_title(family.name): (family.measured, family.laws.get(form)) for family in families}
    rule = {"C": "the runs that no run with less compute beats", "N": "the longest training of each size"}[x]
    figures.append(draw(
      f"families_{x}", plots.families(parts, x=x), f"Families against {what}",
      f"Points are fitted runs, outlined ones held-out runs. Lines are each family's power law in {what} alone, {form}, fitted "
      f"to {rule}, with 95 % bands: the lower line is the better buy, unless the bands overlap.",
    ))  # fmt: skip
  both = " and ".join(document.family_title(family.name) for family in families)
  return Section(
    "Families compared", "families", [Part(text=[f"{both}, trained and tested on the same text."], figures=figures)]
  )
