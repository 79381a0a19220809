"""Causal scaled dot-product attention (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, eq. 1).

Letters: B batch, T queries, S keys, H heads, K head dim.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ilya_jax.nn.precision import at_least_float32


def causal_attention(
  query: jax.Array,
  key: jax.Array,
  *,
  value: jax.Array,
  blocks: int = 1,
  dropout: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
  """softmax(Q K^T / sqrt(K)) V, where the queries are the last T of S >= T positions and see no later key.

  Args:
    query: [B, T, H, K].
    key, value: [B, S, H, K]. S > T is the case of a cache: query t sees keys 0 .. S - T + t.
    blocks: the queries are cut in so many blocks, each computed against only the keys that one of them may see. The
      result is the same up to rounding; more blocks save arithmetic and cost more, smaller operations.
    dropout: applied to the attention weights [B, H, T, S].

  Returns: [B, T, H, K] in the type of `value`. The softmax is computed in float32 at least.
  """
  length, past = query.shape[1], key.shape[1] - query.shape[1]
  blocks = max(min(blocks, length), 1)
  bounds = [length * index // blocks for index in range(blocks + 1)]
  rows = [
    _attend(query[:, start:stop], key[:, : past + stop], value=value[:, : past + stop], dropout=dropout)
    for start, stop in zip(bounds, bounds[1:], strict=False)
  ]
  return rows[0] if blocks == 1 else jnp.concatenate(rows, axis=1)


def _attend(query: jax.Array, key: jax.Array, *, value: jax.Array, dropout: Callable | None) -> jax.Array:
  length, seen, width = query.shape[1], key.shape[1], query.shape[-1]
  scores = jnp.einsum("bthk,bshk->bhts", query * jnp.asarray(width**-0.5, query.dtype), key)
  scores = at_least_float32(scores)
  visible = jnp.arange(seen)[None, :] <= jnp.arange(seen - length, seen)[:, None]  # [T, S]
  weights = jax.nn.softmax(scores, axis=-1, where=jnp.broadcast_to(visible, scores.shape))
  weights = weights.astype(value.dtype)
  if dropout is not None:
    weights = dropout(weights)
  return jnp.einsum("bhts,bshk->bthk", weights, value)
