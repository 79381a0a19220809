"""Linear maps whose weight gradient is computed in the form that each platform multiplies fastest."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from ilya_jax.nn.varying import vary_alike

_WIDE = 128  # columns from which the left matrix is copied transposed on the CPU


class Linear(nn.Module):
  """x @ kernel + bias over the last `axes` axes of x, onto `features`; the kernel's shape is [inputs..., features...].

  As nn.DenseGeneral, which has no way to choose the form of the weight's gradient (`matmul`).
  """

  features: tuple[int, ...]
  axes: int = 1
  use_bias: bool = True
  kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
  bias_init: nn.initializers.Initializer = nn.initializers.zeros
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x [..., inputs...] -> [..., features...] in `dtype`."""
    batch, inputs = x.shape[: -self.axes], x.shape[-self.axes :]
    rows, columns = math.prod(inputs), math.prod(self.features)
    kernel = self.param("kernel", _reshaped(self.kernel_init, (rows, columns)), (*inputs, *self.features))
    y = matmul(x.reshape(*batch, rows).astype(self.dtype), kernel.reshape(rows, columns).astype(self.dtype))
    y = y.reshape(*batch, *self.features)
    if self.use_bias:
      bias = self.param("bias", _reshaped(self.bias_init, (columns,)), self.features)
      y = y + bias.astype(self.dtype).reshape((1,) * len(batch) + self.features)
    return y


def _reshaped(init: nn.initializers.Initializer, flat: tuple[int, ...]) -> nn.initializers.Initializer:
  """`init` on the matrix (or vector) that a kernel (or bias) of several axes is."""
  return lambda rng, shape: init(rng, flat, jnp.float32).reshape(shape)


def matmul(x: jax.Array, weight: jax.Array) -> jax.Array:
  """x [..., I] @ weight [I, O] -> [..., O] for many rows and few columns. It has reverse-mode derivatives only."""
  return _matmul(*vary_alike(x, weight))


def tied_logits(x: jax.Array, embedding: jax.Array) -> jax.Array:
  """x [..., D] against every row of the embedding [V, D] -> [..., V] in the type of x."""
  return matmul(x, embedding.astype(x.dtype).T)


@jax.custom_vjp
def _matmul(x: jax.Array, weight: jax.Array) -> jax.Array:
  return x @ weight


def _backward(saved: tuple[jax.Array, jax.Array], cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
  x, weight = saved
  return cotangent @ weight.T, product_over_rows(x, cotangent)


_matmul.defvjp(lambda x, weight: (x @ weight, (x, weight)), _backward)


def product_over_rows(a: jax.Array, b: jax.Array) -> jax.Array:
  """Sum over all rows of a [..., I] times b [..., O] -> [I, O]; many rows (the leading axes are theirs)."""
  return lax.platform_dependent(a, b, cpu=_product_on_cpu, default=_contract_rows)


def _contract_rows(a: jax.Array, b: jax.Array) -> jax.Array:
  return jnp.tensordot(a, b, axes=(tuple(range(a.ndim - 1)), tuple(range(b.ndim - 1))))


def _product_on_cpu(a: jax.Array, b: jax.Array) -> jax.Array:
  """The narrower matrix on the left, transposed beforehand where it is wide.

  XLA's CPU backend multiplies a^T b more slowly than a b (what this gains as a whole: experiments/LOG.md); the barriers
  keep it from turning these products back into that form.
  """
  if a.shape[-1] > b.shape[-1]:
    return lax.optimization_barrier(_product_on_cpu(b, a)).T
  if a.shape[-1] < _WIDE:
    return lax.optimization_barrier(_contract_rows(a, b))
  columns = lax.optimization_barrier(jnp.moveaxis(a, -1, 0))  # [I, ...]
  return lax.optimization_barrier(jnp.tensordot(columns, b, axes=b.ndim - 1))
