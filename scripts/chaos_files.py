"""Faults that files meet: a full disk, a read-only folder, a damaged checkpoint; and what a job must do then.

Root may write whatever the mode of a file says, so that read-only folders are mounts; a full disk is a small tmpfs.
"""

import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chaos_faults import Broken, Missed, Skipped, Trial, go_on, need, need_one_line, reach
from chaos_jobs import (
  ENDS_WITHIN_S,
  PATIENCE_S,
  ROOT,
  Group,
  Moment,
  finished_checkpoints,
  once_training,
  run_folders,
)

from ilya_jax.train.metrics import read_json, read_rows

_DISK_MB = 24
_SPARE_BYTES = 120_000  # less than a checkpoint of these jobs takes


def make_half_done(trial: Trial) -> Path:
  """The workdir of the trial's job, stopped by SIGTERM where a run that is not done has two checkpoints."""
  for turn in range(5):
    workdir = trial.folder / f"half_{turn}"
    moment = once_training(trial.rng, within_s=trial.job.life_s / 10, checkpoints=2)
    with trial.start(workdir) as group:
      if moment.reached(group):
        group.processes[0].terminate()
      group.wait(ENDS_WITHIN_S)
    if unfinished_runs(workdir):
      return workdir
  raise Broken("it was done before it could be stopped, five times")


def unfinished_runs(workdir: Path) -> list[Path]:
  """Runs in a folder that are not done and have two checkpoints."""
  return [
    run
    for run in run_folders(workdir)
    if (read_json(run / "status.json") or {}).get("state") != "done" and len(finished_checkpoints(run)) > 1
  ]


@contextmanager
def mounted(where: Path, *arguments: str) -> Iterator[None]:
  """A mount at a folder, gone afterwards. Raises Skipped where this process may not mount."""
  made = subprocess.run(["mount", *arguments, str(where)], capture_output=True, text=True, check=False)
  if made.returncode:
    raise Skipped(f"cannot mount ({made.stderr.strip()[:80]})")
  try:
    yield
  finally:
    if subprocess.run(["umount", str(where)], capture_output=True, check=False).returncode:
      subprocess.run(["umount", "--lazy", str(where)], check=True)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
  """The folder, read-only for everybody who opens something in it from now on. Raises Missed where it is always busy."""
  with mounted(folder, "--bind", str(folder)):
    deadline = time.monotonic() + 10.0
    while subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], capture_output=True, check=False).returncode:
      if time.monotonic() > deadline:  # a file in it is being written
        raise Missed(f"{folder.name} is busy")
      time.sleep(0.005)
    yield


def full_disk(trial: Trial) -> str:
  """The disk fills up in the middle: exit code 1, one line, the good checkpoints stay; with space again it goes on."""
  disk = trial.folder / "disk"
  disk.mkdir(parents=True)
  spare = trial.rng.choice([0, trial.rng.randrange(_SPARE_BYTES)])
  moment = once_training(trial.rng, within_s=trial.job.life_s / 4, checkpoints=1)
  with mounted(disk, "-t", "tmpfs", "-o", f"size={_DISK_MB}m", "tmpfs"):
    workdir = disk / "work"
    try:
      _fill_up_and_go_on(trial, workdir, filler=disk / "filler", spare=spare, moment=moment)
    except Broken:
      (disk / "filler").unlink(missing_ok=True)
      shutil.copytree(workdir, trial.workdir)  # as it is gone with the mount
      raise
  return f"{spare // 1000} kB left, {moment.words}"


def _fill_up_and_go_on(trial: Trial, workdir: Path, *, filler: Path, spare: int, moment: Moment) -> None:
  with trial.start(workdir) as group:
    reach(moment, group)
    kept = {run: finished_checkpoints(run)[-1:] for run in run_folders(workdir)}
    fill(filler, spare=spare)
    check_failed(group, codes=(1,))
    for run, steps in kept.items():
      need(finished_checkpoints(run)[-1:] >= steps, f"checkpoint {steps} of {run.name} is gone")
  filler.unlink()
  retry_failed(trial, workdir)
  check_nothing_damaged(go_on(trial, workdir))


def fill(path: Path, *, spare: int) -> None:
  """Fills the disk that `path` is on, but for `spare` bytes."""
  with path.open("wb", buffering=0) as file:
    for size in (1 << 16, 1 << 12):
      try:
        while True:
          file.write(bytes(size))
      except OSError:
        pass
    file.truncate(max(0, file.tell() - spare))


def check_failed(group: Group, *, codes: tuple[int, ...]) -> None:
  """The job ends with a code and one error; a sweep names its cells that failed as well."""
  if group.job.name != "sweep":
    for index in range(group.job.processes):
      need_one_line(group, index, codes=codes, within_s=ENDS_WITHIN_S)
    return
  (code,) = group.wait(ENDS_WITHIN_S)
  if code == 0:
    raise Missed("the sweep was done")
  errors = [line for line in group.said() if not line.startswith("cell ")]
  need(code in codes, f"the sweep ends with {code}, expected one of {codes}; it says {group.said()[:4]}")
  fine = len(errors) == 1 and all(line.startswith("error: ") and "; a bug," not in line for line in errors)
  need(fine, f"the sweep ends with {code} and {len(errors)} lines that name no cell: {errors[:4]}")


def retry_failed(trial: Trial, workdir: Path) -> None:
  """Clears the failures of a sweep, as its user does once the cause is gone."""
  if trial.job.name == "sweep":
    command = [sys.executable, "-m", "ilya_jax.cli", "status", str(workdir), "--retry-failed"]
    subprocess.run(command, cwd=ROOT, env=trial.job.environment, capture_output=True, check=True)


def check_nothing_damaged(said: list[list[str]]) -> None:
  """Nothing was said about a damaged checkpoint."""
  need(not any("damaged" in line for lines in said for line in lines), f"a checkpoint was lost: {said}")


def read_only_while_training(trial: Trial) -> str:
  """The checkpoints become read-only in the middle: exit code 1 and one line; writable again, it goes on."""
  moment = once_training(trial.rng, within_s=trial.job.life_s / 4, checkpoints=1)
  with trial.start() as group:
    reach(moment, group)
    runs = [run for run in run_folders(trial.workdir) if finished_checkpoints(run)]
    run = trial.rng.choice(
      [run for run in runs if (read_json(run / "status.json") or {}).get("state") != "done"] or runs
    )
    kept = finished_checkpoints(run)[-1]
    with read_only(run / "checkpoints"):
      check_failed(group, codes=(1,))
      need(kept in finished_checkpoints(run), f"checkpoint {kept} is gone")
  retry_failed(trial, trial.workdir)
  check_nothing_damaged(go_on(trial))
  return moment.words


def read_only_at_start(trial: Trial, *, what: str) -> str:
  """A half-done job whose checkpoints, or all of whose folder, are read-only when it starts: one line, nothing changed."""
  shutil.copytree(trial.half_done(), trial.workdir)
  whole = what == "workdir"
  folder = trial.workdir if whole else trial.rng.choice(unfinished_runs(trial.workdir)) / "checkpoints"
  before = {run: finished_checkpoints(run) for run in run_folders(trial.workdir)}
  with read_only(folder), trial.start() as group:
    check_failed(group, codes=(2,) if whole else (1, 2))
    for run, steps in before.items():
      need(set(steps) <= {*finished_checkpoints(run)} or run != folder.parent, f"checkpoints {steps} changed")
  retry_failed(trial, trial.workdir)
  check_nothing_damaged(go_on(trial))
  return f"the {what}, from the start"


def file_for_folder(trial: Trial) -> str:
  """A file where the checkpoints should go: one line, exit code 1 or 2; without it, the run begins."""
  trial.workdir.mkdir(parents=True)
  (trial.workdir / "checkpoints").write_text("not a folder")
  with trial.start() as group:
    need_one_line(group, 0, codes=(1, 2), within_s=ENDS_WITHIN_S)
  (trial.workdir / "checkpoints").unlink()
  go_on(trial)
  return "a file in place of the folder"


def read_only_somehow(trial: Trial) -> str:
  """One of the forms of a folder that cannot be written, by the trial's number."""
  ways = [read_only_while_training, lambda trial: read_only_at_start(trial, what="workdir")]
  if trial.job.name != "pair":
    ways.append(lambda trial: read_only_at_start(trial, what="checkpoints"))
  if trial.job.name == "train":
    ways.append(file_for_folder)
  return ways[trial.number % len(ways)](trial)


def damage(trial: Trial, *, how: str) -> str:
  """Damages the newest checkpoint of a half-done job: one line about it, the one before is taken, the end is right.

  how: truncate, flip-largest (one bit of the largest file), flip-any (of any file), delete-file (the largest), delete-any,
  delete-checkpoint. What is not needed to read the arrays back may go unnoticed: then nothing is said, and the run must have
  gone on from the newest checkpoint, to the right end. The words count the lines.
  """
  shutil.copytree(trial.half_done(), trial.workdir)
  run = trial.rng.choice(unfinished_runs(trial.workdir))
  before, newest = finished_checkpoints(run)[-2:]
  rows = read_rows(run / "metrics.jsonl")
  words = harm(run / "checkpoints" / str(newest), how=how, rng=trial.rng)
  lines = [line for process in go_on(trial) for line in process]
  # Rows of steps that were not trained again keep their times.
  kept = [old["step"] for old, new in zip(rows, read_rows(run / "metrics.jsonl"), strict=False) if old == new]
  resumed = max(kept, default=0)
  allowed = {"delete-checkpoint": (0,), "delete-file": (1,)}.get(how, (0, 1))
  fine = len(lines) in allowed and all("damaged" in line for line in lines)
  need(fine, f"{words}: {len(lines)} lines about it, expected {' or '.join(map(str, allowed))}: {lines[:4]}")
  expected = before if lines or how == "delete-checkpoint" else newest
  need(resumed == expected, f"{words}, {len(lines)} lines: it goes on from step {resumed}, expected {expected}")
  return f"{words}; {len(lines)} lines"


def harm(checkpoint: Path, *, how: str, rng: random.Random) -> str:
  """Damages the files of a checkpoint; says which."""
  if how == "delete-checkpoint":
    shutil.rmtree(checkpoint)
    return f"all of {checkpoint.name}"
  files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.stat().st_size)
  largest = max(files, key=lambda path: path.stat().st_size)
  path = rng.choice(files) if how.endswith("-any") else largest
  content = bytearray(path.read_bytes())
  name = path.relative_to(checkpoint)
  if how == "truncate":
    length = rng.randrange(len(content))
    path.write_bytes(content[:length])
    return f"{name} cut to {length} of {len(content)} bytes"
  if how.startswith("flip"):
    bit = rng.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    return f"bit {bit} of {name}"
  path.unlink()
  return f"{name} deleted"


def damage_trunk(trial: Trial) -> str:
  """The checkpoint that a cooldown branch starts from is damaged: the branch fails with one line or is computed anew.

  What is done ends right. Repaired, by removing the trunk's folder where it is not recomputed, so does the rest.
  """
  trunk, branches = _sweep_with_trunk_done(trial)
  steps = finished_checkpoints(trunk)
  how = trial.rng.choice(["truncate", "flip-largest", "delete-file", "delete-checkpoint"])
  for step in steps:
    harm(trunk / "checkpoints" / str(step), how=how, rng=trial.rng)
  with trial.start() as group:
    (code,) = group.wait(PATIENCE_S)
    if code:
      check_failed(group, codes=(1,))
  failed = [name for name in branches if _state(trial.workdir, name) == "failed"]
  need(bool(failed) == bool(code), f"exit code {code}, {len(failed)} of {len(branches)} branches failed")
  for name, expected in trial.job.expected.items():
    if isinstance(expected, dict) and name not in failed:
      folder = trial.workdir / "cells" / name
      digest = (read_json(folder / "status.json") or {}).get("params_digest")
      need(digest == expected["params_digest"], f"cell {name} is silently wrong")
  if failed:
    need(any("trunk" in line for line in group.said()), f"no line names the trunk: {group.said()[:3]}")
    shutil.rmtree(trunk)
  retry_failed(trial, trial.workdir)
  go_on(trial)
  return f"{how}, {len(failed)} of {len(branches)} branches failed until the trunk was removed"


def _state(workdir: Path, cell: str) -> str:
  return (read_json(workdir / "cells" / cell / "status.json") or {}).get("state", "waiting")


def _sweep_with_trunk_done(trial: Trial) -> tuple[Path, list[str]]:
  """Runs the sweep until a trunk is done and a branch of it is not, and kills it; (the trunk's folder, its branches)."""
  with trial.start() as group:
    while group.running:
      time.sleep(0.02)
      cells = (read_json(trial.workdir / "sweep.json") or {}).get("cells", {})
      for trunk in [name for name, cell in cells.items() if cell["role"] == "trunk"]:
        branches = [name for name, cell in cells.items() if cell["trunk"] == trunk and name != trunk]
        if _state(trial.workdir, trunk) == "done":
          group.end()
          waiting = [name for name in branches if _state(trial.workdir, name) == "waiting"]
          if not waiting:
            raise Missed("all branches had begun")
          return trial.workdir / "cells" / trunk, branches
  raise Missed("the sweep was done")
