"""The files of a run, written as it goes: metrics.jsonl, status.json, TensorBoard events, and the progress line."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ilya_jax.errors import RunFailed
from ilya_jax.parallel.distributed import is_first
from ilya_jax.task import Task
from ilya_jax.train.metrics import EventFile, MetricsFile, Progress, read_json, write_json

_STATUS_EVERY_S = 2.0


class Record:
  """Writes what happens in a run; of several processes the first alone does.

  step: the last one logged; notes: what the user must be told of this start, kept in status.json with those of earlier ones.
  """

  def __init__(
    self, workdir: Path, *, config: ConfigDict, run: str, task: Task, step: int, inherited: list[dict],
    notes: Sequence[str] = (),
  ):  # fmt: skip
    self._workdir, self._config, self._run, self._counts = workdir, config, run, task.counts
    self._writes = is_first()
    self._metrics = MetricsFile(workdir / "metrics.jsonl", step=step, inherited=inherited, writes=self._writes)
    tensorboard = self._writes and config.execution.tensorboard
    self._events = EventFile(workdir / "tensorboard", step=step) if tensorboard else None
    self._progress = Progress(
      total=config.steps, done=step, unit=self._counts.unit, units_per_step=self._counts.units_per_step
    )
    self.step, self._loss, self._first = step, math.nan, step
    previous = read_json(workdir / "status.json") or {}
    self._wall_before = previous.get("wall_s", 0.0)
    self._notes = [*previous.get("notes", ()), *notes]
    self._began, self._written = time.monotonic(), -math.inf
    self._events_from(inherited)
    self.status("running")

  @property
  def rows(self) -> list[dict]:
    """The rows of earlier sessions."""
    return self._metrics.rows

  def logged_evaluations(self, step: int) -> dict[str, dict[str, float]]:
    """The evaluations at `step` that an earlier session logged."""
    costs = {"step", "split", "set", self._counts.unit, "flops", "wall_s"}
    found = [row for row in self.rows if row["split"] == "eval" and row["step"] == step]
    return {row["set"]: {name: value for name, value in row.items() if name not in costs} for row in found}

  def _events_from(self, rows: list[dict]) -> None:
    if self._events is not None and rows:
      self._events.write(rows)

  def _wall(self) -> float:
    return self._wall_before + time.monotonic() - self._began

  def _row(self, step: int, split: str, values: dict[str, float], **more: Any) -> dict[str, Any]:
    units = step * self._counts.units_per_step
    cost = {self._counts.unit: units, "flops": units * self._counts.flops_per_unit}
    return {"step": step, "split": split, **more, **cost, **values, "wall_s": round(self._wall(), 3)}

  def _write(self, rows: list[dict[str, Any]]) -> None:
    self._metrics.write(rows)
    if self._events is not None and rows:
      self._events.write(rows)

  def trained(self, first: int, end: int, metrics: dict[str, Any]) -> None:
    """Logs steps first+1 .. end. Raises RunFailed at the first loss that is not finite."""
    count = end - first
    sums = {name: np.asarray(pair, np.float64)[:, :count] for name, pair in metrics.items()}  # [2, steps]
    with np.errstate(invalid="ignore"):
      means = {name: pair[0] / pair[1] for name, pair in sums.items()}
    rows: list[dict[str, Any]] = []
    for index in range(count):
      step = first + index + 1
      if not math.isfinite(means["loss"][index]):
        self._write(rows)
        raise RunFailed(f"loss is {means['loss'][index]} at step {step}")
      if step % self._config.log_every == 0 or step == self._config.steps:
        made = {name: float(values[index]) for name, values in means.items() if sums[name][1, index]}  # at this step
        rows.append(self._row(step, "train", made))
    self._write(rows)
    self.step, self._loss = end, float(means["loss"][-1])
    if self._writes:
      self._progress.show(step=end, loss=self._loss, last=end == self._config.steps)
    if time.monotonic() - self._written > _STATUS_EVERY_S:
      self.status("running")

  def evaluated(self, step: int, evaluations: dict[str, dict[str, float]]) -> float | None:
    """Logs an evaluation; returns the loss on the first set. Raises RunFailed where it is not finite."""
    self._write([self._row(step, "eval", means, set=split) for split, means in evaluations.items()])
    loss = next((means["loss"] for means in evaluations.values()), None)
    if loss is not None and not math.isfinite(loss):
      raise RunFailed(f"held-out loss is {loss} at step {step}")
    return loss

  def status(self, state: str, **more: Any) -> None:
    """Writes status.json."""
    self._written = time.monotonic()
    wall = self._wall()
    done = self.step - self._first
    left = (self._config.steps - self.step) * (wall - self._wall_before) / done if done else None
    loss = self._loss if math.isfinite(self._loss) else None
    value = {"id": self._run, "state": state, "step": self.step, "steps": self._config.steps, "loss": loss,
             "wall_s": round(wall, 3), "left_s": left, "updated": time.time(), **more}  # fmt: skip
    if self._notes:
      value["notes"] = self._notes
    if self._writes:
      write_json(self._workdir / "status.json", value)

  def close(self) -> None:
    """Closes the files."""
    self._metrics.close()
    if self._events is not None:
      self._events.close()
