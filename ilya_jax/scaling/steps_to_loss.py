"""Loss curves of runs at several batch sizes: grouped from the rows of a table, smoothed, and inverted to steps-to-target.

Smoothing: the rows of a run in order of their steps, and the decreasing curve closest to ln(loss) in least squares (isotonic
regression, pool adjacent violators). Unlike a running minimum it does not lie under noisy measurements. Inversion: each pool of
equal values is a knot at its mean ln(step); between knots ln(step) is a monotone cubic in ln(loss) (PCHIP). Nothing is
extrapolated: a target outside of a run's own losses is not reached by it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import interpolate, optimize

from ilya_jax.errors import UserError
from ilya_jax.scaling.table import Table

Array = np.ndarray

_FEWEST_ROWS = 3  # of a curve
_SAME_BATCH = 0.02  # how far the tokens per step of a run's rows may lie apart
_FLAG = "--critical-batch"


class LossCurve(NamedTuple):
  """A run: N parameters, B tokens per step, its seed, and where its rows [k] stand in the table, in order of their steps.

  steps, loss [k]: of the rows, the loss smoothed. knots_loss, knots_steps [m]: natural logarithms, the loss falling.
  """

  N: float
  B: float
  seed: str
  rows: Array
  steps: Array
  loss: Array
  knots_loss: Array
  knots_steps: Array


class Tuned(NamedTuple):
  """The runs of one size, batch size and seed; of several learning rates the one that reaches a target first counts."""

  N: float
  B: float
  seed: str
  curves: tuple[LossCurve, ...]

  @property
  def best(self) -> LossCurve:
    """The curve that ends with the lowest loss."""
    return min(self.curves, key=lambda curve: curve.loss[-1])

  def steps_to(self, targets: Array) -> Array:
    """The fewest steps [t] to each target loss; nan where no run reaches it."""
    found = np.stack([steps_to(curve, targets) for curve in self.curves])
    return np.where(np.isnan(found).all(0), np.nan, np.where(np.isnan(found), np.inf, found).min(0))


def smooth(loss: Array) -> Array:
  """The decreasing sequence [k] closest to `loss` [k] in least squares of the logarithm."""
  return np.exp(optimize.isotonic_regression(np.log(loss), increasing=False).x)


def make_curve(
  steps: Array, loss: Array, *, N: float, B: float, seed: str = "", rows: Array | None = None
) -> LossCurve:
  """The curve of measured losses [k] at increasing steps [k]."""
  smoothed = smooth(loss)
  logs = np.log(smoothed)
  pool = np.cumsum(np.concatenate([[False], np.diff(logs) < 0]))
  counts = np.bincount(pool)
  knots_steps = np.bincount(pool, weights=np.log(steps)) / counts
  knots_loss = np.bincount(pool, weights=logs) / counts
  return LossCurve(
    N, B, seed, np.arange(len(steps)) if rows is None else rows, steps, smoothed, knots_loss, knots_steps
  )


def steps_to(curve: LossCurve, targets: Array) -> Array:
  """Steps [t] at which the smoothed curve reaches each target loss [t]; nan outside of its losses."""
  wanted = -np.log(np.asarray(targets, np.float64))
  if len(curve.knots_loss) < 2:
    return np.full(len(wanted), np.nan)
  found = interpolate.PchipInterpolator(-curve.knots_loss, curve.knots_steps, extrapolate=False)(wanted)
  return np.exp(found)


def steps_of(table: Table) -> Array:
  """Optimizer steps [n] of every row: the column S or `step`, else D over `batch` in tokens. Raises UserError without any."""
  if "S" in table.values:
    steps = table.values["S"]
  elif "step" in table.columns:
    steps = _numbers(table, "step")
  elif "batch" in table.columns and "D" in table.values:
    steps = table.values["D"] / _numbers(table, "batch")
  else:
    raise UserError(f"a table without steps for {_FLAG}", "a column S or step, or batch in tokens", "--columns 'S=…'")
  bad = np.flatnonzero(~(np.isfinite(steps) & (steps > 0)))
  if len(bad):
    where = f"row {table.row[bad[0]]} of {table.source[bad[0]]}"
    raise UserError(f"{steps[bad[0]]} steps in {where}", "a positive number", f"correct the cell or leave out {_FLAG}")
  return steps


def tokens_per_step(table: Table, steps: Array) -> Array:
  """B [n] in tokens: D over the steps, else the column `batch`. Raises UserError without either."""
  if "D" in table.values:
    return table.values["D"] / steps
  if "batch" in table.columns:
    return _numbers(table, "batch")
  raise UserError(f"a table without batch sizes for {_FLAG}", "D, or batch in tokens per step", "--columns 'D=…'")


def _numbers(table: Table, name: str) -> Array:
  values = []
  for k, cell in enumerate(table.columns[name]):
    try:
      values.append(float(cell))
    except ValueError:
      where = f"column {name!r}, row {table.row[k]} of {table.source[k]}"
      raise UserError(f"{cell!r} in {where}", "a number", f"correct the cell or leave out {_FLAG}") from None
  return np.array(values)


def find_curves(table: Table, rows: Array) -> tuple[list[LossCurve], dict[str, int]]:
  """The curves of the rows where `rows` [n] holds, and how many runs were left out, by reason.

  A run is what shares a `cell`; without that column, what shares file, N, tokens per step, seed and learning rate. Cooldowns
  that branch off a trunk are left out: their losses are not on the trunk's curve. Raises UserError where the table lacks
  N, steps or batch sizes, and where the batch size of a run changes.
  """
  if "N" not in table.values:
    raise UserError(f"a table without N for {_FLAG}", "N, steps, batch size and loss of checkpoints", "--columns 'N=…'")
  steps, N, loss = steps_of(table), table.values["N"], table.values["loss"]
  B = tokens_per_step(table, steps)
  groups: dict[tuple[Any, ...], list[int]] = {}
  for k in map(int, np.flatnonzero(rows)):
    if "cell" in table.columns:
      key: tuple[Any, ...] = (table.source[k], table.columns["cell"][k])
    else:
      key = (table.source[k], N[k], round(float(np.log(B[k])), 2), _label(table, "seed", k), _label(table, "lr", k))
    groups.setdefault(key, []).append(k)
  left_out: dict[str, int] = {}
  curves = []
  for members in groups.values():
    order = np.array(sorted(members, key=lambda k: steps[k]))
    order = order[np.concatenate([[True], np.diff(steps[order]) > 0])]
    own = B[order]
    if own.max() > own.min() * (1 + _SAME_BATCH):
      raise UserError(
        f"{own.min():g} to {own.max():g} tokens per step in one run, row {table.row[order[0]]} of {table.source[order[0]]}",
        "one batch size a run", f"a column cell that tells runs apart, or leave out {_FLAG}",
      )  # fmt: skip
    reason = ""
    if "trunk" in table.columns and _label(table, "trunk", int(order[0])) not in (
      "",
      _label(table, "cell", int(order[0])),
    ):
      reason = "a cooldown that branches off a trunk"
    elif len(order) < _FEWEST_ROWS:
      reason = f"fewer than {_FEWEST_ROWS} checkpoints"
    if reason:
      left_out[reason] = left_out.get(reason, 0) + 1
      continue
    size, seed = float(N[order[0]]), _label(table, "seed", int(order[0]))
    batch = float(np.median(own))
    curves.append(make_curve(steps[order], loss[order], N=size, B=batch, seed=seed, rows=order))
  return curves, left_out


def _label(table: Table, name: str, row: int) -> str:
  return str(table.columns[name][row]) if name in table.columns else ""


def tuned(curves: Sequence[LossCurve]) -> list[Tuned]:
  """The curves grouped by size, batch size and seed, in this order."""
  groups: dict[tuple[float, float, str], list[LossCurve]] = {}
  for curve in curves:
    groups.setdefault((curve.N, round(float(np.log(curve.B)), 2), curve.seed), []).append(curve)
  return [Tuned(own[0].N, own[0].B, own[0].seed, tuple(own)) for _, own in sorted(groups.items())]


def common_targets(runs: Sequence[Tuned], *, count: int) -> Array:
  """`count` losses, evenly spaced in the logarithm, that every batch size reaches: of all sizes where there are such, else of any.

  From high to low, 2 % of the range away from its ends; empty where no size has such a range.
  """
  ranges = []
  for size in sorted({run.N for run in runs}):
    own = [run for run in runs if run.N == size]
    low = max(min(curve.knots_loss[-1] for curve in run.curves) for run in own)
    high = min(max(curve.knots_loss[0] for curve in run.curves) for run in own)
    if low < high:
      ranges.append((low, high))
  if not ranges:
    return np.empty(0)
  low, high = max(low for low, _ in ranges), min(high for _, high in ranges)
  if high - low < np.log(1.02):
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
  inset = 0.02 * (high - low)
  return np.exp(np.linspace(high - inset, low + inset, count))
