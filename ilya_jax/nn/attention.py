"""Causal scaled dot-product attention (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, eq. 1).

Letters: B batch, T queries, S keys, H heads, K head dim.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ilya_jax.errors import UserError
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
  query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))  # [B, H, T or S, K]
  length, past = query.shape[2], key.shape[2] - query.shape[2]
  blocks = max(min(blocks, length), 1)
  bounds = [length * index // blocks for index in range(blocks + 1)]
  rows = [
    _attend(query[:, :, start:stop], key[:, :, : past + stop], value=value[:, :, : past + stop], dropout=dropout)
    for start, stop in zip(bounds, bounds[1:], strict=False)
  ]
  return jnp.swapaxes(rows[0] if blocks == 1 else jnp.concatenate(rows, axis=2), 1, 2)


def fused_attention(query: jax.Array, key: jax.Array, *, value: jax.Array, kernel: str) -> jax.Array:
  """`causal_attention` of as many queries as keys by `jax.nn.dot_product_attention`, which keeps no scores for the backward pass
  where it has a kernel for it.

  query, key, value: [B, T, H, K] each. kernel: "cudnn", the flash attention of cuDNN (a GPU, bfloat16 or float16), or "xla".
  Returns: [B, T, H, K] in the type of `value`. Raises UserError where the kernel is not to be had.
  """
  if kernel == "cudnn" and jax.default_backend() != "gpu":
    raise UserError("attention by cudnn without a GPU", "a GPU, or no kernel", "--config.execution.attention_kernel")
  try:
    return jax.nn.dot_product_attention(query, key, value, is_causal=True, implementation=kernel)  # type: ignore[call-overload]
  except (RuntimeError, ValueError) as error:  # no cuDNN, or a shape or type that its kernel does not take
    reason = str(error).splitlines()[0]
    raise UserError(
      f"attention by {kernel}: {reason}", "a kernel that this machine has for it", "--config.execution.attention_kernel"
    ) from error


def best_kernel(dtype: jnp.dtype, *, length: int, head_width: int, dropout: float) -> str:
  """What `fused_attention` should be asked for here: "cudnn" on a GPU where it takes the heads, "ours" for `causal_attention`.

  The figures behind it: experiments/results/accelerator.json (an H200, contexts of 1,024: .68 of the time, half of the memory).
  To be called where a program is traced: it starts the devices.
  """
  fits = dtype in (jnp.bfloat16, jnp.float16) and not dropout and head_width % 8 == 0 and head_width <= 128
  fits = fits and length % 64 == 0  # others were not tried
  return "cudnn" if fits and jax.default_backend() == "gpu" else "ours"


def _attend(query: jax.Array, key: jax.Array, *, value: jax.Array, dropout: Callable | None) -> jax.Array:
  """[B, H, T, K] against [B, H, S, K] -> [B, H, T, K]; the batch axes come first, as every platform's products want."""
  length, seen, width = query.shape[2], key.shape[2], query.shape[-1]
  scores = jnp.einsum("bhtk,bhsk->bhts", query * jnp.asarray(width**-0.5, query.dtype), key)
  scores = at_least_float32(scores)
  visible = jnp.arange(seen)[None, :] <= jnp.arange(seen - length, seen)[:, None]  # [T, S]
  scores = jnp.where(visible[None, None], scores, -jnp.inf)
  weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
  if dropout is not None:
    weights = dropout(weights)
  return jnp.einsum("bhts,bhsk->bhtk", weights, value)
