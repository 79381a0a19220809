"""What a run leaves besides checkpoints: metrics.jsonl, status.json, TensorBoard events, and its progress line."""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]


def write_json(path: Path, value: Any) -> None:
  """Writes JSON atomically: a reader sees the old file or the new one."""
  temporary = path.with_name(f".{path.name}.{os.getpid()}")
  try:
    temporary.write_text(json.dumps(value, indent=1, default=str) + "\n")
    os.replace(temporary, path)
  except OSError:
    temporary.unlink(missing_ok=True)
    raise


def read_json(path: Path) -> dict[str, Any] | None:
  """The JSON object in `path`, or None where there is none that can be read."""
  try:
    value = json.loads(path.read_text())
  except (OSError, ValueError):
    return None
  return value if isinstance(value, dict) else None


def read_rows(path: Path) -> list[dict[str, Any]]:
  """The rows of a JSON-lines file; a last line cut by a kill is left out."""
  rows = []
  if path.is_file():
    for line in path.read_text().splitlines():
      try:
        rows.append(json.loads(line))
      except ValueError:
        break
  return rows


class MetricsFile:
  """metrics.jsonl of a run: one JSON object a line, continued after `step` with no row missing or doubled."""

  def __init__(self, path: Path, *, step: int, inherited: Sequence[Row] = (), writes: bool = True):
    """Keeps the rows up to `step`; `inherited` rows stand first where the file is new. writes: false where another does."""
    rows = [row for row in read_rows(path) or inherited if row["step"] <= step]
    self.rows = [dict(row) for row in rows]
    self._file = None
    if not writes:
      return
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
    os.replace(temporary, path)
    self._file = path.open("a")

  def write(self, rows: Sequence[Row]) -> None:
    """Appends rows; they survive a kill of the process once this returns."""
    if self._file is not None:
      self._file.write("".join(json.dumps(row) + "\n" for row in rows))
      self._file.flush()

  def close(self) -> None:
    """Closes the file."""
    if self._file is not None:
      self._file.close()


class EventFile:
  """TensorBoard events of a run, continued after `step`; opened at the first row, since the library loads slowly."""

  def __init__(self, directory: Path, *, step: int):
    self._directory, self._step = directory, step
    self._writer: Any = None

  def write(self, rows: Sequence[Row]) -> None:
    """Writes every number of every row under `split/name`."""
    if self._writer is None:
      from tensorboardX import SummaryWriter

      self._writer = SummaryWriter(str(self._directory), purge_step=self._step + 1, write_to_disk=True)
    for row in rows:
      group = row["split"] if "set" not in row else f"{row['split']}/{row['set']}"
      for name, value in row.items():
        if isinstance(value, float):
          self._writer.add_scalar(f"{group}/{name}", value, row["step"])

  def close(self) -> None:
    """Flushes and closes the file."""
    if self._writer is not None:
      self._writer.close()


class Progress:
  """A line on how far a run is: rewritten in place on a terminal, printed now and then elsewhere."""

  def __init__(self, *, total: int, done: int, unit: str, units_per_step: int, every_s: float = 10.0):
    self._total, self._first, self._unit, self._units = total, done, unit, units_per_step
    self._terminal = sys.stderr.isatty()
    self._every_s = 0.5 if self._terminal else every_s
    self._start = time.monotonic()
    self._last = self._start

  def show(self, *, step: int, loss: float, last: bool = False) -> None:
    """Shows step, loss, rate and time left, at most every few seconds and at the end."""
    now = time.monotonic()
    if not last and now - self._last < self._every_s:
      return
    self._last = now
    done = step - self._first
    rate = done / max(now - self._start, 1e-9)
    left = (self._total - step) / rate if rate > 0 else math.nan
    line = f"step {step}/{self._total}  loss {loss:.4f}  {rate * self._units:,.0f} {self._unit}/s  left {clock(left)}"
    print(line, end="\n" if last or not self._terminal else "\r", file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
  """Seconds as m:ss or h:mm:ss; '?' where not known."""
  if not math.isfinite(seconds):
    return "?"
  minutes, second = divmod(round(seconds), 60)
  hours, minute = divmod(minutes, 60)
  return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


Say = Callable[[str], None]


def say(line: str) -> None:
  """Prints a line for the user beside the progress line."""
  print(line, file=sys.stderr, flush=True)
