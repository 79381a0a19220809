"""Sweeps: from a sweep file (Python data) to cells, trunks and jobs, and from finished cells to cells.csv."""

import csv
import itertools
import json
import math
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from ilya_jax.config import load_config, load_file, without
from ilya_jax.errors import UserError
from ilya_jax.scaling.rows import Options
from ilya_jax.task import Counts
from ilya_jax.train.loop import prepare
from ilya_jax.train.metrics import read_json, read_rows, write_json
from ilya_jax.train.optimizer import branch_step
from ilya_jax.train.programs import program_key

FORMAT = 1
COLUMNS = (
  "cell", "trunk", "seed", "family", "N", "N_total", "D", "D_unique", "C", "C_6ND", "batch", "steps", "lr", "schedule",
  "step", "final", "loss", "loss_se", "bits_per_byte", "wall_s", "hardware", "role",
)  # fmt: skip
_GROUP_KEYS = {"family", "config", "set", "axes", "seeds", "role"}
_SWEEP_KEYS = {"name", "groups", "fit", "notes"}


class Cell(NamedTuple):
  """One run of a sweep.

  overrides: what it changes in the config `spec`. role: "fit", "held_out" (grades the fits, never enters them) or
  "trunk" (a constant-rate run that cooldown branches start from; no cell of its own). trunk: the id of the run it
  branches off, or its own. program: what its compiled program depends on; cells with the same one share it.
  """

  id: str
  family: str
  spec: str
  overrides: dict[str, Any]
  role: str
  trunk: str
  config: ConfigDict
  counts: Counts
  d_unique: float  # different tokens (or examples) there are to train on; infinite where they are generated
  program: str

  @property
  def units(self) -> int:
    """Tokens (or examples) seen by the end."""
    return self.config.steps * self.counts.units_per_step

  @property
  def flops(self) -> float:
    """Training FLOP by the end."""
    return self.units * self.counts.flops_per_unit


class Sweep(NamedTuple):
  """A sweep: its cells (trunks first) and the options of its fits."""

  name: str
  cells: list[Cell]
  fit: dict[str, Any]
  notes: dict[str, str]


def load_sweep(spec: str, *, overrides: Mapping[str, Any], flag: str = "sweep file") -> Sweep:
  """The sweep of `path[:variant]`, with `overrides` on top of every cell. Raises UserError on a malformed file.

  The file defines get_sweep(variant), which returns {"name", "groups", "fit", "notes"}. A group is
  {"family", "config": PATH[:VARIANT], "set": {field: value}, "axes": [block, ...], "seeds": [0, ...], "role"}; a block
  is {field: [values], ...}, whose fields vary together, or a list of {field: value}; blocks are multiplied.
  """
  data = load_file(spec, function="get_sweep", flag=flag)
  if not isinstance(data, Mapping) or not data.get("groups") or not set(data) <= _SWEEP_KEYS:
    raise UserError(f"{spec} returns no sweep", f"a dict with {', '.join(sorted(_SWEEP_KEYS))}", flag)
  unknown = set(data.get("fit", {})) - set(Options._fields)
  if unknown:
    raise UserError(f"fit option {sorted(unknown)[0]!r} in {spec}", f"one of {', '.join(Options._fields)}", flag)
  cells: dict[str, Cell] = {}
  for group in data["groups"]:
    if not {"family", "config"} <= set(group) <= _GROUP_KEYS:
      raise UserError(
        f"a group of {spec} with {', '.join(sorted(group))}", f"keys {', '.join(sorted(_GROUP_KEYS))}", flag
      )
    for cell in _expand(group, overrides=overrides, flag=flag):
      cells.setdefault(cell.id, cell)
  planned = _with_trunks(list(cells.values()))
  return Sweep(
    data.get("name", Path(spec.partition(":")[0]).stem), planned, dict(data.get("fit", {})), dict(data.get("notes", {}))
  )


def _expand(group: Mapping[str, Any], *, overrides: Mapping[str, Any], flag: str) -> Iterator[Cell]:
  """The cells of a group."""
  blocks = [_block_points(block, flag=flag) for block in group.get("axes", [])]
  blocks.append([{"seed": seed} for seed in group.get("seeds", [0])])
  for points in itertools.product(*blocks):
    changed = dict(group.get("set", {}))
    for point in points:
      changed.update(point)
    changed.update(overrides)
    yield make_cell(group["config"], changed, family=group["family"], role=group.get("role", "fit"))


def _block_points(
  block: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]], *, flag: str
) -> list[dict[str, Any]]:
  if isinstance(block, Mapping):
    lengths = {len(values) for values in block.values()}
    if len(lengths) != 1:
      raise UserError(
        f"an axis whose fields have {sorted(lengths)} values", "fields of one block vary together: equally many", flag
      )
    return [dict(zip(block, values, strict=True)) for values in zip(*block.values(), strict=True)]
  return [dict(point) for point in block]


def make_cell(spec: str, overrides: Mapping[str, Any], *, family: str, role: str) -> Cell:
  """The cell of a config with overrides."""
  config = load_config(spec, overrides, flag="a sweep group's config")
  task, source, run = prepare(config)
  unique = source.info["d_unique_total"] or math.inf
  program = program_key(config, source)
  return Cell(run, family, spec, dict(overrides), role, run, config, task.counts, unique, program)


def _with_trunks(cells: list[Cell]) -> list[Cell]:
  """The cells, with a trunk in front wherever several differ only in the length of a constant rate with cooldown."""
  groups = defaultdict(list)
  for cell in cells:
    key = without(cell.config, ("steps", "checkpoint", "log_every", "eval.every"))
    groups[json.dumps(key, sort_keys=True, default=str) if cell.config.schedule.name == "wsd" else cell.id].append(cell)
  planned: list[Cell] = []
  for members in groups.values():
    if len(members) > 1:
      starts = sorted({branch_step(cell.config.schedule, steps=cell.config.steps) for cell in members})
      longest = max(members, key=lambda cell: cell.config.steps)
      changed = {
        **longest.overrides,
        "schedule.name": "constant",
        "steps": starts[-1],
        "checkpoint.keep_steps": tuple(starts),
      }
      trunk = make_cell(longest.spec, changed, family=longest.family, role="trunk")
      planned.append(trunk)
      members = [cell._replace(trunk=trunk.id) for cell in members]
    planned.extend(members)
  return planned


def select(cells: Sequence[Cell], pattern: str) -> list[Cell]:
  """The cells that a pattern names, and the trunks they need. Raises UserError where there is none.

  pattern: parts joined by commas, all of which must hold: field=value of an override (also family=, role=; wildcards
    allowed), or the start of an id.
  """

  def holds(cell: Cell) -> bool:
    values = {"family": cell.family, "role": cell.role, **{k: str(v) for k, v in cell.overrides.items()}}
    for part in pattern.split(","):
      field, equals, wanted = part.strip().removeprefix("config.").partition("=")
      if equals and not fnmatchcase(values.get(field, ""), wanted):
        return False
      if not equals and field != "*" and not cell.id.startswith(field):
        return False
    return True

  chosen = [cell for cell in cells if cell.role != "trunk" and holds(cell)]
  if not chosen:
    raise UserError(
      f"--only {pattern!r} selects no cell", "field=value[,…] of an override, family=…, or the start of an id", "--only"
    )
  trunks = {cell.trunk for cell in chosen}
  return [cell for cell in cells if cell in chosen or (cell.role == "trunk" and cell.id in trunks)]


def own_flops(cell: Cell) -> float:
  """Training FLOP that the cell itself runs: a branch runs its cooldown alone."""
  steps = cell.config.steps
  if cell.trunk != cell.id:
    steps -= branch_step(cell.config.schedule, steps=steps)
  return steps * cell.counts.units_per_step * cell.counts.flops_per_unit


def make_packs(cells: Sequence[Cell], *, size: int, kept: Sequence[Sequence[str]] = ()) -> list[list[Cell]]:
  """The cells in packs of at most `size`, each trained as one program; `kept` are packs, by id, of an earlier start.

  Only runs of one program, length and pace of saving go together, and never a trunk with a branch.
  """
  by_id = {cell.id: cell for cell in cells}
  packs = [[by_id[name] for name in pack] for pack in kept if all(name in by_id for name in pack)]
  packed = {cell.id for pack in packs for cell in pack}
  alike = defaultdict(list)
  for cell in cells:
    if cell.id not in packed:
      checkpoint = {k: v for k, v in without(cell.config, ()).items() if k.startswith("checkpoint.")}
      pace = [cell.program, cell.config.steps, cell.config.eval.every, checkpoint, cell.trunk == cell.id]
      start = None if cell.trunk == cell.id else branch_step(cell.config.schedule, steps=cell.config.steps)
      alike[json.dumps([*pace, start], default=list)].append(cell)
  for members in alike.values():
    packs += [members[k : k + size] for k in range(0, len(members), size)]
  return packs


def needed(packs: Sequence[list[Cell]], cells: Sequence[Cell]) -> list[list[Cell]]:
  """The packs that running `cells` takes: a pack is run whole, and a branch needs its trunk."""
  chosen = {cell.id for cell in cells}
  while True:
    taken = [pack for pack in packs if any(cell.id in chosen for cell in pack)]
    wider = {name for pack in taken for cell in pack for name in (cell.id, cell.trunk)}
    if wider <= chosen:
      return taken
    chosen |= wider


def cell_folder(sweep_dir: Path, cell: Cell | str) -> Path:
  """The workdir of a cell."""
  return sweep_dir / "cells" / (cell if isinstance(cell, str) else cell.id)


class Execution(NamedTuple):
  """How a sweep is run, which its ids do not depend on. workers: processes of this machine that the local launcher takes."""

  launcher: str
  options: dict[str, str]
  workers: int


def kept_options(record: Mapping[str, Any] | None, launcher: str) -> dict[str, str]:
  """The launcher's options of an earlier start with the same launcher, from its sweep.json."""
  execution = (record or {}).get("execution", {})
  return dict(execution["options"]) if execution.get("launcher") == launcher else {}


def sweep_record(sweep: Sweep, *, execution: Execution, packs: Sequence[Sequence[Cell]]) -> dict[str, Any]:
  """What sweep.json holds: the cells by id with their overrides, trunks, and how they were executed."""
  cells = {
    cell.id: {
      "family": cell.family, "config": cell.spec, "overrides": cell.overrides, "role": cell.role, "trunk": cell.trunk,
      "N": cell.counts.n, "D": cell.units, "C": cell.flops,
    }
    for cell in sweep.cells
  }  # fmt: skip
  return {
    "name": sweep.name,
    "format": FORMAT,
    "cells": cells,
    "packs": [[cell.id for cell in pack] for pack in packs if len(pack) > 1],
    "workers": execution.workers,
    "execution": {"launcher": execution.launcher, "options": execution.options},
    "fit": sweep.fit,
    "notes": sweep.notes,
  }


def check_sweep_dir(sweep_dir: Path, sweep: Sweep) -> dict[str, Any] | None:
  """The sweep.json of an earlier start. Raises UserError where the folder holds another sweep or a newer format."""
  record = read_json(sweep_dir / "sweep.json")
  if record is None:
    return None
  if record.get("format", 0) > FORMAT:
    raise UserError(
      f"{sweep_dir} has format {record['format']}", f"format {FORMAT} or older", "the version of ilya-jax"
    )
  if record.get("name") != sweep.name:
    raise UserError(
      f"{sweep_dir} holds the sweep {record.get('name')!r}", f"a new folder for {sweep.name!r}", "--workdir"
    )
  return record


def cell_state(sweep_dir: Path, cell: Cell | str) -> dict[str, Any]:
  """The status of a cell: its status.json, or {"state": "waiting"}."""
  return read_json(cell_folder(sweep_dir, cell) / "status.json") or {"state": "waiting"}


def cell_rows(sweep_dir: Path, cell: Cell) -> list[dict[str, Any]]:
  """The rows of cells.csv that a cell's evaluations give; the last one of a finished cell has final = 1."""
  folder = cell_folder(sweep_dir, cell)
  record, status = read_json(folder / "config.json"), read_json(folder / "status.json")
  if record is None or status is None:
    return []
  done = status.get("state") == "done" and cell.role != "trunk"
  rows = []
  for row in read_rows(folder / "metrics.jsonl"):
    if row["split"] == "eval":
      units = row["step"] * cell.counts.units_per_step
      rows.append({
        "cell": cell.id, "trunk": cell.trunk, "seed": cell.config.seed, "family": cell.family, "N": cell.counts.n,
        "N_total": cell.counts.n_total, "D": units, "D_unique": min(units, cell.d_unique),
        "C": units * cell.counts.flops_per_unit, "C_6ND": 6 * cell.counts.n * units, "batch": cell.config.batch_size,
        "steps": cell.config.steps, "lr": cell.config.optim.learning_rate, "schedule": cell.config.schedule.name,
        "step": row["step"], "final": int(done and row["step"] == cell.config.steps), "loss": row["loss"],
        "loss_se": row.get("loss_se", ""), "bits_per_byte": row.get("bits_per_byte", ""), "wall_s": row["wall_s"],
        "hardware": record["hardware"], "role": cell.role,
      })  # fmt: skip
  return rows


def write_cells_csv(sweep_dir: Path, cells: Sequence[Cell]) -> Path:
  """Writes cells.csv atomically, one row per measured point, in the order of the cells; returns its path."""
  path = sweep_dir / "cells.csv"
  temporary = path.with_name(f".cells.csv.{os.getpid()}")
  with temporary.open("w", newline="") as file:
    writer = csv.DictWriter(file, COLUMNS)
    writer.writeheader()
    for cell in cells:
      writer.writerows(cell_rows(sweep_dir, cell))
  os.replace(temporary, path)
  return path


def write_sweep_json(sweep_dir: Path, sweep: Sweep, *, execution: Execution, packs: Sequence[Sequence[Cell]]) -> None:
  """Writes sweep.json."""
  write_json(sweep_dir / "sweep.json", sweep_record(sweep, execution=execution, packs=packs))
