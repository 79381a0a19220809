"""Figures of how compute is best spent: N*, D* and D*/N* beside published rules, deadweight compute, and the local slope of N*."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch

from ilya_jax.scaling import allocation, drawing, optimal
from ilya_jax.scaling.drawing import DASHES, LABELS, OKABE_ITO
from ilya_jax.scaling.optimal import FLOP_PER_PARAMETER_AND_TOKEN
from ilya_jax.scaling.plots import Frontier, Measured

Array = np.ndarray


def optima(frontier: Frontier, measured: Measured) -> Figure:
  """N*, D* and D*/N* against compute (6 N D) with their bands, over the runs that there are and the published rules."""
  figure, panels = drawing.new_figure(rows=3, height=7.4)
  sizes = allocation.published(frontier.C)
  rules = {name: (N, frontier.C / FLOP_PER_PARAMETER_AND_TOKEN / N) for name, N in sizes.items()}
  rows = (
    (frontier.N, measured.N, "Parameters N*", {name: N for name, (N, _) in rules.items()}),
    (frontier.D, measured.D, "Tokens D*", {name: D for name, (_, D) in rules.items()}),
    (frontier.ratio, measured.D / measured.N, "Tokens per parameter", {name: D / N for name, (N, D) in rules.items()}),
  )
  banded = bool(np.isfinite(frontier.N[1:]).all())
  compute = measured.C_6ND
  for axes, (best, points, label, others) in zip(panels, rows, strict=True):
    axes.axvspan(compute.min(), compute.max(), color="#f1f1ec", linewidth=0, zorder=0)
    axes.plot(compute, points, linestyle="", marker="o", markersize=3, color="#8c8c8c", zorder=3)
    for k, values in enumerate(others.values()):
      axes.plot(frontier.C, values, color=OKABE_ITO[1 + k], linestyle=DASHES[1 + k], linewidth=1.1, zorder=3)
    axes.plot(frontier.C, best[0], color=OKABE_ITO[0], linewidth=1.8, zorder=5)
    if banded:
      axes.fill_between(frontier.C, best[1], best[2], color=OKABE_ITO[0], alpha=0.18, linewidth=0, zorder=2)
    drawing.scale_x(axes, frontier.C, LABELS["6ND"])
    axes.set_yscale("log")
    axes.set_ylabel(label)
    shown = np.concatenate([points, best[0]])
    axes.set_ylim(shown.min() / 3, shown.max() * 3)  # a rule may leave it
  handles: list[Any] = [drawing.handle("compute-optimal", colour=OKABE_ITO[0])]
  if banded:
    handles.append(Patch(color=OKABE_ITO[0], alpha=0.25, linewidth=0, label="95 % band"))
  handles += [
    drawing.handle("runs", colour="#8c8c8c", marker="o", dashes="", size=3),
    Patch(color="#e6e6df", linewidth=0, label="range of the runs"),
  ]
  handles += [
    drawing.handle(name, colour=OKABE_ITO[1 + k], dashes=DASHES[1 + k]) for k, name in enumerate(allocation.PUBLISHED)
  ]
  drawing.legend(figure, handles, columns=2)
  return figure


def deadweight(form: str, parameters: Mapping[str, Any], measured: Measured) -> Figure:
  """The share of compute that buys nothing against tokens per parameter, at the least and the largest compute of the runs."""
  figure, (axes,) = drawing.new_figure()
  compute = measured.C_6ND
  ratios = measured.D / measured.N
  grid = np.geomspace(min(ratios.min(), 1.0) / 2, max(ratios.max(), 100.0) * 2, 160)
  handles: list[Any] = []
  powers = optimal.exponents(form, parameters)
  assert powers is not None
  same = bool(np.isclose(*powers))  # then the best D/N, and what another one costs, are the same at any compute
  levels = np.geomspace(compute.min(), compute.max(), 1 if same else 3)
  for k, (level, colour) in enumerate(zip(levels, drawing.ordered_colours(len(levels)), strict=True)):
    N = np.sqrt(level / FLOP_PER_PARAMETER_AND_TOKEN / grid)
    lost = allocation.deadweight(form, parameters, N=N, D=grid * N)
    assert lost is not None
    axes.plot(grid, 100 * lost, color=colour, linestyle=DASHES[k], zorder=4)
    label = "at any compute" if same else f"C = {drawing.short(level)} FLOP"
    handles.append(drawing.handle(label, colour=colour, dashes=DASHES[k]))
  own = allocation.deadweight(form, parameters, N=measured.N, D=measured.D)
  assert own is not None
  axes.plot(ratios, 100 * own, linestyle="", marker="o", markersize=3.5, color="#8c8c8c", zorder=3)
  handles.append(drawing.handle("runs", colour="#8c8c8c", marker="o", dashes="", size=3.5))
  axes.axvline(allocation.TOKENS_PER_PARAMETER, color="black", linewidth=0.9, linestyle=DASHES[2], zorder=2)
  handles.append(drawing.handle("20 tokens per parameter", colour="black", dashes=DASHES[2]))
  axes.set_xscale("log")
  axes.set_ylim(0, 100)
  axes.set_xlabel("Tokens per parameter D/N")
  axes.set_ylabel("Deadweight compute (%)")
  drawing.legend(figure, handles)
  return figure


def local_slope(record: Mapping[str, Any], *, alpha: float, beta: float) -> Figure:
  """d ln N*/d ln C where N counts no embeddings, against x = N^(1 - power)/g, with the sizes of the ladder.

  record: the key `definitions` of fit.json. alpha, beta: of the law in N_total that it was made from.
  """
  figure, (axes,) = drawing.new_figure()
  points: Sequence[Mapping[str, float]] = record["local_slope"]
  own = np.array([point["x"] for point in points])
  x = np.geomspace(min(own.min() / 3, 0.03), max(own.max() * 3, 30.0), 240)
  axes.plot(x, allocation.local_slope(alpha, beta, x, record["power"]), color=OKABE_ITO[0], zorder=3)
  axes.plot(own, [point["slope"] for point in points], linestyle="", marker="o", color=OKABE_ITO[1], zorder=5)
  for value, dashes in ((record["a_N_total"], DASHES[1]), (record["ladder_slope"], DASHES[2])):
    axes.axhline(value, color="black", linewidth=0.9, linestyle=dashes, zorder=2)
  axes.set_xscale("log")
  axes.set_xlabel("Non-embedding over embedding parameters")
  axes.set_ylabel("Local exponent d ln N* / d ln C (no unit)")
  drawing.legend(figure, [
    drawing.handle("Pearce & Song", colour=OKABE_ITO[0]),
    drawing.handle("sizes of this table", colour=OKABE_ITO[1], marker="o", dashes=""),
    drawing.handle("exponent of all parameters", colour="black", dashes=DASHES[1]),
    drawing.handle("over this table's sizes", colour="black", dashes=DASHES[2]),
  ])  # fmt: skip
  return figure


def choices(records: Sequence[Mapping[str, Any]], *, names: Sequence[str], labels: Mapping[str, str]) -> Figure:
  """Parameters of the chosen law under other choices, a panel for each of `names`; the dashed line is the fit as it was made.

  records: the key `sensitivity` of a form in fit.json, "as fitted" first.
  """
  figure, panels = drawing.new_figure(
    rows=len(names), height=0.9 + len(names) * (0.55 + 0.19 * len(records)), width=6.2
  )
  engine = figure.get_layout_engine()
  assert isinstance(engine, ConstrainedLayoutEngine)
  engine.set(w_pad=0.15)  # inches: small letters are wider in one resolution than in another
  where = np.arange(len(records))[::-1]
  for axes, name in zip(panels, names, strict=True):
    values = np.array([record["parameters"][name] for record in records])
    axes.axvline(values[0], color="black", linewidth=0.9, linestyle=DASHES[1], zorder=2)
    axes.plot(values, where, linestyle="", marker="o", markersize=4.5, color=OKABE_ITO[0], zorder=4)
    axes.set_yticks(where, [record["what"] for record in records], fontsize=7.5)
    axes.set_ylim(-0.7, len(records) - 0.3)
    axes.set_xlabel(labels[name])
  drawing.legend(figure, [
    drawing.handle("refitted after one change", colour=OKABE_ITO[0], marker="o", dashes=""),
    drawing.handle("as fitted", colour="black", dashes=DASHES[1]),
  ])  # fmt: skip
  return figure
