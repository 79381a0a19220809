"""The sections of a report: for each family its figures with captions, tables and sentences, then what they share."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from ilya_jax.scaling import document, plots
from ilya_jax.scaling.curves import Curve
from ilya_jax.scaling.document import Part, Picture, Section, percent

Draw = Callable[[str, Figure, str, str], Picture]  # (name of the file, figure, title, caption) -> what the report shows


def family_section(family: Family, *, draw: Draw) -> Section:
  """The section of one family."""
  name = family.name
  parts = [_curves_part(family, draw)]
  best = family.best
  if best is not None:
    parts += [_chosen_part(family, best, draw), _test_part(family, draw), _errors_part(family, best, draw)]
    parts += [_other_part(family, form, draw) for form in family.result["forms"] if form is not best]
    sensitivity = document.sensitivity_table(best)
    if sensitivity is not None:
      parts.append(Part(f"What moves the {best['form']} fit", f"{name}-sensitivity", tables=[sensitivity]))
  return Section(document.family_title(name), name, [part for part in parts if part is not None])


def _curves_part(family: Family, draw: Draw) -> Part:
  name, unit = family.name, family.measured.loss_unit
  figures = []
  if family.curves:
    figures.append(draw(
      f"{name}_curves", plots.loss_curves(family.curves, family.measured), "Loss curves and their envelope",
      "Each line is the training loss of one run, smoothed over 6 % of its steps, a colour for each size; dotted ends are "
      "the cooldowns that branch off. Marks are held-out losses at the ends of runs. The dashed envelope is the lowest "
      "training loss reached with a given compute: where lines of larger models cross it, they become the better buy.",
    ))  # fmt: skip
  caption = "Every run's final held-out loss against its training compute, by size."
  if family.frontier is not None:
    caption += (
      f" The line is the lowest loss that {family.frontier_of} allows at each compute; runs above it are too small or too "
      "large for what was spent on them."
    )
  compute = plots.loss_against_compute(family.frontier, family.measured, name=family.frontier_of)
  figures.append(draw(f"{name}_compute", compute, "Loss against compute", caption))
  used = int((family.measured.part == "fit").sum())
  text = [f"{used} points enter the fits; losses are in {unit}."]
  return Part("Loss against compute", f"{name}-curves", text=[*text, *family.remarks], figures=figures)


def _law_figures(family: Family, form: Mapping[str, Any], draw: Draw) -> list[Picture]:
  """The figures of one law: against N and D where it takes both, else against its variable."""
  law = family.laws.get(form["form"])
  if law is None:
    return []
  stars = " The star is the held-out run, which no fit has seen." if family.has_held_out else ""
  hollow = " Hollow points were dropped from the fit." if (family.measured.part == "dropped").any() else ""
  names = {"N": "parameters", "D": "training tokens", "C": "training compute"}
  if set(law.variables) == {"N", "D"}:
    return [
      draw(
        f"{family.name}_{law.name}_{x}", plots.law_against(law, family.measured, x=x), f"{law.name} against {names[x]}",
        f"Points are final losses, lines the law at each {'training length D' if x == 'N' else 'size N'}, shades its 95 % "
        f"band. A point on its line is well described.{hollow}{stars}",
      )
      for x in ("N", "D")
    ]  # fmt: skip
  (x,) = law.variables
  return [draw(
    f"{family.name}_{law.name}", plots.law_of_one(law, family.measured), f"{law.name} against {names[x]}",
    f"The law knows {names[x]} alone, so it runs through the middle of runs that differ in the rest; it is a yardstick for "
    f"the laws of N and D.{hollow}{stars}",
  )]  # fmt: skip


def _chosen_part(family: Family, form: Mapping[str, Any], draw: Draw) -> Part:
  sentence = document.held_out_sentence(form, family.measured.loss_unit)
  text = [f"Of {len(family.result['forms'])} forms, {form['form']} has the smallest error on fitted runs left out in turn "
          f"({percent(form.get('inner_mape'))}), so it is the law of this report. {sentence}"]  # fmt: skip
  tables = [document.parameter_table(form)]
  return Part(f"The law: {form['form']}", f"{family.name}-law", law=document.equation(form["equation"]),
              notices=_starts_notice(form), text=text, figures=_law_figures(family, form, draw), tables=tables)  # fmt: skip


def _starts_notice(form: Mapping[str, Any]) -> list[str]:
  share = (form.get("starts") or {}).get("share_at_best")
  if share is None or share >= 0.5:
    return []
  return [f"Only {100 * share:.0f} % of the starts of {form['form']} ended at its best optimum: take its parameters with care."]


def _test_part(family: Family, draw: Draw) -> Part:
  figures = []
  held = family.measured.take("held_out")
  records = {form["form"]: form for form in family.result["forms"]}
  points = {name: ((records[name].get("held_out") or {}).get("points") or [None])[0] for name in family.result["ranking"]}
  if len(held.loss) == 1 and all(points.values()):
    rows = [[p["predicted"], *(np.nan if p.get(side) is None else p[side] for side in ("low", "high"))] for p in points.values() if p]
    figure = plots.predictions_by_form(
      list(points), np.array(rows, np.float64), measured=float(held.loss[0]), measured_se=float(held.loss_se[0]),
      unit=family.measured.loss_unit,
    )  # fmt: skip
    figures.append(draw(
      f"{family.name}_held_out", figure, "The held-out run, predicted by every form",
      "Dots are predictions made from the fitted runs alone, bars their 95 % intervals, best inner error at the top. The "
      "dashed line is the measured loss, its shade the uncertainty of the evaluation. A good law covers the dashed line.",
    ))  # fmt: skip
  return Part("Test on the held-out run" if family.has_held_out else "Comparison of the forms", f"{family.name}-test",
              figures=figures, tables=[document.ranking_table(family.result)])  # fmt: skip


def _errors_part(family: Family, form: Mapping[str, Any], draw: Draw) -> Part:
  name, law = family.name, family.laws[form["form"]]
  figures = [draw(
    f"{name}_residuals", plots.residuals(law, family.measured), "Residuals",
    "How far each measured loss lies above (+) or below (−) the law, against N, D and C. Points scattered about zero mean "
    "that the law's shape is right; a slope or a bow means that it is not.",
  )]  # fmt: skip
  tables = []
  if family.frontier is not None:
    figures.append(draw(
      f"{name}_allocation", plots.allocation(family.frontier, family.measured), "Compute-optimal allocation",
      f"The size N*, the tokens D* and their ratio that minimise the loss at each compute by {family.frontier_of}, with "
      "95 % bands. Dots are the runs, the shade their range: outside it the lines extrapolate.",
    ))  # fmt: skip
    table = document.optimal_table(next(f for f in family.result["forms"] if f["form"] == family.frontier_of))
    tables = [table] if table is not None else []
  return Part("Residuals and allocation", f"{name}-residuals", figures=figures, tables=tables)


def _other_part(family: Family, form: Mapping[str, Any], draw: Draw) -> Part:
  return Part(f"Also fitted: {form['form']}", f"{family.name}-{form['form']}", law=document.equation(form["equation"]),
              notices=_starts_notice(form), text=[document.held_out_sentence(form, family.measured.loss_unit)],
              figures=_law_figures(family, form, draw), tables=[document.parameter_table(form)])  # fmt: skip


def families_section(families: Sequence[Family], *, draw: Draw) -> Section:
  """Several families over each other."""
  parts = {document.family_title(family.name): (family.measured, family.frontier) for family in families}
  both = " and ".join(parts)
  figures = [
    draw("families_C", plots.families(parts, x="C"), "Families against compute",
         "Points are fitted runs, larger outlined points held-out ones. Lines are each family's lowest loss at a given "
         "compute by its law, with 95 % bands; the lower line is the better buy at that compute."),
    draw("families_N", plots.families(parts, x="N"), "Families against parameters",
         "The same runs against size. Lines join the lowest fitted loss of each size, at the longest training."),
  ]  # fmt: skip
  return Section("Families compared", "families", [Part(text=[f"{both}, trained on the same text and tested on the same held-out "
                                                              "text."], figures=figures)])  # fmt: skip
