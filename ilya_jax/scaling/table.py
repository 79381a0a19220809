"""Tables of (N, D, C, loss) from CSV or Parquet files: columns mapped, units applied, rows filtered, all of it recorded.

Nothing is guessed: a column counts by its name or by `--columns`, units by `--units` (1 where not given). The third of
N, D and C is derived by C = 6 N D where a table lacks it, and the record says so.
"""

import csv
import difflib
import hashlib
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ilya_jax.errors import UserError

Array = np.ndarray

# Numeric: parameters, tokens, FLOP, optimizer steps, different tokens, nats, nats.
QUANTITIES = ("N", "D", "C", "S", "D_unique", "loss", "loss_se")
_SCALED = ("N", "D", "C", "S", "D_unique", "loss")  # that may have a unit
LABELS = ("cell", "trunk", "seed", "family", "final", "role", "source", "N_total")
_COMPARISONS: Mapping[str, Callable[[Any, Any], Any]] = {
  "<=": np.less_equal, ">=": np.greater_equal, "==": np.equal, "!=": np.not_equal, "<": np.less, ">": np.greater,
}  # fmt: skip


class Table(NamedTuple):
  """n rows of measurements.

  values: the QUANTITIES, those that are there, [n] float64 in natural units. columns: every column as text
  [n], under its own name and, where mapped, under the mapped one. cluster: [n] integers, equal for rows that are
  resampled together. source [n]: the file; row [n]: the row in it, 1 for the first after the header.
  record: path, sha256, columns, units, derived, cluster, rows, dropped (each row left out, and why).
  """

  values: dict[str, Array]
  columns: dict[str, Array]
  cluster: Array
  source: Array
  row: Array
  record: dict[str, Any]

  @property
  def n_rows(self) -> int:
    """How many rows (a tuple's own length is its number of fields)."""
    return len(self.row)

  def take(self, keep: Array, *, reason: str = "") -> "Table":
    """The rows where `keep` [n] is true; with a reason, the others are recorded as dropped for it."""
    dropped = [
      {"source": str(s), "row": int(r), "reason": reason}
      for s, r in zip(self.source[~keep], self.row[~keep], strict=True)
    ]
    return Table(
      {name: column[keep] for name, column in self.values.items()},
      {name: column[keep] for name, column in self.columns.items()},
      self.cluster[keep],
      self.source[keep],
      self.row[keep],
      self.record | {"dropped": self.record["dropped"] + dropped} if reason else self.record,
    )


def read_table(
  paths: Sequence[str | Path],
  *,
  columns: str | Mapping[str, str] = "",
  units: str | Mapping[str, float] = "",
  where: Sequence[str] = (),
  final_only: bool = False,
  drop_highest: int = 0,
  cluster: str = "",
) -> Table:
  """Reads and joins tables.

  paths: CSV or Parquet files, or sweep directories (their cells.csv). columns: 'N=Model Size,D=Training Tokens', or a
  mapping. units: 'N=1e6': what one unit of the column is. where: conditions such as 'C<1e21' or 'family==lstm', on
  mapped or on own column names, all of which must hold. final_only: keeps rows whose `final` is 1. drop_highest K:
  keeps rows with loss strictly below the K-th highest. cluster: the column whose equal values are resampled together;
  by default `trunk`, else `cell`, else every row by itself.

  Raises UserError for files that are missing, unreadable or empty, lacking columns, conditions that leave no row, and
  text, NaN or non-positive numbers in a column that counts.
  """
  names = _parse_columns(columns)
  scales = _parse_units(units)
  if not paths:
    raise UserError("no table", "one or more CSV files or sweep directories", "name them after `ilya-jax fit`")
  files = [_table_file(Path(path)) for path in paths]
  tables = [_read_one(file, names=names, scales=scales) for file in files]
  table = _join(tables, cluster=cluster)
  record = {
    "path": _one_or_all([str(file) for file in files]),
    "sha256": _one_or_all([hashlib.sha256(file.read_bytes()).hexdigest() for file in files]),
    "columns": {
      name: names.get(name, name) for name in (*QUANTITIES, *LABELS) if name in table.columns or name in names
    },
    "units": {name: scales.get(name, 1.0) for name in _SCALED},
    **table.record,
    "rows": table.n_rows,
    "dropped": [],
  }
  table = table._replace(record=record)
  if final_only:
    final = _text_column(table, "final", "--final-only")
    table = table.take(np.array([_number(cell) == 1 for cell in final]), reason="not final (--final-only)")
  for condition in where:
    table = table.take(_holds(table, condition), reason=f"--where {condition!r} does not hold")
  if not table.n_rows:
    raise UserError(f"no row left of {record['rows']}", "rows that pass every filter", "relax --where or --final-only")
  _check_cells(table, derived=record["derived"])
  return drop_highest_losses(table, drop_highest) if drop_highest else table


def drop_highest_losses(table: Table, count: int) -> Table:
  """The rows with loss strictly below the `count`-th highest; UserError where none would be left."""
  loss = table.values["loss"]
  if not 0 < count < len(loss):
    raise UserError(f"--drop-highest {count} of {len(loss)} rows", f"1 to {len(loss) - 1}", "change --drop-highest")
  limit = np.sort(loss)[-count]
  if not (loss < limit).any():
    raise UserError(f"--drop-highest {count} leaves no row", "losses that differ", "change --drop-highest")
  return table.take(loss < limit, reason=f"loss not below the {count}. highest (--drop-highest)")


def _one_or_all(values: list[str]) -> str | list[str]:
  return values[0] if len(values) == 1 else values


def _table_file(path: Path) -> Path:
  """The file of a table: the path itself, or the cells.csv of a sweep directory."""
  file = path / "cells.csv" if path.is_dir() else path
  if not file.is_file():
    expected = "a sweep directory with cells.csv" if path.is_dir() else "a CSV file or a sweep directory"
    raise UserError(f"no file {file}", expected, "correct the path of the table")
  return file


def _parse_columns(columns: str | Mapping[str, str]) -> dict[str, str]:
  """'N=Model Size,loss=Loss, final' to {name: column}; a comma starts a new pair only before a known name and '='."""
  if not isinstance(columns, str):
    pairs = dict(columns)
  else:
    pairs, name = {}, ""
    for piece in columns.split(",") if columns.strip() else []:
      key, equals, value = piece.partition("=")
      if equals and (key.strip() in QUANTITIES + LABELS or not name):
        name = key.strip()
        pairs[name] = value
      elif name:
        pairs[name] += "," + piece
      else:
        raise UserError(f"--columns {columns!r}", "pairs such as 'N=Model Size,loss=Loss'", "change --columns")
  for name in pairs:
    if name not in QUANTITIES + LABELS:
      raise UserError(
        f"{name!r} in --columns",
        f"one of {', '.join(QUANTITIES + LABELS)} before the '='",
        f"change --columns{_close(name)}",
      )
  return {name: column.strip() for name, column in pairs.items()}


def _close(name: str) -> str:
  match = difflib.get_close_matches(name, QUANTITIES + LABELS, 1)
  return f" (did you mean {match[0]}?)" if match else ""


def _parse_units(units: str | Mapping[str, float]) -> dict[str, float]:
  """'N=1e6,D=1e9' to {"N": 1e6, "D": 1e9}."""
  pairs = dict(p.partition("=")[::2] for p in units.split(",") if p.strip()) if isinstance(units, str) else dict(units)
  scales = {}
  for name, value in pairs.items():
    scale = _number(value)
    if name.strip() not in _SCALED or not (np.isfinite(scale) and scale > 0):
      raise UserError(
        f"--units {name}={value}", f"{', '.join(_SCALED)} = a positive number, such as N=1e6", "change --units"
      )
    scales[name.strip()] = scale
  return scales


def _number(cell: Any) -> float:
  """A cell as a number; nan where it is not one."""
  try:
    return float(cell)
  except (TypeError, ValueError):
    return float("nan")


def _read_one(file: Path, *, names: Mapping[str, str], scales: Mapping[str, float]) -> Table:
  """One file, its quantities in natural units (nan for cells that are no numbers), the third of N, D, C derived."""
  columns = _read_parquet(file) if file.suffix.lower() in (".parquet", ".pq") else _read_csv(file)
  own = list(columns)
  for name, column in names.items():
    if column not in columns:
      raise UserError(f"no column {column!r} in {file}", f"one of its columns: {', '.join(own)}", "change --columns")
    columns[name] = columns[column]
  if "loss" not in columns or not {"N", "D", "C"} & set(columns):
    lacks = "loss" if "loss" not in columns else "N, D or C"
    raise UserError(
      f"no column {lacks} in {file} (it has {', '.join(own)})", "loss and at least one of N, D, C",
      "name them by --columns 'N=…,D=…,C=…,loss=…'",
    )  # fmt: skip
  count = len(columns["loss"])
  values = {
    name: np.array([_number(cell) for cell in columns[name]]) * scales.get(name, 1.0)
    for name in QUANTITIES
    if name in columns
  }
  derived = []
  missing = [name for name in ("N", "D", "C") if name not in values]
  if len(missing) == 1:
    known = {name: values.get(name) for name in ("N", "D", "C")}
    n, d, c = known["N"], known["D"], known["C"]
    with np.errstate(all="ignore"):
      values[missing[0]] = 6.0 * n * d if c is None else c / (6.0 * (d if n is None else n))  # type: ignore[operator, assignment]
    derived = [f"{missing[0]} by C = 6 N D"]
  source = np.full(count, str(file), object)
  columns.setdefault("source", source)
  return Table(values, columns, np.arange(count), source, np.arange(1, count + 1), {"derived": derived})


def _read_csv(file: Path) -> dict[str, Array]:
  """The columns of a CSV file with a header, as text."""
  try:
    with file.open(newline="", encoding="utf-8-sig") as stream:
      rows = [row for row in csv.reader(stream, strict=True) if any(cell.strip() for cell in row)]
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    raise UserError(
      f"{file} is not readable as CSV ({error})", "a CSV file with a header", "convert the table"
    ) from None
  if len(rows) < 2:
    raise UserError(f"{file} has no rows", "a header and at least one row", "fill the table")
  header = [cell.strip() for cell in rows[0]]
  if len(set(header)) < len(header):
    double = next(name for name in header if header.count(name) > 1)
    raise UserError(f"column {double!r} twice in {file}", "different names", "rename one of them")
  for number, row in enumerate(rows[1:], start=1):
    if len(row) != len(header):
      raise UserError(
        f"{len(row)} cells in row {number} of {file}", f"{len(header)}, as in its header", "repair the row"
      )
  return {name: np.array([row[k].strip() for row in rows[1:]], object) for k, name in enumerate(header)}


def _read_parquet(file: Path) -> dict[str, Array]:
  """The columns of a Parquet file, as text; needs pyarrow."""
  try:
    from pyarrow import parquet
  except ImportError:
    raise UserError(
      f"{file} without pyarrow", "the package that reads Parquet", "pip install 'ilya-jax[parquet]'"
    ) from None
  try:
    table = parquet.read_table(file)
  except Exception as error:
    raise UserError(f"{file} is not readable as Parquet ({error})", "a Parquet file", "convert the table") from None
  if not table.num_rows:
    raise UserError(f"{file} has no rows", "at least one row", "fill the table")
  columns = {name: table.column(name).to_pylist() for name in table.column_names}
  return {name: np.array(["" if v is None else str(v) for v in cells], object) for name, cells in columns.items()}


def _join(tables: Sequence[Table], *, cluster: str) -> Table:
  """Rows of all tables below one another, with their clusters; a quantity counts where every table has it."""
  values = {
    name: np.concatenate([t.values[name] for t in tables])
    for name in QUANTITIES
    if all(name in t.values for t in tables)
  }
  every = dict.fromkeys(itertools.chain.from_iterable(t.columns for t in tables))
  blank = {name: [t.columns.get(name, np.full(len(t), "", object)) for t in tables] for name in every}
  columns = {name: np.concatenate(parts) for name, parts in blank.items()}
  source, row = (np.concatenate([getattr(t, name) for t in tables]) for name in ("source", "row"))
  chosen = cluster or next((name for name in ("trunk", "cell") if name in columns), "")
  if chosen and chosen not in columns:
    raise UserError(f"no column {chosen!r} for the clusters", f"one of {', '.join(columns)}", "change --cluster")
  label = columns[chosen] if chosen else np.full(len(row), "", object)
  keys = [(s, text) if text else (s, r) for s, text, r in zip(source, label, row, strict=True)]
  codes = {key: code for code, key in enumerate(dict.fromkeys(keys))}
  derived = sorted({line for t in tables for line in t.record["derived"]})
  record = {"derived": derived, "cluster": chosen or "row"}
  return Table(values, columns, np.array([codes[key] for key in keys]), source, row, record)


def _text_column(table: Table, name: str, flag: str) -> Array:
  if name not in table.columns:
    raise UserError(
      f"no column {name!r} for {flag}", f"one of {', '.join(table.columns)}", f"change {flag} or --columns"
    )
  return table.columns[name]


def _holds(table: Table, condition: str) -> Array:
  """Where a condition such as 'C<1e21' or 'family==lstm' holds [n]; cells that are no numbers fail comparisons."""
  match = re.match(r"^(.+?)\s*(<=|>=|==|!=|<|>)\s*(.+)$", condition.strip())
  if not match:
    raise UserError(f"--where {condition!r}", "COLUMN and one of < <= > >= == != and a value", "change --where")
  name, operator, text = match[1].strip(), match[2], match[3].strip().strip("'\"")
  cells = table.values.get(name)
  if cells is None:
    cells = np.array([_number(cell) for cell in _text_column(table, name, "--where")])
  value = _number(text)
  if np.isnan(value):
    if operator not in ("==", "!="):
      raise UserError(f"--where {condition!r}", f"a number after {operator}", "change --where")
    return np.array([(cell == text) == (operator == "==") for cell in _text_column(table, name, "--where")])
  return _COMPARISONS[operator](cells, value)


def _check_cells(table: Table, *, derived: Sequence[str]) -> None:
  """Raises UserError for the first cell that is not a positive finite number in a quantity that the table has."""
  for name in ("N", "D", "C", "loss"):
    if name not in table.values or any(line.startswith(f"{name} by") for line in derived):
      continue
    bad = np.flatnonzero(~(np.isfinite(table.values[name]) & (table.values[name] > 0)))
    if len(bad):
      k = bad[0]
      column = table.record["columns"].get(name, name)
      raise UserError(
        f"{table.columns[name][k]!r} in column {column!r}, row {table.row[k]} of {table.source[k]}",
        "a positive finite number in every row",
        "correct the cell or leave the row out by --where",
      )
