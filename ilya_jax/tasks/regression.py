"""Regression of one number: a network on examples of a teacher, with the mean squared error, as a Task with its Source."""

import jax.numpy as jnp
from ml_collections import ConfigDict

from ilya_jax.data.teacher import teacher_source
from ilya_jax.models import mlp
from ilya_jax.task import Source, Task


def make_source(config: ConfigDict) -> Source:
  """The examples of `config.data`."""
  data = config.data
  return teacher_source(
    data.teacher, features=data.features, batch_size=config.batch_size, seed=config.seed,
    eval_examples=config.eval.examples,
  )  # fmt: skip


def make_task(config: ConfigDict, source: Source) -> Task:
  """The network of `config.model`; `loss` is the mean squared error, in units of the target's variance."""
  model = mlp.from_config(config)

  def init(rng, batch):
    return model.init(rng, batch["x"])

  def predict(params, model_state, batch):
    return model.apply({"params": params}, batch["x"])

  def loss(params, model_state, batch, rng, *, train):
    square = jnp.square(predict(params, model_state, batch) - batch["y"])
    count = jnp.asarray(square.size, square.dtype)
    return square.mean(), ({"loss": (square.sum(), count)}, model_state)

  return Task(init, loss, counts=mlp.counts(config, features=source.info["features"]), predict=predict)
