"""Checkpoints by Orbax: asynchronous, atomic, verified on the way back; the last few, the best, and those asked for."""

import hashlib
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict
from orbax.checkpoint import v1 as ocp

from ilya_jax.errors import UserError
from ilya_jax.parallel.distributed import all_agree, first_does, is_first, whole
from ilya_jax.train.metrics import read_json
from ilya_jax.train.state import checksum

PyTree = Any
Place = str | os.PathLike[str]


def choose_directory(workdir: Path, config: ConfigDict, *, run: str) -> epath.Path:
  """Where the run in `workdir` keeps its checkpoints: where it has begun to, else where config.checkpoint.dir says.

  There it makes RUN-HASH, the hash being that of the workdir's path, so that no two runs meet.
  Raises UserError where the run has them elsewhere already, and where that place cannot be reached.
  """
  record, wanted = read_json(workdir / "config.json"), config.checkpoint.dir
  if record is None:
    token = hashlib.sha256(str(workdir.absolute()).encode()).hexdigest()[:8]
    directory = _absolute(wanted) / f"{run}-{token}" if wanted else _absolute(workdir / "checkpoints")
  else:
    directory = held_directory(workdir)
    if record.get("config", {}).get("checkpoint", {}).get("dir", "") != wanted:
      raise UserError(
        f"config.checkpoint.dir = {wanted!r}, but {workdir} has its checkpoints in {directory}",
        "the place that the run began with", "--config.checkpoint.dir",
      )  # fmt: skip
  if wanted:
    _check_reachable(directory)
  return directory


def _check_reachable(directory: epath.Path) -> None:
  """Raises UserError where a folder cannot be made, or a bucket is not there. It writes nothing."""
  bucket = re.match(r"\w+://[^/]+", str(directory))
  try:
    if bucket:
      problem = "" if epath.Path(bucket[0]).exists() else f"no bucket {bucket[0]}, or none that may be listed"
    else:
      parent = next(folder for folder in (directory, *directory.parents) if folder.exists())
      problem = (
        "" if parent.is_dir() and os.access(parent, os.W_OK) else f"{parent} is not a folder that can be written"
      )
  except Exception as error:  # each file system raises its own kinds
    problem = _first_line(error)
  if problem:
    raise UserError(
      f"checkpoints in {directory}: {problem}", "a place that can be read and written", "--config.checkpoint.dir"
    )


def held_directory(workdir: Path) -> epath.Path:
  """Where a run that was begun in `workdir` keeps its checkpoints, as its config.json says."""
  record = read_json(workdir / "config.json") or {}
  return _absolute(record.get("checkpoints") or workdir / "checkpoints")


def _absolute(place: Place) -> epath.Path:
  """An absolute path, as Orbax demands; a URL is one already (etils 1.15 would take it for a relative path)."""
  path = epath.Path(place)
  return path if "://" in str(path) else path.expanduser().absolute()


def _remove(path: epath.Path) -> None:
  """Removes a folder, as far as that is possible."""
  try:
    path.rmtree()
  except OSError:
    pass


class Checkpoints:
  """The checkpoints of one run: `<directory>/<step>`, each with a checksum of the state's bits.

  Orbax writes to a temporary folder and renames it, so that a killed process leaves no half checkpoint; the checksum
  finds what was damaged later.
  """

  def __init__(self, directory: Place, *, keep: int, keep_steps: Collection[int] = ()):
    self.directory = _absolute(directory)
    self._keep = keep
    self._keep_steps = frozenset(keep_steps)
    self._losses: dict[int, float] = {}
    self._saving: Any = None
    _silence_abandoned()

  def steps(self) -> list[int]:
    """Steps of the finished checkpoints, newest last."""
    if not self.directory.is_dir():
      return []
    return sorted(int(entry.name) for entry in self.directory.iterdir() if entry.name.isdigit())

  def remove_unfinished(self) -> None:
    """Removes what a killed process left half written. Of several processes the first does it, and the others wait."""
    first_does(self._remove_unfinished)

  def _remove_unfinished(self) -> None:
    if self.directory.is_dir():
      for entry in self.directory.iterdir():
        if not entry.name.isdigit():
          _remove(entry)

  def save(self, step: int, state: PyTree, *, loss: float | None = None) -> None:
    """Starts saving `state`; returns once its arrays are copied to the host. One save is under way at a time."""
    self.wait()
    if loss is not None:
      self._losses[step] = loss
    payload = {"state": state, "checksum": checksum(state)}
    self._saving = ocp.save_checkpointables_async(self.directory / str(step), {"run": payload}, overwrite=True)

  def wait(self) -> None:
    """Waits for the save under way, then drops the checkpoints that need not be kept. Raises what the save raised."""
    wait_all([self])

  def finish(self) -> bool:
    """Waits for the save under way; whether there was one. Raises what it raised."""
    saving, self._saving = self._saving, None
    if saving is not None:
      saving.result()
    return saving is not None

  def remove_after(self, step: int) -> None:
    """Removes the checkpoints of later steps. Of several processes the first does it, and the others wait."""

    def remove() -> None:
      for later in self.steps():
        if later > step:
          _remove(self.directory / str(later))

    first_does(remove)

  def drop(self) -> None:
    """Removes the checkpoints that need not be kept."""
    if not is_first():
      return
    steps = self.steps()
    kept = set(steps[-self._keep :]) | self._keep_steps
    known = [step for step in steps if np.isfinite(self._losses.get(step, np.nan))]
    if known:
      kept.add(min(known, key=lambda step: self._losses[step]))
    for step in set(steps) - kept:
      _remove(self.directory / str(step))

  def remember(self, losses: Mapping[int, float]) -> None:
    """Losses of checkpoints of an earlier session, so that the best one is still known."""
    self._losses.update(losses)

  def restore(self, abstract: PyTree, *, say: Callable[[str], None]) -> tuple[int, PyTree] | None:
    """The newest checkpoint that is whole, as (step, state laid out like `abstract`), or None.

    One that is damaged is named through `say` and removed, and the one before is taken.
    """
    for step in reversed(self.steps()):
      state, problem = load_checkpoint(self.directory, step, abstract=abstract)
      if problem is None:
        return step, state
      if is_first():
        say(f"checkpoint of step {step} is damaged ({problem}); falling back to the one before")
      self.remove_after(step - 1)
    return None


def wait_all(group: Sequence[Checkpoints]) -> None:
  """Waits for the saves under way of runs that go on together, and only then drops what need not be kept.

  So there is always a step that all of them have saved. Raises what a save raised.
  """
  saved = [checkpoints for checkpoints in group if checkpoints.finish()]
  for checkpoints in saved:
    checkpoints.drop()


def load_checkpoint(directory: Place, step: int, *, abstract: PyTree) -> tuple[PyTree, str | None]:
  """(state, None) of the checkpoint at `step`, verified; or (None, what is wrong with it)."""
  where = _absolute(directory) / str(step)
  leaves = jax.tree.leaves(abstract)
  replicated = leaves[0].sharding  # of the step, a scalar
  wanted = {"state": abstract, "checksum": jax.ShapeDtypeStruct((len(leaves),), np.uint32, sharding=replicated)}
  _silence_abandoned()
  payload, problem = None, None
  try:
    payload = ocp.load_checkpointables(where, {"run": wanted})["run"]
  except Exception as error:  # Orbax and TensorStore raise many kinds for a damaged file
    problem = _first_line(error.__cause__ or error)
  if not all_agree(problem is None):
    return None, problem or "another process cannot read it"
  assert payload is not None
  if not np.array_equal(whole(checksum(payload["state"])), whole(payload["checksum"])):
    return None, "its checksum does not match"
  return payload["state"], None


def _first_line(error: BaseException) -> str:
  lines = str(error).strip().splitlines() or [""]
  return f"{type(error).__name__}: {lines[0][:120]}"


def _is_not_abandoned(record: logging.LogRecord) -> bool:
  message = record.getMessage()
  return not (message.startswith("Task exception was never retrieved") and "orbax" in message)


def _silence_abandoned() -> None:
  """Keeps Python from printing the reads and writes that Orbax left waiting, or that failed too, as each of them is freed.

  They end on TensorStore's threads, after the event loop that waited for them was closed, some of them before the load
  or the save itself returns and some at a time that nothing here can wait for. So this holds from then on.
  """
  former = sys.unraisablehook
  if getattr(former, "silences_orbax", False):
    return

  def hook(unraisable: Any) -> None:
    code = getattr(unraisable.object, "cr_code", None)
    abandoned = code is not None and "orbax" in code.co_filename
    if not abandoned and str(unraisable.exc_value) != "Event loop is closed":
      former(unraisable)

  hook.silences_orbax = True  # type: ignore[attr-defined]
  sys.unraisablehook = hook
  logging.getLogger("asyncio").addFilter(_is_not_abandoned)
  warnings.filterwarnings("ignore", message="coroutine '.*_read_.*' was never awaited", category=RuntimeWarning)
