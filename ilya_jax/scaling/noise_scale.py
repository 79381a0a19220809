"""The gradient noise scale B_simple = tr(Sigma)/|G|^2 of a run, from what the loop logged with execution.noise_scale.

McCandlish et al. 2018, https://arxiv.org/abs/1812.06162, eq. 2.9 and appendix A.1: both estimates of a step are unbiased, their
ratio is not, so each is averaged over the logged steps of a window, then they are divided. Its unit is that of the run's
batches, tokens for a language model, so that it stands beside B_crit. Standard errors: delta method over the logged steps.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ilya_jax.errors import UserError

Array = np.ndarray
NAMES = ("grad_sq_norm", "grad_trace")


class NoiseScale(NamedTuple):
  """Of each window [w] of a run: its last step, its mean training loss, B_simple, the standard error of ln(B_simple), and how
  many logged steps it has. B_simple and its error are nan where the mean |G|^2 is not positive."""

  step: Array
  loss: Array
  scale: Array
  log_error: Array
  logged: Array


def noise_scale(metrics: Path, *, windows: int = 6, after: int = 0) -> NoiseScale:
  """The noise scale of the run whose metrics.jsonl this is, in `windows` of equal length in ln(step), later than step `after`.

  Raises UserError where no row has the estimates.
  """
  rows = [row for row in _rows(metrics) if set(NAMES) <= set(row) and row["step"] > after]
  if not rows:
    raise UserError(
      f"no {' and '.join(NAMES)} in {metrics}", "a run that logged them", "--config.execution.noise_scale"
    )
  step, loss, square, trace = (np.array([row[n] for row in rows], np.float64) for n in ("step", "loss", *NAMES))
  edges = np.linspace(np.log(step[0]), np.log(step[-1]), windows + 1)[1:-1]
  which = np.digitize(np.log(step), edges)
  found = []
  for k in np.unique(which):
    own = which == k
    found.append((step[own][-1], loss[own].mean(), *ratio(square[own], trace[own]), own.sum()))
  return NoiseScale(*(np.array(column) for column in zip(*found, strict=True)))


def ratio(square: Array, trace: Array) -> tuple[float, float]:
  """(mean(trace)/mean(square), standard error of its logarithm) of estimates [k]; nan where a mean is not positive."""
  means = square.mean(), trace.mean()
  if min(means) <= 0:
    return float("nan"), float("nan")
  each = trace / means[1] - square / means[0]
  error = each.std(ddof=1) / np.sqrt(len(each)) if len(each) > 1 else float("nan")
  return float(means[1] / means[0]), float(error)


def _rows(path: Path) -> list[dict[str, Any]]:
  """The train rows of metrics.jsonl; a last line cut by a kill is left out."""
  rows = []
  for line in path.read_text().splitlines() if path.is_file() else ():
    try:
      row = json.loads(line)
    except ValueError:
      break
    if row.get("split") == "train":
      rows.append(row)
  return rows


def of_sweeps(paths: Sequence[Path], cells: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
  """The noise scale of every cell of the sweep folders `paths` that logged it; cells: id -> what to say of it beside."""
  found = []
  for path in paths:
    for name, known in cells.items():
      metrics = path / "cells" / name / "metrics.jsonl"
      if not any(set(NAMES) <= set(row) for row in _rows(metrics)):
        continue
      made = noise_scale(metrics)
      windows = [
        dict(zip(("step", "loss", "B_simple", "log_error", "logged"), (_plain(v) for v in each), strict=True))
        for each in zip(*made, strict=True)
      ]
      found.append({"cell": name, **known, "windows": windows})
  return found


def _plain(value: Any) -> float | None:
  return float(value) if np.isfinite(value) else None
