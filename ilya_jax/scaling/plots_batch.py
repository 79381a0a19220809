"""Figures of the critical batch size: steps against tokens at each target loss, and B_crit against the loss."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ilya_jax.scaling import drawing
from ilya_jax.scaling.drawing import DASHES, MARKERS

Array = np.ndarray
Record = Mapping[str, Any]

KAPLAN = (2e8, 0.21)  # B_star (tokens) and alpha_B of eq. 1.4, for losses in nats per BPE token of WebText2
_PANELS = 3  # sizes drawn: smallest, middle, largest
_GREY = "#555555"


def shown_sizes(record: Record) -> list[float]:
  """The sizes that have a panel: all, or the smallest, middle and largest of many."""
  sizes = sorted({found["N"] for found in record["fits"]})
  if len(sizes) <= _PANELS:
    return sizes
  return [sizes[round(k)] for k in np.linspace(0, len(sizes) - 1, _PANELS)]


def hyperbolas(record: Record, unit: str) -> Figure:
  """Steps S against tokens E = B S at each target loss, a panel for each size, with the asymptotes S_min and E_min."""
  sizes = shown_sizes(record)
  figure, panels = drawing.new_figure(rows=len(sizes), height=1.0 + 3.0 * len(sizes))
  colours = dict(zip(record["targets"], drawing.ordered_colours(len(record["targets"])), strict=True))
  marks = {target: MARKERS[k % len(MARKERS)] for k, target in enumerate(record["targets"])}
  loose = False
  for axes, size in zip(panels, sizes, strict=True):
    own = [found for found in record["fits"] if found["N"] == size]
    points = [[(p["E"], p["S"]) for p in found["points"]] for found in own]
    E, S = (np.concatenate([np.array(each)[:, k] for each in points]) for k in (0, 1))
    drawing.scale_x(axes, E, f"Tokens E = B S to the loss (N = {drawing.short(size)})")
    axes.set_yscale("log")
    axes.set_ylabel("Steps S to the loss")
    axes.set_ylim(S.min() / 1.6, S.max() * 1.4)
    for found in own:
      colour, known = colours[found["target"]], found["intervals"]["B_crit"]["identified"]
      loose |= not known
      at = np.array([(p["E"], p["S"]) for p in found["points"]])
      axes.plot(at[:, 0], at[:, 1], linestyle="", marker=marks[found["target"]], color=colour,
                markerfacecolor=colour if known else "white", zorder=5)  # fmt: skip
      least, tokens = found["parameters"]["S_min"], found["parameters"]["E_min"]
      B = np.geomspace(at[:, 0].min() / at[:, 1].max() / 30, at[:, 0].max() / at[:, 1].min() * 30, 400)
      steps = least * (1 + found["parameters"]["B_crit"] / B)
      axes.plot(
        B * steps, steps, color=colour, linewidth=1.3 if known else 0.9, linestyle="-" if known else DASHES[1], zorder=4
      )
      if known:
        axes.axhline(least, color=colour, linewidth=0.8, linestyle=DASHES[2], zorder=2)
        axes.axvline(tokens, color=colour, linewidth=0.8, linestyle=DASHES[2], zorder=2)
  handles: list[Any] = [
    drawing.handle(f"loss {target:.3g}", colour=colours[target], marker=marks[target]) for target in record["targets"]
  ]
  handles.append(drawing.handle("asymptotes S_min, E_min", colour=_GREY, dashes=DASHES[2]))
  if loose:
    handles.append(drawing.handle("B_crit not identified", colour=_GREY, marker="o", dashes=DASHES[1], filled=False))
  drawing.legend(figure, handles, title=f"Target loss ({unit})")
  return figure


def against_loss(record: Record, unit: str, *, kaplan: bool) -> Figure:
  """B_crit against the loss with 95 % intervals, a colour for each size, the fitted law, and what the runs logged as noise scale.

  kaplan: draws the law that Kaplan et al. 2020 print, for losses in nats per token.
  """
  figure, (axes,) = drawing.new_figure(height=4.6)
  fits = record["fits"]
  sizes = sorted({found["N"] for found in fits})
  colours = dict(zip(sizes, drawing.ordered_colours(len(sizes)), strict=True))
  values, losses = [], []
  for found in fits:
    known = found["intervals"]["B_crit"]
    if not known["identified"]:
      continue
    centre, colour = found["parameters"]["B_crit"], colours[found["N"]]
    shift = 1 + 0.006 * (sizes.index(found["N"]) - (len(sizes) - 1) / 2)  # so that bars of one loss stand side by side
    axes.errorbar(found["target"] * shift, centre, yerr=[[max(centre - known["low"], 0)], [max(known["high"] - centre, 0)]], fmt="none",
                  ecolor=colour, elinewidth=1.0, capsize=2.5, zorder=4)  # fmt: skip
    marker = MARKERS[sizes.index(found["N"]) % len(MARKERS)]
    axes.plot(found["target"] * shift, centre, linestyle="", marker=marker, color=colour, zorder=5)
    values += [known["low"], known["high"]]
    losses.append(found["target"])
  windows = _noise(record)
  if len(windows):
    axes.plot(windows[:, 0], windows[:, 1], linestyle="", marker="x", markersize=4, color="#8c8c8c", zorder=3)
    values += list(windows[:, 1])
    losses += list(windows[:, 0])
  if not losses:
    losses, values = [found["target"] for found in fits], [p["B"] for found in fits for p in found["points"]]
  grid = np.geomspace(min(losses) / 1.05, max(losses) * 1.05, 60)
  handles: list[Any] = [
    drawing.handle(f"N = {drawing.short(size)}", colour=colours[size], marker=MARKERS[k % len(MARKERS)], dashes="")
    for k, size in enumerate(sizes)
  ]
  law = record["laws"]["L"]
  if law is not None and law["parameters"]["alpha_B"]:
    star, alpha = law["parameters"]["B_star"], law["parameters"]["alpha_B"]
    line = np.exp(np.log(star) - np.log(grid) / alpha)
    axes.plot(grid, line, color="black", zorder=4)
    handles.append(drawing.handle("fitted B_star / L^(1/α_B)", colour="black"))
  if kaplan:
    line = KAPLAN[0] / grid ** (1 / KAPLAN[1])
    axes.plot(grid, line, color=drawing.HELD_OUT, linestyle=DASHES[1], zorder=3)
    values += [line.min(), line.max()]
    handles.append(drawing.handle("Kaplan et al. 2020, eq. 1.4", colour=drawing.HELD_OUT, dashes=DASHES[1]))
  if len(windows):
    handles.append(drawing.handle("noise scale tr Σ / |G|²", colour="#8c8c8c", marker="x", dashes="", size=4))
  _axes(axes, np.array(losses), np.array(values), unit)
  drawing.legend(figure, handles)
  return figure


def _axes(axes: Any, losses: Array, values: Array, unit: str) -> None:
  """Logarithmic axes, the loss falling to the right as training goes on."""
  drawing.scale_x(axes, losses, f"Loss ({unit}), falling to the right")
  low, high = axes.get_xlim()
  axes.set_xlim(high, low)
  axes.set_yscale("log")
  axes.set_ylim(values.min() / 1.5, values.max() * 1.5)
  axes.set_ylabel("Critical batch size B_crit (tokens)")


def _noise(record: Record) -> Array:
  """[k, 2] loss and B_simple of every window that has one."""
  runs: Sequence[Record] = record["noise_scale"]
  found = [(w["loss"], w["B_simple"]) for run in runs for w in run["windows"] if w["B_simple"] is not None]
  return np.array(found).reshape(-1, 2)
