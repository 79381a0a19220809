"""THE training loop: shapes, shardings, init or restore, then step, log, evaluate, save until done.

Every trainable model goes through `train`; nothing in it knows which one. A batch's life: DESIGN.md.
"""

import functools
import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from ilya_jax.config import run_id
from ilya_jax.errors import Preempted, RunFailed, UserError
from ilya_jax.parallel.distributed import Agreement, first_does, is_first, own_rows, put, several
from ilya_jax.task import Source, Task
from ilya_jax.train import workdir as folder
from ilya_jax.train.checkpoint import Checkpoints, choose_directory, held_directory, load_checkpoint, wait_all
from ilya_jax.train.evaluate import evaluate
from ilya_jax.train.metrics import read_json, read_rows, say, write_json
from ilya_jax.train.optimizer import branch_step, learning_rates, make_schedule
from ilya_jax.train.profile import Trace, tracing
from ilya_jax.train.programs import Programs, find_task, make_programs, program_key, row
from ilya_jax.train.record import Record
from ilya_jax.train.state import TrainState, bytes_per_device, params_digest

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class Trunk(NamedTuple):
  """A constant-rate run whose state a cooldown branch starts from: the branch equals a run from the start, for less."""

  workdir: Path
  run: str  # its id


class Job(NamedTuple):
  """What to train, where, and from which trunk. passenger: a run of a pack that failed earlier and only keeps its place."""

  config: ConfigDict
  workdir: Path
  trunk: Trunk | None = None
  passenger: bool = False


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
  return (
    task,
    source,
    run_id(config, source.info["fingerprint"], microbatches=_microbatches_matter(config, task, source)),
  )


def _microbatches_matter(config: ConfigDict, task: Task, source: Source) -> bool:
  """Whether micro-batches change what is computed: batch statistics are taken over each, and dropout draws for each."""
  if config.pipeline.microbatches == 1:
    return False
  example = jax.eval_shape(lambda: source.batch(0, split="train"))
  variables = jax.eval_shape(task.init, jax.random.key(0), example)
  return len(variables) > 1 or config.model.get("dropout", 0.0) > 0


def train(config: ConfigDict, workdir: Path, *, trunk: Trunk | None = None, stop: Stop | None = None) -> Result:
  """Trains the run that `config` describes in `workdir`, going on from its newest checkpoint where it holds one.

  Raises UserError on bad input (nothing is written), RunFailed where the loss is not finite or the disk is full, and
  Preempted after a signal, with the state saved.
  """
  (outcome,) = train_pack([Job(config, workdir, trunk)], stop=stop)
  if isinstance(outcome, RunFailed):
    raise outcome
  return outcome


def train_pack(jobs: Sequence[Job], *, stop: Stop | None = None) -> list[Result | RunFailed]:
  """Trains runs of one shape side by side in one program, on a leading axis; one outcome each, in order.

  They go step by step together, so steps and checkpoints must agree (UserError otherwise); seeds, rates and
  trunks may differ. A run whose loss is not finite fails alone. In a pack of its own a run is rounded as it is without
  one; in a larger one it may differ in the last bits, so that a pack must be resumed as the same pack: runs that
  are finished by then, and passengers, keep their place. Raises as `train` does for what concerns all of them.
  """
  runs = [_Run(job) for job in jobs]
  first = runs[0]
  agreed = {json.dumps([run.program, *_pace(run.config)], default=list) for run in runs}
  if len(agreed) > 1:
    raise UserError(
      "a pack of runs with different shapes, steps or checkpoints", "runs of one shape and length", "pack"
    )
  programs = make_programs(first.config, task=first.task, source=first.source, pack=len(runs))
  with ExitStack() as locks:
    for run in runs:  # before the locks: what is refused is left as it was
      folder.check_continues(run.workdir, run.config, run=run.id)
    first_does(functools.partial(_lock, locks, runs))
    for run in runs:
      folder.check_continues(run.workdir, run.config, run=run.id)
      run.outcome = RunFailed("failed before") if run.job.passenger else _finished(run.workdir, run=run.id)
    active = [run for run in runs if run.outcome is None]
    if active:
      _train_together(runs, active, programs=programs, stop=stop or Stop())
  return [run.outcome for run in runs if run.outcome is not None]


def _lock(locks: ExitStack, runs: Sequence["_Run"]) -> None:
  for run in runs:
    locks.enter_context(folder.locked(run.workdir))


def _pace(config: ConfigDict) -> tuple[Any, ...]:
  """What decides when a run saves, evaluates and ends."""
  return config.steps, config.eval.every, config.checkpoint.every, config.checkpoint.keep_steps


def _train_together(runs: Sequence["_Run"], active: list["_Run"], *, programs: Programs, stop: Stop) -> None:
  """From the newest step that all active runs have saved to the last; leaves an outcome in each of them."""
  states = _start(active, programs)
  if len({int(state.step) for state, _ in states.values()}) > 1:
    raise RunFailed("the trunks of a pack end at different steps")
  for run, (state, inherited) in states.items():
    run.begin(int(state.step), inherited)
  # Passengers take any state of this shape. The states before joining are not held on to.
  state = programs.join([states[run if run in states else active[0]][0] for run in runs])
  step = active[0].record.step
  del states
  try:
    with stop.listening(), tracing(runs[0].config, runs[0].workdir) as trace:
      state = _run(runs, state, step=step, programs=programs, stop=stop, trace=trace)
    for run, final in zip(runs, programs.split(state), strict=True):
      if run.outcome is None:
        run.finish(final)
  except Preempted:
    for run in active:
      if run.outcome is None:
        run.record.status("preempted")
    raise
  except OSError as error:
    for run in active:
      run.fail(error)
    if several():  # which it may have happened to alone
      raise OSError(f"{error}; see {active[0].workdir}") from error
  finally:
    for run in active:
      with suppress(OSError) if isinstance(run.outcome, RunFailed) else nullcontext():  # a full disk
        run.record.close()


def _run(
  runs: Sequence["_Run"], state: TrainState, *, step: int, programs: Programs, stop: Stop, trace: Trace
) -> TrainState:
  """Step, log, evaluate, save, until the last step or until no run is left."""
  config = runs[0].config
  pending: Callable[[], None] | None = None
  saved, agreement = time.monotonic(), Agreement()
  rows = own_rows(programs.batch_sharding, (config.batch_size,), axis=0)
  while step < config.steps:
    end = next_boundary(config, step)
    drawn = [next_chunk(run.config, run.source, run.rates, step=step, end=end, rows=rows) for run in runs]
    batches, rates = drawn[0] if len(runs) == 1 else jax.tree.map(lambda *leaves: np.stack(leaves), *drawn)
    batches = put(batches, programs.batches_sharding, rows=config.batch_size, axis=1 + (len(runs) > 1))
    trace.before(step, state)
    state, metrics = programs.steps(state, batches, rates, np.int32(end - step))
    trace.after(end, state)
    if pending is not None:
      pending()  # one chunk late, so that the device never waits for the host
    pending = _logger(runs, metrics, step=step, end=end)
    step = end
    last = step == config.steps
    overdue = config.checkpoint.every_s and time.monotonic() - saved > config.checkpoint.every_s
    signum, save_due = agreement.largest(stop.signum or 0, int(overdue))
    evaluate_now = last or (config.eval.every and step % config.eval.every == 0)
    save_now = bool(
      last
      or signum
      or save_due
      or step in config.checkpoint.keep_steps
      or (config.checkpoint.every and step % config.checkpoint.every == 0)
    )
    if evaluate_now or save_now:
      pending()
      pending = None
      _evaluate_and_save(runs, state, step=step, programs=programs, evaluate_now=evaluate_now, save_now=save_now)
      saved = time.monotonic() if save_now else saved
    if signum and not last:
      wait_all([run.checkpoints for run in runs if run.outcome is None])
      raise Preempted(signum)
    if all(run.outcome is not None for run in runs):
      break
  wait_all([run.checkpoints for run in runs if run.outcome is None])
  return state


def _evaluate_and_save(
  runs: Sequence["_Run"], state: TrainState, *, step: int, programs: Programs, evaluate_now: bool, save_now: bool
) -> None:
  if save_now:
    wait_all([run.checkpoints for run in runs if run.outcome is None])  # all of the last save, before any of this one
  for run, own in zip(runs, programs.split(state), strict=True):
    if run.outcome is None:
      loss = run.evaluate(programs, own, step=step) if evaluate_now else None
      if save_now and run.outcome is None:
        run.checkpoints.save(step, own, loss=loss)


def next_boundary(config: ConfigDict, step: int) -> int:
  """Where the chunk that begins at `step` ends: at absolute steps, whatever the step a run was resumed at."""
  strides = (config.execution.steps_per_dispatch, config.eval.every, config.checkpoint.every)
  ends = [(step // stride + 1) * stride for stride in strides if stride]
  ends += [kept for kept in config.checkpoint.keep_steps if kept > step]
  return min(*ends, config.steps)


def next_chunk(
  config, source: Source, rates: np.ndarray, *, step: int, end: int, rows: slice = slice(None)
) -> tuple[Any, np.ndarray]:
  """The batches (none for a traced source) and rates of steps step .. end-1, padded to the chunk's capacity; on the host.

  rows: which rows of each batch to draw, those of this process.
  """
  capacity = config.execution.steps_per_dispatch
  chunk_rates = np.zeros(capacity, np.float32)
  chunk_rates[: end - step] = rates[step:end]
  if source.traced:
    return None, chunk_rates
  drawn = [source.batch(index, split="train", rows=rows) for index in range(step, end)]
  drawn += [drawn[-1]] * (capacity - len(drawn))
  return jax.tree.map(lambda *leaves: np.stack(leaves), *drawn), chunk_rates


def _logger(runs: Sequence["_Run"], metrics, *, step: int, end: int) -> Callable[[], None]:
  """What reads the metrics of a chunk, once they are there."""

  def log():
    values = jax.device_get(metrics)
    for index, run in enumerate(runs):
      if run.outcome is None:
        own = values if len(runs) == 1 else row(values, index)
        with run.failing_alone():
          run.record.trained(step, end, own)

  return log


class _Run:
  """A run of a pack while it is trained; `outcome` is None until it has ended."""

  record: Record

  def __init__(self, job: Job):
    self.job, self.config, self.workdir = job, job.config, job.workdir.absolute()
    self.task, self.source, self.id = prepare(job.config)
    self.program = program_key(job.config, self.source)
    schedule = make_schedule(job.config.schedule, learning_rate=job.config.optim.learning_rate, steps=job.config.steps)
    self.rates = learning_rates(schedule, first=0, last=job.config.steps)
    keep = {"keep": job.config.checkpoint.keep, "keep_steps": job.config.checkpoint.keep_steps}
    self.checkpoints = Checkpoints(choose_directory(self.workdir, job.config, run=self.id), **keep)
    self.evaluations: dict[str, dict[str, float]] = {}
    self.outcome: Result | RunFailed | None = None
    self.notes: list[str] = []

  def note(self, line: str) -> None:
    """Says a line, and keeps it for the run's status.json: the worker of a sweep has nobody to say it to."""
    say(line)
    self.notes.append(line)

  def begin(self, step: int, inherited: list[dict]) -> None:
    """Opens the run's files at `step`."""
    if is_first():
      elsewhere = str(self.checkpoints.directory) if self.config.checkpoint.dir else ""
      record = folder.config_record(self.config, run=self.id, data=dict(self.source.info), checkpoints=elsewhere)
      write_json(self.workdir / "config.json", record)
    self.record = Record(
      self.workdir, config=self.config, run=self.id, task=self.task, step=step, inherited=inherited, notes=self.notes
    )
    self.checkpoints.remember({row["step"]: row["loss"] for row in self.record.rows if row["split"] == "eval"})

  def evaluate(self, programs: Programs, state: TrainState, *, step: int) -> float | None:
    """Evaluates and logs; returns the loss on the first held-out set."""
    with self.failing_alone():
      sets = self.source.eval_batches
      self.evaluations = {split: evaluate(programs, state, source=self.source, split=split) for split in sets}
      return self.record.evaluated(step, self.evaluations)
    return None

  def finish(self, state: TrainState) -> None:
    """Marks the run done."""
    # Killed between the last save and the end, it finds its evaluation in the log.
    evaluations = self.evaluations or self.record.logged_evaluations(self.config.steps)
    digest = params_digest(state.params)
    self.record.status(
      "done", evaluations=evaluations, params_digest=digest, state_bytes_per_device=bytes_per_device(state)
    )
    self.outcome = Result(self.id, self.config.steps, evaluations, digest)

  @contextmanager
  def failing_alone(self) -> Iterator[None]:
    """Turns a RunFailed raised in this block into the run's outcome."""
    try:
      yield
    except RunFailed as error:
      self.fail(error)

  def fail(self, error: Exception) -> None:
    """Marks the run failed, unless it has ended."""
    if self.outcome is None:
      with suppress(OSError):  # where the disk is full, the file goes on saying what it said
        self.record.status("failed", error=str(error))
      self.outcome = RunFailed(f"{error}; see {self.workdir}")


def _start(runs: Sequence[_Run], programs: Programs) -> dict[_Run, tuple[TrainState, list[dict]]]:
  """State, and metric rows that come with it, of each run: of the newest checkpoint that all of them have, or afresh."""
  for run in runs:
    run.checkpoints.remove_unfinished()
  while True:
    found = {run: run.checkpoints.restore(programs.abstract_state, say=run.note) for run in runs}
    reached = {-1 if restored is None else restored[0] for restored in found.values()}
    if len(reached) == 1:
      break
    for run in runs:
      run.checkpoints.remove_after(min(reached))
  return {run: _begin(run, programs) if saved is None else (saved[1], []) for run, saved in found.items()}


def _begin(run: _Run, programs: Programs) -> tuple[TrainState, list[dict]]:
  """The state that a new run begins with, and the metric rows that come with it: its trunk's, another run's, or new."""
  config, abstract, trunk = run.config, programs.abstract_state, run.job.trunk
  if trunk is not None:
    step = branch_step(config.schedule, steps=config.steps)
    state, problem = load_checkpoint(held_directory(trunk.workdir), step, abstract=abstract)
    if problem is not None:
      raise RunFailed(f"the trunk {trunk.run} has no good checkpoint of step {step} ({problem})")
    rows = read_rows(trunk.workdir / "metrics.jsonl")
    kept = [
      row for row in rows if row["split"] == "train" and row["step"] <= step and row["step"] % config.log_every == 0
    ]
    return state, kept
  state = programs.init(np.uint32(config.seed))
  if config.init_from:
    state = _warm_start(state, abstract, other=Path(config.init_from))
  return state, []


def _warm_start(state: TrainState, abstract: TrainState, *, other: Path) -> TrainState:
  """`state` with the parameters and model state of the newest checkpoint of another run's workdir."""
  held = Checkpoints(held_directory(other), keep=1)
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
