"""Encoder layers of the Transformer with several choices at every position: what heads can and cannot read is seen here.

Vaswani et al. 2017, https://arxiv.org/abs/1706.03762: the encoder (`ilya_jax/models/transformer_layers.py`), its embedding times
sqrt(D), sinusoids. Letters: B batch, T time, D width, V vocabulary, A answers at a position, C choices of an answer.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ilya_jax.errors import UserError
from ilya_jax.models.transformer_layers import XAVIER, TransformerLayer, sinusoids
from ilya_jax.nn.linear import Linear
from ilya_jax.nn.precision import at_least_float32
from ilya_jax.task import Counts


class EncoderTagger(nn.Module):
  """A stack of encoder layers and a linear map onto A answers of C choices. d_k, d_v 0: d_model / n_heads.

  Raises UserError where heads and width do not fit.
  """

  vocab_size: int
  answers: int
  n_layers: int
  d_model: int
  n_heads: int
  d_ff: int
  d_k: int = 0
  d_v: int = 0
  dtype: jnp.dtype = jnp.float32

  def __post_init__(self):
    if self.d_model % self.n_heads and not (self.d_k and self.d_v):
      got = f"model.n_heads = {self.n_heads} at a width of {self.d_model}"
      raise UserError(got, "a number of heads that divides the width, or d_k and d_v", "--config.model.n_heads")
    super().__post_init__()

  def setup(self):
    init, head = nn.initializers.normal(self.d_model**-0.5), self.d_model // self.n_heads
    self.embed = nn.Embed(self.vocab_size, self.d_model, dtype=self.dtype, embedding_init=init)
    self.layers = [
      TransformerLayer(self.d_model, self.n_heads, self.d_k or head, self.d_v or head, self.d_ff, crosses=False,
                       dtype=self.dtype)
      for _ in range(self.n_layers)
    ]  # fmt: skip
    self.head = Linear((self.answers, self.vocab_size), kernel_init=XAVIER, dtype=self.dtype)

  def __call__(self, tokens: jax.Array) -> jax.Array:
    """tokens [B, T] (int) -> logits [B, T, A, V] in float32: the choices are the symbols themselves."""
    x = self.embed(tokens) * jnp.asarray(self.d_model**0.5, self.dtype)
    x = x + jnp.asarray(sinusoids(tokens.shape[1], self.d_model), self.dtype)[None]
    for layer in self.layers:
      x = layer.encode(x, jnp.ones(tokens.shape, self.dtype), False)
    return at_least_float32(self.head(x))


def from_config(config: Any, *, vocab_size: int, answers: int) -> EncoderTagger:
  """The model of `config.model`."""
  model = config.model
  return EncoderTagger(
    vocab_size=vocab_size, answers=answers, n_layers=model.n_layers, d_model=model.d_model, n_heads=model.n_heads,
    d_ff=model.d_ff, d_k=model.d_k, d_v=model.d_v, dtype=jnp.dtype(config.dtype),
  )  # fmt: skip


def counts(config: Any, *, vocab_size: int, answers: int, length: int) -> Counts:
  """Size and training cost of the model of `config` on strings of a length, by formula."""
  model = from_config(config, vocab_size=vocab_size, answers=answers)
  d, h, f = model.d_model, model.n_heads, model.d_ff
  width = (model.d_k or d // h) + (model.d_v or d // h)
  head = d * answers * vocab_size
  n = model.n_layers * (2 * d * h * width + 2 * d * f) + head
  n_total = n + model.n_layers * (f + 5 * d) + answers * vocab_size + vocab_size * d
  flops = 2 * length * n + model.n_layers * 2 * length**2 * h * width
  return Counts(n, n_total, 3.0 * flops, config.batch_size, "examples", 3.0 * 2 * length * head)
