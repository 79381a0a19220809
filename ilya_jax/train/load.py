"""A finished run, read back to be evaluated, sampled from or looked at."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from ilya_jax.config import set_field, validate, with_defaults
from ilya_jax.errors import UserError
from ilya_jax.task import Source, Task
from ilya_jax.train.checkpoint import Checkpoints, held_directory, load_checkpoint
from ilya_jax.train.evaluate import evaluate
from ilya_jax.train.loop import prepare
from ilya_jax.train.metrics import read_json
from ilya_jax.train.programs import Programs, make_programs
from ilya_jax.train.state import TrainState

PyTree = Any


class Loaded(NamedTuple):
  """A run read back on one device: its config, task, source, and the state of its newest good checkpoint."""

  config: ConfigDict
  task: Task
  source: Source
  state: TrainState
  programs: Programs

  @property
  def params(self) -> PyTree:
    """The parameters."""
    return self.state.params

  @property
  def model_state(self) -> PyTree:
    """Batch statistics and the like."""
    return self.state.model_state

  def evaluate(self, split: str) -> dict[str, float]:
    """The means of the task's metrics on a held-out set of the source."""
    return evaluate(self.programs, self.state, source=self.source, split=split)


def load_run(workdir: Path, overrides: Mapping[str, Any] | None = None) -> Loaded:
  """The run in `workdir`, with fields of its config changed, as the data it is to be evaluated on.

  Raises UserError where there is no run, no good checkpoint, or none of the shape that the changed config asks for.
  """
  record = read_json(workdir / "config.json")
  if record is None:
    raise UserError(f"no run in {workdir}", "the workdir of a run", "--workdir")
  config = with_defaults(ConfigDict(record["config"]))
  for field, value in (overrides or {}).items():
    set_field(config, field, value)
  config.mesh.update({"data": 1, "fsdp": 1, "tensor": 1, "stage": 1})
  config.lock()
  validate(config)
  task, source, _ = prepare(config)
  programs = make_programs(config, task=task, source=source, devices=jax.devices()[:1])
  held = Checkpoints(held_directory(workdir), keep=1)
  for step in reversed(held.steps()):
    state, problem = load_checkpoint(held.directory, step, abstract=programs.abstract_state)
    if problem is None:
      return Loaded(config, task, source, state, programs)
  raise UserError(f"{workdir} has no good checkpoint of this shape", "a run that saved its state", "--workdir")
