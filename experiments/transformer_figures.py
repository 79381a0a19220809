"""Figures of the claims in `transformer.py`: attention maps, table 3, rates and positions, accuracy by length, paths, warm-up."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from ilya_jax.models.transformer_layers import sinusoids
from ilya_jax.scaling.drawing import DASHES, MARKERS, OKABE_ITO, STYLE, handle, legend, new_figure, scale_x

HATCHES = ("", "///", "...", "xxx")
TABLE_3: Mapping[str, tuple[Sequence[float], Sequence[float]]] = {  # newstest2013, perplexity per word piece
  "heads h": ((1, 4, 8, 16, 32), (5.29, 5.00, 4.92, 4.91, 5.01)),
  "key width d_k": ((16, 32, 64), (5.16, 5.01, 4.92)),
  "layers N": ((2, 4, 6, 8), (6.11, 5.19, 4.92, 4.88)),
  "width d": ((256, 512, 1024), (5.75, 4.92, 4.66)),
  "feed-forward d_ff": ((1024, 2048, 4096), (5.12, 4.92, 4.75)),
}
Curve = tuple[Sequence[float], Sequence[float]]


def draw_table_3() -> Figure:
  """Table 3, rows A to C: perplexity against each size, relative to base's."""
  figure, (axes,) = new_figure(height=4.2, width=5.6)
  for k, (name, (sizes, perplexities)) in enumerate(TABLE_3.items()):
    base = sizes[perplexities.index(4.92)]
    axes.plot([size / base for size in sizes], perplexities, label=name, color=OKABE_ITO[k], marker=MARKERS[k],
              linestyle=DASHES[k])  # fmt: skip
  axes.set_xscale("log", base=2)
  axes.set_xlabel("size over that of base (h 8, d_k 64, N 6, d 512, d_ff 2048)")
  axes.set_ylabel("perplexity, newstest2013 (published)")
  legend(figure, axes.get_legend_handles_labels()[0], columns=3)
  return figure


def draw_recipe() -> Figure:
  """The Annotated Transformer's two plots: learning rates by width and warm-up, and four dimensions of the sinusoids."""
  figure, (rates, places) = new_figure(rows=2, height=5.6, width=6.0)
  steps = np.arange(1, 20_001)
  for k, (width, warmup) in enumerate(((512, 4_000), (512, 8_000), (256, 4_000))):
    rate = width**-0.5 * np.minimum(steps**-0.5, steps * warmup**-1.5)
    rates.plot(steps, 1e3 * rate, color=OKABE_ITO[k], linestyle=DASHES[k], label=f"d {width}, warm-up {warmup}")
  rates.set_xlabel("step")
  rates.set_ylabel("learning rate / 1e-3")
  rates.legend(fontsize=STYLE["legend.fontsize"], frameon=False)
  table = sinusoids(101, 20)
  for k in range(4):
    places.plot(table[:, 4 + k], color=OKABE_ITO[k], linestyle=DASHES[k], label=f"dimension {4 + k}")
  places.set_xlabel("position")
  places.set_ylabel("PE, d = 20")
  places.set_ylim(-1.1, 1.6)
  places.legend(fontsize=STYLE["legend.fontsize"], frameon=False, ncols=4, loc="upper center")
  return figure


def draw_bars(values: Mapping[str, Sequence[float]], *, y: str, line: float | None = None) -> Figure:
  """A bar at the mean of each name's values, and every value as a dot; a line where a gate is."""
  figure, (axes,) = new_figure(height=3.6, width=max(4.6, 1.1 * len(values)))
  for k, own in enumerate(values.values()):
    axes.bar(k, np.mean(own), 0.6, color=OKABE_ITO[k % 6], hatch=HATCHES[k % 4], edgecolor="white")
    axes.plot([k] * len(own), own, linestyle="", marker="o", color="black", markerfacecolor="white", markersize=4)
  if line is not None:
    axes.axhline(line, color="black", linewidth=0.9, linestyle=DASHES[1])
  axes.set_xticks(range(len(values)), list(values))
  axes.set_ylabel(y)
  return figure


def draw_lines(
  curves: Mapping[str, Sequence[Curve]], *, x: str, y: str, logarithmic: str = "", shaded: tuple[float, float] | None = None
) -> Figure:  # fmt: skip
  """Curves of every seed of each name; axes in `logarithmic` ("x", "y", "xy") have a logarithmic scale."""
  figure, (axes,) = new_figure(height=4.0, width=5.8)
  for k, own in enumerate(curves.values()):
    for places, values in own:
      few = len(places) <= 30
      axes.plot(places, values, color=OKABE_ITO[k], linestyle=DASHES[k % len(DASHES)], linewidth=1.1,
                marker=MARKERS[k] if few else "")  # fmt: skip
  if shaded:
    axes.axvspan(*shaded, color="0.92", zorder=0)
  axes.set_xlabel(x)
  if "x" in logarithmic:
    scale_x(axes, np.concatenate([np.asarray(places, np.float64) for own in curves.values() for places, _ in own]), x)
  if "y" in logarithmic:
    axes.set_yscale("log")
  axes.set_ylabel(y)
  handles = [
    handle(name, colour=OKABE_ITO[k], marker=MARKERS[k], dashes=DASHES[k % len(DASHES)])
    for k, name in enumerate(curves)
  ]
  legend(figure, handles, columns=min(len(curves), 3))
  return figure


def draw_attention(weights: Mapping[str, np.ndarray], rows: Sequence[str], columns: Sequence[str]) -> Figure:
  """As figures 3 to 5: the weights [T, S] that each of several heads gives, one panel a head, stacked two and two."""
  figure, _ = new_figure(height=2.4 * ((len(weights) + 1) // 2), width=7.0)
  figure.clear()
  panels = figure.subplots((len(weights) + 1) // 2, 2, squeeze=False).ravel()
  for axes, (name, own) in zip(panels, weights.items(), strict=False):
    axes.imshow(own, cmap="Greys", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axes.set_title(name, fontsize=STYLE["axes.titlesize"])
    axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=6)
    axes.set_yticks(range(len(rows)), rows, fontsize=6)
    axes.grid(False)
  for axes in panels[len(weights) :]:
    axes.set_visible(False)
  return figure
