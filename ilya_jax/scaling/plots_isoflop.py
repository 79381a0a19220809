"""Figures of the isoFLOP analysis: the valleys with each method's minimum, and the best size and tokens against compute."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ilya_jax.scaling import allocation, drawing
from ilya_jax.scaling.document import number
from ilya_jax.scaling.drawing import DASHES, LABELS, OKABE_ITO
from ilya_jax.scaling.optimal import FLOP_PER_PARAMETER_AND_TOKEN

Array = np.ndarray
Record = Mapping[str, Any]

# method -> (label, marker, colour): the same in both figures
LOOKS = {
  "parabola": ("parabola", "s", OKABE_ITO[1]),
  "local_quadratic": ("local quadratic", "^", OKABE_ITO[2]),
  "akima": ("Akima", "D", OKABE_ITO[3]),
  "cubic": ("cubic", "v", OKABE_ITO[4]),
  "surface": ("fitted law", "X", OKABE_ITO[0]),
}
_ENVELOPE = ("envelope", "#8c8c8c")
_PRINTED = {"Kaplan et al. 2020, Table 6": DASHES[1], "Hoffmann et al. 2022, approach 3": DASHES[2]}
_NAMED = 8  # budgets in the legend


def valleys(record: Record, unit: str) -> Figure:
  """Loss against N at every budget of an isoFLOP record: measured means, the law's curve, and the usable minimum of each method."""
  figure, (axes,) = drawing.new_figure(height=5.4, width=6.2)
  budgets = record["budgets"]
  colours = drawing.ordered_colours(len(budgets))
  sizes, losses = [], []
  for budget, colour in zip(budgets, colours, strict=True):
    N, loss = (np.array([point[name] for point in budget["points"]]) for name in ("N", "loss"))
    axes.plot(N, loss, linestyle="", marker="o", markersize=4.5, color=colour, zorder=4)
    sizes.append(N)
    losses.append(loss)
    curve = budget.get("surface_curve")
    if curve:
      axes.plot(curve["N"], curve["loss"], color=colour, linewidth=1.1, zorder=3)
    for method, (_, marker, edge) in LOOKS.items():
      found = budget["methods"].get(method)
      if found and found["usable"] and found["loss"] is not None and N.min() / 1.4 < found["N"] < N.max() * 1.4:
        axes.plot(found["N"], found["loss"], linestyle="", marker=marker, markersize=6, color=edge, markerfacecolor="none",
                  markeredgewidth=1.1, zorder=5)  # fmt: skip
  drawing.scale_x(axes, np.concatenate(sizes), LABELS["N"] if record_size(record) == "N" else "Parameters N")
  drawing.scale_loss(axes, np.concatenate(losses), unit)
  shown = (
    range(len(budgets))
    if len(budgets) <= _NAMED
    else np.unique(np.linspace(0, len(budgets) - 1, _NAMED).round()).astype(int)
  )
  handles: list[Any] = [
    drawing.handle(f"C = {number(budgets[k]['C'], 2)} FLOP", colour=colours[k], marker="o", size=4.5) for k in shown
  ]
  used = [method for method in LOOKS if any((b["methods"].get(method) or {}).get("usable") for b in budgets)]
  for method in used:
    label, marker, edge = LOOKS[method]
    handles.append(drawing.handle(label, colour=edge, marker=marker, dashes="", filled=False, size=6))
  drawing.legend(figure, handles, columns=3)
  return figure


def record_size(record: Record) -> str:
  """By which count of parameters the budgets' sizes are: that of the first of the definitions."""
  return str(record["definitions"][0]["size"])


def optima(record: Record) -> Figure:
  """N* and D* against C by every method with 95 % bars and fitted lines, the law's band, the envelope, and the printed rules."""
  figure, panels = drawing.new_figure(rows=2, height=7.6, width=6.2)
  budgets = record["budgets"]
  compute = np.array([budget["C"] for budget in budgets])
  grid = np.geomspace(compute.min() / 1.6, compute.max() * 1.6, 40)
  handles: list[Any] = []
  for quantity, axes in zip("ND", panels, strict=True):
    present = [method for method in LOOKS if method in record["exponents"]]
    for k, method in enumerate(present):
      _method(axes, record, method, quantity, shift=1.0 + 0.022 * (k - (len(present) - 1) / 2) * _spacing(compute))
    envelope = record["envelope"]
    if not envelope["refused"]:
      kept = np.array(envelope["points"]["bracketed"])
      x, y = (np.array(envelope["points"][name])[kept] for name in ("C", quantity))
      axes.plot(x, y, linestyle="", marker=".", markersize=3, color=_ENVELOPE[1], zorder=2)
    for rule, dashes in _PRINTED.items():
      N = allocation.published(grid)[rule]
      axes.plot(grid, N if quantity == "N" else grid / FLOP_PER_PARAMETER_AND_TOKEN / N, color="black", linewidth=1.0,
                linestyle=dashes, zorder=2)  # fmt: skip
    drawing.scale_x(axes, np.append(compute, grid), LABELS["C" if record["grouping"]["compute"] == "C" else "6ND"])
    axes.set_yscale("log")
    axes.set_ylabel("Best parameters N*" if quantity == "N" else "Best tokens D*")
    _limit(axes, record, quantity)
  for method in present:
    label, marker, colour = LOOKS[method]
    handles.append(drawing.handle(label, colour=colour, marker=marker))
  if any(budget["methods"].get("surface", {}).get("N_low") for budget in budgets):
    handles.append(Patch(color=LOOKS["surface"][2], alpha=0.2, linewidth=0, label="95 % band of the law"))
  if not record["envelope"]["refused"]:
    handles.append(drawing.handle(_ENVELOPE[0], colour=_ENVELOPE[1], marker=".", dashes=""))
  handles += [drawing.handle(rule, colour="black", dashes=dashes) for rule, dashes in _PRINTED.items()]
  drawing.legend(figure, handles, columns=3)
  return figure


def _spacing(compute: Array) -> float:
  """How far apart budgets are, as a measure for the shifts that keep the marks of one budget apart."""
  gaps = np.diff(np.sort(np.log(compute)))
  return float(min(gaps.min(), 1.5)) * 2.2 if len(gaps) else 1.0


def _method(axes: Axes, record: Record, method: str, quantity: str, *, shift: float) -> None:
  """The usable minima of one method with bars, and its line through them; the law has a band instead."""
  _, marker, colour = LOOKS[method]
  found = [(budget["C"], budget["methods"][method]) for budget in record["budgets"]]
  found = [(C, each) for C, each in found if each["usable"] and each[quantity] is not None]
  if not found:
    return
  C, value = (np.array(column) for column in zip(*((C, each[quantity]) for C, each in found), strict=True))
  low, high = (
    np.array([np.nan if each[f"{quantity}_{side}"] is None else each[f"{quantity}_{side}"] for _, each in found], float)
    for side in ("low", "high")
  )
  if method == "surface":
    axes.plot(C, value, color=colour, marker=marker, markersize=5, zorder=4)
    if np.isfinite(low).all():
      axes.fill_between(C, low, high, color=colour, alpha=0.2, linewidth=0, zorder=1)
    return
  known = np.isfinite(low)
  axes.vlines(C[known] * shift, low[known], high[known], color=colour, linewidth=1.1, zorder=4)
  axes.plot(C * shift, value, linestyle="", marker=marker, markersize=5, color=colour, zorder=5)
  exponent = record["exponents"][method][{"N": "a", "D": "b"}[quantity]]["value"]
  if exponent is not None:
    middle = np.exp(np.log(C).mean())
    axes.plot(C, np.exp(np.log(value).mean()) * (C / middle) ** exponent, color=colour, linewidth=0.9, zorder=3)


def _limit(axes: Axes, record: Record, quantity: str) -> None:
  """The axis holds all that is marked, with a margin; printed rules may leave it."""
  seen = [
    each[key]
    for budget in record["budgets"] for each in budget["methods"].values() if each["usable"]
    for key in (quantity, f"{quantity}_low", f"{quantity}_high") if each[key] is not None
  ]  # fmt: skip
  seen = seen or [point[quantity] for budget in record["budgets"] for point in budget["points"]]
  axes.set_ylim(min(seen) / 2.5, max(seen) * 2.5)
