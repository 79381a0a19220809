"""Next-token prediction: a language model on text (or on a generated language) as a Task with its Source."""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ilya_jax.data.lookup import lookup_source
from ilya_jax.data.markov import markov_source
from ilya_jax.data.tokenizer import token_dtype
from ilya_jax.data.tokens import load_corpus, token_source
from ilya_jax.errors import UserError
from ilya_jax.models import language_sampling, lstm_lm, transformer_lm
from ilya_jax.nn.losses import cross_entropy
from ilya_jax.parallel.layers import in_turn
from ilya_jax.task import Layers, Metrics, Pieces, Source, Task


def make_source(config: ConfigDict) -> Source:
  """The text of `config.data`, in batches {"tokens": [B, T+1]}."""
  shape = {
    "batch_size": config.batch_size,
    "context": config.data.context,
    "seed": config.seed,
    "eval_tokens": config.eval.tokens,
  }
  if is_generated(config):
    source = _generated(config.data.name, vocab_size=config.data.vocab_size, **shape)
    return source._replace(info={**source.info, "token_bytes": np.ones(config.data.vocab_size, np.int32)})
  corpus = load_corpus(config.data)
  source = token_source(corpus, **shape)
  return source._replace(info={**source.info, "token_bytes": corpus.token_bytes})


def is_generated(config: ConfigDict) -> bool:
  """Whether the text is a generated language of `config.data.vocab_size` symbols, sampled inside the step."""
  return config.data.name.partition(":")[0] in ("markov", "lookup")


def _generated(name: str, **sizes: int) -> Source:
  kind, _, number = name.partition(":")
  if kind == "markov" and not number:
    return markov_source(**sizes)
  if kind != "lookup" or not number.isdecimal():
    raise UserError(f"config.data.name = {name!r}", "markov or lookup:NUMBER", "--config.data.name")
  return lookup_source(int(number), **sizes)


def make_stand_in(config: ConfigDict) -> Source:
  """A source of batches of the same shapes as `make_source`, all zeros, without any text: to compile a step for."""
  if is_generated(config):  # sampled inside the step, a part of what is compiled
    return make_source(config)
  vocab_size = 256 if config.data.tokenizer == "bytes" else config.data.vocab_size
  tokens = np.zeros((config.batch_size, config.data.context + 1), token_dtype(vocab_size))
  token_bytes = np.full(vocab_size, 1 if config.data.tokenizer == "bytes" else 2, np.int32)
  info = {"name": "stand-in", "fingerprint": "stand-in", "vocab_size": vocab_size, "token_bytes": token_bytes}
  return Source(lambda step, *, split, rows=slice(None): {"tokens": tokens[rows]}, {}, info)


def make_task(config: ConfigDict, source: Source) -> Task:
  """The language model of `config.model` with its mean negative log likelihood, in nats per token."""
  model_file = _file_of(config)
  model = model_file.from_config(config, vocab_size=source.info["vocab_size"])
  token_bytes = np.asarray(source.info["token_bytes"], np.float32)  # [V]

  def init(rng, batch):
    return model.init(rng, batch["tokens"][:, :-1].astype(jnp.int32), train=False)

  def predict(params, model_state, batch):
    return model.apply({"params": params}, batch["tokens"].astype(jnp.int32), train=False)

  counts = model_file.counts(config, vocab_size=source.info["vocab_size"])
  layers = make_layers(model_file.pieces(model), token_bytes=token_bytes)
  written = functools.partial(continue_text, config, source)
  return Task(
    init, in_turn(layers), counts=counts, rules=model_file.RULES, predict=predict, layers=layers, continue_text=written
  )


def _file_of(config: ConfigDict) -> Any:
  model_file = {"transformer_lm": transformer_lm, "lstm_lm": lstm_lm}.get(config.model.name)
  if model_file is None:
    raise UserError(f"config.model.name = {config.model.name!r}", "transformer_lm or lstm_lm", "--config.model.name")
  return model_file


def make_layers(pieces: Pieces, *, token_bytes: np.ndarray) -> Layers:
  """The layer list of a language model: its stack, the embedding before it, and the loss after it."""

  def before(params, batch, rng, *, train):
    return pieces.enter(params, batch["tokens"][:, :-1].astype(jnp.int32), rng, train=train)

  def after(params, x, batch, rng, *, train):
    logits = pieces.logits(params, x, rng, train=train)  # [B, T, V]
    metrics = score(logits, batch["tokens"][:, 1:].astype(jnp.int32), token_bytes=token_bytes)
    total, weight = metrics["loss"]
    return total / weight, metrics

  return Layers(before, pieces.stack, after, pieces.batch_axis)


def score(logits: jax.Array, targets: jax.Array, *, token_bytes: np.ndarray) -> Metrics:
  """Metrics of logits [B, T, V] against targets [B, T]: `loss` in nats per token, `bits_per_byte` (comparable between
  tokenizers; token_bytes [V] holds the length of each token in bytes)."""
  nll = cross_entropy(logits, targets).sum()
  count = jnp.asarray(targets.size, nll.dtype)
  target_bytes = count if (token_bytes == 1).all() else jnp.asarray(token_bytes, nll.dtype)[targets].sum()
  return {"loss": (nll, count), "bits_per_byte": (nll / math.log(2), target_bytes)}


def continue_text(config: ConfigDict, source: Source, params: Any, prompt: str, *, options: Mapping[str, Any]) -> str:
  """The prompt and what the model writes after it, up to the end of a document, for `ilya-jax sample`.

  options: `length` (tokens at most, 200), `temperature` (1; 0: the likeliest), `top_k` (0: all), `seed` (0); None for the default.
  Raises UserError on options out of range, and where the data is a generated language, which has no text.
  """
  if is_generated(config):
    raise UserError(f"a model of {config.data.name}, symbols without text", "a model of a text", "--workdir")
  vocab_size = source.info["vocab_size"]
  given: dict[str, Any] = {"length": 200, "temperature": 1.0, "top_k": 0, "seed": 0}
  given |= {name: value for name, value in options.items() if value is not None}
  for name, least, most in (
    ("length", 1, 1 << 20), ("temperature", 0, 1e6), ("top_k", 0, vocab_size), ("seed", 0, 2**32 - 1)
  ):  # fmt: skip
    if not least <= given[name] <= most:
      raise UserError(
        f"--{name.replace('_', '-')} {given[name]}", f"{least} to {most:g}", f"--{name.replace('_', '-')}"
      )
  model = _file_of(config).from_config(config, vocab_size=vocab_size)
  if isinstance(model, lstm_lm.LstmLM):
    writer = language_sampling.lstm_writer(model)
  else:
    writer = language_sampling.transformer_writer(model)
  tokenizer = load_corpus(config.data).tokenizer
  begun = [tokenizer.separator, *tokenizer.encode(prompt).tolist()]
  written = language_sampling.continuation(writer, params, begun, end=tokenizer.separator, **given)
  return prompt + tokenizer.decode(written).decode("utf-8", "replace")
