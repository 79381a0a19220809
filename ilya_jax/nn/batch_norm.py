"""Batch normalisation over images (Ioffe & Szegedy 2015, https://arxiv.org/abs/1502.03167, algorithms 1 and 2).

Clean under strict type promotion, and inside a pipeline whose devices hold parts of a batch: statistics are those of the
whole batch (in a pipeline of the micro-batch) on any number of devices.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ilya_jax.nn.precision import at_least_float32
from ilya_jax.nn.varying import mean_over_batch


class BatchNorm(nn.Module):
  """(x - mean) / sqrt(variance + epsilon) * scale + bias, per channel, the last axis.

  In training mean and (biased) variance are those of the batch, over all axes but the channels', and the moving averages in the
  collection `batch_stats` move by 1 - momentum towards them; torch's `momentum` is that share, 0.1, and its moving variance is
  the unbiased one, n / (n - 1) times ours. Otherwise the moving averages are used. Statistics are float32 at least.
  """

  momentum: float = 0.9
  epsilon: float = 1e-5
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """x [B, ..., C] -> [B, ..., C] in `dtype`."""
    shape = (x.shape[-1],)
    scale, bias = self.param("scale", nn.initializers.ones, shape), self.param("bias", nn.initializers.zeros, shape)
    moving_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
    moving_variance = self.variable("batch_stats", "var", jnp.ones, shape)
    x = at_least_float32(x)
    scale, bias = scale.astype(x.dtype), bias.astype(x.dtype)
    if not train:
      factor = scale * jax.lax.rsqrt(moving_variance.value.astype(x.dtype) + self.epsilon)
      return _affine(x, factor, bias - moving_mean.value.astype(x.dtype) * factor).astype(self.dtype)
    y, mean, variance = normalise(x, scale, bias, epsilon=self.epsilon)
    moving_mean.value = self.momentum * moving_mean.value + (1 - self.momentum) * mean
    moving_variance.value = self.momentum * moving_variance.value + (1 - self.momentum) * variance
    return y.astype(self.dtype)


def normalise(
  x: jax.Array, scale: jax.Array, bias: jax.Array, *, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """x [B, ..., C] normalised by its own statistics, scaled and shifted by scale and bias [C]; its mean and variance [C].

  The variance is the mean square less the squared mean: in float32 it is off by about 1e-7 mean^2 / variance of itself. Mean and
  variance are given for moving averages: no derivative flows through them.
  """
  axes = tuple(range(x.ndim - 1))
  mean = mean_over_batch(x, axes)
  variance = jnp.maximum(mean_over_batch(x * x, axes) - mean * mean, 0.0)
  factor = scale * jax.lax.rsqrt(variance + epsilon)
  return _affine(x, factor, bias - mean * factor), jax.lax.stop_gradient(mean), jax.lax.stop_gradient(variance)


def _affine(x: jax.Array, factor: jax.Array, shift: jax.Array) -> jax.Array:
  wide = (1,) * (x.ndim - 1) + factor.shape
  return x * factor.reshape(wide) + shift.reshape(wide)
