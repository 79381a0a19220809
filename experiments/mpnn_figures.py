"""Figures of the claims in `mpnn.py`: the paper's tables as bars, errors by net, by diameter and by the number of molecules."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from ilya_jax.scaling.drawing import DASHES, MARKERS, OKABE_ITO, STYLE, handle, legend, new_figure

HATCHES = ("", "///", "...", "xxx")
TARGETS = ("μ", "α", "HOMO", "LUMO", "gap", "R²", "ZPVE", "U0", "U", "H", "G", "Cv", "ω1", "average")
PUBLISHED: Mapping[str, tuple[float, ...]] = {  # error ratios of tables 2 and 10
  "bonds alone": (3.81, 2.04, 1.71, 1.41, 2.26, 13.67, 3.02, 0.72, 0.79, 0.80, 0.74, 1.71, 0.78, 2.57),
  "distances": (0.95, 1.18, 1.10, 1.06, 1.74, 0.57, 2.57, 0.55, 0.55, 0.59, 0.55, 0.99, 0.41, 0.98),
  "distances and hydrogens": (0.30, 0.92, 0.99, 0.87, 1.60, 0.15, 1.27, 0.45, 0.45, 0.39, 0.44, 0.80, 0.19, 0.68),
}
LONG_RANGE = {"none": 3.47, "virtual edges": 2.90, "master node": 2.62, "set2set": 2.57}  # table 7, average
BY_DATA = {"μ": (1.28, 0.55, 0.44, 0.32, 0.30), "U0": (1.24, 0.69, 0.58, 0.62, 0.45),
           "R²": (0.28, 0.22, 0.21, 0.21, 0.15), "gap": (3.53, 2.34, 2.07, 1.84, 1.60)}  # fmt: skip
MOLECULES = (11_000, 35_000, 58_000, 82_000, 110_000)  # of BY_DATA, table 6

Curve = tuple[Sequence[float], Sequence[float]]


def draw_published() -> Figure:
  """Tables 2 and 10: error ratios by target and input, with the line of chemical accuracy."""
  figure, (axes,) = new_figure(height=4.4, width=8.4)
  places = np.arange(len(TARGETS))
  for k, (name, values) in enumerate(PUBLISHED.items()):
    axes.bar(places + 0.27 * (k - 1), values, 0.25, label=name, color=OKABE_ITO[k], hatch=HATCHES[k], edgecolor="white")
  axes.axhline(1.0, color="black", linewidth=1.0, linestyle=DASHES[1], label="chemical accuracy")
  axes.set_yscale("log")
  axes.yaxis.set_major_locator(FixedLocator([0.2, 0.5, 1, 2, 5, 10]))
  axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
  axes.yaxis.set_minor_locator(NullLocator())
  axes.set_xticks(places, TARGETS)
  axes.set_ylabel("error ratio (published)")
  legend(figure, axes.get_legend_handles_labels()[0], columns=4)
  return figure


def draw_bars(
  values: Mapping[str, Sequence[float]], *, y: str, lines: Mapping[str, float] | None = None, title: str = ""
) -> Figure:
  """A bar at the mean of each name's values, and every value as a dot."""
  figure, (axes,) = new_figure(height=3.6, width=5.0)
  _bars(axes, values, y=y)
  for name, where in (lines or {}).items():
    axes.axhline(where, color="black", linewidth=0.9, linestyle=DASHES[1])
    axes.annotate(name, (0.0, where), xycoords=("axes fraction", "data"), xytext=(3, -10), textcoords="offset points")
  return figure


def _bars(axes: Axes, values: Mapping[str, Sequence[float]], *, y: str) -> None:
  for k, own in enumerate(values.values()):
    axes.bar(k, np.mean(own), 0.6, color=OKABE_ITO[k], hatch=HATCHES[k % len(HATCHES)], edgecolor="white")
    axes.plot([k] * len(own), own, linestyle="", marker="o", color="black", markerfacecolor="white", markersize=4)
  axes.set_xticks(range(len(values)), list(values))
  axes.set_ylabel(y)


def draw_long_range(values: Mapping[str, Sequence[float]]) -> Figure:
  """Table 7 above our errors on the Wiener index."""
  figure, (published, ours) = new_figure(rows=2, height=5.4, width=5.4)
  _bars(published, {name: [value] for name, value in LONG_RANGE.items()}, y="error ratio")
  published.set_title("Published: QM9 without positions, average of 13 targets", fontsize=STYLE["axes.titlesize"])
  _bars(ours, values, y="error / deviation")
  ours.set_title("Ours: Wiener index of random trees; a dot is a seed", fontsize=STYLE["axes.titlesize"])
  return figure


def draw_by_diameter(curves: Mapping[str, Sequence[Curve]]) -> Figure:
  """Error against the diameter of the tree: name -> a curve for each seed."""
  figure, (axes,) = new_figure(height=4.0, width=5.6)
  for k, own in enumerate(curves.values()):
    for x, values in own:
      axes.plot(x, values, color=OKABE_ITO[k], marker=MARKERS[k], linestyle=DASHES[k], linewidth=1.1)
  axes.set_yscale("log")
  axes.set_xlabel("diameter of the tree, bonds")
  axes.set_ylabel("error / deviation of the target")
  handles = [handle(name, colour=OKABE_ITO[k], marker=MARKERS[k], dashes=DASHES[k]) for k, name in enumerate(curves)]
  legend(figure, handles, columns=4)
  return figure


def draw_data(errors: Mapping[int, Sequence[float]]) -> Figure:
  """Error against the number of training molecules: ours, and table 6."""
  figure, (axes,) = new_figure(height=4.2, width=6.0)
  sizes = list(errors)
  for k, (name, values) in enumerate(BY_DATA.items()):
    look = {"color": OKABE_ITO[k + 1], "marker": MARKERS[k + 1], "linestyle": DASHES[k + 1]}
    axes.plot(MOLECULES, values, label=f"QM9 {name} (published)", **look)
  axes.plot(sizes, [np.mean(errors[size]) for size in sizes], color=OKABE_ITO[0], marker="o", label="charges (ours)")
  for size in sizes:
    axes.plot([size] * len(errors[size]), errors[size], linestyle="", marker="o", color=OKABE_ITO[0], markersize=3,
              markerfacecolor="white")  # fmt: skip
  axes.set_xscale("log")
  axes.set_yscale("log")
  axes.set_xlabel("training molecules")
  axes.set_ylabel("error ratio (ours: error / deviation)")
  legend(figure, axes.get_legend_handles_labels()[0], columns=3)
  return figure
