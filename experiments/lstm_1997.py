"""The nets of 1997 on their own tasks, with their own recipe: counts of weights, and sequences until they have learned.

Hochreiter, Schmidhuber 1997, Neural Computation 9(8), experiments 4 (adding) and 6 (temporal order): memory cells without a
forget gate, one sequence an update, errors cut where they leave the cells (`configs/lstm.py`, variants of 1997).
Deviations: learned means at most 2 of 2,560 held-out sequences wrong at an evaluation; theirs had an error below 0.01 (0.1 in
experiment 6) on average and the last 2,000 training sequences right.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import lstm_figures as figures
from experiments.lstm_runs import first_where, held_out, job
from ilya_jax.claims import Judged, Measured, Setting
from ilya_jax.claims.claim import Row, column, verdict
from ilya_jax.models.recurrent_cells import MemoryBlocks

TESTED, WRONG = 2_560, 2  # held-out sequences, and how many of them may be wrong
LONGEST = 3  # a run's length in units of the published mean, as a rule


class Net(NamedTuple):
  """A net and its task: variant of configs/lstm.py, inputs, blocks of two cells, outputs; the published number of weights and mean
  number of sequences; sequences between evaluations; changes to the variant; a run's length in units of the published mean."""

  variant: str
  inputs: int
  blocks: int
  outputs: int
  weights: int
  published: int
  every: int = 1_000
  changes: dict[str, Any] = {}
  longest: int = LONGEST

  @property
  def steps(self) -> int:
    """Sequences of a run, in whole evaluations."""
    return -(-self.longest * self.published // self.every) * self.every


ADDING = {"adding, T = 100": Net("adding_1997", 2, 2, 1, weights=93, published=74_000)}
_FIVE_HUNDRED = Net(
  "adding_1997", 2, 2, 1, weights=93, published=209_000, every=5_000, changes={"data__length": 500}, longest=1
)  # fmt: skip
ADDING_500 = {"adding, T = 500": _FIVE_HUNDRED}
ADDING_PAPER = {
  "adding, T = 500": _FIVE_HUNDRED._replace(longest=LONGEST),
  "adding, T = 1,000": Net(
    "adding_1997", 2, 2, 1, weights=93, published=853_000, every=10_000, changes={"data__length": 1_000}
  ),
}
ORDER = {
  "temporal order 6a": Net("order_1997", 8, 2, 4, weights=156, published=31_390),
  "temporal order 6b": Net("order_1997_6b", 8, 3, 8, weights=308, published=571_100, every=5_000),
}


def measure_adding(setting: Setting) -> Measured:
  """The net with 93 weights on the adding problem."""
  return _measure(setting, {**ADDING, **(ADDING_PAPER if setting.scale == "paper" else {})}, "net_of_1997_adding")


def measure_adding_500(setting: Setting) -> Measured:
  """The same net on sequences five times as long."""
  return _measure(setting, ADDING_500, "net_of_1997_adding_500")


def measure_order(setting: Setting) -> Measured:
  """The nets with 156 and 308 weights on temporal order."""
  return _measure(setting, ORDER, "net_of_1997_order")


def _measure(setting: Setting, nets: dict[str, Net], figure: str) -> Measured:
  """Sequences until each net has learned; at tiny scale its number of weights."""
  if setting.scale == "tiny":
    return Measured([{"seed": setting.seeds[0], "net": name, "count": count(net)} for name, net in nets.items()])
  runs = setting.train({
    f"{name} {seed}": job(net.variant, seed=seed, steps=net.steps, eval__every=net.every, **net.changes)
    for name, net in nets.items() for seed in setting.seeds
  })  # fmt: skip
  rows, panels = [], {}
  for name, net in nets.items():
    curves = []
    for seed in setting.seeds:
      steps, right = held_out(runs[f"{name} {seed}"], "right")
      wrong = [round(TESTED * (1 - share)) for share in right]
      sequences = first_where(steps, [number <= WRONG for number in wrong])
      row = {"seed": seed, "net": name, "sequences": sequences, "of_published": sequences / net.published}
      rows.append({**row, "fewest_wrong": min(wrong), "wrong_at_the_end": wrong[-1]})
      curves.append(([step / net.published for step in steps], [max(number, 0.5) for number in wrong]))
    panels[f"{name} ({net.weights} weights; published mean {net.published:,} sequences)"] = {"a seed": curves}
  drawn = figures.draw_curves(
    panels, x="sequences, in units of the published mean", y=f"wrong of {TESTED:,} (0 drawn at 0.5)",
    lines={"published": ("v", 1.0), f"learned: {WRONG} wrong": ("h", WRONG)},
  )  # fmt: skip
  return Measured(rows, {figure: drawn})


def count(net: Net) -> int:
  """Weights of the net: those of its hidden layer's tree, and its outputs', which see the cells alone."""
  layer = MemoryBlocks(net.blocks, 2)
  shapes = jax.eval_shape(layer.init, jax.random.key(0), jnp.zeros((1, 1, net.inputs)))
  return sum(leaf.size for leaf in jax.tree.leaves(shapes)) + net.outputs * (2 * net.blocks + 1)


def judge(rows: Sequence[Row], scale: str) -> Judged:
  """The rule of both claims on the nets of 1997."""
  names = list(dict.fromkeys(str(row["net"]) for row in rows))
  if scale == "tiny":
    counts = {str(row["net"]): int(row["count"]) for row in rows}
    expected = {name: net.weights for name, net in {**ADDING, **ADDING_500, **ORDER}.items() if name in counts}
    return Judged(verdict(counts == expected), f"{', '.join(map(str, dict.fromkeys(counts.values())))} weights")
  shown = []
  for name in names:
    found = column(rows, "sequences", net=name)
    fewest = column(rows, "fewest_wrong", net=name)
    each = ", ".join(
      f"{number:,.0f}" if math.isfinite(number) else f"not learned ({wrong:.0f} of {TESTED:,} wrong at best)"
      for number, wrong in zip(found, fewest, strict=True)
    )
    share = [value for value in column(rows, "of_published", net=name) if math.isfinite(value)]
    mean = (
      f" (mean {np.mean(share):.2f} of the published{'' if len(share) == len(found) else ', where learned'})"
      if share
      else ""
    )
    shown.append(f"{name}: {each} sequences{mean}")
  return Judged(verdict(all(map(math.isfinite, column(rows, "sequences")))), "; ".join(shown))
