"""Linear maps whose weight gradient is computed in the form that each platform multiplies fastest."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from ilya_jax.nn.varying import vary_alike

_WIDE = 128  # columns from which the left matrix is copied transposed on the CPU


class Linear(nn.Module):
  """x @ kernel + bias over the last `axes` axes of x, onto `features`; the kernel's shape is [inputs..., features...].

  As nn.DenseGeneral, which has no way to choose the form of the weight's gradient (`matmul`). The kernel is never
  reshaped, so that it may be split over a mesh along any of its axes.
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
    y = matmul(x.astype(self.dtype), kernel.astype(self.dtype), axes=self.axes)
    if self.use_bias:
      bias = self.param("bias", _reshaped(self.bias_init, (columns,)), self.features)
      y = y + bias.astype(self.dtype).reshape((1,) * len(batch) + self.features)
    return y


class Kernel(nn.Module):
  """One matrix, named `kernel` like those of linear maps."""

  shape: tuple[int, ...]
  kernel_init: nn.initializers.Initializer

  @nn.compact
  def __call__(self) -> jax.Array:
    return self.param("kernel", self.kernel_init, self.shape)


def _reshaped(init: nn.initializers.Initializer, flat: tuple[int, ...]) -> nn.initializers.Initializer:
  """`init` on the matrix (or vector) that a kernel (or bias) of several axes is."""
  return lambda rng, shape: init(rng, flat, jnp.float32).reshape(shape)


def matmul(x: jax.Array, weight: jax.Array, *, axes: int = 1) -> jax.Array:
  """x [..., I...] times weight [I..., O...] -> [..., O...], summed over the `axes` axes I; for many rows and few columns.

  It has reverse-mode derivatives only.
  """
  return _matmul(*vary_alike(x, weight), axes)


def tied_logits(x: jax.Array, embedding: jax.Array) -> jax.Array:
  """x [..., D] against every row of the embedding [V, D] -> [..., V] in the type of x."""
  return matmul(x, embedding.astype(x.dtype).T)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _matmul(x: jax.Array, weight: jax.Array, axes: int) -> jax.Array:
  return jnp.tensordot(x, weight, axes)


def _save(x: jax.Array, weight: jax.Array, axes: int) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  return _matmul(x, weight, axes), (x, weight)


def _backward(axes: int, saved: tuple[jax.Array, jax.Array], cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
  x, weight = saved
  outputs = weight.ndim - axes
  rows = tuple(range(cotangent.ndim - outputs, cotangent.ndim)), tuple(range(axes, weight.ndim))
  return jnp.tensordot(cotangent, weight, rows), product_over_rows(x, cotangent, rows=x.ndim - axes)


_matmul.defvjp(_save, _backward)


def product_over_rows(a: jax.Array, b: jax.Array, *, rows: int) -> jax.Array:
  """Sum over all rows of a [rows..., I...] times b [rows..., O...] -> [I..., O...]; `rows` leading axes, many rows."""
  on_cpu, elsewhere = (functools.partial(form, rows=rows) for form in (_product_on_cpu, _contract_rows))
  return lax.platform_dependent(a, b, cpu=on_cpu, default=elsewhere)


def _contract_rows(a: jax.Array, b: jax.Array, *, rows: int) -> jax.Array:
  return jnp.tensordot(a, b, axes=(tuple(range(rows)), tuple(range(rows))))


def _product_on_cpu(a: jax.Array, b: jax.Array, *, rows: int) -> jax.Array:
  """The narrower matrix on the left, transposed beforehand where it is wide.

  XLA's CPU backend multiplies a^T b more slowly than a b (what this gains as a whole: experiments/LOG.md); the barriers
  keep it from turning these products back into that form.
  """
  left, right = math.prod(a.shape[rows:]), math.prod(b.shape[rows:])
  if left > right:
    swapped = lax.optimization_barrier(_product_on_cpu(b, a, rows=rows))
    return jnp.moveaxis(swapped, range(b.ndim - rows), range(-(b.ndim - rows), 0))
  if left < _WIDE:
    return lax.optimization_barrier(_contract_rows(a, b, rows=rows))
  columns = lax.optimization_barrier(jnp.moveaxis(a, range(rows, a.ndim), range(a.ndim - rows)))  # [I..., rows...]
  return lax.optimization_barrier(jnp.tensordot(columns, b, axes=rows))
