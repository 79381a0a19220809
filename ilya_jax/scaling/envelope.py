"""The envelope of trainings: at each compute the size whose training has the lowest loss there, and the exponents of that size.

Approach 1 of Hoffmann et al. 2022, https://arxiv.org/abs/2203.15556, section 3.1. A loss in the middle of a training whose rate
decays is not the loss of a run made for that compute (their cosine cycles had to match the horizon): the envelope of such
trainings is too high before their ends, and more so for the longer ones. It is sound for constant-rate trunks.

Axis letters: K places on the grid of compute.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ilya_jax.scaling.table import Table

Array = np.ndarray

CAVEAT = (
  "Intermediate losses of a training whose rate decays are not final losses: its envelope is valid for constant-rate trainings "
  "only, or where every loss is that of a finished run."
)
_GRID = 96
_FEWEST_SIZES = 3
_FEWEST_WINNERS = 2


class Training(NamedTuple):
  """A training of N parameters: loss [k] after C [k] FLOP and D [k] tokens, C ascending; constant: its rate does not decay.

  kind: "held-out losses" or "training losses, smoothed".
  """

  N: float
  C: Array
  D: Array
  loss: Array
  constant: bool
  kind: str = "held-out losses"


def trainings_of(table: Table, rows: Array) -> list[Training]:
  """The runs with intermediate rows (final = 0), in the order of the table, among the rows where `rows` [n] holds.

  A run is the rows of one `cell`, or of one cluster where the table has no such column. Constant are those whose role is
  trunk or whose schedule is constant.
  """
  if "final" not in table.columns or not {"N", "C", "D"} <= set(table.values):
    return []
  final = np.array([cell.strip() in ("1", "1.0", "True", "true") for cell in table.columns["final"]])
  names = table.columns.get("cell", table.cluster.astype(str))
  trainings = []
  for name in dict.fromkeys(names[rows & ~final]):
    mine = np.flatnonzero(rows & (names == name))
    mine = mine[np.argsort(table.values["C"][mine], kind="stable")]
    if len(mine) < 2 or len(np.unique(table.values["N"][mine])) > 1:
      continue
    labels = {table.columns[column][mine[0]] for column in ("role", "schedule") if column in table.columns}
    N, C, D, loss = (table.values[name][mine] for name in ("N", "C", "D", "loss"))
    trainings.append(Training(float(N[0]), C, D, loss, bool(labels & {"trunk", "constant"})))
  return trainings


def choose(measured: Sequence[Training], curves: Sequence[Training]) -> Sequence[Training]:
  """The trainings with losses on held-out text where these are of three sizes, else the loss curves; never both kinds."""
  return measured if len({each.N for each in measured}) >= _FEWEST_SIZES or not curves else curves


def analyse(trainings: Sequence[Training]) -> dict[str, Any]:
  """The record of the envelope: caveat, valid, trainings, sizes, losses (their kind), points, exponents a and b; or refused, why.

  Where three sizes have constant-rate trainings these alone are taken, and `valid` is true. points: C, N, D, loss [K], and whether
  smaller and larger sizes were running there too (bracketed); only such places enter the exponents. Intervals are jackknifes
  over sizes.
  """
  constant = [each for each in trainings if each.constant]
  valid = len({each.N for each in constant}) >= _FEWEST_SIZES
  chosen = constant if valid else list(trainings)
  distinct = len({each.N for each in chosen})
  record: dict[str, Any] = {"caveat": CAVEAT, "valid": valid, "trainings": len(chosen), "sizes": distinct}
  record["losses"] = " and ".join(dict.fromkeys(each.kind for each in chosen)) or None
  if not chosen:
    return record | {"refused": "the table has final rows alone: an envelope needs intermediate ones (final = 0)"}
  if distinct < _FEWEST_SIZES:
    return record | {"refused": f"trainings of {distinct} sizes; an envelope needs {_FEWEST_SIZES}"}
  points = lowest(chosen)
  exponents = _exponents(points)
  if exponents is None:
    return record | {
      "refused": "no two sizes win with a smaller and a larger one running beside them",
      "points": _listed(points),
    }
  sizes = sorted({each.N for each in chosen})
  left_out = [_exponents(lowest([each for each in chosen if each.N != size])) for size in sizes]
  known = [each for each in left_out if each is not None]
  for k, name in enumerate(("a", "b")):
    low, high = _jackknife(exponents[k], [each[k] for each in known]) if len(known) == len(sizes) > 3 else (None, None)
    record[name] = {
      "value": exponents[k], "low": low, "high": high, "identified": True,
      "why": "" if low is not None else "too few sizes for a jackknife",
    }  # fmt: skip
  return record | {"refused": "", "points": _listed(points)}


class Points(NamedTuple):
  """C, N, D, loss [K] of the envelope; bracketed [K]: a smaller and a larger size were running there."""

  C: Array
  N: Array
  D: Array
  loss: Array
  bracketed: Array


def lowest(trainings: Sequence[Training]) -> Points:
  """The training of lowest loss at each compute of a logarithmic grid, ln loss interpolated in ln C between its rows.

  The grid goes from where two sizes run to the last place where two do. A training counts only inside its own range.
  """
  order = sorted(trainings, key=lambda each: (each.N, each.C[0]))
  starts, ends = (np.log([each.C[k] for each in order]) for k in (0, -1))
  grid = np.linspace(np.sort(starts)[1], np.sort(ends)[-2], _GRID)
  with np.errstate(invalid="ignore"):
    losses = np.stack([_inside(grid, each.C, each.loss) for each in order])  # [trainings, K], inf outside
  winner = losses.argmin(0)
  sizes = np.array([each.N for each in order])
  running = np.isfinite(losses)
  smaller = (running & (sizes[:, None] < sizes[winner])).any(0)
  larger = (running & (sizes[:, None] > sizes[winner])).any(0)
  tokens = np.stack([np.interp(grid, np.log(each.C), np.log(each.D)) for each in order])
  places = np.arange(len(grid))
  there = running.any(0)
  D = np.exp(tokens[winner, places])
  columns = (np.exp(grid), sizes[winner], D, np.exp(losses[winner, places]), smaller & larger)
  return Points(*(column[there] for column in columns))


def _inside(grid: Array, C: Array, loss: Array) -> Array:
  """ln loss on the grid of ln C, inf outside a training's own range."""
  log_c = np.log(C)
  return np.where(
    (grid >= log_c[0] - 1e-12) & (grid <= log_c[-1] + 1e-12), np.interp(grid, log_c, np.log(loss)), np.inf
  )


def _exponents(points: Points) -> tuple[float, float] | None:
  """(a, b) by least squares in logs over the bracketed places; None where fewer than two sizes win there."""
  used = points.bracketed
  if len(np.unique(points.N[used])) < _FEWEST_WINNERS:
    return None
  log_c = np.log(points.C[used])
  a, b = (float(np.polyfit(log_c - log_c.mean(), np.log(column[used]), 1)[0]) for column in (points.N, points.D))
  return a, b


def _jackknife(value: float, left_out: Sequence[float]) -> tuple[float, float]:
  """The 95 % interval of a value from its versions without one size each."""
  count, values = len(left_out), np.asarray(left_out)
  error = np.sqrt((count - 1) / count * ((values - values.mean()) ** 2).sum())
  return value - 1.96 * float(error), value + 1.96 * float(error)


def _listed(points: Points) -> dict[str, list[Any]]:
  return {name: column.tolist() for name, column in points._asdict().items()}
