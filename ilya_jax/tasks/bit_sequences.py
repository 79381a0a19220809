"""Answers in bits at the end of a sequence, or all along it (`ilya_jax.data.bit_sequences`), as a Task with its Source.

Graves, Wayne, Danihelka 2014, https://arxiv.org/abs/1410.5401, section 4: logistic outputs, cross-entropy of the bits that are asked
for. Metrics, each a mean over sequences: `loss` in nats, `bits` the same in bits (the paper's cost per sequence); and `wrong`, the
share of bits that are rounded wrongly, over all bits that are asked for.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from ilya_jax.data.bit_sequences import Sizes, bit_sequence_source
from ilya_jax.errors import UserError
from ilya_jax.models import ntm, stacked_lstm
from ilya_jax.task import Metrics, Source, Task

MODELS: dict[str, Any] = {"ntm": ntm, "stacked_lstm": stacked_lstm}


def make_source(config: ConfigDict) -> Source:
  """The task of `config.data`, in batches {"inputs": [B, T, I], "targets": [B, T, K], "asked": [B, T]}."""
  data = config.data
  sizes = Sizes(
    bits=data.bits,
    length=tuple(data.length),
    repeats=tuple(data.repeats),
    most_repeats=data.repeats[-1],
    item_count=tuple(data.item_count),
    item_length=data.item_length,
    history=data.history,
    vectors=data.vectors,
    answered=data.answered,
  )
  return bit_sequence_source(
    data.name,
    sizes,
    tests=tuple(data.tests),
    batch_size=config.batch_size,
    seed=config.seed,
    eval_examples=config.eval.examples,
  )


def make_task(config: ConfigDict, source: Source) -> Task:
  """The net of `config.model` with its cross-entropy, in nats a sequence; `predict` gives logits [B, T, K]."""
  model_file = MODELS.get(config.model.name)
  if model_file is None:
    raise UserError(f"model.name = {config.model.name!r}", f"one of {', '.join(MODELS)}", "--config.model.name")
  info = source.info
  model = model_file.from_config(config, outputs=info["outputs"])

  def init(rng, batch):
    return model.init(rng, batch["inputs"])

  def loss(params, model_state, batch, rng, *, train):
    metrics = score(predict(params, model_state, batch), batch["targets"], asked=batch["asked"])
    total, weight = metrics["loss"]
    return total / weight, (metrics, model_state)

  def predict(params, model_state, batch):
    return model.apply({"params": params}, batch["inputs"])

  counts = model_file.counts(config, inputs=info["inputs"], outputs=info["outputs"], longest=info["longest"])
  return Task(init, loss, counts=counts, predict=predict)


def score(logits: jax.Array, targets: jax.Array, *, asked: jax.Array) -> Metrics:
  """Metrics of logits [B, T, K] against bits [B, T, K] at the steps where asked [B, T] is 1."""
  asked = asked[..., None]
  nats = jnp.sum(optax.sigmoid_binary_cross_entropy(logits, targets) * asked)
  sequences = jnp.asarray(targets.shape[0], nats.dtype)
  wrong = ((logits > 0) != (targets > 0.5)).astype(nats.dtype) * asked
  bits = jnp.sum(asked) * targets.shape[-1]
  return {"loss": (nats, sequences), "bits": (nats / math.log(2), sequences), "wrong": (jnp.sum(wrong), bits)}
