"""How the heads of a Neural Turing Machine choose rows, read and write: pure functions of what the controller asks for.

Graves, Wayne, Danihelka 2014, https://arxiv.org/abs/1410.5401, section 3: reading (eq. 2), writing (eqs. 3, 4), content (eqs. 5, 6),
interpolation (eq. 7), circular shift (eq. 8), sharpening (eq. 9).
Letters: B batch, N rows, M columns of the memory, R read heads, W write heads, H heads of either kind, S shifts.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

_SMALL_NORM = 1e-8  # added to squared lengths, so that a row of zeros has a gradient
_SMALL_WEIGHT = 1e-12  # added to weights before they are raised to a power


class Heads(NamedTuple):
  """What the controller asks of heads: keys [B, H, M], strengths [B, H], gates [B, H], shifts [B, H, S] (distributions over
  -(S-1)/2 .. (S-1)/2; or [B, H, 1], the lower end of a window of width 1), sharpenings [B, H]."""

  keys: jax.Array
  strengths: jax.Array
  gates: jax.Array
  shifts: jax.Array
  sharpenings: jax.Array


def content_weights(keys: jax.Array, strengths: jax.Array, memory: jax.Array) -> jax.Array:
  """Eqs. 5, 6: softmax over rows of strength times cosine; keys [B, H, M], strengths [B, H], memory [B, N, M] -> [B, H, N]."""
  lengths = _length(keys)[:, :, None] * _length(memory)[:, None]
  products = jnp.sum(keys[:, :, None] * memory[:, None], axis=-1)
  return jax.nn.softmax(strengths[..., None] * products / lengths, axis=-1)


def _length(vectors: jax.Array) -> jax.Array:
  return jnp.sqrt(jnp.sum(vectors * vectors, axis=-1) + _SMALL_NORM)


def interpolate(content: jax.Array, previous: jax.Array, gates: jax.Array) -> jax.Array:
  """Eq. 7: content and previous weights [B, H, N], gates [B, H] -> [B, H, N]."""
  return previous + gates[..., None] * (content - previous)


def shift(weights: jax.Array, shifts: jax.Array) -> jax.Array:
  """Eq. 8: circular convolution of weights [B, H, N] with a distribution [B, H, S] over -(S-1)/2 .. (S-1)/2; +1 moves row i to i + 1."""
  half = shifts.shape[-1] // 2
  parts = [shifts[..., k, None] * jnp.roll(weights, k - half, axis=-1) for k in range(shifts.shape[-1])]
  return functools.reduce(jnp.add, parts)


def shift_by_window(weights: jax.Array, lower: jax.Array) -> jax.Array:
  """Eq. 8 with the paper's scalar: weights [B, H, N] moved by a window of width 1 from lower [B, H], 6.7 being 0.3 of 6, 0.7 of 7."""
  rows = weights.shape[-1]
  whole = jnp.floor(lower)
  part = (lower - whole)[..., None]
  places = jnp.arange(rows, dtype=jnp.int32)[None, None] - whole.astype(jnp.int32)[..., None]  # [B, H, N]
  by_whole, by_next = (jnp.take_along_axis(weights, (places - k) % rows, axis=-1) for k in (0, 1))
  return (1 - part) * by_whole + part * by_next


def sharpen(weights: jax.Array, sharpenings: jax.Array) -> jax.Array:
  """Eq. 9: weights [B, H, N] to the power of sharpenings [B, H], normalised."""
  return jax.nn.softmax(sharpenings[..., None] * jnp.log(weights + _SMALL_WEIGHT), axis=-1)


def address(heads: Heads, previous: jax.Array, memory: jax.Array) -> jax.Array:
  """Eqs. 5 to 9: the weightings [B, H, N] of heads whose weightings were `previous`, over memory [B, N, M]."""
  weights = interpolate(content_weights(heads.keys, heads.strengths, memory), previous, heads.gates)
  if heads.shifts.shape[-1] == 1:
    return sharpen(shift_by_window(weights, heads.shifts[..., 0]), heads.sharpenings)
  return sharpen(shift(weights, heads.shifts), heads.sharpenings)


def read(weights: jax.Array, memory: jax.Array) -> jax.Array:
  """Eq. 2: weights [B, R, N] over memory [B, N, M] -> [B, R, M]."""
  return jnp.sum(weights[..., None] * memory[:, None], axis=2)


def write(memory: jax.Array, weights: jax.Array, *, erases: jax.Array, adds: jax.Array) -> jax.Array:
  """Eqs. 3, 4: memory [B, N, M] after write heads with weights [B, W, N], erases and adds [B, W, M]; erases before adds."""
  outer = weights[..., None]  # [B, W, N, 1]
  kept = jnp.prod(1 - outer * erases[:, :, None], axis=1)
  return memory * kept + jnp.sum(outer * adds[:, :, None], axis=1)
