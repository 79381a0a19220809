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

_GREY, _PALE, _HELD_BAND = "#555555", "#b9b9b9", "#fbe3d6"
_VARIED = {"N": "D", "D": "N"}


class Law(Protocol):
  """A fitted law as the figures need it: its form's name and equation, its variables, predictions, and 95 % bands."""

  @property
  def name(self) -> str:
    """The form's name."""

  @property
  def equation(self) -> str:
    """The form's equation."""

  @property
  def variables(self) -> tuple[str, ...]:
    """Which of N, D, C it takes."""

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
    return self.where(self.part == part)

  def where(self, keep: Array) -> "Measured":
    """The points for which `keep` [n] holds."""
    N, D, C, loss, errors, parts = (column[keep] for column in self[:6])
    return Measured(N, D, C, loss, errors, parts, self.loss_unit)

  @property
  def C_6ND(self) -> Array:
    """The compute for which an allocation is optimal: 6 N D, [n]."""
    return 6.0 * self.N * self.D


def _points(axes: Axes, x: Array, measured: Measured, *, by: Array, colours: Sequence[str]) -> None:
  """Points by level (colour and marker); hollow where dropped, stars where held out."""
  for k, colour in enumerate(colours):
    marker = MARKERS[k % len(MARKERS)]
    for part, face in (("fit", colour), ("dropped", "white")):
      chosen = (by == k) & (measured.part == part)
      axes.plot(
        x[chosen], measured.loss[chosen], linestyle="", marker=marker, color=colour, markerfacecolor=face, zorder=5
      )
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
  drawing.scale_loss(
    axes, np.append(measured.loss, [settled.min(), min(seen.max(), 1.6 * settled.max())]), measured.loss_unit
  )
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
  handles: list[Any] = [
    drawing.handle(
      f"{other} = {drawing.short(c)}", colour=colour, marker=MARKERS[k % len(MARKERS)], dashes=DASHES[k % len(DASHES)]
    )
    for k, (c, colour) in enumerate(zip(centres, colours, strict=True))
  ]
  if law.band(**{x: grid, other: grid}) is not None:
    handles.append(Patch(color=_GREY, alpha=0.25, linewidth=0, label="95 % band of the law"))
  drawing.legend(figure, [*handles, *_part_handles(measured)])
  return figure


def law_of_one(law: Law, measured: Measured, *, used: Array) -> Figure:
  """A law of one variable with its band, the points `used` [n] that it was fitted to, and the others, pale."""
  (x,) = law.variables
  figure, (axes,) = drawing.new_figure()
  column = {"N": measured.N, "D": measured.D, "C": measured.C}[x]
  grid = np.geomspace(column.min() / 1.15, column.max() * 1.15, 80)
  handles = _law_line(axes, law, grid, {x: grid})
  held = measured.part == "held_out"
  rest = ~used & ~held
  axes.plot(column[rest], measured.loss[rest], linestyle="", marker="s", markersize=4, color=_PALE, zorder=3)
  axes.plot(column[used], measured.loss[used], linestyle="", marker="o", color=OKABE_ITO[0], zorder=5)
  drawing.held_out(axes, column[held], measured.loss[held], measured.loss_se[held])
  handles.append(drawing.handle("fitted", colour=OKABE_ITO[0], marker="o", dashes=""))
  if rest.any():
    handles.append(drawing.handle("other runs", colour=_PALE, marker="s", dashes="", size=4))
  drawing.scale_x(axes, column, LABELS[x])
  drawing.scale_loss(axes, measured.loss, measured.loss_unit)
  drawing.legend(figure, [*handles, *([drawing.held_out_handle()] if held.any() else [])])
  return figure


def _law_line(axes: Axes, law: Law, x: Array, at: Mapping[str, Array]) -> list[Any]:
  axes.plot(x, law.predict(**at), color="black", zorder=4)
  band = law.band(**at)
  handles: list[Any] = [drawing.handle(law.name, colour="black")]
  if band is not None:
    axes.fill_between(x, *band, color="black", alpha=0.13, linewidth=0, zorder=2)
    handles.append(Patch(color="black", alpha=0.18, linewidth=0, label="95 % band"))
  return handles


def _by_size(measured: Measured) -> tuple[Array, list[str], list[Any]]:
  """The level of N of each point, a colour for each level, and their handles (not for what the stars alone have)."""
  centres, level = drawing.levels(measured.N)
  colours = drawing.ordered_colours(len(centres))
  handles: list[Any] = [
    drawing.handle(f"N = {drawing.short(c)}", colour=colour, marker=MARKERS[k % len(MARKERS)], dashes="")
    for k, (c, colour) in enumerate(zip(centres, colours, strict=True))
    if (measured.part[level == k] != "held_out").any()
  ]
  return level, colours, handles


def loss_against_compute(frontier: Frontier | None, measured: Measured, *, name: str) -> Figure:
  """All points by size against compute; with a frontier, that of `name`, against 6 N D, for which it is optimal."""
  figure, (axes,) = drawing.new_figure(height=4.6)
  compute = measured.C if frontier is None else measured.C_6ND
  level, colours, sizes = _by_size(measured)
  _points(axes, compute, measured, by=level, colours=colours)
  handles: list[Any] = []
  values = measured.loss
  if frontier is not None:
    near = (frontier.C > compute.min() / 1.5) & (frontier.C < compute.max() * 1.5)
    at, (best, low, high) = frontier.C[near], frontier.loss[:, near]
    axes.plot(at, best, color="black", zorder=4)
    handles.append(drawing.handle(f"optimum by {name}", colour="black"))
    values = np.concatenate([values, best])
    if np.isfinite(low).all():
      axes.fill_between(at, low, high, color="black", alpha=0.13, linewidth=0)
      handles.append(Patch(color="black", alpha=0.18, linewidth=0, label="95 % band"))
  drawing.scale_x(axes, compute, LABELS["C" if frontier is None else "6ND"])
  drawing.scale_loss(axes, values, measured.loss_unit)
  drawing.legend(figure, [*handles, *sizes, *_part_handles(measured)])
  return figure


def residuals(law: Law, measured: Measured) -> Figure:
  """Measured over predicted loss minus one in %, against N, D and C, a panel for each that the points have."""
  columns = {x: column for x, column in zip("NDC", measured[:3], strict=True) if np.isfinite(column).all()}
  figure, panels = drawing.new_figure(rows=len(columns), height=1.2 + 1.95 * len(columns))
  errors = 100.0 * (measured.loss / law.predict(**{v: columns[v] for v in law.variables}) - 1.0)
  with_error = measured._replace(loss=errors, loss_se=np.full_like(errors, np.nan))
  if "N" in columns:
    level, colours, sizes = _by_size(measured)
  else:
    level, colours, sizes = np.zeros(len(errors), int), [OKABE_ITO[0]], []
  for axes, (x, column) in zip(panels, columns.items(), strict=True):
    axes.axhline(0.0, color="black", linewidth=0.9, zorder=2)
    _points(axes, column, with_error, by=level, colours=colours)
    drawing.scale_x(axes, column, LABELS[x])
    largest = max(np.abs(errors).max() * 1.18, 0.1)
    axes.set_ylim(-largest, largest)
    axes.set_ylabel("Residual (%)")
  zero = drawing.handle(f"the law ({law.name})", colour="black")
  drawing.legend(figure, [zero, *sizes, *_part_handles(measured)])
  return figure


def predictions_by_form(
  names: Sequence[str], predicted: Array, *, measured: float, measured_se: float, unit: str
) -> Figure:
  """What each form predicts for the held-out run, `predicted` [forms, 3] as value, low, high, beside the measured loss."""
  figure, (axes,) = drawing.new_figure(height=1.5 + 0.42 * len(names))
  where = np.arange(len(names))[::-1]
  reach = 1.96 * measured_se if np.isfinite(measured_se) else 0.0
  axes.axvspan(measured - reach, measured + reach, color=_HELD_BAND, linewidth=0, zorder=1)
  axes.axvline(measured, color=drawing.HELD_OUT, linewidth=1.4, linestyle=DASHES[1], zorder=3)
  with_band = np.isfinite(predicted[:, 1:]).all(-1)
  axes.hlines(
    where[with_band], predicted[with_band, 1], predicted[with_band, 2], color=OKABE_ITO[0], linewidth=2.2, zorder=4
  )
  axes.plot(predicted[:, 0], where, linestyle="", marker="o", markersize=6, color=OKABE_ITO[0], zorder=5)
  axes.plot(
    predicted[:1, 0],
    where[:1],
    linestyle="",
    marker="o",
    markersize=11,
    color="black",
    markerfacecolor="none",
    zorder=6,
  )
  axes.set_yticks(where, names)
  axes.set_ylim(-0.7, len(names) - 0.3)
  axes.set_xlabel(f"Held-out loss ({unit})")
  axes.set_ylabel("Form of the law")
  handles: list[Any] = [
    drawing.handle("predicted, 95 % interval", colour=OKABE_ITO[0], marker="o"),
    drawing.handle("chosen by inner error", colour="black", marker="o", dashes="", filled=False, size=9),
    drawing.handle("measured ± 1.96 s.e.", colour=drawing.HELD_OUT, dashes=DASHES[1]),
  ]
  drawing.legend(figure, handles)
  return figure


def resamples(
  draws: Mapping[str, Array], best: Mapping[str, float], *, pairs: Sequence[tuple[str, str]], labels: Mapping[str, str]
) -> Figure:
  """Resampled parameters, name -> [S], against each other for each of the `pairs`, with the fitted value `best`."""
  figure, panels = drawing.new_figure(rows=len(pairs), height=1.0 + 2.2 * len(pairs))
  for axes, (x, y) in zip(panels, pairs, strict=True):
    axes.plot(
      draws[x],
      draws[y],
      linestyle="",
      marker=".",
      markersize=3,
      color=OKABE_ITO[0],
      alpha=0.35,
      zorder=3,
      rasterized=True,
    )
    axes.plot(
      best[x],
      best[y],
      linestyle="",
      marker="X",
      markersize=9,
      color=drawing.HELD_OUT,
      markeredgecolor="black",
      zorder=5,
    )
    for name, limit in ((x, axes.set_xlim), (y, axes.set_ylim)):
      low, high = np.quantile(draws[name], [0.005, 0.995])
      low, high = min(low, best[name]), max(high, best[name])
      margin = 0.08 * (high - low) or 0.1
      limit(low - margin, high + margin)
    axes.set_xlabel(labels[x])
    axes.set_ylabel(labels[y])
  handles: list[Any] = [
    drawing.handle("a resample", colour=OKABE_ITO[0], marker=".", dashes="", size=6),
    drawing.handle("the fit", colour=drawing.HELD_OUT, marker="X", dashes="", size=8),
  ]
  drawing.legend(figure, handles)
  return figure


def families(parts: Mapping[str, tuple[Measured, Law | None]], *, x: str) -> Figure:
  """Several families over each other against N or C: their points, and each one's law of that variable with its band."""
  figure, (axes,) = drawing.new_figure()
  handles: list[Any] = []
  columns = {name: {"N": measured.N, "C": measured.C}[x] for name, (measured, _) in parts.items()}
  for k, (family, (measured, law)) in enumerate(parts.items()):
    colour, marker, column = OKABE_ITO[k % 6], MARKERS[k % len(MARKERS)], columns[family]
    dashes = DASHES[k % len(DASHES)]
    used, held = measured.part == "fit", measured.part == "held_out"
    axes.plot(column[used], measured.loss[used], linestyle="", marker=marker, color=colour, alpha=0.8, zorder=4)
    axes.plot(column[held], measured.loss[held], linestyle="", marker=marker, color=colour, markersize=9,
              markeredgecolor="black", zorder=6)  # fmt: skip
    handles.append(drawing.handle(family, colour=colour, marker=marker, dashes="" if law is None else dashes))
    if law is not None:
      grid = np.geomspace(column.min() / 1.1, column.max() * 1.1, 60)
      axes.plot(grid, law.predict(**{x: grid}), color=colour, linestyle=dashes, zorder=5)
      band = law.band(**{x: grid})
      if band is not None:
        axes.fill_between(grid, *band, color=colour, alpha=0.14, linewidth=0, zorder=2)
  drawing.scale_x(axes, np.concatenate(list(columns.values())), LABELS[x])
  first = next(iter(parts.values()))[0]
  drawing.scale_loss(axes, np.concatenate([measured.loss for measured, _ in parts.values()]), first.loss_unit)
  if any((measured.part == "held_out").any() for measured, _ in parts.values()):
    handles.append(drawing.handle("held out", colour="white", marker="o", dashes="", size=8))
    handles[-1].set_markeredgecolor("black")
  drawing.legend(figure, handles)
  return figure
