"""Running the cells of a sweep: in which order, on which engine, what ended how, and how far it is.

An engine runs packs of cells side by side: `launch_local` in processes of this machine, `launch_slurm` as tasks of job
arrays, `launch_ray` in a Ray cluster. Several processes that train each cell together need none: `run_in_turn`.
"""

import contextlib
import functools
import logging
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax

from ilya_jax.config import load_config
from ilya_jax.errors import Preempted, RunFailed, UserError, did_you_mean
from ilya_jax.parallel import distributed
from ilya_jax.parallel.devices import on_cpu, prepare_devices, use_compilation_cache
from ilya_jax.scaling.sweep import Cell, cell_folder, cell_state, own_flops
from ilya_jax.train.loop import Job, Stop, Trunk, train_pack
from ilya_jax.train.metrics import clock, write_json

LAUNCHERS = ("local", "slurm", "ray")
KILLS_ALLOWED = 3  # times a cell may be killed from outside, or stopped without progress, before it counts as failed

_IN_USE = "in use"  # what is said of a folder that another process holds

Pack = Sequence[Cell]
Ending = tuple[
  str, str
]  # of a cell: done, failed, killed, or preempted (the line is the signal's number); its last line
Report = Callable[[str], None]


class Outcome(NamedTuple):
  """How the cells ended: ids that are done, and id -> last line of those that failed."""

  done: list[str]
  failed: dict[str, str]


class Engine(Protocol):
  """What runs packs side by side. It knows no order and tries nothing twice; `run_packs` does."""

  @property
  def busy(self) -> bool:
    """Whether any pack is under way."""

  def adopt(self, packs: Sequence[Pack]) -> list[Pack]:
    """Those of the packs that are under way from an earlier start; they are watched from now on."""

  def free(self) -> Mapping[int, str]:
    """Places where a pack can start now -> the program that has been compiled there, or ""."""

  def start(self, place: int, pack: Pack, jobs: list[dict[str, Any]]) -> None:
    """Starts a pack at a free place; jobs: what `run_jobs` takes."""

  def running(self) -> list[Cell]:
    """The cells that run."""

  def finished(self, *, timeout_s: float) -> list[tuple[Pack, list[Ending]]]:
    """Packs that ended, with the ending of each cell; waits about `timeout_s` seconds for one."""

  def stop(self) -> None:
    """Asks what runs to save and end, and starts nothing any more; may be called again and again."""

  def close(self) -> None:
    """Ends what the engine holds."""


def default_workers() -> int:
  """One process a core on a CPU (measured: no slower than sharing), one process for all devices elsewhere."""
  return len(os.sched_getaffinity(0)) if on_cpu() else 1


def check_launcher(name: str) -> None:
  """Raises UserError where there is no such launcher."""
  if name not in LAUNCHERS:
    raise UserError(f"--launcher {name}{did_you_mean(name, LAUNCHERS)}", " | ".join(LAUNCHERS), "--launcher")


def read_options(pairs: Iterable[str]) -> dict[str, str]:
  """`KEY=VALUE` texts as a dict. Raises UserError on anything else."""
  options = {}
  for pair in pairs:
    name, equals, value = (part.strip() for part in pair.partition("="))
    if not equals or not name or not value:
      raise UserError(f"--launcher-option {pair!r}", "KEY=VALUE", "--launcher-option")
    options[name] = value
  return options


def check_names(options: Collection[str], names: Collection[str], *, launcher: str) -> None:
  """Raises UserError on an option that the launcher does not have."""
  for name in options:
    if name not in names:
      expected = f"one of {', '.join(sorted(names))}" if names else "none"
      raise UserError(
        f"--launcher-option {name}{did_you_mean(name, names)}", f"{expected} ({launcher})", "--launcher-option"
      )


def open_engine(launcher: str, options: Mapping[str, str], *, sweep_dir: Path, workers: int, report: Report) -> Engine:
  """The engine of a launcher, whose packages are imported only now.

  workers: packs at once; 0: as many as the engine has room for (local: needs a number).
  Raises UserError where its extra is missing, on unknown options, and on resources that nothing offers.
  """
  if launcher == "slurm":
    from ilya_jax.scaling.launch_slurm import open_slurm

    return open_slurm(options, sweep_dir=sweep_dir, workers=workers, report=report)
  if launcher == "ray":
    from ilya_jax.scaling.launch_ray import open_ray

    return open_ray(options, workers=workers)
  from ilya_jax.scaling.launch_local import LocalPool

  check_names(options, (), launcher="local")
  return LocalPool(workers)


def run_packs(packs: Sequence[Pack], sweep_dir: Path, *, engine: Engine, report: Report) -> Outcome:
  """Runs every cell that is not finished, pack by pack, trunks before their branches, the costliest first.

  A failed or killed cell does not stop the others. Closes the engine. Raises Preempted after a signal, once everything
  that ran saved its state.
  """
  cells = [cell for pack in packs for cell in pack]
  by_id = {cell.id: cell for cell in cells}
  done, failed = _ended(cells, sweep_dir)
  waiting = _unfinished(packs, done, failed)
  progress = _Progress(cells, done=done, report=report)
  retries, notes = _Retries(sweep_dir, report), _Notes(cells, sweep_dir, report)
  with Stop().listening() as stop, contextlib.closing(engine):
    for pack in engine.adopt(waiting):
      waiting.remove(pack)
    while waiting or engine.busy:
      waiting = _unfinished(waiting, done, failed)
      for place, program in engine.free().items():
        pack_next = _next(waiting, done=done, failed=failed, program=program)
        if pack_next is None or stop.signum is not None:
          break
        waiting.remove(pack_next)
        jobs = [_job(cell, sweep_dir, trunk=by_id.get(cell.trunk), failed=failed) for cell in pack_next]
        engine.start(place, pack_next, jobs)
      if not engine.busy:
        break
      for pack, endings in engine.finished(timeout_s=0.5):
        notes.pass_on(pack)
        if stop.signum is None and retries.wanted(pack, endings):
          waiting.append(pack)
          continue
        for cell, (state, line) in zip(pack, endings, strict=True):
          if cell.id in failed or cell.id in done:
            continue
          if state == "done":
            done.append(cell.id)
          elif state == "failed" or stop.signum is None:  # killed while stopping: the next start goes on with it
            failed[cell.id] = line
            _mark_failed(sweep_dir, cell, line)
            report(f"cell {cell.id} failed: {line}")
      progress.show(done=done, failed=failed, running=engine.running(), sweep_dir=sweep_dir)
      if stop.signum is not None:
        engine.stop()
  if stop.signum is not None:
    raise Preempted(stop.signum)
  return Outcome(done, failed)


class _Notes:
  """Passes on what runs noted in their status.json, as that a checkpoint was damaged; what stood there before is known."""

  def __init__(self, cells: Sequence[Cell], sweep_dir: Path, report: Report):
    self._sweep_dir, self._report = sweep_dir, report
    self._known = {cell.id: len(self._of(cell)) for cell in cells}

  def _of(self, cell: Cell) -> list[str]:
    return cell_state(self._sweep_dir, cell).get("notes", [])

  def pass_on(self, pack: Pack) -> None:
    """Reports the notes of a pack that were not reported yet."""
    for cell in pack:
      notes = self._of(cell)
      for line in notes[self._known[cell.id] :]:
        self._report(f"cell {cell.id}: {line}")
      self._known[cell.id] = len(notes)


class _Retries:
  """Decides whether a pack that was killed or stopped runs again.

  One that is killed, or stopped before it came further than at the last time, may be so a few times; one that is
  preempted after some progress, as often as it is.
  """

  def __init__(self, sweep_dir: Path, report: Report):
    self._sweep_dir, self._report = sweep_dir, report
    self._counts: dict[str, int] = {}
    self._steps: dict[str, int] = {}

  def wanted(self, pack: Pack, endings: Sequence[Ending]) -> bool:
    """Whether it shall run again; says so."""
    first = pack[0].id
    ended = [(state, line) for state, line in endings if state in ("killed", "preempted")]
    if not ended:
      return False
    state, line = ended[0]
    step = max(cell_state(self._sweep_dir, cell).get("step", 0) for cell in pack)
    came_further, self._steps[first] = step > self._steps.get(first, 0), step
    if state == "killed" or not came_further:
      self._counts[first] = self._counts.get(first, 0) + 1
      if self._counts[first] > KILLS_ALLOWED:
        return False
    how = f"was killed ({line})" if state == "killed" else f"was stopped by signal {line} at step {step}"
    self._report(f"cell {first} {how}; it goes on from its last checkpoint")
    return True


def run_in_turn(packs: Sequence[Sequence[Cell]], sweep_dir: Path, *, report: Report, wait_s: float = 0.0) -> Outcome:
  """Runs every cell that is not finished in this process, which is one of several that train each of them together.

  All of the processes call it, and take the packs in the same order. A failed cell does not stop the others.
  wait_s: how long a process that is none of them may go on holding a cell's folder. Raises Preempted after a signal to
  any of the processes, with the state saved.
  """
  cells = [cell for pack in packs for cell in pack]
  by_id = {cell.id: cell for cell in cells}
  done, failed = distributed.first_tells(lambda: _ended(cells, sweep_dir))
  progress, program = _Progress(cells, done=done, report=report), ""
  stop = Stop()
  held: list[Sequence[Cell]] = []  # by another process, when they were tried
  with stop.listening():
    while waiting := _unfinished(packs, done, failed):
      others = [pack for pack in waiting if pack not in held]
      pack = _next(others or waiting, done=done, failed=failed, program=program)
      assert pack is not None  # a trunk that is not done can run
      program = pack[0].program
      jobs = [_job(cell, sweep_dir, trunk=by_id.get(cell.trunk), failed=failed) for cell in pack]
      endings = run_jobs(jobs, stop, wait_s=0.0 if others else wait_s)
      if wait_s and others and any(_IN_USE in line for _, line in endings):
        held.append(pack)
        continue
      for cell, (state, line) in zip(pack, endings, strict=True):
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


def use_cores(count: int) -> None:
  """Makes this process compute as one that has `count` cores, which decides how a run is rounded: one device and thread each.

  Leaves accelerators alone. To be called before any computation.
  """
  prepare_devices()
  if on_cpu():
    os.environ["PJRT_NPROC"] = str(count)  # XLA's threads; else as many as the machine lets the process use
    jax.config.update("jax_num_cpu_devices", count)
  use_compilation_cache()


def run_jobs(jobs: Sequence[dict[str, Any]], stop: Stop, *, wait_s: float) -> list[Ending]:
  """Trains a pack; how each of its cells ended: done, failed, or preempted.

  wait_s: how long another process may go on holding a cell's folder.
  """
  logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs what it also raises
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
      if _IN_USE not in str(error) or time.monotonic() > deadline:
        return [("failed", str(error))] * len(jobs)
      time.sleep(0.5)
    except RunFailed as error:
      return [("failed", str(error))] * len(jobs)
    except Exception as error:  # a bug in one cell must not end the others
      if distributed.several():  # which may wait for this process, and cannot be told
        raise
      return [("failed", f"{type(error).__name__}: {error}".splitlines()[0])] * len(jobs)


class _Progress:
  """Cells done, running and failed, and the time left by FLOP, as one line now and then."""

  def __init__(self, cells: Sequence[Cell], *, done: Sequence[str], report: Report, every_s: float = 10.0):
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
