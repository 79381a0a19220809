"""Figures of the claims of `scaling_laws.py`: laws of size, data and both, valleys, positions, batches, shapes, transfer."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ilya_jax.claims.claim import Row, column, select
from ilya_jax.scaling.drawing import (
  DASHES,
  LABELS,
  MARKERS,
  OKABE_ITO,
  handle,
  held_out,
  held_out_handle,
  legend,
  new_figure,
  ordered_colours,
  scale_loss,
  scale_x,
  short,
)

Array = np.ndarray

_NATS = "nats per byte"


def draw_slice(points: Mapping[int, tuple[Sequence[Any], Any]], *, of: str) -> Figure:
  """Losses against N (or D) at the other's one value, a look for each seed: the law fitted to all but the largest, which is a star."""
  figure, (axes,) = new_figure()
  handles = []
  everything = [cell for cells, _ in points.values() for cell in cells]
  for k, (seed, (cells, law)) in enumerate(points.items()):
    x, loss = (np.array([getattr(cell, name) for cell in cells]) for name in (of, "loss"))
    axes.plot(x[:-1], loss[:-1], linestyle="", marker=MARKERS[k], color=OKABE_ITO[k])
    if law is not None:
      fine = np.geomspace(x.min(), x.max(), 100)
      axes.plot(fine, law.predict(**{of: fine}), color=OKABE_ITO[k], linestyle=DASHES[k], linewidth=1.0)
    held_out(axes, x[-1:], loss[-1:])
    handles.append(handle(f"seed {seed}, E + (c/{of})^a", colour=OKABE_ITO[k], marker=MARKERS[k], dashes=DASHES[k]))
  label = LABELS[of] if of == "N" else "Tokens of the subset D"
  scale_x(axes, np.array([getattr(cell, of) for cell in everything]), label)
  scale_loss(axes, np.array([cell.loss for cell in everything]), _NATS)
  legend(figure, [*handles, held_out_handle()], columns=2)
  return figure


def draw_joint(shown: tuple[Mapping[str, Array], Any], rows: Sequence[Row]) -> Figure:
  """Losses against tokens for each size with Kaplan's law (above), and the errors of the laws at what was left out (below)."""
  table, law = shown
  figure, panels = new_figure(rows=2, height=6.6)
  sizes = np.unique(table["N"])
  handles = []
  for k, (size, colour) in enumerate(zip(sizes, ordered_colours(len(sizes)), strict=True)):
    own = table["N"] == size
    order = np.argsort(table["D"][own])
    panels[0].plot(table["D"][own][order], table["loss"][own][order], linestyle="", marker=MARKERS[k], color=colour)
    if law is not None:
      fine = np.geomspace(table["D"].min(), table["D"].max(), 60)
      panels[0].plot(fine, law.predict(N=np.full(60, size), D=fine), color=colour, linewidth=1.0)
    handles.append(handle(f"N = {short(size)}", colour=colour, marker=MARKERS[k]))
  scale_x(panels[0], table["D"], LABELS["D"])
  scale_loss(panels[0], table["loss"], _NATS)
  forms = list(dict.fromkeys(row["form"] for row in rows))
  for k, left_out in enumerate(dict.fromkeys(row["left_out"] for row in rows)):
    for place, form in enumerate(forms):
      errors = 100 * np.array(column(rows, "error", form=form, left_out=left_out))
      panels[1].plot(
        place + 0.15 * (2 * k - 1) + 0 * errors, errors, linestyle="", marker=MARKERS[k], color=OKABE_ITO[k]
      )
    handles.append(handle(f"{left_out} left out", colour=OKABE_ITO[k], marker=MARKERS[k], dashes=""))
  panels[1].set_xticks(range(len(forms)), [form.replace("_", "\n") for form in forms], fontsize=7.5)
  panels[1].set(ylabel="Error (%)", ylim=(0, None))
  legend(figure, handles, columns=4)
  return figure


def draw_overfit(points: Mapping[int, tuple[Array, Array, Array, float]]) -> Figure:
  """What short training costs, L(N, D)/L(N, longest) - 1, against N^.74/D; sizes by lightness, seeds by marker."""
  figure, (axes,) = new_figure()
  sizes = np.unique(np.concatenate([N for N, *_ in points.values()]))
  colours = dict(zip(sizes, ordered_colours(len(sizes)), strict=True))
  for k, (N, D, excess, _) in enumerate(points.values()):
    for size in np.unique(N):
      own = size == N
      axes.plot(
        N[own] ** 0.74 / D[own], 100 * excess[own], linestyle="", marker=MARKERS[k], color=colours[size], markersize=4
      )
  axes.set(xscale="log", yscale="log", xlabel="N^0.74 / D", ylabel="Loss above the longest training's (%)")
  handles = [handle(f"N = {short(size)}", colour=colour, marker="o", dashes="") for size, colour in colours.items()]
  legend(figure, handles)
  return figure


def draw_lengths(cells: Sequence[Any]) -> Figure:
  """Losses against tokens for each size (Figure 2), means over seeds."""
  figure, (axes,) = new_figure()
  sizes = sorted({cell.N for cell in cells})
  handles = []
  for k, (size, colour) in enumerate(zip(sizes, ordered_colours(len(sizes)), strict=True)):
    lengths = sorted({cell.D for cell in cells if cell.N == size})
    means = [float(np.mean([cell.loss for cell in cells if (cell.N, cell.D) == (size, length)])) for length in lengths]
    axes.plot(lengths, means, color=colour, marker=MARKERS[k % len(MARKERS)])
    handles.append(handle(f"N = {short(size)}", colour=colour, marker=MARKERS[k % len(MARKERS)]))
  scale_x(axes, np.array([cell.D for cell in cells]), LABELS["D"])
  scale_loss(axes, np.array([cell.loss for cell in cells]), _NATS)
  legend(figure, handles)
  return figure


def draw_valleys(cells: Sequence[Any]) -> Figure:
  """Losses against N at equal compute, a line for each budget, means over seeds."""
  figure, (axes,) = new_figure()
  logs = np.log([cell.C for cell in cells])
  budgets = np.unique(np.round(logs / np.log(2)))
  handles = []
  for k, (budget, colour) in enumerate(zip(budgets, ordered_colours(len(budgets)), strict=True)):
    own = [cell for cell, log in zip(cells, logs, strict=True) if round(log / np.log(2)) == budget]
    sizes = sorted({cell.N for cell in own})
    means = [float(np.mean([cell.loss for cell in own if cell.N == size])) for size in sizes]
    axes.plot(sizes, means, color=colour, marker=MARKERS[k % len(MARKERS)])
    mean_c = float(np.exp(np.mean([np.log(cell.C) for cell in own])))
    handles.append(handle(f"C = {mean_c:.1e} FLOP", colour=colour, marker=MARKERS[k % len(MARKERS)]))
  scale_x(axes, np.array([cell.N for cell in cells]), LABELS["N"])
  scale_loss(axes, np.array([cell.loss for cell in cells]), _NATS)
  legend(figure, handles, columns=2)
  return figure


def draw_shapes(rows: Sequence[Row]) -> Figure:
  """Losses of the shapes of one N (Figure 5) over the best shape's mean, a marker for each seed."""
  figure, (axes,) = new_figure(height=3.6)
  shapes = list(dict.fromkeys(row["shape"] for row in rows))
  best = min(float(np.mean(column(rows, "loss", shape=shape))) for shape in shapes)
  seeds = list(dict.fromkeys(row["seed"] for row in rows))
  for k, seed in enumerate(seeds):
    excess = [100 * (column(rows, "loss", shape=shape, seed=seed)[0] / best - 1) for shape in shapes]
    axes.plot(range(len(shapes)), excess, linestyle="", marker=MARKERS[k], color=OKABE_ITO[k])
  axes.axhline(3, color="black", linewidth=0.8, linestyle=DASHES[2])
  axes.set_xticks(range(len(shapes)), [shape.replace(", ", "\n") for shape in shapes], fontsize=7.5)
  axes.set_ylabel("Loss above the best mean (%)")
  handles = [handle(f"seed {seed}", colour=OKABE_ITO[k], marker=MARKERS[k], dashes="") for k, seed in enumerate(seeds)]
  legend(figure, [*handles, handle("criterion", colour="black", dashes=DASHES[2])], columns=4)
  return figure


def draw_positions(by_position: Mapping[tuple[str, int, int], Array]) -> Figure:
  """Loss at each position of Transformers and LSTMs (Figure 7), means over seeds; each pair of equal N in one colour."""
  figure, (axes,) = new_figure()
  handles = []
  for place, family in enumerate(("transformer", "lstm")):
    widths = sorted({width for name, width, _ in by_position if name == family})
    for k, (width, colour) in enumerate(zip(widths, OKABE_ITO, strict=False)):
      mean = np.mean([loss for (name, w, _), loss in by_position.items() if (name, w) == (family, width)], axis=0)
      axes.plot(np.arange(1, len(mean) + 1), mean, color=colour, linestyle=DASHES[place], linewidth=1.2 + 0.6 * k)
      handles.append(handle(f"{family}, width {width}", colour=colour, dashes=DASHES[place]))
  axes.set(xscale="log", xlabel="Position in the context T", ylabel=f"Loss ({_NATS})")
  legend(figure, handles, columns=2)
  return figure


def draw_position_law(shown: Mapping[int, tuple[Array, Any, Array]]) -> Figure:
  """Loss against position (Figure 20) with both laws fitted to the first half, seed by seed moved up by .2 nats each."""
  figure, (axes,) = new_figure(height=4.6)
  handles = []
  for k, (seed, (losses, power, line)) in enumerate(shown.items()):
    T, lift = np.arange(1.0, len(losses) + 1), 0.2 * k
    axes.plot(T, losses + lift, linestyle="", marker=MARKERS[k], color=OKABE_ITO[k], markersize=3)
    if power is not None:
      axes.plot(T[1:], power.predict(D=T[1:]) + lift, color=OKABE_ITO[k])
    axes.plot(T[1:], np.polyval(line, np.log(T[1:])) + lift, color=OKABE_ITO[k], linestyle=DASHES[1], linewidth=0.9)
    label = f"seed {seed}" + (f", + {lift:.1f}" if lift else "")
    handles.append(handle(label, colour=OKABE_ITO[k], marker=MARKERS[k], dashes=""))
  axes.axvline(len(losses) // 2 + 0.5, color="black", linewidth=0.8, linestyle=DASHES[2])
  handles += [
    handle("E + a T^-p", colour="black"), handle("a + b ln T", colour="black", dashes=DASHES[1]),
    handle("fitted to the left of it", colour="black", dashes=DASHES[2]),
  ]  # fmt: skip
  axes.set(xscale="log", xlabel="Position in the context T", ylabel=f"Loss ({_NATS})")
  legend(figure, handles)
  return figure


def draw_batches(rows: Sequence[Row]) -> Figure:
  """B_crit against the loss for each size (Figure 10), with the gradient noise scale, seeds by marker."""
  figure, (axes,) = new_figure()
  known = [row for row in rows if "B_crit" in row]
  handles = []
  for k, width in enumerate(sorted({row["width"] for row in known})):
    for j, seed in enumerate(dict.fromkeys(row["seed"] for row in known)):
      own = sorted(select(known, width=width, seed=seed), key=lambda row: row["target"])
      x = column(own, "target")
      axes.plot(x, column(own, "B_crit"), color=OKABE_ITO[k], marker=MARKERS[j], linewidth=0.9, linestyle=DASHES[k])
      axes.plot(
        x, column(own, "B_simple"), color=OKABE_ITO[k], marker=MARKERS[j], markerfacecolor="white", linestyle=""
      )
    handles.append(handle(f"width {width}, B_crit", colour=OKABE_ITO[k], marker="o", dashes=DASHES[k]))
    handles.append(handle(f"width {width}, noise scale", colour=OKABE_ITO[k], marker="o", dashes="", filled=False))
  axes.set(yscale="log", xlabel=f"Loss ({_NATS})", ylabel="Tokens")
  axes.invert_xaxis()
  legend(figure, handles, columns=2)
  return figure


def draw_transfer(rows: Sequence[Row]) -> Figure:
  """Loss on other texts against the loss on the own one (Figure 8); unfinished models are hollow."""
  figure, (axes,) = new_figure()
  handles = []
  for k, text in enumerate(dict.fromkeys(str(row["text"]) for row in rows)):
    for state, face in (("finished", OKABE_ITO[k]), ("unfinished", "white")):
      own = select(rows, text=text, state=state)
      axes.plot(column(own, "loss"), column(own, "other"), linestyle="", marker=MARKERS[k], color=OKABE_ITO[k],
                markerfacecolor=face)  # fmt: skip
      handles.append(handle(f"{text.replace('_', ' ')}, {state}", colour=OKABE_ITO[k], marker=MARKERS[k], dashes="",
                            filled=state == "finished"))  # fmt: skip
  axes.set(xlabel=f"Loss on the own text ({_NATS})", ylabel=f"Loss on the other ({_NATS})")
  axes.invert_xaxis()
  legend(figure, handles, columns=2)
  return figure
