"""The local launcher: a pool of worker processes that run the cells of a sweep, each cell isolated and resumable."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import jax

from ilya_jax.config import RUNTIME_FIELDS, digest, load_config, without
from ilya_jax.errors import RunFailed, UserError
from ilya_jax.parallel.devices import on_cpu, use_compilation_cache
from ilya_jax.scaling.sweep import Cell, cell_folder, cell_state
from ilya_jax.train.loop import SIGNALS, Preempted, Stop, Trunk, train
from ilya_jax.train.metrics import clock, write_json
from ilya_jax.train.optimizer import branch_step

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


def run_cells(cells: Sequence[Cell], sweep_dir: Path, *, workers: int, report: Callable[[str], None]) -> Outcome:
  """Runs every cell that is not finished, trunks before their branches, the costliest first.

  A failed or killed cell does not stop the others. Raises Preempted after a signal, once every worker saved its state.
  """
  by_id = {cell.id: cell for cell in cells}
  done = [cell.id for cell in cells if cell_state(sweep_dir, cell)["state"] == "done"]
  failed = {
    c.id: cell_state(sweep_dir, c).get("error", "?") for c in cells if cell_state(sweep_dir, c)["state"] == "failed"
  }
  waiting = [cell for cell in cells if cell.id not in done and cell.id not in failed]
  count = max(1, min(workers, len(waiting)))
  progress = _Progress(cells, done=done, report=report)
  if not waiting:
    return Outcome(done, failed)
  pool = _Pool(count)
  kills: dict[str, int] = {}
  with Stop().listening() as stop, contextlib.closing(pool):
    while waiting or pool.busy:
      for orphan in [c for c in waiting if c.trunk in failed]:
        waiting.remove(orphan)
        failed[orphan.id] = f"its trunk {orphan.trunk} failed"
      for index in pool.idle():
        cell = _next(waiting, done=done, shape=pool.shapes[index])
        if cell is not None and stop.signum is None:
          waiting.remove(cell)
          pool.start(index, cell, _job(cell, sweep_dir, trunk=by_id.get(cell.trunk)))
      if not pool.busy:
        break
      for cell, state, line in pool.finished(timeout_s=0.5):
        if state == "killed" and stop.signum is None and kills.setdefault(cell.id, 0) < _KILLS_ALLOWED:
          kills[cell.id] += 1
          waiting.append(cell)
          report(f"cell {cell.id} was killed ({line}); it goes on from its last checkpoint")
        elif state == "done":
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


def _next(waiting: Sequence[Cell], *, done: Sequence[str], shape: str) -> Cell | None:
  """The cell to start next: one whose program this worker has compiled, else the one with the costliest chain."""
  ready = [cell for cell in waiting if cell.trunk == cell.id or cell.trunk in done]
  costs: dict[str, float] = {}
  for cell in waiting:
    costs[cell.trunk] = costs.get(cell.trunk, 0.0) + own_flops(cell)
  return max(
    ready, key=lambda cell: (cell.trunk != cell.id and shape_key(cell) == shape, costs[cell.trunk]), default=None
  )


def own_flops(cell: Cell) -> float:
  """Training FLOP that the cell itself runs: a branch runs its cooldown alone."""
  steps = cell.config.steps
  if cell.trunk != cell.id:
    steps -= branch_step(cell.config.schedule, steps=steps)
  return steps * cell.counts.units_per_step * cell.counts.flops_per_unit


def shape_key(cell: Cell) -> str:
  """Cells with the same key share a compiled program."""
  return digest(without(cell.config, RUNTIME_FIELDS))


def _job(cell: Cell, sweep_dir: Path, *, trunk: Cell | None) -> dict[str, Any]:
  branch = None if trunk is None or trunk.id == cell.id else Trunk(cell_folder(sweep_dir, trunk), trunk.id)
  return {"spec": cell.spec, "overrides": cell.overrides, "workdir": cell_folder(sweep_dir, cell), "trunk": branch}


def _mark_failed(sweep_dir: Path, cell: Cell, line: str) -> None:
  folder = cell_folder(sweep_dir, cell)
  folder.mkdir(parents=True, exist_ok=True)
  write_json(folder / "status.json", {**cell_state(sweep_dir, cell), "id": cell.id, "state": "failed", "error": line})


class _Pool:
  """Worker processes, each with one cell at a time; one that dies is replaced."""

  def __init__(self, count: int):
    cpus = sorted(os.sched_getaffinity(0))
    self._shares = [cpus[index::count] or cpus for index in range(count)]
    self._workers = [_spawn(share) for share in self._shares]
    self._cells: list[Cell | None] = [None] * count
    self.shapes = [""] * count

  @property
  def busy(self) -> bool:
    """Whether any cell runs."""
    return any(cell is not None for cell in self._cells)

  def idle(self) -> list[int]:
    """Indices of workers without a cell."""
    return [index for index, cell in enumerate(self._cells) if cell is None]

  def running(self) -> list[Cell]:
    """The cells that run."""
    return [cell for cell in self._cells if cell is not None]

  def start(self, index: int, cell: Cell, job: dict[str, Any]) -> None:
    """Gives a worker a cell."""
    self._cells[index], self.shapes[index] = cell, shape_key(cell)
    self._workers[index].connection.send(job)

  def finished(self, *, timeout_s: float) -> list[tuple[Cell, str, str]]:
    """(cell, state, last line) of the cells that ended; waits at most `timeout_s` for one."""
    handles = {self._workers[i].connection: i for i, cell in enumerate(self._cells) if cell is not None}
    ended = []
    for connection in wait(list(handles), timeout=timeout_s):
      index = handles[connection]  # type: ignore[index]
      cell = self._cells[index]
      assert cell is not None
      try:
        state, line = self._workers[index].connection.recv()
      except (EOFError, OSError):
        self._workers[index].process.join()
        state, line = "killed", f"exit code {self._workers[index].process.exitcode}"
        self._workers[index], self.shapes[index] = _spawn(self._shares[index]), ""
      self._cells[index] = None
      ended.append((cell, state, line))
    return ended

  def signal(self, signum: int) -> None:
    """Sends a signal to the workers that run a cell."""
    for worker, cell in zip(self._workers, self._cells, strict=True):
      if cell is not None and worker.process.is_alive():
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
  """A worker's life: takes cells until the connection closes; dies with the process that started it."""
  os.sched_setaffinity(0, cpus)
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
      job = connection.recv()
    except (EOFError, OSError):
      return
    connection.send(_run_job(job, stop))


def _run_job(job: dict[str, Any], stop: Stop) -> tuple[str, str]:
  """(state, last line) of a cell."""
  deadline = time.monotonic() + _LOCK_WAIT_S
  while True:
    try:
      train(load_config(job["spec"], job["overrides"]), job["workdir"], trunk=job["trunk"], stop=stop)
      return "done", ""
    except Preempted as preempted:
      return "preempted", str(preempted)
    except UserError as error:
      if "in use" not in str(error) or time.monotonic() > deadline:
        return "failed", str(error)
      time.sleep(0.5)
    except RunFailed as error:
      return "failed", str(error)
    except Exception as error:  # a bug in one cell must not end the others
      return "failed", f"{type(error).__name__}: {error}".splitlines()[0]


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
