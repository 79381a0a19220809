"""A finished run, read back to be evaluated, sampled from or looked at."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
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

  def scores(self, split: str) -> dict[str, float]:
    """What else the task says of a held-out set (`Task.scores`)."""
    if self.task.scores is None:
      return {}
    return dict(self.task.scores(self.params, self.model_state, self.source, split=split))


def load_run(workdir: Path, overrides: Mapping[str, Any] | None = None, *, average: int = 1) -> Loaded:
  """The run in `workdir`, with fields of its config changed, as the data it is to be evaluated on.

  average: how many checkpoints' parameters to average, the newest good ones (Vaswani et al. 2017, section 6.1: 5 or 20).
  Raises UserError where there is no run, no good checkpoint of the shape that the changed config asks for, or not so many.
  """
  if average < 1:
    raise UserError(f"--average {average}", "1 or more checkpoints", "--average")
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
  held, found = Checkpoints(held_directory(workdir), keep=1), list[TrainState]()
  for step in reversed(held.steps()):
    state, problem = load_checkpoint(held.directory, step, abstract=programs.abstract_state)
    if problem is None:
      found.append(state)
      if len(found) == average:
        return Loaded(config, task, source, _averaged(found), programs)
  if not found:
    raise UserError(f"{workdir} has no good checkpoint of this shape", "a run that saved its state", "--workdir")
  got = f"--average {average} in {workdir}, which has {len(found)} good checkpoints"
  raise UserError(got, "no more than there are (config.checkpoint.keep of the run)", "--average")


def _averaged(states: Sequence[TrainState]) -> TrainState:
  """The newest state (the first) with the mean of all states' parameters."""
  newest = states[0]
  if len(states) == 1:
    return newest

  def mean(*leaves):
    average = np.mean([np.asarray(leaf, np.float64) for leaf in leaves], axis=0)
    return jax.device_put(average.astype(leaves[0].dtype), leaves[0].sharding)

  return newest._replace(params=jax.tree.map(mean, *(state.params for state in states)))
