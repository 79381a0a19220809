"""Figures of the claims in `coffee_automaton.py`: cups, sizes against time, the erratum, laws of n, compressors."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from ilya_jax.complexity.apparent import COMPRESSORS, apparent_complexity, coarse_picture, sizes
from ilya_jax.complexity.automaton import Trajectory
from ilya_jax.scaling.drawing import DASHES, MARKERS, OKABE_ITO, STYLE, handle, legend, new_figure, short

Array = np.ndarray

UNITS = {"interacting": "attempts per edge", "independent": "steps"}


def panel_grid(rows: int, columns: int, *, height: float) -> tuple[Figure, Array]:
  """A figure of pictures, without axes."""
  figure, _ = new_figure(height=height, width=6.6)
  figure.clear()
  with matplotlib.rc_context({**STYLE, "axes.grid": False}):
    grid = figure.subplots(rows, columns, squeeze=False)
  for axes in grid.ravel():
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[["top", "right"]].set_visible(True)
  return figure, grid


def show(axes: Any, picture: Array, *, high: int) -> None:
  """A picture in greys, black for 0 and white for `high`."""
  axes.imshow(picture, cmap="Greys_r", vmin=0, vmax=high, interpolation="nearest")


def moments(curve: Array) -> list[int]:
  """Snapshots to show: the start, where the curve is half way up, its peak, the end."""
  peak = int(curve.argmax())
  half = int(np.argmax(curve >= (curve[0] + curve[peak]) / 2))
  return [0, half, peak, len(curve) - 1]


def elapsed(model: str, made: Trajectory) -> Array:
  """Times after the start in the units of the figures: attempts per edge, or steps."""
  n = made.pictures.shape[-1]
  return made.times[1:] / (2 * n * (n - 1) if model == "interacting" else 1)


def title(model: str, made: Trajectory) -> str:
  """The model, the side of its cups and how many there are."""
  return f"{model}, n = {made.pictures.shape[-1]}, {made.pictures.shape[1]} seeds"


def key(names: Sequence[Any]) -> list[Any]:
  """Handles of a legend in the order of colours and dashes."""
  return [handle(str(n), colour=c, dashes=d) for n, c, d in zip(names, OKABE_ITO, DASHES, strict=False)]


def draw_pictures(made: Trajectory) -> Figure:
  """An interacting cup: its cells, in 3 buckets, in 7 adjusted ones (grain 10), at four times."""
  cup = made.pictures[:, 0]
  kinds = (
    ("cells", cup, 1),
    ("3 buckets", coarse_picture(cup, grain=10, buckets=3), 2),
    ("7 buckets, adjusted", coarse_picture(cup, grain=10, buckets=7, adjusted=True), 6),
  )
  figure, grid = panel_grid(3, 4, height=5.4)
  for number, at in enumerate(moments(sizes(kinds[1][1]))):
    grid[0, number].set_title(f"{short(int(made.times[at]))} attempts", fontsize=9)
    for axes, (name, pictures, high) in zip(grid[:, number], kinds, strict=True):
      show(axes, pictures[at], high=high)
      axes.set_xlabel(f"{sizes(pictures[at])} bytes")
      axes.set_ylabel(name if number == 0 else "")
  return figure


def draw_rise(made: Mapping[str, Trajectory], curves: Mapping[str, Array]) -> Figure:
  """Sizes of cells and of three buckets against time."""
  figure, panels = new_figure(rows=2, height=5.6)
  for axes, (model, cups) in zip(panels, made.items(), strict=True):
    for curve, colour, dashes in zip((sizes(cups.pictures), curves[model]), OKABE_ITO, DASHES, strict=False):
      axes.plot(elapsed(model, cups), curve[1:], color=colour, linestyle=dashes, linewidth=1.1)
    axes.set(xscale="log", xlabel=UNITS[model], ylabel="compressed, bytes", title=title(model, cups))
  legend(figure, key(("cells (entropy)", "3 buckets, grain 10 (apparent complexity)")), columns=2)
  return figure


def draw_adjusted(made: Mapping[str, Trajectory], curves: Mapping[tuple[str, int], tuple[Array, Array]]) -> Figure:
  """Adjusted sizes of 7 buckets against time for three grains, with those of the exact mean picture for the middle one."""
  figure, panels = new_figure(rows=2, height=5.8)
  grains = sorted({grain for _, grain in curves})
  for axes, (model, cups) in zip(panels, made.items(), strict=True):
    x = elapsed(model, cups)
    for grain, colour, dashes in zip(grains, OKABE_ITO, DASHES, strict=False):
      axes.plot(x, curves[model, grain][0][1:], color=colour, linestyle=dashes, linewidth=1.0)
    axes.plot(x, curves[model, grains[1]][1][1:], color="black", linewidth=2.2, alpha=0.6)
    axes.set(xscale="log", xlabel=UNITS[model], ylabel="compressed, bytes", title=title(model, cups))
    axes.set_ylim(bottom=0)
  handles = [*key([f"grain {grain}" for grain in grains]), handle(f"exact mean, grain {grains[1]}", colour="black")]
  legend(figure, handles, columns=2)
  return figure


def draw_stirred(made: Trajectory, curves: Array, *, grain: int) -> Figure:
  """Sizes of a stirred cup: cells, 3 buckets, 7 adjusted ones."""
  figure, (axes,) = new_figure(height=3.6)
  coarse = apparent_complexity(made.pictures, grain=grain, buckets=3)
  for curve, colour, dashes in zip((sizes(made.pictures), coarse, curves), OKABE_ITO, DASHES, strict=False):
    axes.plot(made.times, curve, color=colour, linestyle=dashes, linewidth=1.1)
  axes.set(xlabel="macro-steps", ylabel="compressed, bytes")
  legend(figure, key(("cells (entropy)", "3 buckets", "7 buckets, adjusted")))
  return figure


def draw_laws(sides: Array, points: Mapping[str, tuple[Array, float]], *, of: str) -> Figure:
  """Values [sides, R] by their means over the seeds against n; name -> (values, exponent)."""
  figure, (axes,) = new_figure(height=4.8, width=6.2)
  handles = []
  for k, (name, (values, exponent)) in enumerate(points.items()):
    colour, marker, filled = OKABE_ITO[k], MARKERS[k], "n / 10" not in name
    face = colour if filled else "white"
    axes.plot(sides, values.mean(axis=1), color=colour, marker=marker, markerfacecolor=face, linestyle=DASHES[k])
    handles.append(handle(f"{name}: {exponent:.2f}", colour=colour, marker=marker, dashes=DASHES[k], filled=filled))
  axes.set(xscale="log", yscale="log", xlabel="n", ylabel="peak, bytes" if of == "height" else "time of the peak")
  axes.set_xticks(sides, [str(n) for n in sides])
  if of == "height":
    axes.set_yticks([50, 100, 200, 500, 1000], ["50", "100", "200", "500", "1000"])
  axes.minorticks_off()
  legend(figure, handles, columns=2)
  return figure


def draw_compressors(made: Trajectory) -> Figure:
  """Fine and coarse sizes of an interacting cup by three compressors."""
  figure, panels = new_figure(rows=2, height=5.4)
  cup = made.pictures[:, 0]
  kinds = {"cells": cup, "3 buckets, grain 10": coarse_picture(cup, grain=10, buckets=3)}
  for axes, (name, pictures) in zip(panels, kinds.items(), strict=True):
    for compressor, colour, dashes in zip(COMPRESSORS, OKABE_ITO, DASHES, strict=False):
      curve = sizes(pictures, compressor=compressor)
      axes.plot(elapsed("interacting", made), curve[1:], color=colour, linestyle=dashes)
    axes.set(xscale="log", xlabel=UNITS["interacting"], ylabel="compressed, bytes", title=f"interacting: {name}")
  legend(figure, key(tuple(COMPRESSORS)))
  return figure


def draw_tendril(made: Trajectory, curves: Array) -> Figure:
  """A cup with a tendril at four times, with the size of its adjusted picture."""
  figure, grid = panel_grid(1, 4, height=2.2)
  for axes, at in zip(grid[0], moments(curves[:, 0]), strict=True):
    show(axes, made.pictures[at, 0], high=1)
    axes.set_title(f"{made.times[at]:,} moves", fontsize=9)
    axes.set_xlabel(f"{curves[at, 0]} bytes")
  return figure
