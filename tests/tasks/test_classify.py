"""Classification: loss and errors by hand, augmentation in training alone, a net that nears the best possible classifier."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ilya_jax.config import load_config
from ilya_jax.data.templates import log_posterior, make_templates
from ilya_jax.errors import UserError
from ilya_jax.tasks.classify import find_model, make_layers, score
from ilya_jax.train.load import load_run
from ilya_jax.train.loop import prepare, train
from ilya_jax.train.metrics import read_json

QUICK = {"execution.tensorboard": False, "mesh.data": 1}


def test_metrics_by_hand():
  logits = jnp.log(jnp.asarray([[0.7, 0.2, 0.1], [0.3, 0.3, 0.4], [0.1, 0.8, 0.1]], jnp.float32))
  metrics = score(logits, jnp.asarray([0, 0, 2]))
  total, count = metrics["loss"]
  assert float(total) == pytest.approx(-math.log(0.7) - math.log(0.3) - math.log(0.1), rel=1e-6)
  assert float(count) == 3
  assert [float(value) for value in metrics["error"]] == [2.0, 3.0]
  assert "error_top5" not in metrics


def test_the_fifth_of_many_classes_counts_as_found_and_the_sixth_does_not():
  logits = -jnp.arange(120, dtype=jnp.float32)[None].repeat(3, 0)
  metrics = score(logits, jnp.asarray([0, 4, 5]))
  assert [float(metrics[name][0]) for name in ("error", "error_top5")] == [2.0, 1.0]
  same = score(jnp.zeros((2, 120)), jnp.asarray([3, 119]))
  assert float(same["error_top5"][0]) == 2.0  # nothing is found by a net that says the same of all


def test_pictures_are_augmented_in_training_alone():
  config = load_config("configs/resnet.py:tiny", {**QUICK, "data.pad": 2, "data.flip": True})
  task, source, _ = prepare(config)
  layers = make_layers((), source=source, pad=2, flip=True)
  batch = source.batch(0, split="train")
  still = layers.before({}, batch, jax.random.key(0), train=False)
  moved = layers.before({}, batch, jax.random.key(0), train=True)
  np.testing.assert_allclose(still, (batch["image"] - source.info["mean"][None]) / source.info["std"], rtol=1e-6)
  assert np.abs(moved - still).max() > 0.5
  assert (np.asarray(layers.before({}, batch, jax.random.key(1), train=True)) != np.asarray(moved)).any()
  assert task.layers is not None


def test_a_model_that_is_none_is_refused():
  for name in ("lstm_lm", "no_such_model"):
    with pytest.raises(UserError, match="model.name"):
      find_model(name)


def test_training_nears_the_best_possible_classifier(tmp_path):
  """On generated pictures the error of any classifier is at least that of Bayes, which is known exactly."""
  config = load_config(
    "configs/resnet.py:tiny", {**QUICK, "steps": 200, "batch_size": 64, "data.pad": 0, "log_every": 50}
  )
  train(config, tmp_path)
  evaluation = read_json(tmp_path / "status.json")["evaluations"]["test"]
  run = load_run(tmp_path)
  batches = [run.source.batch(k, split="test") for k in range(run.source.eval_batches["test"])]
  images, labels = (np.concatenate([batch[name] for batch in batches]) for name in ("image", "label"))
  templates = make_templates(0, size=8, channels=1, classes=10)
  best = log_posterior(images, templates, noise=config.data.noise)
  best_loss = -best[np.arange(len(labels)), labels].mean()
  best_error = (best.argmax(1) != labels).mean()
  assert best_loss < evaluation["loss"] < 0.7 * math.log(10)
  assert best_error - 0.02 < evaluation["error"] < 0.6
  predicted = run.task.predict(run.params, run.model_state, batches[0])
  assert (np.asarray(predicted).argmax(1) == np.asarray(batches[0]["label"])).mean() > 0.4
