"""Convolutions over images with explicit padding."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

he_normal = nn.initializers.variance_scaling(
  2.0, "fan_in", "normal"
)  # He et al. 2015, https://arxiv.org/abs/1502.01852, eq. 10


class Conv(nn.Module):
  """A convolution without bias of `size` x `size` taps, moved by `stride`, on images padded by `padding` zeros on every side.

  The padding is symmetric as torch's; XLA's SAME is not where there is a stride.
  """

  features: int
  size: int
  stride: int = 1
  padding: int = 0
  kernel_init: nn.initializers.Initializer = he_normal
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x [B, H, W, C] -> [B, (H + 2 padding - size) / stride + 1, the same of W, features] in `dtype`."""
    kernel = self.param("kernel", self.kernel_init, (self.size, self.size, x.shape[-1], self.features))
    return convolve(x.astype(self.dtype), kernel.astype(self.dtype), stride=self.stride, padding=self.padding)


def convolve(x: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: int = 0) -> jax.Array:
  """x [B, H, W, I] with kernel [h, w, I, O] -> [B, H', W', O]."""
  return lax.conv_general_dilated(
    x, kernel, (stride, stride), ((padding, padding),) * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
