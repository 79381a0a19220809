"""Loss curves of the runs of a sweep, read from their folders: smoothed, cut where a branch leaves its trunk, enveloped."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ilya_jax.scaling.envelope import Training
from ilya_jax.scaling.sweep import Cell, Sweep, cell_folder, cell_state
from ilya_jax.scaling.table import Table
from ilya_jax.train.metrics import read_json, read_rows
from ilya_jax.train.optimizer import branch_step

Array = np.ndarray

_SMOOTHING = 0.06  # standard deviation of the smoothing kernel in ln(step): 6 % of the steps so far
_POINTS = 120  # of a drawn curve at most


class Run(NamedTuple):
  """A cell with what its folder holds: `state` is its status.json, `record` its config.json, `rows` its metrics.jsonl."""

  cell: Cell
  state: dict[str, Any]
  record: dict[str, Any]
  rows: list[dict[str, Any]]

  @property
  def evaluation(self) -> dict[str, Any]:
    """The last row measured on the held-out text ({} where there is none)."""
    return next((row for row in reversed(self.rows) if row["split"] == "eval"), {})

  @property
  def own_steps(self) -> int:
    """Steps that the cell ran itself: a branch runs its cooldown alone."""
    begun = branch_step(self.cell.config.schedule, steps=self.cell.config.steps) if self.is_branch else 0
    return max(0, self.state.get("step", 0) - begun)

  @property
  def is_branch(self) -> bool:
    """Whether the cell began from another run's checkpoint."""
    return self.cell.trunk != self.cell.id


class Curve(NamedTuple):
  """A training curve: C [k] in FLOP, loss [k], of a model of N parameters; `cooldown` where it is a branch's end."""

  N: int
  C: Array
  loss: Array
  cooldown: bool


def read_runs(sweep: Sweep, sweep_dir: Path) -> list[Run]:
  """The runs of a sweep in its order, with empty records where nothing was written."""
  runs = []
  for cell in sweep.cells:
    folder = cell_folder(sweep_dir, cell)
    record = read_json(folder / "config.json") or {}
    runs.append(Run(cell, cell_state(sweep_dir, cell), record, read_rows(folder / "metrics.jsonl")))
  return runs


def smoothed(steps: Array, values: Array, *, width: float = _SMOOTHING) -> tuple[Array, Array]:
  """A running mean of `values` [k] with a Gaussian kernel in ln(step), at no more than 120 of the `steps` [k].

  Returns the steps kept [m] (evenly spaced in ln(step), the last one always) and the means there [m].
  """
  at = np.log(np.asarray(steps, np.float64))
  wanted = np.linspace(at[0], at[-1], _POINTS)
  chosen = np.unique(np.abs(at[None, :] - wanted[:, None]).argmin(-1))
  kernel = np.exp(-0.5 * ((at[chosen, None] - at[None, :]) / width) ** 2)  # [m, k]
  return np.asarray(steps)[chosen], (kernel @ values) / kernel.sum(-1)


def curves(runs: Sequence[Run]) -> list[Curve]:
  """The smoothed training curves of these runs; a branch's begins where it leaves a trunk that is there, too."""
  present = {run.cell.id for run in runs if run.rows}
  found = []
  for run in runs:
    begun = (
      branch_step(run.cell.config.schedule, steps=run.cell.config.steps)
      if run.cell.trunk in present - {run.cell.id}
      else 0
    )
    rows = [row for row in run.rows if row["split"] == "train" and row["step"] >= begun and row["step"] > 0]
    if len(rows) < 2:
      continue
    steps, loss = smoothed(np.array([row["step"] for row in rows]), np.array([row["loss"] for row in rows]))
    flops = steps * run.cell.counts.units_per_step * run.cell.counts.flops_per_unit
    found.append(Curve(run.cell.counts.n, flops, loss, cooldown=begun > 0))
  return found


def envelope(found: Sequence[Curve]) -> tuple[Array, Array]:
  """The lowest loss that any curve has reached with at most C FLOP: C [k] and loss [k], both empty without curves."""
  if not found:
    return np.empty(0), np.empty(0)
  flops = np.concatenate([curve.C for curve in found])
  loss = np.concatenate([curve.loss for curve in found])
  order = np.argsort(flops)
  lowest = np.minimum.accumulate(loss[order])
  kept = np.flatnonzero(np.diff(lowest, prepend=np.inf) < 0)
  return flops[order][kept], lowest[kept]


def read_trainings(paths: Sequence[Path], table: Table, part: Array) -> list[Training]:
  """The loss curves of the sweeps among `paths`, smoothed: the cells of the rows whose `part` [n] is "fit", and their trunks.

  A branch is left out, as its trunk is there. Files, and folders without a sweep.json, give none.
  """
  wanted = {
    cell
    for name in ("cell", "trunk")
    if name in table.columns
    for cell in table.columns[name][np.asarray(part) == "fit"]
  }
  trainings = []
  for path in paths:
    record = read_json(path / "sweep.json") or {"cells": {}}
    for name, cell in record["cells"].items():
      rows = [
        row
        for row in read_rows(cell_folder(path, name) / "metrics.jsonl")
        if row["split"] == "train" and row["step"] > 0
      ]
      if name not in wanted or cell["trunk"] != name or len(rows) < 2:
        continue
      steps, loss = smoothed(np.array([row["step"] for row in rows]), np.array([row["loss"] for row in rows]))
      flops = np.interp(steps, [row["step"] for row in rows], [row["flops"] for row in rows])
      constant = cell["role"] == "trunk" or cell["overrides"].get("schedule.name") == "constant"
      tokens = flops * cell["D"] / cell["C"]
      trainings.append(Training(float(cell["N"]), flops, tokens, loss, constant, "training losses, smoothed"))
  return trainings
