"""The launchers: a pool of worker processes that run cells side by side, or several processes that train each cell together."""

import contextlib
import functools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import jax

from ilya_jax.config import load_config
from ilya_jax.errors import Preempted, RunFailed, UserError
from ilya_jax.parallel import distributed
from ilya_jax.parallel.devices import on_cpu, prepare_devices, use_compilation_cache
from ilya_jax.scaling.sweep import Cell, cell_folder, cell_state, own_flops
from ilya_jax.train.loop import SIGNALS, Job, Stop, Trunk, train_pack
from ilya_jax.train.metrics import clock, write_json

_KILLS_ALLOWED = 3  # times a cell may be killed from outside before it counts as failed
_LOCK_WAIT_S = 20.0  # for a worker of an earlier start to notice that its sweep is gone


class Outcome(NamedTuple):
  """How the cells ended: ids that are done, and id -> last line of those that failed."""

  done: list[str]
  failed: dict[str, str]


class _Worker(NamedTuple):
  process: Any
  connection: Connection


def default_workers() -> int:
  """One process a core on a CPU (measured: no slower than sharing), one process for all devices elsewhere."""
  return len(os.sched_getaffinity(0)) if on_cpu() else 1


def run_packs(
  packs: Sequence[Sequence[Cell]], sweep_dir: Path, *, workers: int, report: Callable[[str], None]
) -> Outcome:
  """Runs every cell that is not finished, pack by pack, trunks before their branches, the costliest first.

  A failed or killed cell does not stop the others. Raises Preempted after a signal, once every worker saved its state.
  """
  cells = [cell for pack in packs for cell in pack]
  by_id = {cell.id: cell for cell in cells}
  done, failed = _ended(cells, sweep_dir)
  waiting = _unfinished(packs, done, failed)
  progress = _Progress(cells, done=done, report=report)
  if not waiting:
    return Outcome(done, failed)
  pool = _Pool(min(workers, len(waiting)), share=workers)
  kills: dict[str, int] = {}
  with Stop().listening() as stop, contextlib.closing(pool):
    while waiting or pool.busy:
      waiting = _unfinished(waiting, done, failed)
      for index in pool.idle():
        pack = _next(waiting, done=done, failed=failed, program=pool.programs[index])
        if pack is not None and stop.signum is None:
          waiting.remove(pack)
          pool.start(index, pack, [_job(cell, sweep_dir, trunk=by_id.get(cell.trunk), failed=failed) for cell in pack])
      if not pool.busy:
        break
      for pack, outcomes in pool.finished(timeout_s=0.5):
        first = pack[0].id
        killed = any(state == "killed" for state, _ in outcomes)
        if killed and stop.signum is None and kills.setdefault(first, 0) < _KILLS_ALLOWED:
          kills[first] += 1
          waiting.append(pack)
          report(f"cell {first} was killed ({outcomes[0][1]}); it goes on from its last checkpoint")
          continue
        for cell, (state, line) in zip(pack, outcomes, strict=True):
          if cell.id in failed or cell.id in done:
            continue
          if state == "done":
            done.append(cell.id)
          elif state in ("failed", "killed"):
            failed[cell.id] = line
            _mark_failed(sweep_dir, cell, line)
            report(f"cell {cell.id} failed: {line}")
      progress.show(done=done, failed=failed, running=pool.running(), sweep_dir=sweep_dir)
      if stop.signum is not None:
        pool.signal(signal.SIGTERM)
  if stop.signum is not None:
    raise Preempted(stop.signum)
  return Outcome(done, failed)


def run_in_turn(packs: Sequence[Sequence[Cell]], sweep_dir: Path, *, report: Callable[[str], None]) -> Outcome:
  """Runs every cell that is not finished in this process, which is one of several that train each of them together.

  All of the processes call it, and take the packs in the same order. A failed cell does not stop the others. Raises
  Preempted after a signal to any of the processes, with the state saved.
  """
  cells = [cell for pack in packs for cell in pack]
  by_id = {cell.id: cell for cell in cells}
  done, failed = distributed.first_tells(lambda: _ended(cells, sweep_dir))
  progress, program = _Progress(cells, done=done, report=report), ""
  stop = Stop()
  with stop.listening():
    while waiting := _unfinished(packs, done, failed):
      pack = _next(waiting, done=done, failed=failed, program=program)
      assert pack is not None  # a trunk that is not done can run
      program = pack[0].program
      jobs = [_job(cell, sweep_dir, trunk=by_id.get(cell.trunk), failed=failed) for cell in pack]
      for cell, (state, line) in zip(pack, _run_jobs(jobs, stop, wait_s=0.0), strict=True):
        if state == "preempted":
          raise Preempted(int(line))
        if state == "done":
          done.append(cell.id)
        elif cell.id not in failed:
          failed[cell.id] = line
          distributed.first_does(functools.partial(_mark_failed, sweep_dir, cell, line))
          report(f"cell {cell.id} failed: {line}")
      progress.show(done=done, failed=failed, running=(), sweep_dir=sweep_dir)
  return Outcome(done, failed)


def _ended(cells: Sequence[Cell], sweep_dir: Path) -> tuple[list[str], dict[str, str]]:
  """Ids of the cells that are done, and id -> last line of those that failed."""
  states = {cell.id: cell_state(sweep_dir, cell) for cell in cells}
  done = [name for name, state in states.items() if state["state"] == "done"]
  return done, {name: state.get("error", "?") for name, state in states.items() if state["state"] == "failed"}


def _unfinished(packs: Sequence[Sequence[Cell]], done: Sequence[str], failed: dict[str, str]) -> list[Sequence[Cell]]:
  """The packs with a cell that has not ended; branches of a failed trunk are added to `failed`."""
  for orphan in [cell for pack in packs for cell in pack if cell.trunk in failed and cell.id not in done]:
    failed.setdefault(orphan.id, f"its trunk {orphan.trunk} failed")
  return [pack for pack in packs if any(cell.id not in done and cell.id not in failed for cell in pack)]


def _next(
  waiting: Sequence[Sequence[Cell]], *, done: Sequence[str], failed: Mapping[str, str], program: str
) -> Sequence[Cell] | None:
  """The pack to start next: one whose program this worker has compiled, else the one with the costliest chain."""

  def is_ready(cell: Cell) -> bool:
    return cell.trunk == cell.id or cell.trunk in done or cell.id in failed

  costs: dict[str, float] = {}
  for cell in (cell for pack in waiting for cell in pack):
    costs[cell.trunk] = costs.get(cell.trunk, 0.0) + own_flops(cell)

  def urgency(pack: Sequence[Cell]) -> tuple[bool, float]:
    return pack[0].trunk != pack[0].id and pack[0].program == program, sum(costs[cell.trunk] for cell in pack)

  return max((pack for pack in waiting if all(is_ready(cell) for cell in pack)), key=urgency, default=None)


def _job(cell: Cell, sweep_dir: Path, *, trunk: Cell | None, failed: Mapping[str, str]) -> dict[str, Any]:
  branch = None if trunk is None or trunk.id == cell.id else Trunk(cell_folder(sweep_dir, trunk), trunk.id)
  return {
    "spec": cell.spec, "overrides": cell.overrides, "workdir": cell_folder(sweep_dir, cell), "trunk": branch,
    "passenger": cell.id in failed,
  }  # fmt: skip


def _mark_failed(sweep_dir: Path, cell: Cell, line: str) -> None:
  folder = cell_folder(sweep_dir, cell)
  folder.mkdir(parents=True, exist_ok=True)
  write_json(folder / "status.json", {**cell_state(sweep_dir, cell), "id": cell.id, "state": "failed", "error": line})


class _Pool:
  """Worker processes, each with one pack of cells at a time; one that dies is replaced.

  share: of how many parts of the cores a worker gets one. The number of its cores decides how a run is rounded,
  so it must not depend on how many cells are left.
  """

  def __init__(self, count: int, *, share: int):
    cpus = sorted(os.sched_getaffinity(0))
    self._shares = [cpus[index::share] or cpus for index in range(count)]
    self._workers = [_spawn(share) for share in self._shares]
    self._packs: list[Sequence[Cell]] = [()] * count
    self.programs = [""] * count

  @property
  def busy(self) -> bool:
    """Whether any cell runs."""
    return any(self._packs)

  def idle(self) -> list[int]:
    """Indices of workers without a cell."""
    return [index for index, pack in enumerate(self._packs) if not pack]

  def running(self) -> list[Cell]:
    """The cells that run."""
    return [cell for pack in self._packs for cell in pack]

  def start(self, index: int, pack: Sequence[Cell], jobs: list[dict[str, Any]]) -> None:
    """Gives a worker a pack."""
    self._packs[index], self.programs[index] = pack, pack[0].program
    self._workers[index].connection.send(jobs)

  def finished(self, *, timeout_s: float) -> list[tuple[Sequence[Cell], list[tuple[str, str]]]]:
    """Packs that ended, with (state, last line) of each cell; waits at most `timeout_s` for one."""
    handles = {self._workers[i].connection: i for i, pack in enumerate(self._packs) if pack}
    ended = []
    for connection in wait(list(handles), timeout=timeout_s):
      index = handles[connection]  # type: ignore[index]
      pack = self._packs[index]
      try:
        outcomes = self._workers[index].connection.recv()
      except (EOFError, OSError):
        self._workers[index].process.join()
        outcomes = [("killed", f"exit code {self._workers[index].process.exitcode}")] * len(pack)
        self._workers[index], self.programs[index] = _spawn(self._shares[index]), ""
      self._packs[index] = ()
      ended.append((pack, outcomes))
    return ended

  def signal(self, signum: int) -> None:
    """Sends a signal to the workers that run a cell."""
    for worker, pack in zip(self._workers, self._packs, strict=True):
      if pack and worker.process.is_alive():
        os.kill(worker.process.pid, signum)

  def close(self) -> None:
    """Ends the workers."""
    for worker in self._workers:
      worker.connection.close()
    for worker in self._workers:
      worker.process.join(timeout=30)
      if worker.process.is_alive():
        worker.process.kill()


def _spawn(cpus: Sequence[int]) -> _Worker:
  context = multiprocessing.get_context("spawn")
  ours, theirs = context.Pipe()
  process = context.Process(target=_work, args=(theirs, tuple(cpus), os.getpid()), daemon=False)
  process.start()
  theirs.close()
  return _Worker(process, ours)


def _work(connection: Connection, cpus: Sequence[int], parent: int) -> None:
  """A worker's life: takes packs until the connection closes; dies with the process that started it."""
  os.sched_setaffinity(0, cpus)
  prepare_devices()
  if on_cpu():
    jax.config.update("jax_num_cpu_devices", len(cpus))
  sys.stderr = open(os.devnull, "w")
  threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
  stop = Stop()
  for signum in SIGNALS:
    signal.signal(signum, lambda received, frame: setattr(stop, "signum", received))
  use_compilation_cache()
  while True:
    try:
      jobs = connection.recv()
    except (EOFError, OSError):
      return
    connection.send(_run_jobs(jobs, stop, wait_s=_LOCK_WAIT_S))


def _run_jobs(jobs: Sequence[dict[str, Any]], stop: Stop, *, wait_s: float) -> list[tuple[str, str]]:
  """(state, last line) of each cell of a pack: done, failed, or preempted with the signal's number as its line.

  wait_s: how long another process may go on holding a cell's folder.
  """
  deadline = time.monotonic() + wait_s
  while True:
    try:
      pack = [
        Job(load_config(job["spec"], job["overrides"]), job["workdir"], job["trunk"], passenger=job["passenger"])
        for job in jobs
      ]
      outcomes = train_pack(pack, stop=stop)
      return [("failed", str(each)) if isinstance(each, RunFailed) else ("done", "") for each in outcomes]
    except Preempted as preempted:
      return [("preempted", str(preempted.signum))] * len(jobs)
    except UserError as error:
      if "in use" not in str(error) or time.monotonic() > deadline:
        return [("failed", str(error))] * len(jobs)
      time.sleep(0.5)
    except RunFailed as error:
      return [("failed", str(error))] * len(jobs)
    except Exception as error:  # a bug in one cell must not end the others
      if distributed.several():  # which may wait for this process, and cannot be told
        raise
      return [("failed", f"{type(error).__name__}: {error}".splitlines()[0])] * len(jobs)


def _die_with(parent: int) -> None:
  while os.getppid() == parent:
    time.sleep(0.2)
  os._exit(1)


class _Progress:
  """Cells done, running and failed, and the time left by FLOP, as one line now and then."""

  def __init__(
    self, cells: Sequence[Cell], *, done: Sequence[str], report: Callable[[str], None], every_s: float = 10.0
  ):
    self._cells, self._report, self._every_s = cells, report, every_s
    self._start, self._last = time.monotonic(), -1e9
    self._flops_before = sum(own_flops(cell) for cell in cells if cell.id in done)

  def show(self, *, done: Sequence[str], failed: Any, running: Sequence[Cell], sweep_dir: Path) -> None:
    """Reports at most every `every_s` seconds."""
    now = time.monotonic()
    if now - self._last < self._every_s:
      return
    self._last = now
    total = sum(own_flops(cell) for cell in self._cells)
    finished = sum(own_flops(cell) for cell in self._cells if cell.id in done)
    for cell in running:
      step = cell_state(sweep_dir, cell).get("step", 0)
      first = cell.config.steps * (1 - own_flops(cell) / cell.flops)
      finished += own_flops(cell) * max(0.0, step - first) / max(cell.config.steps - first, 1)
    rate = (finished - self._flops_before) / max(now - self._start, 1e-9)
    left = clock((total - finished) / rate) if rate > 0 else "?"
    line = f"{len(done)}/{len(self._cells)} cells  {len(running)} running  {len(failed)} failed"
    self._report(f"{line}  {rate / 1e9:.1f} GFLOP/s  left {left}")
