"""How a command ends other than well: bad input (exit code 2), a run that failed (1), a signal (128 + its number)."""

import difflib
import signal
from collections.abc import Iterable
from typing import Any


def did_you_mean(name: str, known: Iterable[str]) -> str:
  """ ", did you mean X?" where one of the known names is like the one that was got, else ""."""
  close = difflib.get_close_matches(name, list(known), n=1)
  return f", did you mean {close[0]}?" if close else ""


class UserError(Exception):
  """Bad input: one line saying what was got, what was expected, and the flag or field to change.

  Raised before anything is written or changed; the command line prints it as `error: …` and exits with 2.
  """

  def __init__(self, got: str, expected: str, change: str):
    super().__init__("; ".join(" ".join(part.split()) for part in (got, expected, change)))
    self._parts = (got, expected, change)

  def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
    return type(self), self._parts  # so that it passes from process to process


def check_positive(model: Any, *fields: str) -> None:
  """Raises UserError where one of these fields of `config.model`, or of a module that has its names, is below 1."""
  for field in fields:
    if getattr(model, field) < 1:
      raise UserError(f"model.{field} = {getattr(model, field)}", "1 or more", f"--config.model.{field}")


class RunFailed(Exception):
  """A run that could not be finished (diverged, disk full, a cell failed): exit code 1, one line, where the log is."""


class Preempted(Exception):
  """A signal stopped the run after its state was saved; `signum` is the signal's number."""

  def __init__(self, signum: int):
    super().__init__(f"stopped by {signal.Signals(signum).name}; state saved, run the same command to go on")
    self.signum = signum

  def __reduce__(self) -> tuple[type, tuple[int]]:
    return type(self), (self.signum,)
