"""LayerNorm and RMSNorm with statistics in float32 at least, clean under strict type promotion (flax's are not)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ilya_jax.nn.precision import at_least_float32


class LayerNorm(nn.Module):
  """(x - mean) / sqrt(variance + epsilon) * scale + bias over the last axis (Ba, Kiros, Hinton 2016, eq. 4)."""

  epsilon: float = 1e-5
  use_bias: bool = True
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x [..., D] -> [..., D] in `dtype`."""
    scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
    bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],)) if self.use_bias else None
    x = at_least_float32(x)
    x = x - x.mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.epsilon)
    return _affine(x, scale, bias).astype(self.dtype)


class RMSNorm(nn.Module):
  """x / sqrt(mean of squares + epsilon) * scale over the last axis (Zhang, Sennrich 2019, eq. 4)."""

  epsilon: float = 1e-5
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x [..., D] -> [..., D] in `dtype`."""
    scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
    x = at_least_float32(x)
    x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.epsilon)
    return _affine(x, scale, None).astype(self.dtype)


def _affine(x: jax.Array, scale: jax.Array, bias: jax.Array | None) -> jax.Array:
  shape = (1,) * (x.ndim - 1) + scale.shape
  x = x * scale.astype(x.dtype).reshape(shape)
  return x if bias is None else x + bias.astype(x.dtype).reshape(shape)
