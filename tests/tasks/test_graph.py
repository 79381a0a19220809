"""Scores of molecules: the arithmetic of error ratios, several targets, the mean as an answer."""

import jax.numpy as jnp
import numpy as np
import pytest

from ilya_jax.config import load_config
from ilya_jax.data.qm9 import TARGETS
from ilya_jax.tasks.graph import make_source, scaled_back, score

CONFIG = "configs/mpnn.py"


def means(metrics):
  return {name: float(total / weight) for name, (total, weight) in metrics.items()}


def test_an_error_ratio_of_thirty_hundredths_is_thirty_millidebye():
  """A mean absolute error of 0.030 D, over the chemical accuracy of 0.1 D, as the table has it for mu."""
  assert TARGETS["mu"].accuracy * 0.30 == pytest.approx(0.030)
  targets = jnp.asarray([[1.0], [3.0]])
  outputs = (targets + jnp.asarray([[0.02], [-0.04]]) - 2.0) / 1.5
  found = means(score(outputs, targets, names=("mu",), mean=(2.0,), std=(1.5,), yardsticks=(TARGETS["mu"].accuracy,)))
  assert found == {
    "loss": pytest.approx((0.02**2 + 0.04**2) / 2 / 1.5**2, rel=1e-4), "error_ratio": pytest.approx(0.30, rel=1e-4)
  }  # fmt: skip


def test_several_targets_are_scored_each_in_its_own_unit():
  targets = jnp.asarray([[1.0, 100.0], [3.0, 300.0]])
  metrics = score(
    jnp.zeros((2, 2)), targets, names=("mu", "omega1"), mean=(2.0, 200.0), std=(1.0, 50.0), yardsticks=(0.1, 10.0)
  )
  found = means(metrics)
  assert found["error_ratio_mu"] == pytest.approx(10.0)
  assert found["error_ratio_omega1"] == pytest.approx(10.0)
  assert found["loss"] == pytest.approx((1 + 4) / 2)


def test_the_mean_as_an_answer_has_a_loss_of_one_on_the_training_set_and_scales_back_to_the_mean():
  source = make_source(load_config(f"{CONFIG}:charges", {"data.train_examples": 200, "batch_size": 200}))
  info, batch = source.info, source.batch(0, split="train")
  found = means(score(jnp.zeros((200, 1)), jnp.asarray(batch["targets"]), names=info["targets"], mean=info["mean"],
                      std=info["std"], yardsticks=info["yardsticks"]))  # fmt: skip
  assert found["loss"] == pytest.approx(1.0, rel=1e-5)
  assert 0.6 < found["error_ratio"] < 1.0
  np.testing.assert_allclose(scaled_back(jnp.zeros((3, 1)), source), batch["targets"].mean(), atol=1e-5)
