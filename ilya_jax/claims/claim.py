"""The contract of a claim: one falsifiable statement of a reading, how it is measured, and the rule that judges it."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

SCALES = ("tiny", "small", "paper")
VERDICTS = ("holds", "does not hold", "inconclusive")
SEEDS = (0, 1, 2)

Row = Mapping[str, Any]  # what one seed gave under one condition: flat, of numbers and texts


class Measured(NamedTuple):
  """What a measurement gave.

  rows: one for each seed and condition: "seed" (none in an exact computation, or where all seeds are taken together), texts and
    the fields in `Claim.by` (the condition), and numbers (what was measured).
  figures: name -> figure; kept beside the record. remarks: sentences for the reading's page, as what a run did unasked.
  """

  rows: Sequence[Row]
  figures: Mapping[str, Figure] = {}
  remarks: Sequence[str] = ()


class Judged(NamedTuple):
  """verdict: one of VERDICTS. finding: our numbers in a few words, to stand beside the published ones."""

  verdict: str
  finding: str


class Setting(NamedTuple):
  """Where and how a claim is measured.

  scale, seeds: as asked for; seeds is () for an exact computation. folder: for files that need not stay.
  train(jobs) -> runs: trains name -> (config spec, {field: value}) and returns name -> `trainings.Trained`. Runs that are
    done are not trained again, by whichever claim; those that were cut off go on.
  say: shows a line of progress.
  """

  scale: str
  seeds: tuple[int, ...]
  folder: Path
  train: Callable[[Mapping[str, tuple[str, Mapping[str, Any]]]], Mapping[str, Any]]
  say: Callable[[str], None]


class Claim(NamedTuple):
  """One falsifiable statement of a reading.

  id: short, of letters, digits and underscores. where: section, figure or table of the paper. published: the paper's numbers.
  criteria: scale -> the rule, in words, fixed before anything was measured; its keys are the scales that the claim has.
    That of `tiny` is a necessary condition, which must hold.
  measure(setting) -> Measured; judge(rows, scale) -> Judged, the rule of `criteria` in code, a function of the rows alone (as
    `plain` leaves them; what is not finite holds no rule).
  by: fields of the rows that are conditions though they are numbers, as a length. seeds: by default.
  exact: a computation without seeds. optional: needs a download or an extra; its absence is no failure.
  """

  id: str
  statement: str
  where: str
  published: str
  criteria: Mapping[str, str]
  measure: Callable[[Setting], Measured]
  judge: Callable[[Sequence[Row], str], Judged]
  by: tuple[str, ...] = ()
  seeds: tuple[int, ...] = SEEDS
  exact: bool = False
  optional: bool = False


def verdict(holds: bool) -> str:
  """The verdict of a rule that leaves nothing open."""
  return "holds" if holds else "does not hold"


def select(rows: Sequence[Row], **conditions: Any) -> list[Row]:
  """The rows in which the fields have these values."""
  return [row for row in rows if all(row.get(name) == value for name, value in conditions.items())]


def column(rows: Sequence[Row], name: str, **conditions: Any) -> list[float]:
  """The numbers of a field in the rows that meet the conditions, in order; nan for None, which is what is not finite.

  Raises KeyError where a row lacks the field.
  """
  return [math.nan if row[name] is None else float(row[name]) for row in select(rows, **conditions)]


def plain(row: Row) -> dict[str, Any]:
  """A row of Python's own types; what is not finite becomes None, as JSON has no word for it."""
  made: dict[str, Any] = {}
  for name, value in row.items():
    number = value.item() if isinstance(value, np.generic) else value
    made[name] = None if isinstance(number, float) and not math.isfinite(number) else number
  return made
