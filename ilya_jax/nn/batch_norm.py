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
    shape, axes = (x.shape[-1],), tuple(range(x.ndim - 1))
    scale, bias = self.param("scale", nn.initializers.ones, shape), self.param("bias", nn.initializers.zeros, shape)
    moving_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
    moving_variance = self.variable("batch_stats", "var", jnp.ones, shape)

    def wide(channels):
      return channels.reshape((1,) * len(axes) + shape)

    x = at_least_float32(x)
    if train:
      mean = mean_over_batch(x, axes)
      variance = mean_over_batch(jnp.square(x - wide(mean)), axes)
      moving_mean.value = self.momentum * moving_mean.value + (1 - self.momentum) * mean
      moving_variance.value = self.momentum * moving_variance.value + (1 - self.momentum) * variance
    else:
      mean, variance = moving_mean.value, moving_variance.value
    factor = scale.astype(x.dtype) * jax.lax.rsqrt(variance.astype(x.dtype) + self.epsilon)
    return ((x - wide(mean)) * wide(factor) + wide(bias.astype(x.dtype))).astype(self.dtype)
