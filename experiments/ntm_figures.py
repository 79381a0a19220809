"""Figures of the claims in `ntm.py`: costs against sequences and sizes, bits wanted and given, the memory in use, write locations."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ilya_jax.models.ntm import Shown
from ilya_jax.scaling.drawing import DASHES, MARKERS, OKABE_ITO, STYLE, handle, legend, new_figure

Array = np.ndarray
Curve = tuple[Sequence[float], Sequence[float]]


def draw_costs(
  curves: Mapping[str, Sequence[Curve]],
  *,
  title: str,
  lines: Mapping[str, float] | None = None,
  logarithmic: bool = True,
) -> Figure:
  """Figs. 3, 7, 10, 13, 18: bits a sequence against thousands of sequences, a curve for each seed; lines: label -> bits."""
  figure, (axes,) = new_figure(height=3.8, width=6.2)
  looks = zip(OKABE_ITO, DASHES, strict=False)
  handles = []
  for (name, seeds), (colour, dashes) in zip(curves.items(), looks, strict=False):
    for thousands, bits in seeds:
      axes.plot(thousands, bits, color=colour, linestyle=dashes, linewidth=1.2)
    handles.append(handle(name, colour=colour, dashes=dashes))
  for label, bits in (lines or {}).items():
    axes.axhline(bits, color="black", linewidth=0.9, linestyle=(0, (2, 2)))
    handles.append(handle(label, colour="black", dashes=(0, (2, 2))))
  axes.set_yscale("log" if logarithmic else "linear")
  axes.set_title(title, fontsize=STYLE["axes.titlesize"])
  axes.set_xlabel("sequences, thousands")
  axes.set_ylabel("cost, bits a sequence")
  legend(figure, handles, columns=2)
  return figure


def draw_sizes(
  values: Mapping[str, Mapping[int, Sequence[float]]], *, x: str, y: str, guess: Sequence[float]
) -> Figure:
  """Fig. 11: a value against the size of what is asked, nets by line and marker, seeds as small dots; guess: what guessing gives."""
  figure, (axes,) = new_figure(height=3.8, width=5.6)
  handles = []
  for k, (name, by_size) in enumerate(values.items()):
    look = {"color": OKABE_ITO[k], "linestyle": DASHES[k], "marker": MARKERS[k]}
    axes.plot(list(by_size), [np.mean(own) for own in by_size.values()], **look)
    for size, own in by_size.items():
      axes.plot([size] * len(own), own, linestyle="", marker=MARKERS[k], markersize=3, color=OKABE_ITO[k], alpha=0.6)
    handles.append(handle(name, colour=OKABE_ITO[k], marker=MARKERS[k], dashes=DASHES[k]))
  sizes = list(next(iter(values.values())))
  axes.plot(sizes, guess, color="black", linewidth=0.9, linestyle=(0, (2, 2)))
  handles.append(handle("guessing", colour="black", dashes=(0, (2, 2))))
  axes.set_xticks(sizes)
  axes.set_ylim(bottom=0)
  axes.set_xlabel(x)
  axes.set_ylabel(y)
  legend(figure, handles, columns=2)
  return figure


def _grid(
  rows: int, columns: int, *, height: float, width: float, ratios: Sequence[float] | None = None
) -> tuple[Figure, Array]:
  """A figure of pictures."""
  figure, _ = new_figure(height=height, width=width)
  figure.clear()
  with matplotlib.rc_context({**STYLE, "axes.grid": False}):
    grid = figure.subplots(rows, columns, squeeze=False, height_ratios=ratios)
  return figure, grid


def _show(axes: Axes, picture: Array, *, title: str = "", y: str = "", low: float = 0.0, high: float = 1.0) -> None:
  """A picture [rows, steps] in greys, white for `low` and black for `high`."""
  axes.imshow(picture, cmap="Greys", vmin=low, vmax=high, interpolation="nearest", aspect="auto")
  axes.spines[["top", "right"]].set_visible(True)
  axes.set_yticks([])
  axes.set_title(title, fontsize=STYLE["axes.titlesize"])
  axes.set_ylabel(y)


def draw_maps(maps: Mapping[str, Mapping[str, Array]], *, title: str) -> Figure:
  """Figs. 4, 5: what was asked for and what the nets gave, probabilities in greys: row -> column -> bits [steps, K]."""
  columns = list(next(iter(maps.values())))
  figure, grid = _grid(len(maps), len(columns), height=1.0 + 1.0 * len(maps), width=7.6)
  for line, (row, pictures) in zip(grid, maps.items(), strict=True):
    for axes, (column, bits) in zip(line, pictures.items(), strict=True):
      first = column == columns[0]
      _show(axes, bits.T, title=column.replace(", ", ",\n") if row == next(iter(maps)) else "", y=row if first else "")
      axes.set_xticks([0, len(bits) - 1], ["1", str(len(bits))])
  for axes in grid[-1]:
    axes.set_xlabel("step of the answer")
  figure.suptitle(title, fontsize=STYLE["axes.titlesize"])
  return figure


def draw_memory(inputs: Array, outputs: Array, shown: Shown, *, title: str) -> Figure:
  """Fig. 6: inputs [T, I], adds and the first write head's weights beside outputs [T, K], reads and the first read head's."""
  adds, reads, weights = (
    np.asarray(part)[:, 0] for part in (shown.adds, shown.reads, shown.weights)
  )  # [T, heads, ...]
  heads = reads.shape[1]
  rows = weights.shape[-1]
  used = np.flatnonzero(weights.max((0, 1)) > 0.1)
  part = slice(max(int(used.min()) - 1, 0), min(int(used.max()) + 2, rows))
  figure, grid = _grid(3, 2, height=5.6, width=7.6, ratios=(1, 1, 1.6))
  widest = max(np.abs(adds).max(), np.abs(reads).max())
  _show(grid[0, 0], inputs.T, title="Inputs")
  _show(grid[0, 1], outputs.T, title="Outputs")
  _show(grid[1, 0], adds[:, 0].T, title="Adds (grey: 0)", low=-widest, high=widest)
  _show(grid[1, 1], reads[:, 0].T, title="Reads (grey: 0)", low=-widest, high=widest)
  _show(grid[2, 0], weights[:, heads, part].T, title="Write weights", y=f"rows {part.start} to {part.stop - 1}")
  _show(grid[2, 1], weights[:, 0, part].T, title="Read weights")
  for axes in grid.ravel():
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
  for axes in grid[2]:
    axes.set_xlabel("step, from 0")
  figure.suptitle(title, fontsize=STYLE["axes.titlesize"])
  return figure


def draw_predictions(bits: Array, predicted: Mapping[str, Array], *, title: str) -> Figure:
  """Fig. 14: bits [T] over the probabilities of a 1 that each predictor gave, name -> [T], as strips of grey."""
  strips = {"bits": bits, **predicted}
  figure, grid = _grid(len(strips), 1, height=0.9 + 0.55 * len(strips), width=7.6)
  for axes, (name, values) in zip(grid[:, 0], strips.items(), strict=True):
    _show(axes, values[None])
    axes.set_ylabel(name, rotation=0, ha="right", va="center")
    axes.set_xticks([])
  grid[-1, 0].set_xticks([0, len(bits) - 1], ["1", str(len(bits))])
  grid[-1, 0].set_xlabel("step (white: 0, black: 1)")
  figure.suptitle(title, fontsize=STYLE["axes.titlesize"])
  return figure


def draw_locations(priorities: Array, locations: Array, *, slope: float, intercept: float, title: str) -> Figure:
  """Fig. 17: rows written to against priorities, with the fitted line."""
  figure, (axes,) = new_figure(height=3.8, width=5.2)
  axes.plot(
    priorities.ravel(), locations.ravel(), linestyle="", marker="o", markersize=3, color=OKABE_ITO[0], alpha=0.5
  )
  ends = np.array([-1.0, 1.0])
  axes.plot(ends, slope * ends + intercept, color="black", linestyle=DASHES[1], linewidth=1.8, zorder=5)
  axes.set_xlabel("priority")
  axes.set_ylabel("row with the largest write weight")
  axes.set_title(title, fontsize=STYLE["axes.titlesize"])
  marks = handle("written", colour=OKABE_ITO[0], marker="o", dashes="")
  legend(figure, [marks, handle("fitted line", colour="black", dashes=DASHES[1])])
  return figure
