"""Evaluation on fixed held-out sets: every metric's mean, and the standard error of the loss over batches."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ilya_jax.parallel.mesh import BATCH_AXES, batch_sharding, replicated
from ilya_jax.task import Source
from ilya_jax.train.programs import Programs
from ilya_jax.train.state import TrainState

PyTree = Any


def evaluate(programs: Programs, state: TrainState, *, source: Source, split: str) -> dict[str, float]:
  """The means of the task's metrics over the whole held-out set `split`, and `loss_se`.

  `loss_se` is the standard error of the mean loss over the set's batches, in the loss's unit (absent with a single batch).
  """
  put = _placer(programs)
  totals: dict[str, list[Any]] = {}
  for index in range(source.eval_batches[split]):
    metrics = programs.evaluate(state.params, state.model_state, put(source.batch(index, split=split)))
    for name, pair in metrics.items():
      totals.setdefault(name, []).append(pair)
  means = {}
  for name, pairs in jax.device_get(totals).items():
    sums = np.asarray(pairs, np.float64)  # [batches, 2]
    means[name] = float(sums[:, 0].sum() / sums[:, 1].sum())
    if name == "loss":
      each = sums[:, 0] / sums[:, 1]
      if len(each) > 1:
        means["loss_se"] = float(each.std(ddof=1) / np.sqrt(len(each)))
  return means


def _placer(programs: Programs) -> Callable[[PyTree], PyTree]:
  """Puts a batch on the mesh: split where its rows divide over the data shards, whole on every device otherwise."""
  shards = int(np.prod([programs.mesh.shape[axis] for axis in BATCH_AXES]))

  def put(batch):
    rows = jax.tree.leaves(batch)[0].shape[0]
    return jax.device_put(batch, batch_sharding(programs.mesh) if rows % shards == 0 else replicated(programs.mesh))

  return put
