"""Figures of a sweep and of a fit: loss curves, laws with bands, residuals, allocation, comparisons.

Every function takes arrays and laws and returns a matplotlib Figure. Losses are drawn on logarithmic axes: a power law
without a floor is a straight line there, one with a floor bends towards it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ilya_jax.scaling import drawing
from ilya_jax.scaling.curves import Curve, envelope
from ilya_jax.scaling.drawing import DASHES, LABELS, MARKERS, OKABE_ITO

Array = np.ndarray

_GREY = "#555555"
_VARIED = {"N": "D", "D": "N"}


class Law(Protocol):
  """A fitted law as the figures need it: its form's name and equation, its variables, predictions, and 95 % bands."""

  name: str
  equation: str
  variables: tuple[str, ...]

  def predict(self, **variables: Array) -> Array:
    """The loss [k] at arrays [k] of its variables."""

  def band(self, **variables: Array) -> tuple[Array, Array] | None:
    """The 95 % interval of the law there, [k] and [k]; None without resamples."""


class Frontier(NamedTuple):
  """The compute-optimal allocation of a law at C [k] FLOP: N*, D*, L* and D*/N*, each [3, k] as value, low, high.

  low and high are nan where there are no resamples.
  """

  C: Array
  N: Array
  D: Array
  loss: Array
  ratio: Array


class Measured(NamedTuple):
  """Points of a table, all [n]: N, D, C, loss and its standard error (nan where unknown), and the part each plays.

  part: "fit", "held_out" or "dropped" (left out of the fit by a rule). loss_unit: for the labels.
  """

  N: Array
  D: Array
  C: Array
  loss: Array
  loss_se: Array
  part: Array
  loss_unit: str = "nats per token"

  def take(self, part: str) -> "Measured":
    """The points that play this part."""
    keep = self.part == part
    return Measured(*[column[keep] for column in self[:6]], self.loss_unit)  # type: ignore[arg-type]


def _points(axes: Axes, x: Array, measured: Measured, *, by: Array, colours: Sequence[str]) -> None:
  """Points by level (colour and marker); hollow where dropped, stars where held out."""
  for k, colour in enumerate(colours):
    marker = MARKERS[k % len(MARKERS)]
    for part, face in (("fit", colour), ("dropped", "white")):
      chosen = (by == k) & (measured.part == part)
      axes.plot(x[chosen], measured.loss[chosen], linestyle="", marker=marker, color=colour, markerfacecolor=face, zorder=5)
  held = measured.part == "held_out"
  drawing.held_out(axes, x[held], measured.loss[held], measured.loss_se[held])


def _part_handles(measured: Measured) -> list[Any]:
  handles = []
  if (measured.part == "dropped").any():
    handles.append(drawing.handle("dropped from the fit", colour=_GREY, marker="o", dashes="", filled=False))
  if (measured.part == "held_out").any():
    handles.append(drawing.held_out_handle())
  return handles


def loss_curves(curves: Sequence[Curve], measured: Measured) -> Figure:
  """Smoothed training loss against compute, one colour a size, with the envelope and the held-out loss at each end."""
  figure, (axes,) = drawing.new_figure(height=4.6)
  sizes = np.unique(np.concatenate([[curve.N for curve in curves], measured.N]))
  colours = dict(zip(sizes, drawing.ordered_colours(len(sizes)), strict=True))
  marks = {size: MARKERS[k % len(MARKERS)] for k, size in enumerate(sizes)}
  for curve in curves:
    axes.plot(curve.C, curve.loss, color=colours[curve.N], linewidth=0.8 if curve.cooldown else 1.2,
              linestyle=DASHES[2] if curve.cooldown else "-", zorder=3)  # fmt: skip
  ends = measured.part != "held_out"
  for size in sizes:
    chosen = ends & (measured.N == size)
    axes.plot(measured.C[chosen], measured.loss[chosen], linestyle="", marker=marks[size], color=colours[size],
              markeredgecolor="white", markeredgewidth=0.5, zorder=5)  # fmt: skip
  drawing.held_out(axes, measured.C[~ends], measured.loss[~ends], measured.loss_se[~ends])
  flops, lowest = envelope(curves)
  axes.plot(flops, lowest, color="black", linestyle=DASHES[1], linewidth=1.3, zorder=4)
  seen = np.concatenate([curve.loss for curve in curves])
  settled = np.concatenate([curve.loss[curve.C >= curve.C[-1] / 30] for curve in curves])
  drawing.scale_x(axes, np.concatenate([*[curve.C for curve in curves], measured.C]), LABELS["C"])
  drawing.scale_loss(axes, np.append(measured.loss, [settled.min(), min(seen.max(), 1.6 * settled.max())]), measured.loss_unit)
  handles = [drawing.handle(f"N = {drawing.short(size)}", colour=colours[size], marker=marks[size]) for size in sizes]
  handles.append(drawing.handle("envelope", colour="black", dashes=DASHES[1]))
  if any(curve.cooldown for curve in curves):
    handles.append(drawing.handle("cooldown", colour=_GREY, dashes=DASHES[2]))
  drawing.legend(figure, [*handles, *_part_handles(measured.take("held_out"))], columns=4)
  return figure


def law_against(law: Law, measured: Measured, *, x: str) -> Figure:
  """A law of N and D against one of them (`x`), a curve with its band for every level of the other."""
  other = _VARIED[x]
  figure, (axes,) = drawing.new_figure()
  columns = {"N": measured.N, "D": measured.D}
  centres, level = drawing.levels(columns[other])
  colours = drawing.ordered_colours(len(centres))
  grid = np.geomspace(columns[x].min() / 1.15, columns[x].max() * 1.15, 80)
  for k, (centre, colour) in enumerate(zip(centres, colours, strict=True)):
    at = {x: grid, other: np.full_like(grid, centre)}
    axes.plot(grid, law.predict(**at), color=colour, linestyle=DASHES[k % len(DASHES)], zorder=4)
    band = law.band(**at)
    if band is not None:
      axes.fill_between(grid, *band, color=colour, alpha=0.14, linewidth=0, zorder=2)
  _points(axes, columns[x], measured, by=level, colours=colours)
  drawing.scale_x(axes, columns[x], LABELS[x])
  drawing.scale_loss(axes, measured.loss, measured.loss_unit)
  handles = [
    drawing.handle(f"{other} = {drawing.short(c)}", colour=colour, marker=MARKERS[k % len(MARKERS)], dashes=DASHES[k % len(DASHES)])
    for k, (c, colour) in enumerate(zip(centres, colours, strict=True))
  ]
  if law.band(**{x: grid, other: grid}) is not None:
    handles.append(Patch(color=_GREY, alpha=0.25, linewidth=0, label="95 % band of the law"))
  drawing.legend(figure, [*handles, *_part_handles(measured)])
  return figure


def law_of_one(law: Law, measured: Measured) -> Figure:
  """A law of one variable with its band, over all points."""
  (x,) = law.variables
  figure, (axes,) = drawing.new_figure()
  column = {"N": measured.N, "D": measured.D, "C": measured.C}[x]
  other = "D" if x == "N" else "N"
  centres, level = drawing.levels({"N": measured.N, "D": measured.D}[other])
  colours = drawing.ordered_colours(len(centres))
  grid = np.geomspace(column.min() / 1.15, column.max() * 1.15, 80)
  handles = _law_line(axes, law, grid, {x: grid})
  _points(axes, column, measured, by=level, colours=colours)
  drawing.scale_x(axes, column, LABELS[x])
  drawing.scale_loss(axes, measured.loss, measured.loss_unit)
  handles += _level_handles(other, centres, colours)
  drawing.legend(figure, [*handles, *_part_handles(measured)])
  return figure


def _law_line(axes: Axes, law: Law, x: Array, at: Mapping[str, Array]) -> list[Any]:
  axes.plot(x, law.predict(**at), color="black", zorder=4)
  band = law.band(**at)
  handles: list[Any] = [drawing.handle(law.name, colour="black")]
  if band is not None:
    axes.fill_between(x, *band, color="black", alpha=0.13, linewidth=0, zorder=2)
    handles.append(Patch(color="black", alpha=0.18, linewidth=0, label="95 % band"))
  return handles


def _level_handles(name: str, centres: Array, colours: Sequence[str]) -> list[Any]:
  return [
    drawing.handle(f"{name} = {drawing.short(c)}", colour=colour, marker=MARKERS[k % len(MARKERS)], dashes="")
    for k, (c, colour) in enumerate(zip(centres, colours, strict=True))
  ]


def loss_against_compute(frontier: Frontier | None, measured: Measured, *, name: str) -> Figure:
  """All points against compute, by size, with the lowest loss that the law allows at each compute."""
  figure, (axes,) = drawing.new_figure()
  centres, level = drawing.levels(measured.N)
  colours = drawing.ordered_colours(len(centres))
  _points(axes, measured.C, measured, by=level, colours=colours)
  handles: list[Any] = []
  values = [measured.loss]
  if frontier is not None:
    axes.plot(frontier.C, frontier.loss[0], color="black", zorder=4)
    handles.append(drawing.handle(f"optimum by {name}", colour="black"))
    values.append(frontier.loss[0])
    if np.isfinite(frontier.loss[1:]).all():
      axes.fill_between(frontier.C, frontier.loss[1], frontier.loss[2], color="black", alpha=0.13, linewidth=0)
      handles.append(Patch(color="black", alpha=0.18, linewidth=0, label="95 % band"))
  drawing.scale_x(axes, measured.C, LABELS["C"])
  drawing.scale_loss(axes, np.concatenate(values), measured.loss_unit)
  drawing.legend(figure, [*handles, *_level_handles("N", centres, colours), *_part_handles(measured)])
  return figure


def residuals(law: Law, measured: Measured) -> Figure:
  """Measured over predicted loss minus one in %, against N, D and C, one panel each."""
  figure, panels = drawing.new_figure(rows=3, height=7.0)
  columns = {"N": measured.N, "D": measured.D, "C": measured.C}
  errors = 100.0 * (measured.loss / law.predict(**{v: columns[v] for v in law.variables}) - 1.0)
  with_error = measured._replace(loss=errors, loss_se=np.full_like(errors, np.nan))
  centres, level = drawing.levels(measured.N)
  colours = drawing.ordered_colours(len(centres))
  for axes, x in zip(panels, columns, strict=True):
    axes.axhline(0.0, color="black", linewidth=0.9, zorder=2)
    _points(axes, columns[x], with_error, by=level, colours=colours)
    drawing.scale_x(axes, columns[x], LABELS[x])
    largest = max(np.abs(errors).max() * 1.18, 0.1)
    axes.set_ylim(-largest, largest)
    axes.set_ylabel("Residual (%)")
  zero = drawing.handle(f"the law ({law.name})", colour="black")
  drawing.legend(figure, [zero, *_level_handles("N", centres, colours), *_part_handles(measured)])
  return figure


def allocation(frontier: Frontier, measured: Measured) -> Figure:
  """Compute-optimal N*, D* and D*/N* against compute with their bands, over the runs that there are."""
  figure, panels = drawing.new_figure(rows=3, height=7.0)
  rows = (("N", frontier.N, measured.N, "Parameters N*"), ("D", frontier.D, measured.D, "Tokens D*"),
          ("ratio", frontier.ratio, measured.D / measured.N, "Tokens per parameter"))  # fmt: skip
  banded = bool(np.isfinite(frontier.N[1:]).all())
  inside = (measured.C.min(), measured.C.max())
  for axes, (_, best, points, label) in zip(panels, rows, strict=True):
    axes.axvspan(*inside, color="#f1f1ec", linewidth=0, zorder=0)
    axes.plot(measured.C, points, linestyle="", marker="o", markersize=3, color="#8c8c8c", zorder=3)
    axes.plot(frontier.C, best[0], color=OKABE_ITO[0], zorder=4)
    if banded:
      axes.fill_between(frontier.C, best[1], best[2], color=OKABE_ITO[0], alpha=0.18, linewidth=0, zorder=2)
    drawing.scale_x(axes, frontier.C, LABELS["C"])
    axes.set_yscale("log")
    axes.set_ylabel(label)
    shown = np.concatenate([points, best[0]])
    axes.set_ylim(shown.min() / 2, shown.max() * 2)
  handles = [
    drawing.handle("compute-optimal", colour=OKABE_ITO[0]), drawing.handle("runs", colour="#8c8c8c", marker="o", dashes="", size=3),
    Patch(color="#e6e6df", linewidth=0, label="range of the runs"),
  ]  # fmt: skip
  if banded:
    handles.insert(1, Patch(color=OKABE_ITO[0], alpha=0.25, linewidth=0, label="95 % band"))
  drawing.legend(figure, handles, columns=4)
  return figure


def predictions_by_form(names: Sequence[str], predicted: Array, *, measured: float, measured_se: float, unit: str) -> Figure:
  """What each form predicts for the held-out run, `predicted` [forms, 3] as value, low, high, beside the measured loss."""
  figure, (axes,) = drawing.new_figure(height=1.5 + 0.42 * len(names))
  where = np.arange(len(names))[::-1]
  reach = 1.96 * measured_se if np.isfinite(measured_se) else 0.0
  axes.axvspan(measured - reach, measured + reach, color=HELD_BAND, linewidth=0, zorder=1)
  axes.axvline(measured, color=drawing.HELD_OUT, linewidth=1.4, linestyle=DASHES[1], zorder=3)
  with_band = np.isfinite(predicted[:, 1:]).all(-1)
  axes.hlines(where[with_band], predicted[with_band, 1], predicted[with_band, 2], color=OKABE_ITO[0], linewidth=2.2, zorder=4)
  axes.plot(predicted[:, 0], where, linestyle="", marker="o", markersize=6, color=OKABE_ITO[0], zorder=5)
  axes.plot(predicted[:1, 0], where[:1], linestyle="", marker="o", markersize=11, color="black", markerfacecolor="none", zorder=6)
  axes.set_yticks(where, names)
  axes.set_ylim(-0.7, len(names) - 0.3)
  axes.set_xlabel(f"Held-out loss ({unit})")
  axes.set_ylabel("Form of the law")
  handles = [
    drawing.handle("predicted, 95 % interval", colour=OKABE_ITO[0], marker="o"),
    drawing.handle("chosen by inner error", colour="black", marker="o", dashes="", filled=False, size=9),
    drawing.handle("measured ± 1.96 s.e.", colour=drawing.HELD_OUT, dashes=DASHES[1]),
  ]
  drawing.legend(figure, handles)
  return figure


HELD_BAND = "#fbe3d6"


def families(parts: Mapping[str, tuple[Measured, Frontier | None]], *, x: str) -> Figure:
  """Several families over each other against N or C: their points, and against C each one's best loss with its band."""
  figure, (axes,) = drawing.new_figure()
  handles: list[Any] = []
  xs, losses = [], []
  for k, (family, (measured, frontier)) in enumerate(parts.items()):
    colour, marker = OKABE_ITO[k % 6], MARKERS[k % len(MARKERS)]
    column = {"N": measured.N, "C": measured.C}[x]
    used = measured.part == "fit"
    axes.plot(column[used], measured.loss[used], linestyle="", marker=marker, color=colour, alpha=0.75, zorder=4)
    held = measured.part == "held_out"
    axes.plot(column[held], measured.loss[held], linestyle="", marker=marker, color=colour, markersize=9, markeredgecolor="black", zorder=6)
    handles.append(drawing.handle(family, colour=colour, marker=marker, dashes=DASHES[k % len(DASHES)]))
    xs.append(column)
    losses.append(measured.loss)
    if x == "C" and frontier is not None:
      axes.plot(frontier.C, frontier.loss[0], color=colour, linestyle=DASHES[k % len(DASHES)], zorder=5)
      axes.fill_between(frontier.C, frontier.loss[1], frontier.loss[2], color=colour, alpha=0.14, linewidth=0, zorder=2)
    elif x == "N":
      sizes = np.unique(column[used])
      longest = [measured.loss[used & (column == size)].min() for size in sizes]
      axes.plot(sizes, longest, color=colour, linestyle=DASHES[k % len(DASHES)], zorder=5)
  drawing.scale_x(axes, np.concatenate(xs), LABELS[x])
  drawing.scale_loss(axes, np.concatenate(losses), next(iter(parts.values()))[0].loss_unit)
  drawing.legend(figure, handles)
  return figure
