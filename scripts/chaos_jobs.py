"""The jobs that faults are tried on: how each is started, how far it is, what it says, and whether it ended right."""

import csv
import os
import random
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ilya_jax.train.metrics import read_json, read_rows

ROOT = Path(__file__).resolve().parents[1]
HEARTBEAT_S = 10
ENDS_WITHIN_S = 120  # a process whose partner is gone
PATIENCE_S = 600  # for a job that only has to go on: the machine may be busy
STEPS = {"train": 800, "pair": 120}  # two processes that share a core wait for each other at every step
_FILES = ("json", "email", "logging", "html")  # packages of the standard library that are the text

_COMMON = {
  "data.name": "files", "data.heldout_fraction": 0.2, "data.context": 16, "batch_size": 8, "model.n_layers": 1,
  "schedule.warmup_steps": 4, "eval.tokens": 1024, "log_every": 1, "execution.tensorboard": False,
}  # fmt: skip

_SWEEP = '''"""A trunk with branches, a seed of its own and a held-out run: cells of a second."""
VARIANTS = ("",)
COMMON = {common!r}
def get_sweep(arg=""):
  base = {{"family": "transformer", "config": "configs/transformer_lm.py:tiny"}}
  return {{
    "name": "chaos",
    "groups": [
      {{**base, "set": COMMON, "axes": [{{"steps": [100, 200, 400]}}]}},
      {{**base, "set": {{**COMMON, "steps": 200}}, "seeds": [1]}},
      {{**base, "role": "held_out", "set": {{**COMMON, "steps": 300}}, "seeds": [2]}},
    ],
    "fit": {{"bootstrap": 10}},
  }}
'''


class Job(NamedTuple):
  """A command, or several that run as one, to be started again until it is done.

  command: workdir -> arguments of `ilya-jax`. life_s: seconds from start to end where nothing disturbs it.
  """

  name: str
  command: Callable[[Path], list[str]]
  processes: int
  environment: dict[str, str]
  expected: dict[str, Any]
  life_s: float


def make_text(folder: Path) -> None:
  """A small corpus that every machine with this Python has: some of the standard library's source."""
  folder.mkdir(parents=True)
  library = Path(sysconfig.get_paths()["stdlib"])
  for name in _FILES:
    for path in sorted((library / name).glob("*.py")):
      (folder / f"{name}_{path.name}").write_text(path.read_text())


def make_job(name: str, base: Path, *, steps: Mapping[str, int] = STEPS) -> Job:
  """The job `train`, `sweep` or `pair`, without what it is expected to give; its text and cache lie in `base`."""
  if not (base / "text").exists():
    make_text(base / "text")
  common = {**_COMMON, "data.path": str(base / "text")}
  environment = {
    **os.environ, "JAX_PLATFORMS": "cpu", "ILYA_JAX_CACHE": str(base / "cache"), "PYTHONPATH": str(ROOT),
    "JAX_NUM_CPU_DEVICES": "1" if name == "pair" else "2",
  }  # fmt: skip
  if name == "sweep":
    environment.pop("JAX_NUM_CPU_DEVICES")
    file = base / "chaos_sweep.py"
    sweep = {**common, "model.d_model": 16, "checkpoint.every": 20, "execution.steps_per_dispatch": 10}
    file.write_text(_SWEEP.format(common=sweep))

    def command(workdir: Path) -> list[str]:
      return ["sweep", str(file), "--workdir", str(workdir), "--workers", "2"]

  else:
    fields = {
      **common, "model.d_model": 16, "steps": steps[name], "checkpoint.every": steps[name] // (8 if name == "pair" else 20),
      "eval.every": steps[name] // 4, "execution.steps_per_dispatch": 5 if name == "pair" else 10,
    }  # fmt: skip

    def command(workdir: Path) -> list[str]:
      overrides = [f"--config.{field}={value}" for field, value in fields.items()]
      return ["train", "--config", "configs/transformer_lm.py:tiny", "--workdir", str(workdir), *overrides]

  return Job(name, command, 2 if name == "pair" else 1, environment, {}, 0.0)


def with_reference(job: Job, base: Path, *, turns: int = 2) -> Job:
  """The job with what it gives undisturbed and how long that takes. Raises RuntimeError where two such runs differ."""
  endings = []
  for turn in range(turns):
    folder = base / "reference" / f"{job.name}_{turn}"
    began = time.monotonic()
    with started(job, folder / "work", logs=folder) as group:
      codes = group.wait(PATIENCE_S)
    if any(codes):
      raise RuntimeError(f"{job.name} ends with {codes} undisturbed: {group.everything()[-300:]}; see {folder}")
    endings.append(ending(folder / "work"))
    life_s = time.monotonic() - began
  if any(each != endings[0] for each in endings):
    raise RuntimeError(f"{job.name} differs from itself undisturbed: {difference(endings[0], endings[-1])}")
  return job._replace(expected=endings[0], life_s=life_s)


class Group:
  """The processes of one start of a job; each leads a session of its own and writes what it says to a file."""

  def __init__(self, job: Job, workdir: Path, *, logs: Path):
    self.job, self.workdir = job, workdir
    logs.mkdir(parents=True, exist_ok=True)
    start = len(list(logs.glob("*.err")))
    self._paths = [logs / f"{start + index}.err" for index in range(job.processes)]
    port = _free_port()
    self.processes = []
    for index, path in enumerate(self._paths):
      arguments = job.command(workdir)
      if job.processes > 1:
        arguments += ["--coordinator", f"127.0.0.1:{port}", "--num-processes", str(job.processes), "--process-id",
                      str(index), "--heartbeat", str(HEARTBEAT_S)]  # fmt: skip
      with path.open("w") as out:
        self.processes.append(
          subprocess.Popen([sys.executable, "-m", "ilya_jax.cli", *arguments], cwd=ROOT, env=job.environment,
                           stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=out, start_new_session=True)
        )  # fmt: skip

  @property
  def running(self) -> bool:
    """Whether none of them has ended."""
    return all(process.poll() is None for process in self.processes)

  def wait(self, timeout_s: float, *, of: int | None = None) -> list[int | None]:
    """Exit codes as a shell gives them (128+n after signal n), of all or of process `of`; None: still there after that."""
    deadline = time.monotonic() + timeout_s
    codes: list[int | None] = []
    for process in self.processes if of is None else [self.processes[of]]:
      try:
        code = process.wait(max(0.0, deadline - time.monotonic()))
        codes.append(128 - code if code < 0 else code)
      except subprocess.TimeoutExpired:
        codes.append(None)
    return codes

  def said(self, index: int = 0) -> list[str]:
    """The lines on stderr that do not only say how far it is."""
    lines = self._paths[index].read_text(errors="replace").replace("\r", "\n").splitlines()
    return [line for line in lines if line.strip() and not _is_progress(line)]

  def everything(self) -> str:
    """What all of them said, in one line."""
    return " | ".join(line for index in range(len(self.processes)) for line in self.said(index)) or "nothing"

  def signal(self, signum: int, *, of: int | None = None, group: bool = False) -> None:
    """Sends a signal to all processes, or to process `of`; `group`: to what they started as well."""
    for process in self.processes if of is None else [self.processes[of]]:
      if process.poll() is None:
        (os.killpg if group else os.kill)(process.pid, signum)

  def workers(self) -> list[int]:
    """The workers that a sweep started."""
    return [pid for pid in _children(self.processes[0].pid) if "spawn_main" in _command_of(pid)]

  def end(self) -> None:
    """Kills what is left of it."""
    for process in self.processes:
      try:
        os.killpg(process.pid, signal.SIGKILL)
      except ProcessLookupError:
        pass
      process.wait()


@contextmanager
def started(job: Job, workdir: Path, *, logs: Path) -> Iterator[Group]:
  """The processes of a start; none is left behind."""
  group = Group(job, workdir, logs=logs)
  try:
    yield group
  finally:
    group.end()


def _is_progress(line: str) -> bool:
  return line.startswith("step ") or (" cells " in line and (" running " in line or " done in " in line))


def _free_port() -> int:
  with socket.socket() as opened:
    opened.bind(("127.0.0.1", 0))
    return opened.getsockname()[1]


def _children(pid: int) -> list[int]:
  try:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
  except OSError:
    return []


def _command_of(pid: int) -> str:
  try:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
  except OSError:
    return ""


def run_folders(workdir: Path) -> list[Path]:
  """The runs in a folder: those of a sweep's cells, or the one."""
  cells = workdir / "cells"
  return sorted(cells.iterdir()) if cells.is_dir() else [workdir]


def finished_checkpoints(run: Path) -> list[int]:
  """Steps of the checkpoints that are whole by their name, newest last."""
  folder = run / "checkpoints"
  return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit()) if folder.is_dir() else []


def unfinished_checkpoints(workdir: Path) -> set[str]:
  """Temporary folders of checkpoints that are being written, or were when a process was killed."""
  folders = [run / "checkpoints" for run in run_folders(workdir)]
  return {
    f"{folder.parent.name}/{name}"
    for folder in folders
    if folder.is_dir()
    for name in os.listdir(folder)
    if not name.isdigit()
  }


def trained_steps(workdir: Path) -> int:
  """Rows of training that the runs of a folder have logged."""
  files = [run / "metrics.jsonl" for run in run_folders(workdir)]
  return sum(path.read_bytes().count(b'"split": "train"') for path in files if path.is_file())


def ending(workdir: Path) -> dict[str, Any]:
  """All of a job's result that must not depend on what happened to it: no time of day, no durations."""
  result: dict[str, Any] = {}
  for run in run_folders(workdir):
    status = read_json(run / "status.json") or {}
    rows = [{k: v for k, v in row.items() if k != "wall_s"} for row in read_rows(run / "metrics.jsonl")]
    name = run.name if run != workdir else "the run"
    result[name] = {
      "state": status.get("state"), "step": status.get("step"), "params_digest": status.get("params_digest"), "rows": rows,
    }  # fmt: skip
  table = workdir / "cells.csv"
  if table.is_file():
    with table.open() as opened:
      result["cells.csv"] = [{k: v for k, v in row.items() if k != "wall_s"} for row in csv.DictReader(opened)]
    result["report"] = (workdir / "report" / "report.html").is_file()
  return result


def difference(expected: dict[str, Any], got: dict[str, Any]) -> str:
  """What differs first, in words; '' where nothing does."""
  for name in sorted({*expected, *got}):
    one, other = expected.get(name), got.get(name)
    if one == other:
      continue
    if not isinstance(one, dict) or not isinstance(other, dict):
      return f"{name} differs" if name in expected and name in got else f"{name} is missing or should not be there"
    for field in ("state", "step", "params_digest"):
      if one[field] != other[field]:
        return f"{name}: {field} {other[field]}, expected {one[field]}"
    steps = [[(row["step"], row["split"]) for row in side["rows"]] for side in (one, other)]
    if steps[0] != steps[1]:
      odd = sorted(set(steps[0]) ^ set(steps[1]))[:3]
      return f"{name}: {len(steps[1])} rows, expected {len(steps[0])}; {odd or 'doubled or out of order'}"
    wrong = next(b for a, b in zip(one["rows"], other["rows"], strict=True) if a != b)
    return f"{name}: the {wrong['split']} row of step {wrong['step']} differs"
  return ""


class Moment(NamedTuple):
  """When something is done to a job: `reached(group)` waits and says whether the job was still there."""

  words: str
  reached: Callable[[Group], bool]


def at_random(rng: random.Random, *, life_s: float) -> Moment:
  """Any moment of a job's life, the start of the interpreter included."""
  seconds = rng.uniform(0.0, life_s)
  return Moment(f"after {seconds:.1f} s", lambda group: _sleep_while_running(group, seconds))


def once_training(rng: random.Random, *, within_s: float, checkpoints: int = 0) -> Moment:
  """Some moment after the first step that this start logs, and after some run has saved so many checkpoints."""
  seconds = rng.uniform(0.0, within_s)

  def reached(group: Group) -> bool:
    before = trained_steps(group.workdir)
    while group.running:
      saved = max((len(finished_checkpoints(run)) for run in run_folders(group.workdir)), default=0)
      if trained_steps(group.workdir) > before and saved >= checkpoints:
        return _sleep_while_running(group, seconds)
      time.sleep(0.05)
    return False

  return Moment(f"{seconds:.1f} s into training", reached)


def while_saving(rng: random.Random) -> Moment:
  """Within a twentieth of a second of the n-th appearance of a checkpoint's temporary folder."""
  count, delay_s = rng.randint(1, 6), rng.uniform(0.0, 0.05)

  def reached(group: Group) -> bool:
    seen = unfinished_checkpoints(group.workdir)
    appeared = 0
    while group.running:
      new = unfinished_checkpoints(group.workdir) - seen
      appeared, seen = appeared + len(new), seen | new
      if appeared >= count:
        time.sleep(delay_s)
        return group.running
      time.sleep(0.002)
    return False

  return Moment(f"{1000 * delay_s:.0f} ms into save {count}", reached)


def _sleep_while_running(group: Group, seconds: float) -> bool:
  deadline = time.monotonic() + seconds
  while group.running and time.monotonic() < deadline:
    time.sleep(0.01)
  return group.running
