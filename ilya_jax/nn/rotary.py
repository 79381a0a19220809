"""Rotary positions (Su et al. 2021, https://arxiv.org/abs/2104.09864, eq. 34), halves paired as in Llama."""

import jax
import jax.numpy as jnp

from ilya_jax.nn.precision import at_least_float32


def rotary_angles(
  positions: jax.Array, width: int, *, base: float = 10_000.0, dtype: jnp.dtype = jnp.float32
) -> jax.Array:
  """positions [T] (int) -> angles [T, width / 2] in radians: position * base^(-2 i / width)."""
  frequencies = base ** (-jnp.arange(0, width, 2, dtype=dtype) / width)
  return jnp.outer(positions.astype(dtype), frequencies)


def rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
  """Turns the pair (x_i, x_{i + K/2}) of every head of x [B, T, H, K] by angles [T, K/2]; the type of x is kept."""
  angles = angles[:, None, :]  # [T, 1, K/2]
  first, second = jnp.split(at_least_float32(x), 2, axis=-1)
  cos, sin = jnp.cos(angles)[None].astype(first.dtype), jnp.sin(angles)[None].astype(first.dtype)
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
