"""Measures claims: one after another, or, at tiny scale, in two processes side by side."""

import multiprocessing
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import jax

from ilya_jax.claims import evidence
from ilya_jax.claims.claim import VERDICTS, Claim, Measured, Setting, plain
from ilya_jax.claims.readings import Reading, checkout, claims_of
from ilya_jax.claims.trainings import Jobs, Trained, train_all
from ilya_jax.errors import RunFailed, UserError
from ilya_jax.parallel.devices import on_cpu, prepare_devices, use_compilation_cache
from ilya_jax.scaling.drawing import image

_WITHOUT_OPTIMISATIONS = "jax_disable_most_optimizations"


class Attempt(NamedTuple):
  """What came of a claim: its record and files of its figures, or why it could not be measured here."""

  record: dict[str, Any] | None
  figures: Sequence[Path] = ()
  error: UserError | None = None


class Options(NamedTuple):
  """How claims are measured. seeds: None for a claim's own (one at tiny scale). folder: for runs and figures."""

  scale: str
  seeds: Sequence[int] | None
  folder: Path
  command: str


def measure_all(reading: Reading, claims: Sequence[Claim], options: Options) -> Iterator[tuple[Claim, Attempt]]:
  """Measures claims of a reading, in order.

  At tiny scale most of the time is spent tracing and compiling on one core, so where there are two, another process
  measures some of them.
  """
  with _compiling_for(options.scale):
    if options.scale == "tiny" and len(claims) > 1 and on_cpu() and len(os.sched_getaffinity(0)) > 1:
      yield from _side_by_side(reading, claims, options)
    else:
      yield from ((each, attempt(each, options)) for each in claims)


def attempt(claim: Claim, options: Options) -> Attempt:
  """Measures a claim; bad input, as a set that is not there, is an answer."""
  try:
    return Attempt(*measure(claim, **options._asdict()))
  except UserError as error:
    return Attempt(None, error=error)


def measure(
  claim: Claim, *, scale: str, seeds: Sequence[int] | None, folder: Path, command: str
) -> tuple[dict[str, Any], list[Path]]:
  """Measures a claim; its record and the files of its figures, in the folder. The arguments are those of `Options`."""
  own = () if claim.exact else tuple(seeds or (claim.seeds if scale != "tiny" else claim.seeds[:1]))
  began = time.monotonic()

  def say(line: str) -> None:
    print(f"{claim.id}: {line}", file=sys.stderr, flush=True)

  took: dict[Path, float] = {}  # runs, in seconds each

  def train(jobs: Jobs, **options: Any) -> dict[str, Trained]:
    runs = train_all(jobs, folder, apart=scale != "tiny", say=say, **options)
    took.update({run.workdir: run.seconds() for run in runs.values()})
    return runs

  measured = claim.measure(Setting(scale, own, folder, train, say))
  judged = claim.judge([plain(row) for row in measured.rows], scale)
  if judged.verdict not in VERDICTS:
    raise ValueError(f"{claim.id} judges {judged.verdict!r}, not one of {', '.join(VERDICTS)}")
  wall_s = time.monotonic() - began
  made = evidence.make_record(
    claim, measured, judged, scale=scale, seeds=own, wall_s=wall_s, runs_s=list(took.values()), command=command
  )
  return made, _keep_figures(measured, folder / "figures")


def _keep_figures(measured: Measured, folder: Path) -> list[Path]:
  files = []
  for name, figure in measured.figures.items():
    folder.mkdir(parents=True, exist_ok=True)
    files.append(folder / f"{name}.svg")
    files[-1].write_bytes(image(figure, kind="svg"))
  return files


def _side_by_side(reading: Reading, claims: Sequence[Claim], options: Options) -> Iterator[tuple[Claim, Attempt]]:
  waiting = deque(claims)
  attempts: dict[str, Future[Attempt]] = {each.id: Future() for each in claims}
  context = multiprocessing.get_context("spawn")
  ours, theirs = context.Pipe()
  process = context.Process(target=_serve, args=(theirs, reading, options), daemon=True)
  process.start()
  theirs.close()
  threading.Thread(target=_feed, args=(ours, waiting, attempts), daemon=True).start()
  told = 0
  try:
    while (each := _taken(waiting)) is not None:
      attempts[each.id].set_result(attempt(each, options))
      while told < len(claims) and attempts[claims[told].id].done():
        yield claims[told], attempts[claims[told].id].result()
        told += 1
    for each in claims[told:]:
      yield each, attempts[each.id].result()
  finally:
    process.kill()
    process.join()


def _taken(waiting: deque[Claim]) -> Claim | None:
  """The next claim, which nobody else gets; None where there is none."""
  try:
    return waiting.popleft()
  except IndexError:
    return None


def _feed(connection: Connection, waiting: deque[Claim], attempts: dict[str, Future[Attempt]]) -> None:
  """Hands claims to the other process, once it says that it is ready, and keeps its answers."""
  each = None
  try:
    connection.recv()
    while (each := _taken(waiting)) is not None:
      connection.send(each.id)
      answer = connection.recv()
      if isinstance(answer, Attempt):
        attempts[each.id].set_result(answer)
      else:
        attempts[each.id].set_exception(answer)
  except (EOFError, OSError):
    if each is not None:
      attempts[each.id].set_exception(RunFailed(f"the process that measured {each.id} died"))


def _serve(connection: Connection, reading: Reading, options: Options) -> None:
  """The other process: measures the claims whose ids it is sent, until the connection closes."""
  prepare_devices()
  use_compilation_cache()
  claims = {each.id: each for each in claims_of(reading, checkout())}
  connection.send("ready")
  while True:
    try:
      name = connection.recv()
    except (EOFError, OSError):
      return
    try:
      connection.send(attempt(claims[name], options))
    except Exception as error:
      connection.send(error)


@contextmanager
def _compiling_for(scale: str) -> Iterator[None]:
  """At tiny scale, here and in processes started meanwhile, XLA compiles without most of its optimisations.

  Programs run a few times there, and compiling them is most of the time (experiments/LOG.md): 14 to 41 % less of the CPU.
  JAX keeps one program per function and shapes, whatever the option, so what was compiled the other way is dropped.
  """
  variable = _WITHOUT_OPTIMISATIONS.upper()
  before = os.environ.get(variable), jax.config.read(_WITHOUT_OPTIMISATIONS)
  if scale == "tiny":
    os.environ[variable] = "true"
    _omit_optimisations(True)
  try:
    yield
  finally:
    _omit_optimisations(before[1])
    os.environ.pop(variable, None)
    if before[0] is not None:
      os.environ[variable] = before[0]


def _omit_optimisations(omit: bool) -> None:
  if jax.config.read(_WITHOUT_OPTIMISATIONS) != omit:
    jax.config.update(_WITHOUT_OPTIMISATIONS, omit)
    jax.clear_caches()
