"""Figures of the claims in `lstm.py`: learning curves, gradients against lag, gates on a sequence, the repeating modules."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch

from ilya_jax.scaling.drawing import DASHES, OKABE_ITO, STYLE, handle, legend, new_figure

Array = np.ndarray
Curve = tuple[Sequence[float], Sequence[float]]  # updates (or lags), values

NAMES = {
  "rnn": "RNN", "lstm": "LSTM", "gru": "GRU", "lstm_no_forget": "no forget gate", "lstm_peephole": "peepholes",
  "lstm_coupled": "coupled gates",
}  # fmt: skip


def draw_curves(
  panels: Mapping[str, Mapping[str, Sequence[Curve]]], *, x: str, y: str, logarithmic: bool = True,
  lines: Mapping[str, tuple[str, float]] | None = None,
) -> Figure:  # fmt: skip
  """Panels of curves: title -> label -> one curve for each seed. lines: label -> ("h" or "v", where), drawn in every panel."""
  figure, axes_of = new_figure(rows=len(panels), height=1.2 + 2.6 * len(panels), width=6.2)
  labels = list(dict.fromkeys(label for panel in panels.values() for label in panel))
  looks = dict(zip(labels, zip(OKABE_ITO, DASHES, strict=False), strict=False))
  for axes, (title, panel) in zip(axes_of, panels.items(), strict=True):
    for label, curves in panel.items():
      for xs, ys in curves:
        axes.plot(xs, ys, color=looks[label][0], linestyle=looks[label][1], linewidth=1.2)
    for kind, where in (lines or {}).values():
      (axes.axhline if kind == "h" else axes.axvline)(where, color="black", linewidth=0.8, linestyle=(0, (2, 2)))
    axes.set_yscale("log" if logarithmic else "linear")
    axes.set_title(title, fontsize=STYLE["axes.titlesize"])
    axes.set_ylabel(y)
  axes_of[-1].set_xlabel(x)
  handles = [handle(label, colour=colour, dashes=dashes) for label, (colour, dashes) in looks.items()]
  handles += [handle(label, colour="black", dashes=(0, (2, 2))) for label in lines or {}]
  legend(figure, handles, columns=3)
  return figure


def draw_gates(inputs: Array, traces: Mapping[str, Array]) -> Figure:
  """One adding sequence: inputs [T, 2], and a panel for each of `traces`, name -> [T, units]; marks as vertical lines."""
  figure, axes_of = new_figure(rows=1 + len(traces), height=1.0 + 1.5 * (1 + len(traces)), width=6.4)
  steps, marked = np.arange(1, len(inputs) + 1), np.flatnonzero(inputs[:, 1]) + 1
  axes_of[0].bar(steps, inputs[:, 0], width=0.6, color=["black" if step in marked else "#c8c8c8" for step in steps])
  axes_of[0].set_ylabel("value")
  title = "Inputs; the two marked values are black, their sum is the answer"
  axes_of[0].set_title(title, fontsize=STYLE["axes.titlesize"])
  for axes, (name, values) in zip(axes_of[1:], traces.items(), strict=True):
    for unit, (colour, dashes) in zip(values.T, zip(OKABE_ITO, DASHES, strict=False), strict=False):
      axes.plot(steps, unit, color=colour, linestyle=dashes, linewidth=1.3)
    axes.set_ylabel(name)
  for axes in axes_of:
    axes.set_xlim(0.3, len(inputs) + 0.7)
    for step in marked:
      axes.axvline(step, color="black", linewidth=0.7, linestyle=(0, (2, 2)), zorder=0.5)
  axes_of[-1].set_xlabel("step")
  units = next(iter(traces.values())).shape[1]
  names = [f"cell {k + 1}" for k in range(units)]
  legend(figure, [handle(n, colour=c, dashes=d) for n, c, d in zip(names, OKABE_ITO, DASHES, strict=False)])
  return figure


Module = Mapping[str, Any]  # layers and points: (text, x, y); wires: corners, an arrow at the end; forks; labels

_GATES_OUT = [
  [(0, 3.2), (5, 3.2)], [(3.4, 0.6), (3.4, 1.1)], [(3.4, 1.7), (3.4, 1.9), (4.0, 1.9)], [(4.2, 3.2), (4.2, 2.8)],
  [(4.2, 2.4), (4.2, 2.1)], [(4.2, 1.7), (4.2, 0.6), (5, 0.6)], [(4.6, 0.6), (4.6, 3.8)], [(2.6, 0.6), (2.6, 1.1)],
  [(2.6, 1.7), (2.6, 2.1)], [(2.6, 2.5), (2.6, 3.0)], [(1, 0.6), (1, 1.1)], [(1, 1.7), (1, 3.0)],
]  # fmt: skip
_LSTM_POINTS = [("×", 1, 3.2), ("+", 2.6, 3.2), ("×", 2.6, 2.3), ("tanh", 4.2, 2.6), ("×", 4.2, 1.9)]
_LSTM_ENDS = [
  ("$C_{t-1}$", 0, 3.45), ("$C_t$", 5, 3.45), ("$h_{t-1}$", 0, 0.85), ("$h_t$", 5, 0.85), ("$x_t$", 0.5, -0.45),
  ("$h_t$", 4.6, 4.0),
]  # fmt: skip
_BUS = {"plain": [[(0, 0.6), (3.4, 0.6)], [(0.5, -0.2), (0.5, 0.6)]]}
_LSTM: Module = {
  "layers": [("σ", 1, 1.4), ("σ", 1.8, 1.4), ("tanh", 2.6, 1.4), ("σ", 3.4, 1.4)],
  "points": _LSTM_POINTS,
  "wires": [*_GATES_OUT, [(1.8, 0.6), (1.8, 1.1)], [(1.8, 1.7), (1.8, 2.3), (2.4, 2.3)]],
  "forks": [(0.5, 0.6), (1, 0.6), (1.8, 0.6), (2.6, 0.6), (4.2, 3.2), (4.6, 0.6)],
  "labels": [*_LSTM_ENDS, ("f", 0.85, 2.0), ("i", 1.65, 2.0), ("g", 2.45, 1.9), ("o", 3.55, 2.08)],
  **_BUS,
}
MODULES: Mapping[str, Module] = {
  "Plain RNN": {
    "layers": [("tanh", 2.5, 1.4)],
    "points": [],
    "wires": [
      [(2.5, 0.6), (2.5, 1.1)], [(2.5, 1.7), (2.5, 2.3), (4.2, 2.3), (4.2, 0.6), (5, 0.6)], [(4.2, 2.3), (4.2, 3.8)],
    ],
    "plain": [[(0, 0.6), (2.5, 0.6)], [(0.5, -0.2), (0.5, 0.6)]],
    "forks": [(0.5, 0.6), (4.2, 2.3)],
    "labels": [("$h_{t-1}$", 0, 0.85), ("$h_t$", 5, 0.85), ("$x_t$", 0.5, -0.45), ("$h_t$", 4.2, 4.0)],
  },
  "LSTM": _LSTM,
  "Peepholes": {
    **_LSTM,
    "dashed": [
      [(0.4, 3.2), (0.4, 1.4), (0.7, 1.4)], [(0.4, 2.05), (1.4, 2.05), (1.4, 1.4), (1.5, 1.4)],
      [(3.0, 3.2), (3.0, 1.4), (3.1, 1.4)],
    ],
    "forks": [*_LSTM["forks"], (0.4, 3.2), (0.4, 2.05), (3.0, 3.2)],
    "labels": [*_LSTM_ENDS, ("f", 0.85, 2.4), ("i", 1.95, 2.0), ("g", 2.45, 1.9), ("o", 3.55, 2.08)],
  },
  "Coupled gates": {
    **_LSTM,
    "layers": [("σ", 1, 1.4), ("tanh", 2.6, 1.4), ("σ", 3.4, 1.4)],
    "points": [*_LSTM_POINTS, ("1−", 1.8, 2.3)],
    "wires": [*_GATES_OUT, [(1, 2.3), (1.6, 2.3)], [(2.0, 2.3), (2.4, 2.3)]],
    "forks": [*(fork for fork in _LSTM["forks"] if fork != (1.8, 0.6)), (1, 2.3)],
    "labels": [*_LSTM_ENDS, ("f", 0.85, 2.0), ("g", 2.45, 1.9), ("o", 3.55, 2.08)],
  },
  "GRU": {
    "layers": [("σ", 1.1, 1.3), ("σ", 2.3, 1.3), ("tanh", 3.65, 1.3)],
    "points": [("×", 1.1, 2.2), ("1−", 2.3, 2.45), ("×", 2.3, 3.2), ("×", 3.65, 2.3), ("+", 3.65, 3.2)],
    "wires": [
      [(0, 3.2), (5, 3.2)], [(1.1, 0.6), (1.1, 1.0)], [(2.3, 0.6), (2.3, 1.0)], [(1.1, 1.6), (1.1, 2.0)],
      [(0.4, 2.2), (0.9, 2.2)], [(1.3, 2.2), (1.7, 2.2), (1.7, 0.35), (3.8, 0.35), (3.8, 1.0)],
      [(0.7, 0.1), (3.5, 0.1), (3.5, 1.0)], [(2.3, 1.6), (2.3, 2.25)], [(2.3, 2.65), (2.3, 3.0)],
      [(2.3, 1.85), (3.0, 1.85), (3.0, 2.3), (3.45, 2.3)], [(3.65, 1.6), (3.65, 2.1)], [(3.65, 2.5), (3.65, 3.0)],
      [(4.5, 3.2), (4.5, 3.8)],
    ],
    "plain": [[(0.4, 3.2), (0.4, 0.6), (2.3, 0.6)], [(0.7, -0.2), (0.7, 0.6)]],
    "forks": [(0.4, 3.2), (0.4, 2.2), (0.7, 0.6), (0.7, 0.1), (1.1, 0.6), (2.3, 1.85), (4.5, 3.2)],
    "labels": [
      ("$h_{t-1}$", 0, 3.45), ("$h_t$", 5, 3.45), ("$x_t$", 0.7, -0.45), ("$h_t$", 4.5, 4.0), ("r", 0.95, 1.8),
      ("z", 2.15, 1.8), ("$\\tilde{h}$", 3.85, 1.85),
    ],
  },
}  # fmt: skip


def draw_modules() -> Figure:
  """The repeating modules of the post, redrawn: layers with weights as boxes, operations unit by unit as circles."""
  figure, (axes,) = new_figure(height=6.0, width=9.6)
  axes.set_axis_off()
  axes.set_aspect("equal")
  with matplotlib.rc_context(STYLE):
    for number, (name, module) in enumerate(MODULES.items()):
      _draw_module(axes, name, module, x=6.3 * (number % 3), y=-5.9 * (number // 3))
    _draw_key(axes, x=12.6, y=-5.9)
  axes.set_xlim(-0.6, 18.2)
  axes.set_ylim(-6.6, 4.9)
  return figure


def _draw_module(axes: Axes, name: str, module: Module, *, x: float, y: float) -> None:
  axes.text(x + 2.5, y + 4.5, name, ha="center", fontsize=10.5, fontweight="bold")
  axes.add_patch(FancyBboxPatch((x + 0.25, y), 4.5, 3.6, boxstyle="round,pad=0,rounding_size=0.25", facecolor="#eef3ee",
                                edgecolor="#9ab09a", linewidth=0.9))  # fmt: skip
  for style, arrows in (("plain", False), ("wires", True), ("dashed", True)):
    for corners in module.get(style, ()):
      _draw_wire(axes, [(x + a, y + b) for a, b in corners], arrow=arrows, dashed=style == "dashed")
  for a, b in module["forks"]:
    axes.add_patch(Circle((x + a, y + b), 0.055, color="black", zorder=4))
  for text, a, b in module["layers"]:
    _draw_layer(axes, text, x + a, y + b)
  for text, a, b in module["points"]:
    _draw_point(axes, text, x + a, y + b)
  for text, a, b in module["labels"]:
    axes.text(x + a, y + b, text, ha="center", va="center", fontsize=8.5, style="italic")


def _draw_wire(axes: Axes, corners: Sequence[tuple[float, float]], *, arrow: bool, dashed: bool) -> None:
  look: dict[str, Any] = {
    "color": "black",
    "linewidth": 1.0,
    "linestyle": (0, (3, 1.6)) if dashed else "-",
    "zorder": 2,
  }
  axes.plot(*zip(*corners, strict=True), **look)
  if arrow:
    look = {"arrowstyle": "-|>", "mutation_scale": 7, "shrinkA": 0, "shrinkB": 0, "color": "black", "linewidth": 0.1}
    axes.annotate("", xy=corners[-1], xytext=corners[-2], arrowprops=look, zorder=2)


def _draw_layer(axes: Axes, text: str, x: float, y: float) -> None:
  axes.add_patch(FancyBboxPatch((x - 0.3, y - 0.3), 0.6, 0.6, boxstyle="square,pad=0", facecolor="#f3d27a",
                                edgecolor="black", linewidth=0.8, zorder=3))  # fmt: skip
  axes.text(x, y, text, ha="center", va="center", fontsize=7.5, zorder=5)


def _draw_point(axes: Axes, text: str, x: float, y: float) -> None:
  axes.add_patch(Circle((x, y), 0.2, facecolor="white", edgecolor="black", linewidth=0.8, zorder=3))
  axes.text(x, y, text, ha="center", va="center", fontsize=5 if len(text) > 2 else 7.5, zorder=5)


def _draw_key(axes: Axes, *, x: float, y: float) -> None:
  rows = ("layer with weights", "unit by unit", "joined or copied", "peephole")
  for k, text in enumerate(rows):
    axes.text(x + 1.6, y + 3.0 - 0.8 * k, text, va="center", fontsize=8.5)
  _draw_layer(axes, "σ", x + 0.9, y + 3.0)
  _draw_point(axes, "×", x + 0.9, y + 2.2)
  axes.plot([x + 0.5, x + 1.3], [y + 1.4, y + 1.4], color="black", linewidth=1.0)
  axes.add_patch(Circle((x + 0.9, y + 1.4), 0.055, color="black"))
  _draw_wire(axes, [(x + 0.5, y + 0.6), (x + 1.3, y + 0.6)], arrow=True, dashed=True)
