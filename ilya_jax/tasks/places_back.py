"""Naming the symbols some places back, by encoder layers of the Transformer, as a Task with its Source.

What claims on the number and width of heads are tried with (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, table 3, A and
B); chance is 1 / symbols.
"""

import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from ilya_jax.data.places_back import BACK, answers, places_back_source
from ilya_jax.models import encoder_tagger
from ilya_jax.task import Source, Task


def make_source(config: ConfigDict) -> Source:
  """The strings of `config.data`, in batches {"tokens": [B, T]}."""
  return places_back_source(
    symbols=config.data.symbols, length=config.data.length, batch_size=config.batch_size, seed=config.seed,
    eval_strings=config.eval.examples,
  )  # fmt: skip


def make_task(config: ConfigDict, source: Source) -> Task:
  """The layers of `config.model` with the mean negative log likelihood of an answer, nats, and the share of right ones."""
  sizes = {"vocab_size": source.info["vocab_size"], "answers": len(BACK)}
  model = encoder_tagger.from_config(config, **sizes)

  def init(rng, batch):
    return model.init(rng, batch["tokens"])

  def predict(params, model_state, batch):
    return model.apply({"params": params}, batch["tokens"])

  def loss(params, model_state, batch, rng, *, train):
    wanted = answers(batch["tokens"])  # [B, T - 10, A]
    logits = predict(params, model_state, batch)[:, max(BACK) :]  # [B, T - 10, A, V]
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, wanted)
    count = jnp.asarray(wanted.size, nll.dtype)
    hits = (jnp.argmax(logits, axis=-1) == wanted).astype(nll.dtype)
    metrics = {"loss": (nll.sum(), count), "accuracy": (hits.sum(), count)}
    return nll.sum() / count, (metrics, model_state)

  counts = encoder_tagger.counts(config, **sizes, length=config.data.length)
  return Task(init, loss, counts=counts, predict=predict)
