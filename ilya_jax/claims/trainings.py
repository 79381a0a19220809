"""Trains the runs that a claim needs, each once, several at a time; and what a claim reads off a finished run."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from ilya_jax.errors import RunFailed
from ilya_jax.scaling.launch import default_workers, open_engine, run_in_turn, run_packs
from ilya_jax.scaling.sweep import Cell, cell_folder, make_cell
from ilya_jax.train.load import Loaded, load_run
from ilya_jax.train.metrics import read_json, read_rows
from ilya_jax.train.workdir import git_commit

_OTHERS_S = 600.0  # for the process beside this one to end a run that claims of both want


Jobs = Mapping[str, tuple[str, Mapping[str, Any]]]  # name -> (config spec, {field: value})


class Trained(NamedTuple):
  """A run that has ended: its folder and config. failed: why it failed, "" where it did not."""

  workdir: Path
  config: ConfigDict
  failed: str

  def evaluation(self, name: str, metric: str = "loss") -> float:
    """A metric's mean on the held-out set `name`, at the end. Raises RunFailed where the run failed."""
    if self.failed:
      raise RunFailed(self.failed)
    return float((read_json(self.workdir / "status.json") or {})["evaluations"][name][metric])

  def curve(self, metric: str = "loss", *, split: str = "train", name: str = "") -> tuple[list[int], list[float]]:
    """Steps and values of a metric that was logged in training, or on the held-out set `name` (split "eval")."""
    rows = [
      row
      for row in read_rows(self.workdir / "metrics.jsonl")
      if row["split"] == split and metric in row and (not name or row.get("set") == name)
    ]
    return [int(row["step"]) for row in rows], [float(row[metric]) for row in rows]

  def seconds(self) -> float:
    """How long the run took, by itself, whenever that was."""
    return float((read_json(self.workdir / "status.json") or {}).get("wall_s", 0.0))

  def load(self, *, average: int = 1) -> Loaded:
    """The run's task, source and last parameters, or the mean of those of its last `average` checkpoints."""
    return load_run(self.workdir, average=average)


def train_all(
  jobs: Jobs, folder: Path, *, apart: bool, say: Callable[[str], None], may_fail: bool = False
) -> dict[str, Trained]:
  """Trains the jobs, in folders `folder`/cells/<id>; runs that are done are taken as they are.

  What another commit trained is named, as an id does not see code. apart: in worker processes, as a sweep's cells, and not
  here. may_fail: whether a run may, as some do that a claim expects to diverge. Raises RunFailed otherwise, UserError on a
  bad config, and Preempted after a signal.
  """
  cells = {name: make_cell(spec, overrides, family="claim", role="fit") for name, (spec, overrides) in jobs.items()}
  different: dict[str, Cell] = {cell.id: cell for cell in cells.values()}
  packs = [[cell] for cell in different.values()]
  if older := _of_other_commits(different.values(), folder):
    told = f"{len(older)} of {len(different)} runs were trained by other commits and are taken as they are"
    say(f"{told} ({folder}/cells): {' '.join(older)}")
  if apart:
    engine = open_engine("local", {}, sweep_dir=folder, workers=min(default_workers(), len(packs)), report=say)
    outcome = run_packs(packs, folder, engine=engine, report=say)
  else:
    outcome = run_in_turn(packs, folder, report=say, wait_s=_OTHERS_S)
  if outcome.failed and not may_fail:
    name = next(name for name, cell in cells.items() if cell.id in outcome.failed)
    raise RunFailed(f"run {name} failed: {outcome.failed[cells[name].id]}")
  return {
    name: Trained(cell_folder(folder, cell), cell.config, outcome.failed.get(cell.id, ""))
    for name, cell in cells.items()
  }


def _of_other_commits(cells: Iterable[Cell], folder: Path) -> list[str]:
  """The ids of the cells that have finished, in a checkout of another commit than the one this runs from."""
  now, older = git_commit(), []
  for cell in cells:
    workdir = cell_folder(folder, cell)
    done = (read_json(workdir / "status.json") or {}).get("state") == "done"
    if done and (read_json(workdir / "config.json") or {}).get("git_commit", now) != now:
      older.append(cell.id)
  return older
