"""Random parameters of a task, and what a pair (total, weight) of a metric says."""

import jax
import numpy as np


def random_params(task, batch):
  """Parameters of the task's shapes, not as it would draw them."""
  shapes = jax.eval_shape(task.init, jax.random.key(0), batch)["params"]
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda leaf: rng.uniform(-0.5, 0.5, leaf.shape).astype(np.float32), shapes)


def ratio(pair):
  """The mean that a metric stands for."""
  return float(pair[0]) / float(pair[1])
