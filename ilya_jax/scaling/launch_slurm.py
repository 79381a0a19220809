"""The Slurm engine: each wave of packs that can start is one job array (submitit), watched by our own files and squeue.

Accounting (sacct) is never asked, since many clusters have none. On disk, under the sweep's folder: slurm/N/ for the
N-th submission, with packs.json (written before sbatch, so that a later start knows what the jobs named after it run),
submitit's files and logs, and ended_I.json, the last thing that task I writes.
"""

import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ilya_jax.errors import UserError
from ilya_jax.scaling.launch import Ending, Pack, Report, check_names, run_jobs, use_cores
from ilya_jax.scaling.sweep import Cell, cell_state
from ilya_jax.train.loop import SIGNALS, Stop
from ilya_jax.train.metrics import read_json, write_json

_OWN = {
  "lag_s": 60.0,
  "poll_s": 10.0,
}  # seconds until a file is surely seen on other nodes; between two calls of squeue
_REFUSED = (  # of submitit's: set here, or for several processes a cell
  "job_name", "nodes", "ntasks_per_node", "gpus_per_task", "cpus_per_gpu", "num_gpus", "dependency", "use_srun",
  "stderr_to_stdout", "additional_parameters", "teardown", "mail_type", "mail_user",
)  # fmt: skip
_AT_ONCE = 1000  # tasks under way: below Slurm's default MaxArraySize
_STOPPING_POLL_S = 2.0
_HARD_STOP_S = 300.0  # for tasks to save, before they are cancelled for good
_LOCK_WAIT_S = 600.0  # for what Slurm believes dead on a lost node
_SAY_EVERY_S = 60.0
_ENDED = frozenset(
  "BOOT_FAIL CANCELLED COMPLETED DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED REVOKED TIMEOUT".split()
)
_PASSING = ("timed out", "unable to contact", "zero bytes", "temporarily", "connection refused", "communication")


class Listed(NamedTuple):
  """A task as squeue lists it: state, job name, why it waits."""

  state: str
  name: str
  reason: str


Queue = Mapping[str, Listed]  # id, ARRAY_INDEX or JOB alone -> task


@dataclass
class Task:
  """A pack that was submitted, and what is known of it. gone_since: when it was first seen to have left the queue."""

  pack: Pack
  ended: Path
  state: str = "PENDING"
  gone_since: float | None = None
  times_gone: int = 0


def run_task(jobs: list[dict[str, Any]], ended: Path) -> None:
  """What a task runs on its node: the jobs of a pack; leaves how they ended in `ended`. A signal makes it save and end.

  Slurm may run it again by itself (preemption, a lost node); what an earlier time left is void then.
  """
  stop = Stop()
  for signum in SIGNALS:  # submitit's own handlers would put the job back without our save
    signal.signal(signum, lambda received, frame: setattr(stop, "signum", received))
  ended.unlink(missing_ok=True)
  use_cores(int(os.environ.get("SLURM_CPUS_PER_TASK", "1")))
  write_json(ended, {"endings": run_jobs(jobs, stop, wait_s=_LOCK_WAIT_S)})


def watch(
  task: Task, *, listed: Listed | None, answered: bool, now: float, lag_s: float, seen_done: bool
) -> list[Ending] | None:
  """How the cells of a task ended, or None where it may be under way; notes in the task what squeue said.

  listed: what squeue says of it, if anything; answered: whether squeue was asked this time and answered. seen_done: whether
  the status of every cell can be seen to have ended from here. A file that says done or failed counts at once; anything
  else only once the task has left the queue, seen twice, so that no pack runs twice; silence counts as killed `lag_s`
  seconds later.
  """
  record = read_json(task.ended) or {}
  endings = [(str(state), str(line)) for state, line in record.get("endings", ())]
  over = bool(endings) and all(state in ("done", "failed") for state, _ in endings)
  if over and seen_done:
    return endings
  if not answered:
    return None
  task.state = listed.state if listed is not None else "gone"
  if listed is not None and listed.state not in _ENDED:
    task.gone_since, task.times_gone = None, 0
    return None
  task.gone_since = now if task.gone_since is None else task.gone_since
  task.times_gone += 1
  if task.times_gone < 2:
    return None
  if endings and not over and task.state != "CANCELLED":
    return endings
  if now - task.gone_since < lag_s:
    return None
  if over:
    return endings
  return [("killed", f"Slurm: {task.state}; see {task.ended.parent}")] * len(task.pack)


def read_queue() -> dict[str, Listed] | None:
  """The user's tasks, those included that ended a short while ago; None where squeue does not answer."""
  command = ["squeue", "--noheader", "--array", "--states=all", f"--user={os.getuid()}", "--format=%i|%T|%j|%r"]
  try:
    out = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
  except (OSError, subprocess.SubprocessError):
    return None
  rows = [line.strip().split("|", 3) for line in out.splitlines()]
  return {row[0]: Listed(row[1], row[2], row[3]) for row in rows if len(row) == 4}


def cancel(ids: Sequence[str], *options: str) -> None:
  """scancel with options; what has ended meanwhile is no error."""
  for first in range(0, len(ids), 200):
    command = ["scancel", "--quiet", *options, *ids[first : first + 200]]
    try:
      subprocess.run(command, capture_output=True, timeout=60, check=False)
    except (OSError, subprocess.SubprocessError):
      return  # tried again at the next call


def submit(folder: Path, work: Sequence[tuple[Any, ...]], *, name: str, options: Mapping[str, Any]) -> list[str]:
  """Submits a task for each (jobs, ended) of `work` as one array; their ids. Raises RuntimeError with sbatch's words."""
  executor = _executor(folder, name=name, options=options)
  with executor.batch():
    jobs = [executor.submit(run_task, *arguments) for arguments in work]
  return [job.job_id for job in jobs]


def _executor(folder: Path, *, name: str, options: Mapping[str, Any]) -> Any:
  import submitit

  executor = submitit.SlurmExecutor(folder=folder)
  # Without None, submitit's defaults would hold, which are 5 minutes and its own name.
  executor.update_parameters(**{"time": None, "wckey": None, "job_name": name, **options})
  return executor


def check_taken(options: Mapping[str, Any]) -> None:
  """Raises UserError where sbatch would not take a job with these options; submits nothing."""
  with tempfile.TemporaryDirectory() as folder:
    text = _executor(Path(folder), name="ilya-jax", options=options)._make_submission_file_text("true", "")
  command = ["sbatch", "--test-only"]
  told = subprocess.run(command, input=text, capture_output=True, text=True, timeout=120, check=False)
  if told.returncode:
    raise UserError(f"sbatch: {_last_line(told.stderr)}", "a job that Slurm takes", "--launcher-option")


def read_slurm_options(options: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, float]]:
  """What goes to submitit, and our own (seconds). Raises UserError on a missing extra, unknown names and values that are no numbers."""
  try:
    import submitit
  except ImportError as error:
    raise UserError("no submitit", "pip install 'ilya-jax[slurm]'", "--launcher") from error
  names = submitit.SlurmExecutor._valid_parameters() - set(_REFUSED)
  check_names(options, names | set(_OWN), launcher="slurm")
  own = dict(_OWN)
  for name in _OWN:
    if name in options:
      own[name] = _seconds(name, options[name])
  given: dict[str, Any] = {name: _value(name, text) for name, text in options.items() if name not in _OWN}
  if given.get("cpus_per_task"):  # since Slurm 22.05 srun does not take it over from sbatch
    given["srun_args"] = [f"--cpus-per-task={given['cpus_per_task']}", *given.get("srun_args", [])]
  return given, own


def _seconds(name: str, text: str) -> float:
  try:
    value = float(text)
  except ValueError:
    value = -1.0
  if not 0 < value < float("inf"):
    raise UserError(f"{name}={text}", "a number of seconds above 0", f"--launcher-option {name}")
  return value


def _value(name: str, text: str) -> Any:
  if name == "setup":
    return [text]
  if name == "srun_args":
    return shlex.split(text)
  if name in ("cpus_per_task", "gpus_per_node", "array_parallelism", "signal_delay_s"):
    if not text.isdecimal() or (name != "gpus_per_node" and int(text) < 1):
      raise UserError(f"{name}={text}", "a whole number", f"--launcher-option {name}")
    return int(text)
  return {"true": True, "false": None}.get(text.lower(), text) if name == "exclusive" else text


def open_slurm(options: Mapping[str, str], *, sweep_dir: Path, workers: int, report: Report) -> "SlurmTasks":
  """The engine; submits nothing yet. Raises UserError as `launch.open_engine` does, and where there is no Slurm that answers."""
  given, own = read_slurm_options(options)
  missing = [name for name in ("sbatch", "squeue", "scancel", "srun") if shutil.which(name) is None]
  if missing:
    raise UserError(f"no {missing[0]} on the PATH", "a machine that submits to Slurm", "--launcher")
  queue = read_queue()
  if queue is None:
    raise UserError("squeue does not answer", "a Slurm controller that runs (see `squeue`)", "--launcher")
  check_taken(given)
  return SlurmTasks(
    sweep_dir, queue=queue, options=given, at_once=workers or _AT_ONCE, report=report,
    lag_s=own["lag_s"], poll_s=own["poll_s"],
  )  # fmt: skip


class SlurmTasks:
  """Tasks of job arrays. They outlive this process: a later start finds them by their names, and goes on watching them."""

  def __init__(
    self, sweep_dir: Path, *, queue: Queue, options: Mapping[str, Any], at_once: int, lag_s: float, poll_s: float,
    report: Report, clock: Callable[[], float] = time.monotonic,
  ):  # fmt: skip
    self._sweep_dir, self._folder = sweep_dir, sweep_dir / "slurm"
    self._options, self._at_once, self._lag_s, self._poll_s = options, at_once, lag_s, poll_s
    self._report, self._clock = report, clock
    self._name = f"ilya-jax-{hashlib.sha256(str(sweep_dir.resolve()).encode()).hexdigest()[:8]}"
    self._queue, self._asked, self._said = queue, clock(), clock()
    self._tasks: dict[str, Task] = {}
    self._new: list[tuple[Pack, list[dict[str, Any]]]] = []
    self._retry_at = self._signalled = 0.0
    self._stopping: float | None = None  # since when

  @property
  def busy(self) -> bool:
    """Whether any task is under way, or about to be submitted."""
    return bool(self._tasks or self._new)

  def adopt(self, packs: Sequence[Pack]) -> list[Pack]:
    """Those of the packs that tasks of an earlier start run or wait for in Slurm's queue."""
    by_ids = {tuple(cell.id for cell in pack): pack for pack in packs}
    adopted, spare, others = [], [], 0
    for job, listed in self._queue.items():
      prefix, _, number = listed.name.rpartition("-")
      if prefix != self._name or listed.state in _ENDED:
        continue
      index = int(job.partition("_")[2] or 0)
      held = (read_json(self._folder / number / "packs.json") or {"packs": []})["packs"]
      ids = tuple(held[index]) if index < len(held) else ()
      if ids in by_ids:
        self._tasks[job] = Task(by_ids[ids], self._folder / number / f"ended_{index}.json", listed.state)
        adopted.append(by_ids.pop(ids))
      elif any(ids == tuple(cell.id for cell in pack) for pack in adopted):
        spare.append(job)
      else:
        others += 1
    if spare:
      cancel(spare)
    if adopted:
      self._report(f"tasks of an earlier start in Slurm's queue: {len(adopted)}, taken over")
    if others:
      self._report(f"tasks of an earlier start that run cells not needed now: {others}, left alone")
    return adopted

  def free(self) -> dict[int, str]:
    """As many places as tasks may still be submitted."""
    room = self._at_once - len(self._tasks) - len(self._new)
    return {} if self._stopping is not None else dict.fromkeys(range(room), "")

  def start(self, place: int, pack: Pack, jobs: list[dict[str, Any]]) -> None:
    """Notes a pack for the next array."""
    self._new.append((pack, jobs))

  def running(self) -> list[Cell]:
    """The cells of tasks that Slurm runs."""
    return [cell for task in self._tasks.values() if task.state == "RUNNING" for cell in task.pack]

  def finished(self, *, timeout_s: float) -> list[tuple[Pack, list[Ending]]]:
    """Submits what was started, waits `timeout_s`, and returns the packs that ended. Raises UserError where sbatch refuses."""
    if self._new and self._stopping is None and self._clock() >= self._retry_at:
      self._submit()
    time.sleep(timeout_s)
    now, answered = self._clock(), False
    if now - self._asked >= self._pace():
      self._asked = now
      queue = read_queue()
      if queue is not None:
        self._queue, answered = queue, True
      else:
        self._say("squeue does not answer; asking again")
    ended = []
    for job, task in list(self._tasks.items()):
      seen = all(cell_state(self._sweep_dir, cell)["state"] in ("done", "failed") for cell in task.pack)
      listed = self._queue.get(job)
      lag_s = self._lag_s if self._stopping is None else 0.0  # then nothing is started again
      endings = watch(task, listed=listed, answered=answered, now=now, lag_s=lag_s, seen_done=seen)
      if endings is not None:
        ended.append((task.pack, endings))
        del self._tasks[job]
    if answered:
      self._say_what_waits()
    return ended

  def _pace(self) -> float:
    """Seconds between two questions to Slurm."""
    return self._poll_s if self._stopping is None else min(self._poll_s, _STOPPING_POLL_S)

  def _submit(self) -> None:
    """Submits the noted packs as one array."""
    taken = [int(path.name) for path in self._folder.glob("*") if path.name.isdecimal()]
    number = max(taken, default=-1) + 1
    folder, name = self._folder / str(number), f"{self._name}-{number}"
    folder.mkdir(parents=True)
    files = [folder / f"ended_{index}.json" for index in range(len(self._new))]
    write_json(folder / "packs.json", {"packs": [[cell.id for cell in pack] for pack, _ in self._new]})
    work = [(jobs, file) for (_, jobs), file in zip(self._new, files, strict=True)]
    try:
      ids = submit(folder, work, name=name, options=self._options)
    except Exception as error:  # submitit's kinds, and sbatch's words in them
      line = _last_line(str(error) or type(error).__name__)
      if not any(word in line.lower() for word in _PASSING):
        raise UserError(f"sbatch: {line}", "a job that Slurm takes", "--launcher-option") from error
      self._retry_at = self._clock() + self._poll_s
      found = self._find(name)
      if found is None:  # it may have taken the array and failed to say so
        self._say(f"sbatch: {line}; trying again")
        return
      ids = found
    for job, (pack, _), file in zip(ids, self._new, files, strict=True):
      self._tasks[job] = Task(pack, file)
    self._new = []

  def _find(self, name: str) -> list[str] | None:
    """Ids of the tasks of an array by its name, in order; None where squeue does not answer or lists none."""
    queue = read_queue() or {}
    ids = [job for job, listed in queue.items() if listed.name == name]
    return sorted(ids, key=lambda job: int(job.partition("_")[2] or 0)) or None

  def _say(self, line: str) -> None:
    """Reports at most one line a minute."""
    if self._clock() - self._said >= _SAY_EVERY_S:
      self._said = self._clock()
      self._report(line)

  def _say_what_waits(self) -> None:
    waiting = [job for job, task in self._tasks.items() if task.state in ("PENDING", "REQUEUE_HOLD", "SPECIAL_EXIT")]
    reasons = sorted({self._queue[job].reason for job in waiting if job in self._queue})
    if waiting and not self.running():
      self._say(f"in Slurm's queue: {len(waiting)} waiting ({', '.join(reasons)}), none running")

  def stop(self) -> None:
    """Cancels what waits, has what runs save and end, and cancels that too where it takes more than 5 minutes."""
    now = self._clock()
    if self._stopping is None:
      self._stopping, self._new = now, []
      self._report(f"stopping: tasks of Slurm that save and end, or leave the queue: {len(self._tasks)}")
    elif now - self._signalled < self._pace():
      return
    self._signalled, jobs = now, list(self._tasks)
    cancel(jobs, "--state=PENDING")
    cancel(jobs, *(["--signal=USR1"] if now - self._stopping < _HARD_STOP_S else []))

  def close(self) -> None:
    """Nothing is held here; tasks that are still under way go on, for the next start to watch."""


def _last_line(text: str) -> str:
  """What sbatch complains of."""
  lines = [line.strip() for line in text.splitlines() if line.strip()]
  told = [line for line in lines if "sbatch: error" in line or "allocation failure" in line]
  return (told or lines or ["no word"])[-1].removeprefix("sbatch: error: ").removeprefix("allocation failure: ")
