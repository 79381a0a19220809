"""What the commands `sweep`, `status` and `fit` do."""

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from ilya_jax.errors import RunFailed, UserError
from ilya_jax.parallel import distributed
from ilya_jax.scaling import launch
from ilya_jax.scaling import sweep as sweeps
from ilya_jax.scaling.laws import VARIABLES
from ilya_jax.scaling.rows import Options
from ilya_jax.train.metrics import clock, read_json, write_json
from ilya_jax.train.workdir import locked


def _say(line: str) -> None:
  print(line, file=sys.stderr, flush=True)


def sweep(
  spec: str, sweep_dir: Path, *, overrides: Mapping[str, Any], only: str | None, workers: int, pack: int, dry_run: bool,
  launcher: str = "local", launcher_options: Sequence[str] = (),
) -> int:  # fmt: skip
  """Runs every cell not yet finished, then fits and writes the report; returns the exit code.

  Several processes train each cell together, one cell after another; the first of them writes.
  """
  if pack < 1:
    raise UserError(f"--pack {pack}", "a number of cells, 1 or more", "--pack")
  if workers < 0:
    raise UserError(f"--workers {workers}", "a number of processes, or 0 to choose", "--workers")
  launch.check_launcher(launcher)
  options = launch.read_options(launcher_options)
  if launcher != "local" and distributed.several():
    raise UserError(f"--launcher {launcher} in one of several processes", "one process alone", "--launcher")
  sweep_dir = sweep_dir.absolute()
  plan = sweeps.load_sweep(spec, overrides=overrides)
  cells = sweeps.select(plan.cells, only) if only else plan.cells
  at_once = workers  # packs that Slurm or Ray may run side by side; 0: as many as there is room for
  workers = workers or launch.default_workers()
  if dry_run:
    from ilya_jax.scaling.estimate import print_plan

    if distributed.is_first():
      print_plan(plan, cells, sweep_dir=sweep_dir, workers=workers)
    return 0
  with ExitStack() as locks:
    distributed.first_does(lambda: locks.enter_context(locked(sweep_dir)))
    record = distributed.first_tells(lambda: sweeps.check_sweep_dir(sweep_dir, plan))
    # The number of workers decides the threads of a cell, and so its rounding, and so does a pack: a sweep keeps those
    # it began with.
    workers = record["workers"] if record is not None else workers
    packs = sweeps.make_packs(plan.cells, size=pack, kept=record["packs"] if record is not None else ())
    execution = sweeps.Execution(launcher, sweeps.kept_options(record, launcher) | options, workers)
    engine = None
    if not distributed.several():  # before anything is written: it may refuse
      room = workers if launcher == "local" else at_once
      engine = launch.open_engine(launcher, execution.options, sweep_dir=sweep_dir, workers=room, report=_say)
    distributed.first_does(lambda: sweeps.write_sweep_json(sweep_dir, plan, execution=execution, packs=packs))
    needed = sweeps.needed(packs, cells)
    began = time.monotonic()
    if engine is None:
      outcome = launch.run_in_turn(needed, sweep_dir, report=_say if distributed.is_first() else lambda line: None)
    else:
      outcome = launch.run_packs(needed, sweep_dir, engine=engine, report=_say)
    first = distributed.is_first()
    distributed.leave()
    if not first:
      return 1 if outcome.failed else 0
    run = sum(len(each) for each in needed)
    _say(f"{len(outcome.done)} of {run} cells done in {clock(time.monotonic() - began)}")
    _report(plan, sweep_dir, failed=outcome.failed, partial=only)
  if outcome.failed:
    cell, line = next(iter(outcome.failed.items()))
    raise RunFailed(
      f"{len(outcome.failed)} of {run} cells failed, first {cell}: {line}; see `ilya-jax status {sweep_dir}`"
    )
  return 0


def _report(plan: sweeps.Sweep, sweep_dir: Path, *, failed: Mapping[str, str], partial: str | None) -> None:
  """cells.csv, and the fits and the report where any cell of a fit is done."""
  measured = [cell for cell in plan.cells if sweeps.cell_state(sweep_dir, cell)["state"] == "done"]
  sweeps.write_cells_csv(sweep_dir, plan.cells)
  if any(cell.role == "fit" for cell in measured):
    from ilya_jax.scaling.report import report_sweep

    report_sweep(plan, sweep_dir, failed=failed, partial=partial)


def status(directory: Path, *, retry_failed: bool) -> int:
  """Prints how far a run or a sweep is; with `retry_failed` clears failures. Returns the exit code."""
  record, one = read_json(directory / "sweep.json"), read_json(directory / "status.json")
  if record is None and one is None:
    raise UserError(f"{directory} holds no run and no sweep", "the workdir of `train` or `sweep`", "DIR")
  if record is None:
    assert one is not None
    print(_line(one["id"], one))
    if retry_failed and one["state"] == "failed":
      write_json(directory / "status.json", {**one, "state": "preempted"})
      print("1 failure cleared")
    return 0
  states = {name: sweeps.cell_state(directory, name) for name in record["cells"]}
  by_state: dict[str, list[str]] = {}
  for name, state in states.items():
    by_state.setdefault(state["state"], []).append(name)
  print("  ".join(f"{len(names)} {state}" for state, names in sorted(by_state.items())) + f"  of {len(states)} cells")
  left = [states[name].get("left_s") for name in by_state.get("running", [])]
  known = [seconds for seconds in left if seconds is not None]
  if known:
    print(f"time left of the running cells: {clock(max(known))}")
  for kind in ("running", "preempted", "failed"):
    for name in by_state.get(kind, []):
      print(_line(name, states[name]))
  if retry_failed:
    for name in by_state.get("failed", []):
      write_json(sweeps.cell_folder(directory, name) / "status.json", {**states[name], "state": "waiting", "error": ""})
    print(f"{len(by_state.get('failed', []))} failures cleared; run the sweep again")
  return 0


def _line(name: str, state: dict[str, Any]) -> str:
  where = f"step {state['step']}/{state['steps']}" if "steps" in state else ""
  where += f"  loss {state['loss']:.4f}" if state.get("loss") is not None else ""
  left = f"  left {clock(state['left_s'])}" if state.get("left_s") else ""
  return f"{name}  {state['state']}  {where}{left}  {state.get('error', '')}".rstrip()


def fit(arguments: Any) -> int:
  """Fits laws to tables or sweeps as the parsed arguments of `ilya-jax fit` say; returns the exit code."""
  from ilya_jax.scaling import budgets, critical_batch, isoflop
  from ilya_jax.scaling.curves import read_trainings
  from ilya_jax.scaling.fitting import fit_table
  from ilya_jax.scaling.report import report_fit
  from ilya_jax.scaling.table import drop_highest_losses, read_table

  formats = _formats(arguments.formats)
  if arguments.bootstrap < 0 or arguments.starts < 1:
    got = f"--bootstrap {arguments.bootstrap} --starts {arguments.starts}"
    raise UserError(got, "0 (none) or more resamples, 1 or more starts", "--bootstrap or --starts")
  table = read_table(arguments.inputs, columns=arguments.columns, units=arguments.units, where=arguments.where,
                     final_only=arguments.final_only, cluster=arguments.cluster)  # fmt: skip
  if arguments.drop_highest:
    table = drop_highest_losses(table, arguments.drop_highest)
  options = Options(
    form=arguments.form,
    objective=arguments.objective,
    delta=arguments.delta,
    hold_out=arguments.hold_out,
    bootstrap=arguments.bootstrap,
    seed=arguments.seed,
    starts=arguments.starts,
    predict=[_quantities(text, flag="--predict") for text in arguments.predict],
    target_compute=[_positive(value, flag="--target-compute") for value in arguments.target_compute],
    command=" ".join(["ilya-jax", *sys.argv[1:]]),
  )
  everything, targets = np.ones(table.n_rows, bool), _targets(arguments)
  if arguments.isoflop:
    budgets.find(table, everything)  # refused before the fits
  if arguments.critical_batch:
    critical_batch.find(table, everything, targets=targets)
  fitted = fit_table(table, options)
  if arguments.isoflop:
    trainings = read_trainings(arguments.inputs, table, fitted.part)
    fitted.result["isoflop"] = isoflop.of_fit(fitted, table, options=options, trainings=trainings)
  if arguments.critical_batch:
    found = critical_batch.of_fit(fitted, table, options=options, targets=targets, inputs=arguments.inputs)
    fitted.result["critical_batch"] = found
  report_fit(fitted, table, arguments.out, formats=formats)
  return 0


def _targets(arguments: Any) -> list[float]:
  """The losses of --batch-targets; raises UserError where they are no positive numbers or stand without --critical-batch."""
  text = arguments.batch_targets
  if text and not arguments.critical_batch:
    raise UserError(f"--batch-targets {text} without --critical-batch", "both or neither", "--critical-batch")
  return sorted({_positive(part, flag="--batch-targets") for part in text.split(",")}) if text else []


def _formats(text: str) -> list[str]:
  formats = [name.strip() for name in text.split(",") if name.strip()]
  if not formats or not set(formats) <= {"html", "json", "svg", "png"}:
    raise UserError(f"--formats {text}", "some of html, json, svg, png", "--formats")
  return formats


def _quantities(text: str, *, flag: str) -> dict[str, float]:
  """'N=1e9,D=2e10' as positive numbers; raises UserError on anything else."""
  found = {}
  for part in text.split(","):
    name, equals, value = (piece.strip() for piece in part.partition("="))
    if not equals or name not in VARIABLES:
      raise UserError(f"{flag} {text!r}", "N=…,D=… (or C, S, D_unique) as numbers", flag)
    found[name] = _positive(value, flag=flag)
  return found


def _positive(text: Any, *, flag: str) -> float:
  try:
    value = float(text)
  except ValueError:
    value = -1.0
  if not 0 < value < float("inf"):
    raise UserError(f"{flag} {text}", "positive numbers", flag)
  return value
