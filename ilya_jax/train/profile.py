"""A trace of some steps, which TensorBoard and Perfetto show: `config.profile=START:STOP` writes it to WORKDIR/profile."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from ilya_jax.config import profile_range
from ilya_jax.parallel.distributed import several

PyTree = Any


class Trace:
  """Runs from the first dispatch that begins at or after `steps.start` to the end of the one that reaches `steps.stop`."""

  def __init__(self, steps: range, folder: Path):
    self._steps, self._folder, self._running = steps, folder, False
    self._wanted: bool | None = None  # whether the trace is still to be made; not known before the first dispatch

  def before(self, step: int, state: PyTree) -> None:
    """To be called before the dispatch that begins at `step`; the device ends earlier work on `state` first."""
    if self._wanted is None:
      self._wanted = step < self._steps.stop  # not where the run goes on after them
    if self._wanted and not self._running and step >= self._steps.start:
      jax.block_until_ready(state)
      jax.profiler.start_trace(self._folder)
      self._running, self._wanted = True, False

  def after(self, step: int, state: PyTree) -> None:
    """To be called after the dispatch that ends at `step`; the last one is waited for."""
    if self._running and step >= self._steps.stop:
      jax.block_until_ready(state)
      self.finish()

  def finish(self) -> None:
    """Writes the trace, where one is running."""
    if self._running:
      self._running = False
      jax.profiler.stop_trace()


@contextmanager
def tracing(config: ConfigDict, workdir: Path) -> Iterator[Trace]:
  """The trace that the config asks for, written at the latest as this block ends. A dispatch is traced whole or not at all.

  Each of several processes has a folder of its own, PROFILE/INDEX, since those of one machine would write the same file.
  """
  folder = workdir / "profile"
  trace = Trace(profile_range(config), folder / str(jax.process_index()) if several() else folder)
  try:
    yield trace
  finally:
    trace.finish()
