"""A run's folder: its lock, its config.json, and what may be continued in it."""

import fcntl
import json
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ilya_jax import __version__
from ilya_jax.config import EXECUTION_FIELDS, without
from ilya_jax.errors import UserError
from ilya_jax.train.metrics import read_json

FORMAT = 1
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


@contextmanager
def locked(workdir: Path) -> Iterator[None]:
  """Holds the folder's lock (a kernel flock, gone with the process); makes the folder where there is none.

  Raises UserError where the folder cannot be written or another process holds it.
  """
  made = not workdir.exists()
  new_lock = not (workdir / ".lock").exists()
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(workdir / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
  except OSError as error:
    raise UserError(f"{workdir}: {error.strerror}", "a folder that can be written", "--workdir") from error
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    os.close(descriptor)
    raise UserError(
      f"{workdir} is in use by another process", "a workdir of its own for each run", "--workdir"
    ) from error
  try:
    yield
  except UserError:
    if new_lock:  # refused: nothing stays behind
      (workdir / ".lock").unlink()
    if made and not any(workdir.iterdir()):
      workdir.rmdir()
    raise
  finally:
    os.close(descriptor)


def hardware() -> str:
  """The devices in words, such as '2 x cpu (AMD EPYC)'."""
  devices = jax.devices()
  kind = processor() if devices[0].platform == "cpu" else devices[0].device_kind
  return f"{len(devices)} x {devices[0].platform} ({kind})"


def processor() -> str:
  """The processor's name."""
  try:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
      if line.startswith("model name"):
        return line.partition(":")[2].strip()
  except OSError:
    pass
  return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
  """Versions of this package, Python and the libraries that decide a result."""
  return {
    "ilya_jax": __version__,
    "python": platform.python_version(),
    **{name: metadata.version(name) for name in _PACKAGES},
  }


def git_commit() -> str:
  """The commit of the checkout this package runs from, '' outside one; '+' marks uncommitted changes."""
  folder = Path(__file__).resolve().parents[2]
  try:
    commit = subprocess.run(
      ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()
    dirty = subprocess.run(
      ["git", "status", "--porcelain", "-uno"], cwd=folder, capture_output=True, text=True, check=True
    ).stdout
    return commit + ("+" if dirty.strip() else "")
  except (OSError, subprocess.CalledProcessError):
    return ""


def config_record(config: ConfigDict, *, run: str, data: dict[str, Any], checkpoints: str = "") -> dict[str, Any]:
  """What config.json holds: the config, the run's id, and where and with what it ran.

  checkpoints: where the run keeps them, "" in the folder itself.
  """
  return {
    "id": run,
    "format": FORMAT,
    "checkpoints": checkpoints,
    "config": config.to_dict(),
    "data": {name: value for name, value in data.items() if not isinstance(value, np.ndarray)},
    "versions": versions(),
    "git_commit": git_commit(),
    "hardware": hardware(),
  }


def check_continues(workdir: Path, config: ConfigDict, *, run: str) -> None:
  """Checks that `workdir` is new, holds the run `run`, or holds a constant-rate run that the config makes longer.

  Raises UserError otherwise, and where the folder was written by a newer format.
  """
  record = read_json(workdir / "config.json")
  if record is None:
    return
  if record.get("format", 0) > FORMAT:
    raise UserError(f"{workdir} has format {record['format']}", f"format {FORMAT} or older", "the version of ilya-jax")
  if record.get("id") == run:
    return
  held = ConfigDict(record["config"])
  old, new = without(held, EXECUTION_FIELDS), without(config, EXECUTION_FIELDS)
  new = json.loads(json.dumps(new, default=str))  # as it would be read back: tuples are lists there
  changed = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
  longer = changed == ["steps"] and new["steps"] > old["steps"] and new["schedule.name"] == "constant"
  if not longer:
    what = (
      ", ".join(f"{name} {old.get(name)} there, {new.get(name)} here" for name in changed[:3])
      or "other data or tokenizer"
    )
    raise UserError(f"{workdir} holds run {record.get('id')} ({what})", f"a new folder for run {run}", "--workdir")
