"""The type of reductions: sums over features, softmaxes and losses are never taken in less than float32."""

import jax
import jax.numpy as jnp


def at_least_float32(x: jax.Array) -> jax.Array:
  """bfloat16 and float16 become float32; float32 and float64 stay."""
  return x.astype(jnp.float32) if x.dtype.itemsize < 4 else x
