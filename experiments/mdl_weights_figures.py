"""Figures of the claims in `mdl_weights.py`: Hinton diagram, coding prior, course of the annealing, errors, description lengths."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from scipy import stats

from experiments.mdl_weights_runs import Noisy
from ilya_jax.claims.claim import Row, column, select
from ilya_jax.complexity.noisy_weights import Network
from ilya_jax.scaling.drawing import DASHES, MARKERS, OKABE_ITO, handle, legend, new_figure

Array = np.ndarray

_ACROSS = 16  # incoming weights in a row of a block
_GREY = "#a8a8a8"


def draw_weights(means: Mapping[str, Any]) -> Figure:
  """Hinton diagram (Figure 2): a block for each hidden unit, its incoming weights in rows, its outgoing weight top centre, its
  bias top right; the area of a square is the size of a weight, white positive, black negative; below the output's bias."""
  inward, outward = np.asarray(means["inward"]), np.asarray(means["outward"])[:, 0]
  inputs, hidden = inward.shape
  rows = -(-inputs // _ACROSS)
  largest = max(np.abs(np.asarray(each)).max() for each in means.values())
  figure, (axes,) = new_figure(height=5.6, width=7.2)
  squares: dict[str, list[Rectangle]] = {"white": [], "black": []}

  def put(value: float, x: float, y: float) -> None:
    side = 0.95 * np.sqrt(abs(value) / largest)
    squares["white" if value > 0 else "black"].append(Rectangle((x - side / 2, y - side / 2), side, side))

  for unit in range(hidden):
    left, top = (unit % 2) * (_ACROSS + 2), -(unit // 2) * (rows + 4)
    axes.add_patch(Rectangle((left - 0.8, top - rows - 0.8), _ACROSS + 0.6, rows + 2.6, color=_GREY, linewidth=0))
    put(outward[unit], left + _ACROSS / 2 - 0.5, top + 1)
    put(float(np.asarray(means["hidden_bias"])[unit]), left + _ACROSS - 1, top + 1)
    for k, value in enumerate(inward[:, unit]):
      put(value, left + k % _ACROSS, top - 1 - k // _ACROSS)
    axes.text(left - 0.6, top + 1, f"unit {unit + 1}", fontsize=7, va="center")
  bottom = -((hidden + 1) // 2) * (rows + 4)
  axes.add_patch(Rectangle((-0.8, bottom + 0.8), _ACROSS + 0.6, 1.8, color=_GREY, linewidth=0))
  put(float(np.asarray(means["output_bias"])[0]), _ACROSS - 1, bottom + 1.7)
  axes.text(-0.6, bottom + 1.7, "output bias", fontsize=7, va="center")
  for colour, patches in squares.items():
    axes.add_collection(PatchCollection(patches, facecolor=colour, edgecolor="none"))
  axes.set_aspect("equal")
  axes.set(xlim=(-1, 2 * (_ACROSS + 2) - 1.5), ylim=(bottom + 0.5, 2.2), title=f"Largest square: {largest:.2f}")
  axes.set_axis_off()
  return figure


def draw_prior(network: Network) -> Figure:
  """Density of the learned coding prior and its components (Figure 3), over a histogram of the posterior means; two scales."""
  means = np.concatenate([np.asarray(each).ravel() for each in network.means.values()])
  centres, deviations = np.asarray(network.prior.means), np.exp(np.asarray(network.prior.log_variances) / 2)
  shares = np.exp(network.prior.logits - np.logaddexp.reduce(network.prior.logits))
  reach = 1.15 * np.quantile(np.abs(means), 0.99)
  w = np.sort(np.concatenate([np.linspace(-reach, reach, 2000), *(c + d * np.linspace(-4, 4, 200)
                                                                   for c, d in zip(centres, deviations, strict=True))]))  # fmt: skip
  w = w[np.abs(w) <= reach]
  parts = shares * stats.norm.pdf(w[:, None], centres, deviations)
  figure, (axes,) = new_figure(height=4.0)
  axes.hist(means, bins=np.linspace(-reach, reach, 81).tolist(), density=True, color="#cfcfcf", label="posterior means")
  handles = [handle("posterior means", colour="#cfcfcf", marker="s", dashes="", size=8)]
  for k in range(len(centres)):
    style = {"color": OKABE_ITO[k], "linestyle": DASHES[(k + 1) % len(DASHES)]}
    axes.plot(w, parts[:, k], linewidth=0.9, **style)
    label = f"{100 * shares[k]:.0f} %, mean {centres[k]:.3f}, deviation {deviations[k]:.3f}"
    handles.append(handle(label, colour=OKABE_ITO[k], dashes=style["linestyle"]))
  axes.plot(w, parts.sum(1), color="black", linewidth=1.6)
  handles.append(handle("coding prior", colour="black"))
  largest = max(parts.sum(1).max(), 10)
  axes.set(xlabel="weight", ylabel="density", yscale="log", ylim=(1e-2, 2 * largest), xlim=(-reach, reach))
  legend(figure, handles, columns=2)
  return figure


def draw_course(trained: Sequence[Noisy]) -> Figure:
  """Misfit, cost of the weights, how many are cheap, and relative errors against the price through the schedule, a line a start."""
  figure, panels = new_figure(rows=4, height=7.6)
  handles = []
  for k, run in enumerate(trained):
    style = {"color": OKABE_ITO[k], "marker": MARKERS[k], "linestyle": DASHES[k]}
    prices = [stage.price for stage in run.course]
    for axes, name in zip(panels, ("misfit", "weights", "cheap", "error"), strict=True):
      axes.plot(prices, [getattr(stage, name) for stage in run.course], **style)
    panels[3].plot(prices, [stage.train_error for stage in run.course], linewidth=0.8, alpha=0.6, **style)
    handles.append(handle(f"start {k}", colour=OKABE_ITO[k], marker=MARKERS[k], dashes=DASHES[k]))
  panels[0].set_ylabel("misfit (nats)")
  panels[1].set(ylabel="weights (nats)", yscale="log")
  panels[2].set_ylabel("weights < .1 nats")
  panels[3].set(ylabel="relative error", xlabel="price of the weights (lambda)", ylim=(0, None))
  panels[3].annotate("test", (prices[0], run.course[0].error), xytext=(4, 4), textcoords="offset points", fontsize=7)
  panels[3].annotate(
    "training", (prices[0], run.course[0].train_error), xytext=(4, 4), textcoords="offset points", fontsize=7
  )
  legend(figure, handles)
  return figure


_WAYS = {"annealed": (OKABE_ITO[0], "o", True), "at once": (OKABE_ITO[1], "s", False)}


def _data_sets(rows: Sequence[Row]) -> list[tuple[str, int]]:
  return list(dict.fromkeys((str(row["teacher"]), int(row["seed"])) for row in rows))


def draw_annealing(rows: Sequence[Row]) -> Figure:
  """Relative error of every run, annealed or not, a column for each data set."""
  figure, (axes,) = new_figure(height=3.6)
  sets = _data_sets(rows)
  for way, (colour, marker, filled) in _WAYS.items():
    for k, (teacher, seed) in enumerate(sets):
      errors = column(rows, "error", teacher=teacher, seed=seed, price=way)
      face = colour if filled else "white"
      axes.plot([k] * len(errors), errors, linestyle="", marker=marker, color=colour, markerfacecolor=face)
  axes.set_xticks(range(len(sets)), [f"{teacher}\n{seed}" for teacher, seed in sets], fontsize=7)
  axes.set(xlabel="data set", ylabel="relative error", ylim=(0, None))
  legend(figure, [handle(f"price {way}" if way == "at once" else way, colour=colour, marker=marker, dashes="", filled=filled)
                  for way, (colour, marker, filled) in _WAYS.items()])  # fmt: skip
  return figure


def draw_totals(rows: Sequence[Row]) -> Figure:
  """Relative error of every run against its description length: the shortest are those that predict nothing."""
  figure, (axes,) = new_figure(height=3.8)
  for way, (colour, marker, filled) in _WAYS.items():
    own = select(rows, price=way)
    axes.plot(column(own, "total"), column(own, "error"), linestyle="", marker=marker, color=colour,
              markerfacecolor=colour if filled else "white")  # fmt: skip
  axes.set(xlabel="description length (nats)", ylabel="relative error", ylim=(0, None))
  legend(figure, [handle(f"price {way}" if way == "at once" else way, colour=colour, marker=marker, dashes="", filled=filled)
                  for way, (colour, marker, filled) in _WAYS.items()])  # fmt: skip
  return figure


_RIVALS = {
  "noisy": "noisy weights", "plain": "no penalty", "decay": "weight decay", "decay_by_test": "decay, by test",
  "ridge": "ridge", "ridge_by_test": "ridge, by test",
}  # fmt: skip


def draw_rivals(rows: Sequence[Row]) -> Figure:
  """Relative errors of the methods, a line for each data set; linear regression without a penalty is off the scale."""
  figure, (axes,) = new_figure(height=3.8)
  handles = []
  for k, teacher in enumerate(dict.fromkeys(str(row["teacher"]) for row in rows)):
    for row in select(rows, teacher=teacher):
      axes.plot(range(len(_RIVALS)), [row[name] for name in _RIVALS], color=OKABE_ITO[k], marker=MARKERS[k],
                linestyle=DASHES[k], linewidth=0.8)  # fmt: skip
    handles.append(handle(f"{teacher} teacher", colour=OKABE_ITO[k], marker=MARKERS[k], dashes=DASHES[k]))
  axes.set_xticks(range(len(_RIVALS)), list(_RIVALS.values()), fontsize=7.5)
  axes.set(ylabel="relative error", ylim=(0, None))
  legend(figure, handles)
  return figure
