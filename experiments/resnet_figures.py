"""Figures of the claims in `resnet.py`: learning curves plain beside residual, shortcut options, responses of the layers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import ndimage

from ilya_jax.claims.claim import Row
from ilya_jax.scaling.drawing import DASHES, MARKERS, OKABE_ITO, handle, legend, new_figure, ordered_colours

Array = np.ndarray
_SMOOTH = 0.03  # of the run: width of the mean that noisy training curves are drawn with


def smoothed(values: Sequence[float]) -> Array:
  """A running mean over a few per cent of the run."""
  return ndimage.uniform_filter1d(np.asarray(values, float), max(round(_SMOOTH * len(values)), 1), mode="nearest")


def curves_of(runs: Mapping[str, Any], names: Sequence[str], metric: str) -> tuple[Array, Array, Array, Array]:
  """Training steps and median over runs of the smoothed metric, in %; held-out steps and median, in %."""
  train = [runs[name].curve(metric) for name in names]
  test = [runs[name].curve(metric, split="eval", name="test") for name in names]
  return (
    np.array(train[0][0]), 100 * np.median([smoothed(values) for _, values in train], axis=0),
    np.array(test[0][0]), 100 * np.median([values for _, values in test], axis=0),
  )  # fmt: skip


def cases(rows: Sequence[Row], **conditions: Any) -> dict[tuple[str, int], list[str]]:
  """(net, depth) -> names of its runs, of the rows that meet the conditions."""
  found: dict[tuple[str, int], list[str]] = {}
  for row in rows:
    if all(row[name] == value for name, value in conditions.items()):
      found.setdefault((row["net"], row["depth"]), []).append(f"{row['net']} {row['depth']} {row['seed']}")
  return found


def draw_curves(runs: Mapping[str, Any], rows: Sequence[Row]) -> Figure:
  """Figure 6: error against steps, training dashed, held-out solid; plain above, residual below, a line for each depth."""
  depths = sorted({row["depth"] for row in rows})
  colours = dict(zip(depths, ordered_colours(len(depths)), strict=True))
  marks = dict(zip(depths, MARKERS, strict=False))
  figure, panels = new_figure(rows=2, height=6.0)
  for axes, net in zip(panels, ("plain", "residual"), strict=True):
    for (_, depth), names in cases(rows, net=net).items():
      steps, train, test_steps, test = curves_of(runs, names, "error")
      axes.plot(steps, train, color=colours[depth], linestyle=DASHES[1], linewidth=1.0)
      axes.plot(test_steps, test, color=colours[depth], marker=marks[depth], markersize=4)
    axes.set_title(f"{net}, median of {len(names)} seeds")
    axes.set_ylabel("Error (%)")
    axes.set_ylim(0, 100)
  panels[-1].set_xlabel("Step")
  handles = [handle(f"{depth} layers, held out", colour=colours[depth], marker=marks[depth]) for depth in depths]
  handles += [handle(f"{depth} layers, training", colour=colours[depth], dashes=DASHES[1]) for depth in depths]
  legend(figure, handles, columns=2)
  return figure


def draw_options(runs: Mapping[str, Any], rows: Sequence[Row]) -> Figure:
  """Held-out error against steps with each option of the shortcuts: median over seeds, every seed's end as a point."""
  figure, (axes,) = new_figure(height=3.6)
  handles = []
  for k, ((net, depth), names) in enumerate(cases(rows).items()):
    _, _, steps, test = curves_of(runs, names, "error")
    axes.plot(steps, test, color=OKABE_ITO[k], linestyle=DASHES[k])
    ends = [100 * row["test_error"] for row in rows if row["net"] == net]
    axes.plot(
      np.full(len(ends), steps[-1] * (1.02 + 0.02 * k)), ends, linestyle="", marker=MARKERS[k], color=OKABE_ITO[k],
      markerfacecolor="white",
    )  # fmt: skip
    handles.append(
      handle(f"option {net}, {depth} layers", colour=OKABE_ITO[k], dashes=DASHES[k], marker=MARKERS[k], filled=False)
    )
  axes.set_xlabel("Step")
  axes.set_ylabel("Held-out error (%)")
  _logarithmic(axes, [1, 2, 5, 10, 20, 50, 100])
  legend(figure, handles)
  return figure


def draw_responses(curves: Mapping[str, Sequence[float]], rows: Sequence[Row]) -> Figure:
  """Figure 7: standard deviation of the layers' responses, in the order of the layers and sorted, mean over seeds."""
  figure, panels = new_figure(rows=2, height=6.0)
  handles = []
  for k, ((net, depth), names) in enumerate(cases(rows).items()):
    mean = np.mean([curves[name] for name in names], axis=0)
    style = {"color": OKABE_ITO[k], "linestyle": DASHES[k % len(DASHES)], "marker": MARKERS[k], "markersize": 3}
    panels[0].plot(np.arange(1, len(mean) + 1), mean, **style)
    panels[1].plot(np.arange(1, len(mean) + 1), np.sort(mean)[::-1], **style)
    handles.append(
      handle(f"{net}, {depth} layers", colour=OKABE_ITO[k], dashes=DASHES[k % len(DASHES)], marker=MARKERS[k])
    )
  for axes, label in zip(panels, ("Layer", "Layer, sorted by its response"), strict=True):
    axes.set_xlabel(label)
    axes.set_ylabel("Standard deviation")
    _logarithmic(axes, [0.5, 1, 1.5, 2, 3, 5, 10, 20, 50])
  legend(figure, handles, columns=2)
  return figure


def _logarithmic(axes: Axes, at: Sequence[float]) -> None:
  """A logarithmic ordinate over what is drawn, with those of the ticks `at` that lie there."""
  axes.set_yscale("log")
  low, high = axes.get_ylim()
  shown = [value for value in at if low <= value <= high]
  axes.set_yticks(shown, [f"{value:g}" for value in shown])
  axes.minorticks_off()
