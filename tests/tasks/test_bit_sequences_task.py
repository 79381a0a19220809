"""The task of bits: scores by hand, guessing, what is not asked for, longer sequences, bad fields."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ilya_jax.config import load_config
from ilya_jax.errors import UserError
from ilya_jax.tasks import bit_sequences
from tests.tasks.scoring import random_params, ratio

CONFIG = f"{Path(__file__).parents[2]}/configs/ntm.py"


def prepared(variant="tiny", **changes):
  config = load_config(f"{CONFIG}:{variant}", changes)
  source = bit_sequences.make_source(config)
  return source, bit_sequences.make_task(config, source)


def test_scores_by_hand():
  logits = jnp.array([[[2.0, -1.0], [0.5, 0.5]], [[-3.0, 0.1], [9.0, -9.0]]])
  targets = jnp.array([[[1.0, 1.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]])
  metrics = bit_sequences.score(logits, targets, asked=jnp.array([[1.0, 0.0], [1.0, 0.0]]))
  right = 1 / (1 + np.exp(-np.array([2.0, -1.0, 3.0, 0.1])))  # the probabilities given to the four bits asked for
  assert ratio(metrics["loss"]) == pytest.approx(-np.log(right).sum() / 2, rel=1e-5)
  assert ratio(metrics["bits"]) == pytest.approx(-np.log2(right).sum() / 2, rel=1e-5)
  assert ratio(metrics["wrong"]) == 0.25


@pytest.mark.parametrize("length", [1, 4, 20])
def test_guessing_costs_a_bit_a_bit(length):
  source, _ = prepared("copy_ntm", batch_size=3, **{"data.length": (length, length)})
  batch = jax.jit(lambda: source.batch(0, split="train"))()
  metrics = bit_sequences.score(jnp.zeros_like(batch["targets"]), batch["targets"], asked=batch["asked"])
  assert ratio(metrics["bits"]) == pytest.approx(8 * length, rel=1e-5)


@pytest.mark.parametrize("changes", [{}, {"model.controller": "feedforward"}])
def test_steps_after_the_answer_change_nothing_and_get_no_gradient(changes):
  source, task = prepared(batch_size=4, **changes)
  batch = jax.jit(lambda: source.batch(0, split="train"))()
  params = random_params(task, batch)
  last = 7 - np.argmax(np.asarray(batch["asked"])[:, ::-1], axis=1)  # how many steps there are until the answer's end
  after = (np.arange(7) >= last[:, None])[..., None]
  assert after.any()

  def loss(inputs, targets):
    return task.loss(params, {}, {**batch, "inputs": inputs, "targets": targets}, jax.random.key(0), train=True)[0]

  both = jax.jit(jax.value_and_grad(loss), compiler_options={"xla_backend_optimization_level": 0})
  plain, gradient = both(batch["inputs"], batch["targets"])
  assert not np.asarray(gradient)[np.broadcast_to(after, gradient.shape)].any()
  assert np.abs(gradient).max() > 0
  noise = jnp.asarray(np.where(after, 7.0, 0.0), jnp.float32)
  assert float(both(batch["inputs"] + noise, batch["targets"] + noise)[0]) == pytest.approx(float(plain), rel=1e-6)
  unasked = jnp.asarray(1 - np.asarray(batch["asked"]))[..., None]
  assert float(both(batch["inputs"], batch["targets"] + unasked)[0]) == pytest.approx(float(plain), rel=1e-6)


def test_predictions_of_longer_sequences_come_from_the_same_weights():
  source, task = prepared(batch_size=2)
  shapes = [jax.eval_shape(lambda s=split: source.batch(0, split=s)) for split in ("train", "length=5")]
  params, answers = random_params(task, shapes[0]), []
  long = np.random.default_rng(1).integers(0, 2, (2, *shapes[1]["inputs"].shape[1:])).astype(np.float32)
  for inputs in (long, long[:, :7]):  # what comes later does not reach back
    answers.append(np.asarray(jax.jit(task.predict)(params, {}, {"inputs": inputs})))
  assert [answer.shape for answer in answers] == [(2, 11, 3), (2, 7, 3)]
  np.testing.assert_allclose(answers[0][:, :7], answers[1], rtol=1e-5, atol=1e-6)


def test_unknown_nets_and_tasks_are_refused():
  with pytest.raises(UserError):
    prepared(**{"model.name": "dnc"})
  with pytest.raises(UserError):
    prepared(**{"data.name": "copies"})
