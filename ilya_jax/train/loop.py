"""THE training loop: shapes, shardings, init or restore, then step, log, evaluate, save until done.

Every trainable model goes through `train`; nothing in it knows which one. A batch's life: DESIGN.md.
"""

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ilya_jax.config import run_id
from ilya_jax.errors import RunFailed, UserError
from ilya_jax.task import Source, Task
from ilya_jax.train import workdir as folder
from ilya_jax.train.checkpoint import Checkpoints, load_checkpoint
from ilya_jax.train.evaluate import evaluate
from ilya_jax.train.metrics import EventFile, MetricsFile, Progress, read_json, read_rows, say, write_json
from ilya_jax.train.optimizer import branch_step, learning_rates, make_schedule
from ilya_jax.train.programs import Programs, find_task, make_programs
from ilya_jax.train.state import TrainState, bytes_per_device, params_digest

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
_STATUS_EVERY_S = 2.0


class Preempted(Exception):
  """A signal stopped the run after its state was saved; `signum` is the signal's number."""

  def __init__(self, signum: int):
    super().__init__(f"stopped by {signal.Signals(signum).name}; state saved, run the same command to go on")
    self.signum = signum


class Trunk(NamedTuple):
  """A constant-rate run whose state a cooldown branch starts from: the branch equals a run from the start, for less."""

  workdir: Path
  run: str  # its id


class Result(NamedTuple):
  """A finished run: its id, last step, means on the held-out sets, and the digest of its final parameters."""

  run: str
  step: int
  evaluations: dict[str, dict[str, float]]
  params_digest: str


class Stop:
  """Remembers the signal that asked the process to stop."""

  signum: int | None = None

  @contextmanager
  def listening(self) -> Iterator["Stop"]:
    """Catches SIGTERM, SIGINT, SIGUSR1 and SIGUSR2 in this block."""

    def remember(signum, frame):
      self.signum = signum

    before = {signum: signal.signal(signum, remember) for signum in SIGNALS}
    try:
      yield self
    finally:
      for signum, handler in before.items():
        signal.signal(signum, handler)


def prepare(config: ConfigDict) -> tuple[Task, Source, str]:
  """The task, the source and the run's id of a config. Raises UserError on what does not fit together."""
  module = find_task(config)
  source = module.make_source(config)
  task = module.make_task(config, source)
  return task, source, run_id(config, source.info["fingerprint"])


def train(config: ConfigDict, workdir: Path, *, trunk: Trunk | None = None, stop: Stop | None = None) -> Result:
  """Trains the run that `config` describes in `workdir`, going on from its newest checkpoint where it holds one.

  Raises UserError on bad input (nothing is written), RunFailed where the loss is not finite or the disk is full, and
  Preempted after a signal, with the state saved.
  """
  workdir = workdir.absolute()
  task, source, run = prepare(config)
  programs = make_programs(config, task=task, source=source)
  schedule = make_schedule(config.schedule, learning_rate=config.optim.learning_rate, steps=config.steps)
  learning_rates(schedule, first=0, last=1)
  folder.check_continues(workdir, config, run=run)  # before the lock: what is refused is left as it was
  with folder.locked(workdir):
    folder.check_continues(workdir, config, run=run)
    finished = _finished(workdir, run=run)
    if finished is not None:
      return finished
    checkpoints = Checkpoints(
      workdir / "checkpoints", keep=config.checkpoint.keep, keep_steps=config.checkpoint.keep_steps
    )
    checkpoints.remove_unfinished()
    state, inherited = _start(config, programs, checkpoints=checkpoints, trunk=trunk)
    write_json(workdir / "config.json", folder.config_record(config, run=run, data=dict(source.info)))
    record = _Record(workdir, config=config, run=run, task=task, step=int(state.step), inherited=inherited)
    checkpoints.remember({row["step"]: row["loss"] for row in record.rows if row["split"] == "eval"})
    try:
      with (stop or Stop()).listening() as stop:
        state, evaluations = _run(config, state, programs=programs, source=source, schedule=schedule,
                                  checkpoints=checkpoints, record=record, stop=stop)  # fmt: skip
      final = params_digest(state.params)
      record.status(
        "done", evaluations=evaluations, params_digest=final, state_bytes_per_device=bytes_per_device(state)
      )
    except Preempted:
      record.status("preempted")
      raise
    except (RunFailed, OSError) as error:
      record.status("failed", error=str(error))
      raise RunFailed(f"{error}; see {workdir}") from error
    finally:
      record.close()
  return Result(run, config.steps, evaluations, final)


def _run(config, state: TrainState, *, programs: Programs, source: Source, schedule, checkpoints: Checkpoints,
         record: "_Record", stop: Stop) -> tuple[TrainState, dict[str, dict[str, float]]]:  # fmt: skip
  """Step, log, evaluate, save, from the state's step to the last."""
  step, evaluations = int(state.step), {}
  rates = learning_rates(schedule, first=0, last=config.steps)
  pending: Callable[[], None] | None = None
  saved = time.monotonic()
  while step < config.steps:
    end = next_boundary(config, step)
    batches, chunk_rates = next_chunk(config, source, programs, rates, step=step, end=end)
    state, metrics = programs.steps(state, batches, chunk_rates, np.int32(end - step))
    if pending is not None:
      pending()  # one chunk late, so that the device never waits for the host
    pending = _logger(record, metrics, step=step, end=end)
    step = end
    last = step == config.steps
    evaluate_now = last or (config.eval.every and step % config.eval.every == 0)
    save_now = (
      last
      or stop.signum is not None
      or step in config.checkpoint.keep_steps
      or (config.checkpoint.every and step % config.checkpoint.every == 0)
      or (config.checkpoint.every_s and time.monotonic() - saved > config.checkpoint.every_s)
    )
    if evaluate_now or save_now:
      pending()
      pending, loss = None, None
      if evaluate_now:
        evaluations = {split: evaluate(programs, state, source=source, split=split) for split in source.eval_batches}
        loss = record.evaluated(step, evaluations)
      if save_now:
        checkpoints.save(step, state, loss=loss)
        saved = time.monotonic()
    if stop.signum is not None and not last:
      checkpoints.wait()
      raise Preempted(stop.signum)
  checkpoints.wait()
  if not evaluations:  # killed between the last save and the end: the evaluation stands in the log
    evaluations = record.logged_evaluations(step)
  return state, evaluations


def next_boundary(config: ConfigDict, step: int) -> int:
  """Where the chunk that begins at `step` ends: at absolute steps, whatever the step a run was resumed at."""
  strides = (config.execution.steps_per_dispatch, config.eval.every, config.checkpoint.every)
  ends = [(step // stride + 1) * stride for stride in strides if stride]
  ends += [kept for kept in config.checkpoint.keep_steps if kept > step]
  return min(*ends, config.steps)


def next_chunk(
  config, source: Source, programs: Programs, rates: np.ndarray, *, step: int, end: int
) -> tuple[Any, np.ndarray]:
  """The batches (none for a traced source) and rates of steps step .. end-1, padded to the chunk's capacity."""
  capacity = config.execution.steps_per_dispatch
  chunk_rates = np.zeros(capacity, np.float32)
  chunk_rates[: end - step] = rates[step:end]
  if source.traced:
    return None, chunk_rates
  drawn = [source.batch(index, split="train") for index in range(step, end)]
  drawn += [drawn[-1]] * (capacity - len(drawn))
  batches = jax.tree.map(lambda *leaves: np.stack(leaves), *drawn)
  return jax.device_put(batches, programs.batches_sharding), chunk_rates


def _logger(record: "_Record", metrics, *, step: int, end: int) -> Callable[[], None]:
  """What reads the metrics of a chunk, once they are there."""

  def log():
    record.trained(step, end, jax.device_get(metrics))

  return log


def _start(
  config, programs: Programs, *, checkpoints: Checkpoints, trunk: Trunk | None
) -> tuple[TrainState, list[dict]]:
  """The state to go on from, and the metric rows that come with it: own checkpoint, trunk, other run, or afresh."""
  abstract = programs.abstract_state
  restored = checkpoints.restore(abstract, say=say)
  if restored is not None:
    return restored[1], []
  if trunk is not None:
    step = branch_step(config.schedule, steps=config.steps)
    state, problem = load_checkpoint(trunk.workdir / "checkpoints", step, abstract=abstract)
    if problem is not None:
      raise RunFailed(f"the trunk {trunk.run} has no good checkpoint of step {step} ({problem})")
    rows = read_rows(trunk.workdir / "metrics.jsonl")
    kept = [
      row for row in rows if row["split"] == "train" and row["step"] <= step and row["step"] % config.log_every == 0
    ]
    return state, kept
  state = programs.init(jnp.uint32(config.seed))
  if config.init_from:
    state = _warm_start(state, abstract, other=Path(config.init_from))
  return state, []


def _warm_start(state: TrainState, abstract: TrainState, *, other: Path) -> TrainState:
  """`state` with the parameters and model state of the newest checkpoint of another run's workdir."""
  held = Checkpoints(other / "checkpoints", keep=1)
  for step in reversed(held.steps()):
    loaded, problem = load_checkpoint(held.directory, step, abstract=abstract)
    if problem is None:
      return state._replace(params=loaded.params, model_state=loaded.model_state)
  raise UserError(
    f"{other} has no good checkpoint of this shape", "the workdir of a run of the same model", "--config.init_from"
  )


def _finished(workdir: Path, *, run: str) -> Result | None:
  """The result of a run that is done already."""
  status, record = read_json(workdir / "status.json"), read_json(workdir / "config.json")
  if status is None or record is None or status.get("state") != "done" or record.get("id") != run:
    return None
  return Result(run, status["step"], status["evaluations"], status["params_digest"])


class _Record:
  """The files of a run, written as it goes."""

  def __init__(self, workdir: Path, *, config: ConfigDict, run: str, task: Task, step: int, inherited: list[dict]):
    self._workdir, self._config, self._run, self._counts = workdir, config, run, task.counts
    self._metrics = MetricsFile(workdir / "metrics.jsonl", step=step, inherited=inherited)
    self._events = EventFile(workdir / "tensorboard", step=step) if config.execution.tensorboard else None
    self._progress = Progress(
      total=config.steps, done=step, unit=self._counts.unit, units_per_step=self._counts.units_per_step
    )
    self._step, self._loss, self._first = step, math.nan, step
    previous = read_json(workdir / "status.json") or {}
    self._wall_before = previous.get("wall_s", 0.0)
    self._began, self._written = time.monotonic(), -math.inf
    self._events_from(inherited)
    self.status("running")

  @property
  def rows(self) -> list[dict]:
    """The rows of earlier sessions."""
    return self._metrics.rows

  def logged_evaluations(self, step: int) -> dict[str, dict[str, float]]:
    """The evaluations at `step` that an earlier session logged."""
    costs = {"step", "split", "set", self._counts.unit, "flops", "wall_s"}
    found = [row for row in self.rows if row["split"] == "eval" and row["step"] == step]
    return {row["set"]: {name: value for name, value in row.items() if name not in costs} for row in found}

  def _events_from(self, rows: list[dict]) -> None:
    if self._events is not None and rows:
      self._events.write(rows)

  def _wall(self) -> float:
    return self._wall_before + time.monotonic() - self._began

  def _row(self, step: int, split: str, values: dict[str, float], **more: Any) -> dict[str, Any]:
    units = step * self._counts.units_per_step
    cost = {self._counts.unit: units, "flops": units * self._counts.flops_per_unit}
    return {"step": step, "split": split, **more, **cost, **values, "wall_s": round(self._wall(), 3)}

  def _write(self, rows: list[dict[str, Any]]) -> None:
    self._metrics.write(rows)
    if self._events is not None and rows:
      self._events.write(rows)

  def trained(self, first: int, end: int, metrics: dict[str, Any]) -> None:
    """Logs steps first+1 .. end. Raises RunFailed at the first loss that is not finite."""
    count = end - first
    sums = {name: np.asarray(pair, np.float64)[:, :count] for name, pair in metrics.items()}  # [2, steps]
    means = {name: pair[0] / pair[1] for name, pair in sums.items()}
    rows: list[dict[str, Any]] = []
    for index in range(count):
      step = first + index + 1
      if not math.isfinite(means["loss"][index]):
        self._write(rows)
        raise RunFailed(f"loss is {means['loss'][index]} at step {step}")
      if step % self._config.log_every == 0 or step == self._config.steps:
        rows.append(self._row(step, "train", {name: float(values[index]) for name, values in means.items()}))
    self._write(rows)
    self._step, self._loss = end, float(means["loss"][-1])
    self._progress.show(step=end, loss=self._loss, last=end == self._config.steps)
    if time.monotonic() - self._written > _STATUS_EVERY_S:
      self.status("running")

  def evaluated(self, step: int, evaluations: dict[str, dict[str, float]]) -> float | None:
    """Logs an evaluation; returns the loss on the first set. Raises RunFailed where it is not finite."""
    self._write([self._row(step, "eval", means, set=split) for split, means in evaluations.items()])
    loss = next((means["loss"] for means in evaluations.values()), None)
    if loss is not None and not math.isfinite(loss):
      raise RunFailed(f"held-out loss is {loss} at step {step}")
    return loss

  def status(self, state: str, **more: Any) -> None:
    """Writes status.json."""
    self._written = time.monotonic()
    wall = self._wall()
    done = self._step - self._first
    left = (self._config.steps - self._step) * (wall - self._wall_before) / done if done else None
    loss = self._loss if math.isfinite(self._loss) else None
    value = {"id": self._run, "state": state, "step": self._step, "steps": self._config.steps, "loss": loss,
             "wall_s": round(wall, 3), "left_s": left, "updated": time.time(), **more}  # fmt: skip
    write_json(self._workdir / "status.json", value)

  def close(self) -> None:
    """Closes the files."""
    self._metrics.close()
    if self._events is not None:
      self._events.close()
