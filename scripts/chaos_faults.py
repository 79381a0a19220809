"""Faults that processes meet: killed, asked to stop, frozen, or started twice; and what a job must do then.

A fault is tried by a function of a Trial; it returns what it did in words, and raises Broken with what went wrong.
"""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from chaos_jobs import (
  ENDS_WITHIN_S,
  HEARTBEAT_S,
  PATIENCE_S,
  Group,
  Job,
  Moment,
  at_random,
  difference,
  ending,
  finished_checkpoints,
  once_training,
  run_folders,
  started,
  trained_steps,
  while_saving,
)

from ilya_jax.train.metrics import read_json


class Broken(Exception):
  """A job did not survive: what was seen and what was expected."""


class Missed(Exception):
  """The job was done before the fault could touch it: the trial counts for nothing and is repeated."""


class Skipped(Exception):
  """A fault that cannot be tried here, and why."""


class Trial(NamedTuple):
  """One trial: a job, an empty folder, draws of its own, and its number among the trials of this fault and job.

  half_done: the workdir (to be copied) of the job stopped by SIGTERM in the middle.
  """

  job: Job
  folder: Path
  rng: random.Random
  number: int
  half_done: Callable[[], Path]

  @property
  def workdir(self) -> Path:
    """Where the job works unless the trial says otherwise."""
    return self.folder / "work"

  def start(self, workdir: Path | None = None):
    """Starts the job; a context that leaves no process behind."""
    return started(self.job, workdir or self.workdir, logs=self.folder / "logs")


def need(holds: bool, problem: str) -> None:
  """Raises Broken where something does not hold."""
  if not holds:
    raise Broken(problem)


def reach(moment: Moment, group: Group) -> None:
  """Waits for the moment. Raises Missed where the job is done by then, and Broken where it ended without being done."""
  if not moment.reached(group):
    codes = group.wait(PATIENCE_S)
    need(not any(codes), f"undisturbed, it ends with {codes} and says {group.everything()[:300]}")
    raise Missed(moment.words)


def check_ending(trial: Trial, workdir: Path | None = None) -> None:
  """The job is done and every bit of its result is that of the undisturbed one."""
  found = difference(trial.job.expected, ending(workdir or trial.workdir))
  need(not found, found)


def go_on(trial: Trial, workdir: Path | None = None) -> list[list[str]]:
  """Starts the job again, undisturbed, to its right end; returns what each process said beside its progress."""
  with trial.start(workdir) as group:
    codes = group.wait(PATIENCE_S)
    need(not any(codes), f"started again it ends with {codes} and says {group.everything()[:300]}")
    said = [group.said(index) for index in range(trial.job.processes)]
  check_ending(trial, workdir)
  return said


def need_one_line(group: Group, index: int, *, codes: tuple[int, ...], within_s: float) -> None:
  """Process `index` ends by itself in time, with one of the codes and exactly one line, an error.

  Raises Missed where it was done before the fault could touch it, else Broken.
  """
  began = time.monotonic()
  (code,) = group.wait(within_s, of=index)
  need(code is not None, f"process {index} was still there after {within_s:.0f} s and says {group.everything()[:300]}")
  if code == 0:
    status = read_json(group.workdir / "status.json") or {}
    need(status.get("state") == "done", f"process {index} ends with 0, but the run is {status.get('state')}")
    raise Missed(f"process {index} was done")
  lines = group.said(index)
  after = f"after {time.monotonic() - began:.0f} s"
  need(code in codes, f"process {index} ends with {code} {after}, expected one of {codes}; it says {lines[:3]}")
  fine = len(lines) == 1 and lines[0].startswith("error: ") and "; a bug," not in lines[0]
  need(fine, f"process {index} ends with {code} and {len(lines)} lines, expected one error: {lines[:4]}")


def kill(trial: Trial, *, kills: int) -> tuple[int, str]:
  """SIGKILL `kills` times at most, at any moment or while a checkpoint is written; (how many landed, words)."""
  words: list[str] = []
  while len(words) < kills:
    saving = trial.rng.random() < 0.5
    moment = while_saving(trial.rng) if saving else at_random(trial.rng, life_s=trial.job.life_s)
    try:
      with trial.start() as group:
        reach(moment, group)
        victim = _kill_some(trial, group)
        words.append(f"{victim} {moment.words}".strip())
        if victim == "a worker":
          _check_the_rest_goes_on(group)
    except Missed:
      break
  go_on(trial)
  return len(words), ", ".join(words)


def _kill_some(trial: Trial, group: Group) -> str:
  """Kills all of a job or a part of it; what a part leaves behind must end or go on by itself. Returns the victim."""
  if trial.job.processes > 1:
    victim = trial.rng.choice([0, 1, None])
    group.signal(signal.SIGKILL, of=victim)
    if victim is not None:
      need_one_line(group, 1 - victim, codes=(1, 2), within_s=ENDS_WITHIN_S)
    return "both" if victim is None else f"process {victim}"
  workers = group.workers()
  victim_name = trial.rng.choice(["all", "the parent", "a worker"]) if workers else "all"
  if victim_name == "a worker":
    try:
      os.kill(trial.rng.choice(workers), signal.SIGKILL)
    except ProcessLookupError:  # it was ending by itself
      pass
  else:
    group.signal(signal.SIGKILL, group=victim_name == "all")
  group_left_alone = victim_name == "the parent"
  if group_left_alone:  # the next start meets what is left of the workers
    time.sleep(trial.rng.uniform(0.0, 0.3))
  return victim_name


def _check_the_rest_goes_on(group: Group) -> None:
  (code,) = group.wait(PATIENCE_S)
  lines = group.said()
  need(code == 0, f"a worker killed, the sweep ends with {code} and says {lines[:3]}")
  fine = len(lines) <= 1 and all("was killed" in line for line in lines)  # none where the worker had no cell
  need(fine, f"a worker killed, the sweep says {len(lines)} lines: {lines[:4]}")


def ask_to_stop(trial: Trial, *, signum: signal.Signals) -> str:
  """A signal that lets the state be saved: exit code 128+n, one line, a checkpoint of the step in status.json."""
  training = trial.number % 2 == 0
  moment = (
    once_training(trial.rng, within_s=trial.job.life_s / 4)
    if training
    else at_random(trial.rng, life_s=0.8 * trial.job.life_s)
  )
  with trial.start() as group:
    reach(moment, group)
    begun = trained_steps(trial.workdir) > 0
    to_all = trial.job.name == "sweep" and signum == signal.SIGINT  # as a terminal does
    group.signal(signum, of=trial.rng.randrange(trial.job.processes), group=to_all)
    codes = group.wait(ENDS_WITHIN_S)
    need(None not in codes, f"{codes} {ENDS_WITHIN_S} s {moment.words}; it says {group.everything()[:300]}")
    if not any(codes):
      raise Missed("it was at its last step")
    wanted = 128 + signum
    fine = codes == [wanted] * len(codes) if begun else wanted in codes
    need(fine, f"ends with {codes}, expected {wanted}: {group.everything()[:300]}")
    for index, code in enumerate(codes):
      lines = group.said(index)
      fine = len(lines) == begun or (not begun and len(lines) <= 1)
      need(fine, f"process {index} ends with {code} and {len(lines)} lines: {lines[:4]}")
    if begun:
      _check_saved(trial.workdir)
  go_on(trial)
  return moment.words


def _check_saved(workdir: Path) -> None:
  """Every run that is not done says `preempted`, at the step of its newest checkpoint."""
  for run in run_folders(workdir):
    status = read_json(run / "status.json")
    if status is None or status["state"] == "done":
      continue
    saved = finished_checkpoints(run)
    need(status["state"] == "preempted", f"{run.name} is {status['state']} after the signal, expected preempted")
    need(
      status["step"] in saved[-1:], f"{run.name} is at step {status['step']}, its newest checkpoints at {saved[-2:]}"
    )


def pause(trial: Trial) -> str:
  """SIGSTOP for less than the heartbeat, then SIGCONT: it goes on, and nothing has changed."""
  seconds = trial.rng.uniform(2.0, 0.5 * HEARTBEAT_S)
  moment = once_training(trial.rng, within_s=trial.job.life_s / 4)
  with trial.start() as group:
    reach(moment, group)
    victims = [process.pid for process in group.processes]
    victims = trial.rng.choice([victims[:1], victims[-1:], victims + group.workers()])
    for signum in (signal.SIGSTOP, signal.SIGCONT):
      for pid in victims:
        os.kill(pid, signum)
      time.sleep(seconds)
    codes = group.wait(PATIENCE_S)
    need(not any(codes), f"paused, it ends with {codes} and says {group.everything()[:300]}")
    need(group.everything() == "nothing", f"paused, it says {group.everything()[:300]}")
  check_ending(trial)
  return f"{seconds:.1f} s, {moment.words}"


def long_pause(trial: Trial) -> str:
  """One of two processes stopped beyond the heartbeat: the other ends with one line, the stopped one once it wakes."""
  victim = trial.rng.randrange(2)
  moment = once_training(trial.rng, within_s=trial.job.life_s / 4)
  with trial.start() as group:
    reach(moment, group)
    group.signal(signal.SIGSTOP, of=victim)
    need_one_line(group, 1 - victim, codes=(1,), within_s=ENDS_WITHIN_S)
    group.signal(signal.SIGCONT, of=victim)
    need_one_line(group, victim, codes=(1,), within_s=ENDS_WITHIN_S)
  go_on(trial)
  return f"process {victim}, {moment.words}"


def twice(trial: Trial) -> str:
  """The same job started twice on one folder: one trains, the other ends with exit code 2 and one line."""
  for delay_s in (trial.rng.choice([0.0, trial.rng.uniform(0.0, 2.0)]), 0.0):
    workdir = trial.folder / f"work_{delay_s:.2f}"
    with trial.start(workdir) as one:
      time.sleep(delay_s)
      with trial.start(workdir) as two:
        while one.running and two.running:
          time.sleep(0.05)
        refused, other = (one, two) if not one.running else (two, one)
        codes = refused.wait(ENDS_WITHIN_S)
        if not any(codes):  # the second came when the first was done
          continue
        need(codes == [2] * len(codes), f"one of them ends with {codes} and says {refused.everything()[:300]}")
        for index in range(trial.job.processes):
          need_one_line(refused, index, codes=(2,), within_s=1)
        need("in use" in refused.said()[0], f"the one that is refused says {refused.everything()}")
        codes = other.wait(PATIENCE_S)
        need(not any(codes), f"the other ends with {codes} and says {other.everything()[:300]}")
        need(other.everything() == "nothing", f"the other says {other.everything()[:300]}")
    check_ending(trial, workdir)
    return f"the second {delay_s:.1f} s after the first"
  raise Broken("neither of them was refused")
