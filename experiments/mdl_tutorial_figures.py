"""Figures of the claims in `mdl_tutorial.py`: code lengths and orders, polynomials, regret, complexity, laws, prequential losses."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ilya_jax.claims.claim import Row, select
from ilya_jax.complexity import chains, multinomial, regression
from ilya_jax.scaling.drawing import DASHES, MARKERS, OKABE_ITO, handle, legend, new_figure, ordered_colours

Array = np.ndarray

_LENGTH = 10_000  # of the three example sequences


def averages(rows: Sequence[Row], x: str, y: str, **condition: object) -> tuple[Array, Array]:
  """Values of x in the rows of a condition, rising, and the mean of y over the seeds at each."""
  chosen = select(rows, **condition)
  places = np.unique([row[x] for row in chosen])
  return places, np.array([np.mean([row[y] for row in chosen if row[x] == place]) for place in places])


def example_sequences() -> dict[str, Array]:
  """The tutorial's first examples, uint8 [1, n]: periodic, a fair coin, a coin with four times as many 0 as 1."""
  rng = np.random.default_rng(0)
  return {
    "0001 repeated": np.tile(np.array([0, 0, 0, 1], np.uint8), _LENGTH // 4)[None],
    "fair coin": rng.integers(0, 2, (1, _LENGTH)).astype(np.uint8),
    "four 0 to a 1": (rng.random((1, _LENGTH)) < 0.2).astype(np.uint8),
  }


def draw_examples() -> Figure:
  """Length of the factorised NML code of the example sequences against the order, and what of it the chain's complexity is."""
  figure, panels = new_figure(rows=2, height=5.2)
  orders, width = np.arange(6), 0.26
  handles = []
  for k, (name, sequence) in enumerate(example_sequences().items()):
    data = np.array([chains.lengths(sequence, order, code="ML")[0] for order in orders])
    total = np.array([chains.lengths(sequence, order, code="fNML")[0] for order in orders])
    place = orders + width * (k - 1)
    style = {"color": OKABE_ITO[k], "edgecolor": "white", "hatch": ("", "///", "...")[k], "linewidth": 0}
    for axes, bits in zip(panels, (total, total - data), strict=True):
      axes.bar(place, bits, width * 0.9, **style)
    for x, bits in zip(place, total, strict=True):
      panels[0].annotate(f"{bits:.0f}", (x, bits), ha="center", va="bottom", fontsize=6, rotation=90,
                         xytext=(0, 2), textcoords="offset points")  # fmt: skip
    handles.append(Patch(facecolor=OKABE_ITO[k], edgecolor="white", hatch=style["hatch"], label=name))
  panels[0].set(ylabel="fNML, bits", title=f"{_LENGTH:,} symbols", xticks=orders, ylim=(0, 1.25 * _LENGTH))
  panels[1].set(xlabel="order of the chain", ylabel="of these, complexity", xticks=orders)
  legend(figure, handles)
  return figure


def draw_hits(rows: Sequence[Row], orders: Sequence[int]) -> Figure:
  """Share of strings whose order is found, against their length, a panel for each order."""
  figure, panels = new_figure(rows=len(orders), height=7.2)
  codes = ("KT", "fNML", "BIC", "AIC")
  for axes, order in zip(panels, orders, strict=True):
    for code, colour, marker, dashes in zip(codes, OKABE_ITO, MARKERS, DASHES, strict=False):
      n, hit = averages(rows, "n", "hit", code=code, index="uniform", order=order)
      axes.plot(n, hit, color=colour, marker=marker, linestyle=dashes)
    axes.set(xscale="log", ylabel=f"found, order {order}", ylim=(0, 1.05))
    axes.set_xticks(n, [str(value) for value in n] if order == orders[-1] else [""] * len(n))
    axes.minorticks_off()
  panels[-1].set_xlabel("symbols n")
  legend(figure, [handle(code, colour=colour, marker=marker, dashes=dashes)
                  for code, colour, marker, dashes in zip(codes, OKABE_ITO, MARKERS, DASHES, strict=False)], columns=4)  # fmt: skip
  return figure


def draw_polynomials(x: Array, y: Array, target: Array) -> Figure:
  """Fits of degree 1, 3 and 9 to 20 points, with their RNML lengths relative to the best degree."""
  figure, (axes,) = new_figure(height=3.8)
  fine = np.linspace(-1, 1, 400)
  lengths = regression.criteria(regression.legendre(x, 10)[None], y[None])["RNML"][0]
  handles = [handle("truth", colour="black", dashes="-")]
  axes.plot(fine, regression.legendre(fine, len(target)) @ target, color="black", linewidth=2.4, alpha=0.5)
  for degree, colour, dashes in zip((1, 3, 9), OKABE_ITO, DASHES, strict=False):
    fitted, *_ = np.linalg.lstsq(regression.legendre(x, degree + 1), y, rcond=None)
    axes.plot(fine, regression.legendre(fine, degree + 1) @ fitted, color=colour, linestyle=dashes)
    more = lengths[degree] - lengths.min()
    handles.append(handle(f"degree {degree}: +{more:.1f} nats", colour=colour, dashes=dashes))
  axes.plot(x, y, "o", color="black", markersize=4)
  axes.set(xlabel="x", ylabel="y", ylim=(y.min() - 1.5, y.max() + 1.5))
  legend(figure, handles, columns=2)
  return figure


def draw_degree(rows: Sequence[Row]) -> Figure:
  """Share of data sets whose degree is found, against their size."""
  figure, (axes,) = new_figure(height=3.6)
  names = ("AIC", "BIC", "RNML", "Bayes")
  for name, colour, marker, dashes in zip(names, OKABE_ITO, MARKERS, DASHES, strict=False):
    n, hit = averages(rows, "n", "hit", criterion=name)
    axes.plot(n, hit, color=colour, marker=marker, linestyle=dashes)
  axes.set(xscale="log", xlabel="points n", ylabel="degree found", ylim=(0, 1.05))
  axes.set_xticks(n, [str(value) for value in n])
  axes.minorticks_off()
  legend(figure, [handle(name, colour=colour, marker=marker, dashes=dashes)
                  for name, colour, marker, dashes in zip(names, OKABE_ITO, MARKERS, DASHES, strict=False)], columns=4)  # fmt: skip
  return figure


def draw_regret() -> Figure:
  """Regret of NML, KT, Laplace and crude two-part codes of d bits against the number of ones of 100."""
  figure, panels = new_figure(rows=2, height=5.8)
  ones = np.arange(101)
  counts = np.stack([100 - ones, ones], axis=-1)
  best = multinomial.ml_length(counts)
  codes = {"NML": multinomial.nml_length, "KT": multinomial.kt_length, "Laplace": multinomial.laplace_length}
  handles = []
  for (name, code), colour, dashes in zip(codes.items(), OKABE_ITO, DASHES, strict=False):
    for axes in panels if name == "NML" else panels[:1]:
      axes.plot(ones, code(counts) - best, color=colour, linestyle=dashes)
    handles.append(handle(name, colour=colour, dashes=dashes))
  precisions = range(3, 9)
  for precision, colour, marker in zip(precisions, ordered_colours(len(precisions)), MARKERS, strict=False):
    regret = multinomial.two_part_length(counts, precision) - best
    panels[1].plot(ones, regret, color=colour, marker=marker, markersize=3.5, markevery=10, linewidth=0.9)
    handles.append(handle(f"two parts, {precision} bits", colour=colour, marker=marker))
  for axes in panels:
    axes.set(ylabel="regret, bits", ylim=(0, 12))
  panels[1].set_xlabel("ones among 100 symbols")
  legend(figure, handles)
  return figure


def draw_complexity() -> Figure:
  """Complexity of the Bernoulli model, exact and by its expansions, and what these miss."""
  figure, panels = new_figure(rows=2, height=5.2)
  n = np.unique(np.round(np.geomspace(1, 10_000, 60)).astype(int))
  exact = np.array([multinomial.log2_complexity(int(each), 2) for each in n])
  curves = {"exact": exact, "first order": multinomial.first_order_complexity(n, 2),
            "Szpankowski": multinomial.refined_complexity(n, 2)}  # fmt: skip
  for k, (name, curve) in enumerate(curves.items()):
    panels[0].plot(n, curve, color=OKABE_ITO[k], linestyle=DASHES[k], marker=MARKERS[k], markevery=8, markersize=4)
    if name != "exact":
      panels[1].plot(
        n, np.abs(curve - exact), color=OKABE_ITO[k], linestyle=DASHES[k], marker=MARKERS[k], markevery=8, markersize=4
      )
  panels[0].set(xscale="log", ylabel="log2 C(n, 2), bits")
  panels[1].set(xscale="log", yscale="log", xlabel="n", ylabel="error, bits")
  legend(
    figure, [handle(name, colour=OKABE_ITO[k], dashes=DASHES[k], marker=MARKERS[k]) for k, name in enumerate(curves)]
  )
  return figure


def draw_laws(rows: Sequence[Row]) -> Figure:
  """Share of data sets taken for the other law's, against the noise."""
  figure, (axes,) = new_figure(height=3.8)
  handles = []
  for k, (name, measure, label) in enumerate((
    ("Fechner", "wrong_by_fit", "Fechner's data, best fit"), ("Stevens", "wrong_by_fit", "Stevens' data, best fit"),
    ("Fechner", "wrong_by_length", "Fechner's, with complexity"), ("Stevens", "wrong_by_length", "Stevens', with complexity"),
  )):  # fmt: skip
    sigma, wrong = averages(rows, "sigma", measure, data_of=name)
    axes.plot(sigma, wrong, color=OKABE_ITO[k], linestyle=DASHES[k], marker=MARKERS[k])
    handles.append(handle(label, colour=OKABE_ITO[k], dashes=DASHES[k], marker=MARKERS[k]))
  axes.set(xscale="log", xlabel="noise σ", ylabel="taken for the other law's", ylim=(-0.02, 1))
  axes.set_xticks(sigma, [f"{value:g}" for value in sigma])
  axes.minorticks_off()
  legend(figure, handles, columns=2)
  return figure


def draw_prequential(rows: Sequence[Row], curves: Mapping[tuple[str, int], Array]) -> Figure:
  """Bits a label in each chunk against the labels seen before; the area is the length of the code."""
  names = list(dict.fromkeys(name for name, _ in curves))
  figure, panels = new_figure(rows=len(names), height=3.4 * len(names))
  for axes, name in zip(panels, names, strict=True):
    seeds = [seed for other, seed in curves if other == name]
    for seed, colour, dashes in zip(seeds, OKABE_ITO, DASHES, strict=False):
      (row,) = select(rows, labels=name, seed=seed)
      bits = curves[name, seed]
      ends = np.round(row["examples"] * 0.5 ** np.arange(len(bits) - 1, -1, -1))
      axes.stairs(bits, np.concatenate([[0], ends]), color=colour, linestyle=dashes, linewidth=1.4)
    axes.axhline(row["uniform"] / row["examples"], color="black", linewidth=0.8)
    axes.set(xlabel="labels seen", ylabel="bits a label", title=f"{name} (line: uniform)", ylim=(0, None))
  legend(figure, [handle(f"seed {seed}", colour=colour, dashes=dashes)
                  for seed, colour, dashes in zip(seeds, OKABE_ITO, DASHES, strict=False)])  # fmt: skip
  return figure
