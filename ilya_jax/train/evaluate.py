"""Evaluation on fixed held-out sets: every metric's mean, and the standard error of the loss over batches."""

from typing import Any

import jax
import numpy as np

from ilya_jax.parallel.distributed import own_rows, put, several
from ilya_jax.parallel.mesh import BATCH_AXES, batch_sharding, replicated
from ilya_jax.task import Source
from ilya_jax.train.programs import Programs
from ilya_jax.train.state import TrainState

PyTree = Any


def evaluate(programs: Programs, state: TrainState, *, source: Source, split: str) -> dict[str, float]:
  """The means of the task's metrics over the whole held-out set `split`, and `loss_se`.

  `loss_se` is the standard error of the mean loss over the set's batches, in the loss's unit (absent with a single batch).
  """
  totals: dict[str, list[Any]] = {}
  for index in range(source.eval_batches[split]):
    metrics = programs.evaluate(state.params, state.model_state, _placed(programs, source, index, split=split))
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


def _placed(programs: Programs, source: Source, index: int, *, split: str) -> PyTree:
  """A batch on the mesh: split where its rows divide over the data shards, whole on every device otherwise."""
  batch = source.batch(index, split=split)
  rows = jax.tree.leaves(batch)[0].shape[0]
  shards = int(np.prod([programs.mesh.shape[axis] for axis in BATCH_AXES]))
  sharding = batch_sharding(programs.mesh) if rows % shards == 0 else replicated(programs.mesh)
  if several():
    own = own_rows(sharding, (rows,), axis=0)
    batch = jax.tree.map(lambda leaf: np.asarray(leaf)[own], batch)
  return put(batch, sharding, rows=rows)
