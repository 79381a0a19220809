"""Answers about whole sequences (adding, temporal order, first symbol) by recurrent cells, as a Task with its Source.

Olah 2015, https://colah.github.io/posts/2015-08-Understanding-LSTMs; Hochreiter, Schmidhuber 1997, Neural Computation 9(8),
section 5: the loss at the end of a sequence alone, and when an answer counts as right.

  `config.model.output`   classes                                         a number
  "linear"                softmax cross-entropy, nats; right: the         squared error; right: within 4 % of the interval
                          likeliest class is                              of targets (0.08 for `adding`)
  "logistic"              half the squared error of K logistic outputs    half the squared error of a logistic output;
                          against 0 and 1; right: all within 0.3          right: within 0.04
The last two lines are those of 1997, with the factor 1/2 of their delta rule, so that their learning rates apply.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from ilya_jax.data.long_lag import long_lag_source
from ilya_jax.errors import UserError
from ilya_jax.models import long_lag
from ilya_jax.task import Metrics, Source, Task

NEAR, NEAR_CLASS = 0.04, 0.3  # how far an answer may be off, of the interval of targets; of 1 for each class


def make_source(config: ConfigDict) -> Source:
  """The problem of `config.data`, in batches {"inputs": [B, T, I], "lengths": [B], "targets": [B, 1] or [B]}."""
  data = config.data
  return long_lag_source(
    data.name,
    length=data.length,
    spread=data.spread,
    windows=tuple(map(tuple, data.windows)),
    batch_size=config.batch_size,
    seed=config.seed,
    eval_examples=config.eval.examples,
  )


def make_task(config: ConfigDict, source: Source) -> Task:
  """The net of `config.model` with the loss of `config.model.output`, and the share of right answers as "right"."""
  if config.model.output not in ("linear", "logistic"):
    raise UserError(f"model.output = {config.model.output!r}", "linear or logistic", "--config.model.output")
  info = source.info
  outputs = info["classes"] or 1
  model = long_lag.from_config(config, outputs=outputs)
  score = score_logistic if config.model.output == "logistic" else score_linear

  def init(rng, batch):
    return model.init(rng, batch["inputs"], batch["lengths"])

  def loss(params, model_state, batch, rng, *, train):
    answers: Any = model.apply({"params": params}, batch["inputs"], batch["lengths"])  # [B, K]
    metrics = score(answers, batch["targets"], span=info["span"])
    total, weight = metrics["loss"]
    return total / weight, (metrics, model_state)

  def predict(params, model_state, batch):
    return model.apply({"params": params}, batch["inputs"], batch["lengths"])

  counts = long_lag.counts(config, inputs=info["inputs"], longest=info["longest"], outputs=outputs)
  return Task(init, loss, counts=counts, predict=predict)


def score_linear(outputs: jax.Array, targets: jax.Array, *, span: float) -> Metrics:
  """Metrics of outputs [B, K] against classes [B], or of numbers [B, 1] against numbers whose interval is `span` wide."""
  if span:
    errors = outputs - targets
    return _sums(jnp.sum(errors**2, axis=1), jnp.abs(errors[:, 0]) < NEAR * span)
  nll = optax.softmax_cross_entropy_with_integer_labels(outputs, targets)
  return _sums(nll, jnp.argmax(outputs, axis=1) == targets)


def score_logistic(outputs: jax.Array, targets: jax.Array, *, span: float) -> Metrics:
  """The same for logistic units, whose net inputs `outputs` are; classes are one unit each."""
  wanted = targets if span else jax.nn.one_hot(targets, outputs.shape[1], dtype=outputs.dtype)
  errors = jax.nn.sigmoid(outputs) - wanted
  within = NEAR * span if span else NEAR_CLASS
  return _sums(0.5 * jnp.sum(errors**2, axis=1), jnp.max(jnp.abs(errors), axis=1) < within)


def _sums(losses: jax.Array, right: jax.Array) -> Metrics:
  count = jnp.asarray(losses.shape[0], losses.dtype)
  return {"loss": (losses.sum(), count), "right": (right.astype(losses.dtype).sum(), count)}
