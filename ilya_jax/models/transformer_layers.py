"""The layers of the Transformer of Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, as printed.

Attention (eq. 1), heads (section 3.2.2), feed-forward (eq. 2), sinusoids (section 3.5), post-LN residuals (section 3.1).
Letters: B batch, S source, T target, D width, H heads, K width of a head's queries and keys (its values may differ), F
feed-forward width. Deviations: see `ilya_jax/models/transformer.py`.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ilya_jax.nn.linear import Linear
from ilya_jax.nn.normalization import LayerNorm
from ilya_jax.nn.precision import at_least_float32

Array = jax.Array
XAVIER = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")


class KeysValues(NamedTuple):
  """keys [B, S, H, K] and values [B, S, H, K'] of the positions that are attended to."""

  keys: Array
  values: Array


def attention_weights(query: Array, keys: Array, *, visible: Array) -> Array:
  """softmax(Q K^T / sqrt(K)) over the visible positions (eq. 1), [B, H, T, S], in float32 at least.

  query [B, T, H, K]; keys [B, S, H, K]; visible: bool [B or 1, T or 1, S]. Where nothing is visible all are alike, which is finite.
  """
  scores = jnp.einsum("bthk,bshk->bhts", query * jnp.asarray(query.shape[-1] ** -0.5, query.dtype), keys)
  return masked_softmax(scores, visible[:, None])


def masked_softmax(scores: Array, visible: Array) -> Array:
  """softmax over the last axis of scores where `visible` (bool, broadcasts), in float32 at least; all alike where nothing is."""
  scores = at_least_float32(scores)
  hidden = jnp.asarray(jnp.finfo(scores.dtype).min / 2, scores.dtype)
  return jax.nn.softmax(jnp.where(visible, scores, hidden), axis=-1)


def masked_attention(query: Array, memory: KeysValues, *, visible: Array) -> Array:
  """softmax(Q K^T / sqrt(K)) V over the visible positions (eq. 1): [B, T, H, K'] in the type of the values."""
  weights = attention_weights(query, memory.keys, visible=visible)
  return jnp.einsum("bhts,bshk->bthk", weights.astype(memory.values.dtype), memory.values)


def sinusoids(length: int, width: int) -> np.ndarray:
  """float64 [length, D]: PE(p, 2i) = sin(p / 10000^(2i/D)), PE(p, 2i + 1) = cos of the same (section 3.5)."""
  angles = np.arange(length)[:, None] / 10_000.0 ** (np.arange(0, width, 2) / width)  # [length, D/2]
  return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(length, width)


class Attention(nn.Module):
  """Several heads side by side (section 3.2.2)."""

  d_model: int
  n_heads: int
  d_k: int
  d_v: int
  use_bias: bool = False
  dtype: jnp.dtype = jnp.float32

  def setup(self):
    def linear(*features, axes=1):
      return Linear(features, axes=axes, use_bias=self.use_bias, kernel_init=XAVIER, dtype=self.dtype)

    self.query, self.key = linear(self.n_heads, self.d_k), linear(self.n_heads, self.d_k)
    self.value, self.out = linear(self.n_heads, self.d_v), linear(self.d_model, axes=2)

  def __call__(self, x: Array, memory: KeysValues, *, visible: Array) -> Array:
    """x [B, T, D] attends to the positions of `memory` that are visible, bool [B or 1, T or 1, S] -> [B, T, D].

    The weights [B, H, T, S] are sown as "weights" into the collection "attention", where it is mutable.
    """
    query = self.query(x)
    if self.is_mutable_collection("attention") and not self.is_initializing():
      self.sow("attention", "weights", attention_weights(query, memory.keys, visible=visible))
    return self.out(masked_attention(query, memory, visible=visible))

  def keys_values(self, y: Array) -> KeysValues:
    """y [B, S, D] -> its keys and values."""
    return KeysValues(self.key(y), self.value(y))


class TransformerLayer(nn.Module):
  """Self-attention, attention over the encoder's output in a decoder, feed-forward; a residual around each.

  crosses: whether it is a decoder's. ends: whether a norm follows it.
  """

  d_model: int
  n_heads: int
  d_k: int
  d_v: int
  d_ff: int
  crosses: bool
  norm_first: bool = False
  attention_bias: bool = False
  activation: str = "relu"
  norm_epsilon: float = 1e-6
  dropout: float = 0.0
  dtype: jnp.dtype = jnp.float32
  ends: bool = False

  def setup(self):
    def attention():
      return Attention(self.d_model, self.n_heads, self.d_k, self.d_v, self.attention_bias, self.dtype)

    def norm():
      return LayerNorm(epsilon=self.norm_epsilon, dtype=self.dtype)

    self.self_attention, self.self_norm = attention(), norm()
    if self.crosses:
      self.cross_attention, self.cross_norm = attention(), norm()
    self.inward = Linear((self.d_ff,), kernel_init=XAVIER, dtype=self.dtype)
    self.outward = Linear((self.d_model,), kernel_init=XAVIER, dtype=self.dtype)
    self.feed_forward_norm = norm()
    if self.ends:
      self.final_norm = norm()
    self.drop = nn.Dropout(self.dropout)

  def encode(self, x: Array, visible: Array, train: bool) -> Array:
    """x [B, S, D], visible [B, S] (above 0: there is a token) -> [B, S, D]."""

    def own(y):
      return self.self_attention(y, self.self_attention.keys_values(y), visible=visible[:, None] > 0)

    x = self._residual(self.self_norm, x, own, train=train)
    return self._feed_forward(x, train=train)

  def decode(self, x: Array, memory: Array, visible: Array, train: bool) -> Array:
    """x [B, T, D], each position of which sees those before it, beside the encoder's output [B, S, D] -> [B, T, D]."""
    causal = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))[None]

    def own(y):
      return self.self_attention(y, self.self_attention.keys_values(y), visible=causal)

    x = self._residual(self.self_norm, x, own, train=train)
    return self._cross(x, self.cross_keys_values(memory), visible, train=train)

  def step(
    self, x: Array, cache: KeysValues, *, index: Array, cross: KeysValues, visible: Array
  ) -> tuple[Array, KeysValues]:
    """`decode` of the position `index` alone: x [B, 1, D], with the keys and values [B, T, H, K] of those before it.

    Returns [B, 1, D], and the cache with this position's keys and values.
    """
    kept = cache

    def own(y):
      nonlocal kept
      new = self.self_attention.keys_values(y)
      kept = KeysValues(*(
        jax.lax.dynamic_update_slice_in_dim(old, row.astype(old.dtype), index, 1)
        for old, row in zip(cache, new, strict=True)
      ))  # fmt: skip
      seen = jnp.arange(cache.keys.shape[1])[None, None] <= index
      return self.self_attention(y, kept, visible=seen)

    x = self._residual(self.self_norm, x, own, train=False)
    return self._cross(x, cross, visible, train=False), kept

  def cross_keys_values(self, memory: Array) -> KeysValues:
    """The encoder's output [B, S, D] -> what this layer attends to of it."""
    return self.cross_attention.keys_values(memory)

  def _cross(self, x: Array, cross: KeysValues, visible: Array, *, train: bool) -> Array:
    def other(y):
      return self.cross_attention(y, cross, visible=visible[:, None] > 0)

    x = self._residual(self.cross_norm, x, other, train=train)
    return self._feed_forward(x, train=train)

  def _feed_forward(self, x: Array, *, train: bool) -> Array:
    def inside(y):  # max(0, y W + b) W' + b' (eq. 2)
      hidden = self.inward(y)
      return self.outward(nn.relu(hidden) if self.activation == "relu" else nn.gelu(hidden, approximate=False))

    x = self._residual(self.feed_forward_norm, x, inside, train=train)
    return self.final_norm(x) if self.ends else x

  def _residual(self, norm: nn.Module, x: Array, sublayer: Callable[[Array], Array], *, train: bool) -> Array:
    y = self.drop(sublayer(norm(x) if self.norm_first else x), deterministic=not train)
    return x + y if self.norm_first else norm(x + y)
