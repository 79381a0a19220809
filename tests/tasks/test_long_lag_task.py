"""The long-lag task: scores by hand, the nets of 1997 weight by weight, padding that changes nothing, bad fields."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ilya_jax.config import load_config
from ilya_jax.errors import UserError
from ilya_jax.models.recurrent_cells import CELLS
from ilya_jax.tasks import long_lag
from tests.tasks.scoring import random_params, ratio

CONFIG = Path(__file__).parents[2] / "configs" / "lstm.py"


def prepared(variant, **changes):
  config = load_config(f"{CONFIG}:{variant}", changes)
  source = long_lag.make_source(config)
  return config, source, long_lag.make_task(config, source)


def test_numbers_are_scored_by_squared_error_and_within_four_per_cent_of_their_interval():
  outputs, targets = jnp.array([[1.0], [0.5], [2.07], [1.2]]), jnp.array([[1.07], [0.6], [2.0], [1.2]])
  metrics = long_lag.score_linear(outputs, targets, span=2.0)
  assert ratio(metrics["loss"]) == pytest.approx((0.07**2 + 0.1**2 + 0.07**2) / 4, rel=1e-5)
  assert ratio(metrics["right"]) == 0.75
  metrics = long_lag.score_logistic(jnp.array([[0.0], [2.0]]), jnp.array([[0.53], [0.7]]), span=1.0)
  high = 1 / (1 + np.exp(-2))
  assert ratio(metrics["loss"]) == pytest.approx((0.03**2 + (high - 0.7) ** 2) / 4, rel=1e-5)
  assert ratio(metrics["right"]) == 0.5


def test_classes_are_scored_by_cross_entropy_or_by_every_logistic_unit():
  outputs, targets = jnp.array([[2.0, 0.0, -1.0], [0.0, 0.0, 3.0]]), jnp.array([0, 1], jnp.int32)
  metrics = long_lag.score_linear(outputs, targets, span=0.0)
  nll = [np.log(np.exp(row).sum()) - row[k] for row, k in zip(np.asarray(outputs), (0, 1), strict=True)]
  assert ratio(metrics["loss"]) == pytest.approx(np.mean(nll), rel=1e-5)
  assert ratio(metrics["right"]) == 0.5
  outputs = jnp.array([[1.0, -1.0, -1.0], [1.0, -1.0, -0.8]])  # 0.269 and 0.310 from the goal
  metrics = long_lag.score_logistic(outputs, jnp.array([0, 0], jnp.int32), span=0.0)
  assert ratio(metrics["right"]) == 0.5
  off = 1 / (1 + np.exp([1.0, 1.0, 1.0, 1.0, 1.0, 0.8]))
  assert ratio(metrics["loss"]) == pytest.approx(0.25 * np.sum(off**2), rel=1e-5)


@pytest.mark.parametrize(("variant", "weights"), [("adding_1997", 93), ("order_1997", 156), ("order_1997_6b", 308)])
def test_nets_of_1997_have_the_printed_number_of_weights(variant, weights):
  _, source, task = prepared(variant)
  shapes = jax.eval_shape(task.init, jax.random.key(0), jax.eval_shape(lambda: source.batch(0, split="train")))[
    "params"
  ]
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == task.counts.n_total == weights
  biases = [leaf.size for path, leaf in jax.tree_util.tree_leaves_with_path(shapes) if path[-1].key == "bias"]
  assert task.counts.n == weights - sum(biases)


@pytest.mark.parametrize("cell", CELLS)
def test_counts_of_every_cell(cell):
  config, source, task = prepared("order", **{"model.cell": cell})
  shapes = jax.eval_shape(task.init, jax.random.key(0), jax.eval_shape(lambda: source.batch(0, split="train")))[
    "params"
  ]
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == task.counts.n_total
  kernels = [leaf.size for path, leaf in jax.tree_util.tree_leaves_with_path(shapes) if path[-1].key == "kernel"]
  assert task.counts.n == sum(kernels)
  head = 4 * config.model.width
  assert task.counts.flops_per_unit == 6 * (44 * (sum(kernels) - head) + head)


def test_steps_after_the_end_change_no_answer_and_get_no_gradient():
  _, source, task = prepared("order", batch_size=6, **{"model.width": 8})
  batch = jax.jit(lambda: source.batch(0, split="train"))()
  params = random_params(task, batch)
  after = jnp.arange(44)[None, :, None] >= batch["lengths"][:, None, None]
  assert bool(after.any())

  @jax.jit
  def value_and_gradient(inputs):
    def loss(inputs):
      return task.loss(params, {}, {**batch, "inputs": inputs}, jax.random.key(0), train=True)[0]

    return jax.value_and_grad(loss)(inputs)

  loss, gradient = value_and_gradient(batch["inputs"])
  other, _ = value_and_gradient(jnp.where(after, 7.0, batch["inputs"]))
  assert float(loss) == float(other)
  assert float(jnp.abs(jnp.where(after, gradient, 0)).max()) == 0
  assert float(jnp.abs(gradient).max()) > 0


def test_the_answer_is_that_of_the_last_step():
  """The net equals its cells and its output layer, put together by hand at each sequence's end."""
  _, source, task = prepared("order", batch_size=4, **{"model.width": 8, "model.cell": "rnn"})
  batch = jax.jit(lambda: source.batch(0, split="train"))()
  params = random_params(task, batch)
  got = np.asarray(jax.jit(task.predict)(params, {}, batch))
  cells, head = (jax.tree.map(np.asarray, params[name]) for name in ("cells", "head"))
  for row in range(4):
    h = np.zeros(8)
    for x in np.asarray(batch["inputs"])[row, : int(batch["lengths"][row])]:
      h = np.tanh(
        x @ cells["input"]["kernel"][:, 0] + cells["input"]["bias"][0] + h @ cells["recurrent"]["kernel"][:, 0]
      )
    np.testing.assert_allclose(got[row], h @ head["kernel"] + head["bias"], atol=1e-5)


@pytest.mark.parametrize("changes", [
  {"model.output": "softmax"}, {"model.cell": "lsmt"}, {"model.width": 0}, {"data.name": "sum"},
  {"model.cell": "memory_blocks"}, {"model.cell": "memory_blocks", "model.blocks": 2, "model.init_scale": 0.0},
])  # fmt: skip
def test_bad_fields_are_refused(changes):
  with pytest.raises(UserError, match="--config"):
    prepared("tiny", **changes)
