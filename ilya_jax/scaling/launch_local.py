"""The local engine: worker processes of this machine, each on its own share of the cores, with one pack at a time."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from ilya_jax.scaling.launch import Ending, Pack, run_jobs, use_cores
from ilya_jax.scaling.sweep import Cell
from ilya_jax.train.loop import SIGNALS, Stop

_LOCK_WAIT_S = 20.0  # for a worker of an earlier start to notice that its sweep is gone


class Worker(NamedTuple):
  """A process that runs packs, and the end of the pipe through which it gets jobs and returns endings."""

  process: Any
  connection: Connection


class LocalPool:
  """Worker processes, started at the first pack they get; one that dies is replaced.

  count: how many; each gets that part of the cores. The number of its cores decides how a run is rounded, so it does
  not depend on how many cells are left.
  """

  def __init__(self, count: int):
    cpus = sorted(os.sched_getaffinity(0))
    self._shares = [cpus[index::count] or cpus for index in range(count)]
    self._workers: list[Worker | None] = [None] * count
    self._packs: list[Pack] = [()] * count
    self._programs = [""] * count

  @property
  def busy(self) -> bool:
    """Whether any cell runs."""
    return any(self._packs)

  def adopt(self, packs: Sequence[Pack]) -> list[Pack]:
    """None: the workers die with the process that started them."""
    return []

  def free(self) -> dict[int, str]:
    """Workers without a pack -> the program each has compiled."""
    return {index: self._programs[index] for index, pack in enumerate(self._packs) if not pack}

  def running(self) -> list[Cell]:
    """The cells that run."""
    return [cell for pack in self._packs for cell in pack]

  def start(self, place: int, pack: Pack, jobs: list[dict[str, Any]]) -> None:
    """Gives a worker a pack."""
    worker = self._workers[place] or spawn(self._shares[place])
    self._workers[place], self._packs[place], self._programs[place] = worker, pack, pack[0].program
    worker.connection.send(jobs)

  def finished(self, *, timeout_s: float) -> list[tuple[Pack, list[Ending]]]:
    """Packs that ended, with the ending of each cell; waits at most `timeout_s` for one."""
    busy = {worker.connection: i for i, worker in enumerate(self._workers) if worker is not None and self._packs[i]}
    ended = []
    for connection in wait(list(busy), timeout=timeout_s):
      index = busy[connection]  # type: ignore[index]
      worker, pack = self._workers[index], self._packs[index]
      assert worker is not None
      endings, alive = receive(worker, len(pack))
      if not alive:
        self._workers[index], self._programs[index] = None, ""
      self._packs[index] = ()
      ended.append((pack, endings))
    return ended

  def stop(self) -> None:
    """Sends SIGTERM to the workers that run a pack."""
    for worker, pack in zip(self._workers, self._packs, strict=True):
      if worker is not None and pack and worker.process.is_alive():
        os.kill(worker.process.pid, signal.SIGTERM)

  def close(self) -> None:
    """Ends the workers."""
    end([worker for worker in self._workers if worker is not None])


def spawn(cores: Sequence[int] | int) -> Worker:
  """A worker that is bound to cores, by their numbers, or that computes as on so many without being bound."""
  context = multiprocessing.get_context("spawn")
  ours, theirs = context.Pipe()
  bound = cores if isinstance(cores, int) else tuple(cores)
  process = context.Process(target=_work, args=(theirs, bound, os.getpid()), daemon=False)
  process.start()
  theirs.close()
  return Worker(process, ours)


def receive(worker: Worker, count: int) -> tuple[list[Ending], bool]:
  """The endings of the `count` cells of a worker's pack, and whether the worker lives; to be called once it has any."""
  try:
    return worker.connection.recv(), True
  except (EOFError, OSError):
    worker.process.join()
    return [("killed", f"exit code {worker.process.exitcode}")] * count, False


def end(workers: Sequence[Worker]) -> None:
  """Ends workers, which run no pack."""
  for worker in workers:
    worker.connection.close()
  for worker in workers:
    worker.process.join(timeout=30)
    if worker.process.is_alive():
      worker.process.kill()


def _work(connection: Connection, cores: Sequence[int] | int, parent: int) -> None:
  """A worker's life: takes packs until the connection closes; dies with the process that started it."""
  if not isinstance(cores, int):
    os.sched_setaffinity(0, cores)
  sys.stderr = open(os.devnull, "w")
  threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
  stop = Stop()
  for signum in SIGNALS:
    signal.signal(signum, lambda received, frame: setattr(stop, "signum", received))
  use_cores(cores if isinstance(cores, int) else len(cores))
  while True:
    try:
      jobs = connection.recv()
    except (EOFError, OSError):
      return
    connection.send(run_jobs(jobs, stop, wait_s=_LOCK_WAIT_S))
    stop.signum = None  # a signal to this worker alone stopped this pack


def _die_with(parent: int) -> None:
  while os.getppid() == parent:
    time.sleep(0.2)
  os._exit(1)
