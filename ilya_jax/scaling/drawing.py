"""The look of the figures: canvas, colours, markers, axes with readable ticks, legends.

Nothing global is touched (no pyplot). Ordered quantities (sizes, lengths) take colours from viridis, whose lightness is
ordered too, and a marker each; unordered ones (families, forms) take the colours of Okabe & Ito 2008,
https://jfly.uni-koeln.de/color/, and a line style each: the figures stay readable for the colour-blind and in grey.
"""

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

Array = np.ndarray

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1)), (0, (8, 3)))
LABELS = {
  "N": "Non-embedding parameters N",
  "D": "Training tokens D",
  "C": "Training compute C (FLOP)",
  "6ND": "Training compute 6ND (FLOP)",
}
HELD_OUT = "#D55E00"
_WIDTH, _HEIGHT = 5.4, 4.2  # inches
MOST_LEVELS = 7  # curves of a figure at most
STYLE: dict[Any, Any] = {
  "font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 9.5, "axes.labelsize": 9.5, "legend.fontsize": 8,
  "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8, "axes.grid": True, "grid.color": "#e3e3e3",
  "grid.linewidth": 0.6, "axes.axisbelow": True, "lines.linewidth": 1.5, "lines.markersize": 5, "legend.frameon": False,
  "figure.dpi": 100, "savefig.facecolor": "white", "svg.fonttype": "path", "svg.hashsalt": "ilya-jax",
}  # fmt: skip


def new_figure(*, rows: int = 1, height: float = _HEIGHT, width: float = _WIDTH) -> tuple[Figure, list[Axes]]:
  """A figure of stacked panels on the Agg canvas, laid out so that nothing overlaps."""
  with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, 1, squeeze=False)[:, 0]
  return figure, list(axes)


def image(figure: Figure, *, kind: str, dots_per_inch: int = 200) -> bytes:
  """The figure as a file: kind is svg or png. The same figure gives the same bytes."""
  buffer = io.BytesIO()
  options: dict[str, Any] = {"metadata": {"Date": None} if kind == "svg" else {"Software": None}}
  if kind == "png":
    options["pil_kwargs"] = {"compress_level": 3}
  with matplotlib.rc_context(STYLE):
    if figure.get_layout_engine() is not None:  # laid out once, not anew for every format
      figure.draw_without_rendering()
      figure.set_layout_engine(None)
    figure.savefig(buffer, format=kind, dpi=dots_per_inch, **options)
  return buffer.getvalue()


def short(value: float) -> str:
  """A count as 6.14k, 524k, 3.3G, 1.2T, or as 1.2e+15 from there on."""
  if not np.isfinite(value) or value <= 0:
    return f"{value:g}"
  if value >= 1e15 or value < 1e-2:
    return f"{value:.2g}"
  for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
    if value >= 0.9995 * size:
      return f"{value / size:.3g}{letter}"
  return f"{value:.3g}"


def ordered_colours(count: int) -> list[str]:
  """`count` colours of viridis from dark to light, its palest fifth left out."""
  viridis = matplotlib.colormaps["viridis"]
  return [to_hex(viridis(0.82 * k / max(count - 1, 1))) for k in range(count)]


def levels(values: Array) -> tuple[Array, Array]:
  """At most seven levels of a positive quantity: their centres [k], and the level of each value [n].

  The distinct values where there are few; else bins of equal width in the logarithm, at their points' mean.
  """
  logs = np.log(np.asarray(values, np.float64))
  distinct, which = np.unique(np.round(logs, 6), return_inverse=True)
  if len(distinct) > MOST_LEVELS:
    edges = np.linspace(logs.min(), logs.max(), MOST_LEVELS)[1:-1]
    distinct, which = np.unique(np.digitize(logs, edges), return_inverse=True)
  return np.exp([logs[which == k].mean() for k in range(len(distinct))]), which


def scale_x(axes: Axes, values: Array, label: str) -> None:
  """A logarithmic axis with a margin and readable ticks.

  Compute has powers of ten (with 2 and 5 between where there are few); a count has its values where these are few, else
  1, 2 and 5.
  """
  values = np.asarray(values, np.float64)
  low, high = float(values.min()), float(values.max())
  margin = 1.15 * (high / low) ** 0.04
  axes.set_xscale("log")
  axes.set_xlim(low / margin, high * margin)
  axes.set_xlabel(label)
  axes.xaxis.set_minor_locator(NullLocator())
  axes.xaxis.set_minor_formatter(NullFormatter())
  decades = np.log10(high * margin**2 / low)
  if "FLOP" in label:
    if decades < 2.5:
      axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0) if decades > 1.2 else (1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _power(value)))
    return
  distinct = np.unique(np.exp(np.round(np.log(values), 3)))
  gap = np.diff(np.log10(distinct)).min() / decades if len(distinct) > 1 else 1.0
  if gap > 0.085:
    axes.xaxis.set_major_locator(FixedLocator(list(distinct)))
  elif decades < 4:
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2 else (1.0, 3.0)))
  axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))


def _power(value: float) -> str:
  """A tick such as 10^12 or 3×10^12."""
  exponent = int(np.floor(np.log10(value) + 1e-9))
  factor = round(value / 10.0**exponent)
  return f"$10^{{{exponent}}}$" if factor == 1 else f"${factor}{{\\times}}10^{{{exponent}}}$"


def scale_loss(axes: Axes, values: Array, unit: str) -> None:
  """A logarithmic loss axis with plain numbers at round steps."""
  values = np.asarray(values, np.float64)
  low, high = float(np.nanmin(values)), float(np.nanmax(values))
  margin = (high / low) ** 0.06 * 1.01
  low, high = low / margin, high * margin
  axes.set_yscale("log")
  if high / low < 12.0:
    ticks = [tick for tick in MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high) if low <= tick <= high]
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
  axes.set_ylim(low, high)
  axes.set_ylabel(f"Loss ({unit})")


def legend(figure: Figure, handles: Sequence[Any], *, title: str = "", columns: int = 3) -> None:
  with matplotlib.rc_context(STYLE):
    figure.legend(handles=list(handles), loc="outside lower center", ncols=columns, title=title or None, title_fontsize=8,
                  handlelength=2.2, columnspacing=1.4, frameon=False)  # fmt: skip


def handle(
  label: str, *, colour: str, marker: str = "", dashes: Any = "-", filled: bool = True, size: float = 5
) -> Line2D:
  face = colour if filled else "white"
  return Line2D(
    [], [], color=colour, marker=marker, linestyle=dashes, label=label, markerfacecolor=face, markersize=size
  )


def held_out(axes: Axes, x: Array, y: Array, error: Array | None = None) -> None:
  """The held-out points as stars with their 95 % interval."""
  if error is not None and np.isfinite(error).any():
    axes.errorbar(x, y, yerr=1.96 * error, fmt="none", ecolor="black", elinewidth=1.0, capsize=2.5, zorder=6)
  axes.plot(
    x,
    y,
    linestyle="",
    marker="*",
    markersize=13,
    color=HELD_OUT,
    markeredgecolor="black",
    markeredgewidth=0.7,
    zorder=7,
  )


def held_out_handle(label: str = "held out, measured") -> Line2D:
  return Line2D([], [], linestyle="", marker="*", markersize=11, color=HELD_OUT, markeredgecolor="black", label=label)
