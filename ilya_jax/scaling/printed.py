"""The summary that a sweep or a fit prints: per family the laws, their exponents, and the held-out loss."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ilya_jax.scaling.drawing import short
from ilya_jax.scaling.law_tables import held_out_point, variables
from ilya_jax.scaling.laws import FORMS
from ilya_jax.scaling.sections import Family

_HEADER = ("family", "law", "exponents [95 % interval]", "held-out loss [95 % band]", "error")


def summary(title: str, families: Sequence[Family]) -> str:
  """A table in plain text: for each family its forms in the order of their inner error, then the measured loss."""
  rows: list[tuple[str, ...]] = [_HEADER]
  for family in families:
    rows += _rows(family)
  widths = [max(len(row[k]) for row in rows) for k in range(len(_HEADER))]
  lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
  lines.insert(1, "-" * max(len(line) for line in lines))
  for family in families:
    if not family.result["forms"]:
      lines.append(f"{family.name}: {' '.join(family.remarks)}")
  lines.append(
    "The first law of a family has the smallest inner error, that on fitted runs alone; error: predicted / measured - 1."
  )
  return "\n".join([title, *lines])


def _rows(family: Family) -> list[tuple[str, ...]]:
  records = {form["form"]: form for form in family.result["forms"]}
  rows: list[tuple[str, ...]] = []
  for name in family.result["ranking"]:
    form = records[name]
    points = (form.get("held_out") or {}).get("points") or []
    point = held_out_point(form)
    predicted, error = "", ""
    if variables(form) in (
      ("N",),
      ("D",),
    ):  # a law of the longest trainings or of the largest sizes does not know this run
      points = []
    if points and point:
      predicted = _with_interval(point["predicted"], point.get("low"), point.get("high"))
      error = f"{100 * (point['predicted'] / point['loss'] - 1):+.1f} %"
    elif points:
      predicted, error = f"{len(points)} points", f"{form['held_out']['mape']:.1f} %"
    rows.append(("" if rows else family.name, name, exponents(form), predicted, error))
  if not rows:
    return [(family.name, "none", "see below", "", "")]
  held = family.measured.take("held_out")
  if len(held.loss) and all(len(np.unique(column[np.isfinite(column)])) < 2 for column in (held.N, held.D, held.C)):
    sizes = [
      f"{name} {short(column[0])}" for name, column in (("N", held.N), ("D", held.D)) if math.isfinite(column[0])
    ]
    size = ", ".join(sizes) or f"C {held.C[0]:.2g} FLOP"
    se = f" +- {held.loss_se[0]:.3f}" if math.isfinite(held.loss_se[0]) else ""
    rows.append(
      ("", "measured", size, f"{held.loss.mean():.3f}{se}", "" if len(held.loss) == 1 else f"mean of {len(held.loss)}")
    )
  elif not len(held.loss):
    rows.append(("", "measured", "no run held out", "", ""))
  return rows


def exponents(form: Mapping[str, Any]) -> str:
  """The exponents of a form with their intervals, in one line."""
  parts = []
  for name, value in form["parameters"].items():
    if name in FORMS[form["form"]].exponents:
      known = (form.get("intervals") or {}).get(name, {})
      parts.append(f"{name} {_with_interval(value, known.get('low'), known.get('high'))}")
      if known.get("identified") is False:
        parts[-1] += " not identified"
  return "  ".join(parts)


def _with_interval(value: float, low: float | None, high: float | None) -> str:
  return f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"
