"""Convolutions over images, with explicit padding and a kernel gradient in the form that each platform multiplies fastest."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from ilya_jax.nn.linear import product_over_rows
from ilya_jax.nn.precision import at_least_float32
from ilya_jax.nn.varying import vary_alike

# He et al. 2015, https://arxiv.org/abs/1502.01852, eq. 10
he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
# Values of a device's block of windows on the CPU: 1.2 MB of float32, about its second cache.
_BLOCK = 300_000


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
  """x [B, H, W, I] with kernel [h, w, I, O] -> [B, H', W', O]. It has reverse-mode derivatives only."""
  return _convolve(*vary_alike(x, kernel), stride, padding)


def _plain(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
  return lax.conv_general_dilated(
    x, kernel, (stride, stride), ((padding, padding),) * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
  )


_convolve = jax.custom_vjp(_plain, nondiff_argnums=(2, 3))


def _save(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  return _plain(x, kernel, stride, padding), (x, kernel)


def _backward(
  stride: int, padding: int, saved: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
  on_cpu, elsewhere = (
    functools.partial(form, stride=stride, padding=padding) for form in (_gradients_on_cpu, _gradients)
  )
  return lax.platform_dependent(*saved, cotangent, cpu=on_cpu, default=elsewhere)


_convolve.defvjp(_save, _backward)


def _gradients(
  x: jax.Array, kernel: jax.Array, cotangent: jax.Array, *, stride: int, padding: int
) -> tuple[jax.Array, jax.Array]:
  """Gradients of image and kernel as XLA writes them: convolutions of the cotangent with the kernel and of the image with it."""
  return jax.vjp(lambda x, kernel: _plain(x, kernel, stride, padding), x, kernel)[1](cotangent)


def _gradients_on_cpu(
  x: jax.Array, kernel: jax.Array, cotangent: jax.Array, *, stride: int, padding: int
) -> tuple[jax.Array, jax.Array]:
  """The same, in forms that XLA's CPU backend computes faster (what they gain: experiments/LOG.md)."""
  if stride == 1 or x.shape[1] % stride or x.shape[2] % stride:
    (to_x,) = jax.vjp(lambda x: _plain(x, kernel, stride, padding), x)[1](cotangent)
  else:
    to_x = _image_gradient_by_phases(kernel, cotangent, stride=stride, padding=padding, side=x.shape[1:3])
  return to_x, _kernel_gradient_by_products(x, kernel, cotangent, stride=stride, padding=padding)


def _image_gradient_by_phases(
  kernel: jax.Array, cotangent: jax.Array, *, stride: int, padding: int, side: tuple[int, ...]
) -> jax.Array:
  """The gradient of images [B, H, W, I], side = (H, W) multiples of the stride, pixel phase by pixel phase.

  Pixel stride t + a of a row gets cotangent[t + (a + padding - r) / stride] kernel[r] of those taps r for which this is a whole
  number: a convolution with these taps for each phase a. XLA's own form spreads the cotangent out with zeros between.
  """
  taps = [[r for r in range(kernel.shape[0]) if (a + padding - r) % stride == 0] for a in range(stride)]
  counts = [side[axis] // stride for axis in (0, 1)]

  def window(a, axis):
    """How far a phase's convolution reaches over the cotangent's edges: before the first pixel, and after the last."""
    offsets = [(a + padding - r) // stride for r in taps[a]]
    last = cotangent.shape[1 + axis] - 1
    return -min(offsets), counts[axis] - 1 + max(offsets) - last

  def phase(a, b):
    if not taps[a] or not taps[b]:
      return jnp.zeros((cotangent.shape[0], *counts, kernel.shape[2]), cotangent.dtype)
    own = kernel[jnp.asarray(taps[a][::-1])[:, None], jnp.asarray(taps[b][::-1])]
    reach = (window(a, 0), window(b, 1))
    return lax.conv_general_dilated(cotangent, own, (1, 1), reach, dimension_numbers=("NHWC", "HWOI", "NHWC"))

  rows = [jnp.stack([phase(a, b) for b in range(stride)], axis=3) for a in range(stride)]
  return jnp.stack(rows, axis=2).reshape(cotangent.shape[0], *side, kernel.shape[2])


def _kernel_gradient_by_products(
  x: jax.Array, kernel: jax.Array, cotangent: jax.Array, *, stride: int, padding: int
) -> jax.Array:
  """The kernel's gradient as products of windows of the images with the cotangent, a few images after another.

  XLA's CPU backend writes a convolution with a window of an image's size, with which a step of ResNet-20 takes 1.4 to 1.6 times
  as long (experiments/LOG.md). Images that lie apart in the batch are taken together, each device's with a sum of their own until
  the end: so a batch that is split over devices stays where it is, and is summed over them once.
  """
  rows, columns, inputs, _ = kernel.shape
  o = cotangent.shape[-1]
  pair = functools.partial(_crossed if stride == 1 else _patches, size=kernel.shape[:2], stride=stride, padding=padding)
  left, right = jax.eval_shape(pair, x, cotangent)
  together, sums = _block(x.shape[0], (left.size + right.size) // x.shape[0])
  images, outputs = (leaf.reshape(together, -1, *leaf.shape[1:]) for leaf in (x, cotangent))

  def add(total, index):
    own, other = (lax.dynamic_index_in_dim(leaf, index, 1, keepdims=False) for leaf in (images, outputs))
    parts = [leaf.reshape(sums, -1, leaf.shape[-1]) for leaf in pair(own, other)]
    return total + at_least_float32(jax.vmap(functools.partial(product_over_rows, rows=1))(*parts)), None

  start = jnp.zeros((sums, left.shape[-1], right.shape[-1]), at_least_float32(cotangent).dtype)
  total, _ = lax.scan(add, vary_alike(start, cotangent)[0], jnp.arange(images.shape[1], dtype=jnp.int32))
  if stride == 1:  # [columns, I, rows, O]
    made = total.sum(0).reshape(columns, inputs, rows, o).transpose(2, 0, 1, 3)
  else:
    made = total.sum(0).reshape(rows, columns, inputs, o)
  return made.astype(kernel.dtype)


def _crossed(
  x: jax.Array, cotangent: jax.Array, *, size: tuple[int, ...], stride: int, padding: int
) -> tuple[jax.Array, jax.Array]:
  """x [n, H, W, I] moved by every column of the kernel, and the cotangent moved by every row: [n, H, W', columns I] and
  [n, H, W', rows O], whose product over all but the last axis holds every tap (r, c), for a stride of 1."""
  (rows, columns), (_, h, w, _) = size, cotangent.shape
  wide = jnp.pad(x, ((0, 0), (0, 0), (padding, padding), (0, 0)))
  # Row u of x meets row u + padding - r of the cotangent.
  before, after = rows - 1 - padding, x.shape[1] + padding - h
  high = lax.pad(cotangent, jnp.zeros((), cotangent.dtype), ((0, 0, 0), (before, after, 0), (0, 0, 0), (0, 0, 0)))
  left = jnp.concatenate([wide[:, :, c : c + w] for c in range(columns)], axis=-1)
  right = jnp.concatenate([high[:, rows - 1 - r : rows - 1 - r + x.shape[1]] for r in range(rows)], axis=-1)
  return left, right


def _patches(
  x: jax.Array, cotangent: jax.Array, *, size: tuple[int, ...], stride: int, padding: int
) -> tuple[jax.Array, jax.Array]:
  """The window of x [n, H, W, I] under every pixel of the cotangent, [n, H', W', rows columns I], and the cotangent."""
  (rows, columns), (_, h, w, _) = size, cotangent.shape
  padded = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
  windows = [
    padded[:, r : r + stride * (h - 1) + 1 : stride, c : c + stride * (w - 1) + 1 : stride]
    for r in range(rows)
    for c in range(columns)
  ]
  return jnp.concatenate(windows, axis=-1), cotangent


def _block(batch: int, values: int) -> tuple[int, int]:
  """How many images of so many values each are taken together, a divisor of the batch, and how many sums they have.

  As many on each device as make a block of _BLOCK; one sum a device where the devices divide the batch, else one in all.
  """
  devices = jax.local_device_count()
  sums = devices if batch % devices == 0 else 1
  sizes = [n for n in range(sums, batch + 1, sums) if batch % n == 0 and n // sums * values <= _BLOCK]
  return max(sizes, default=sums), sums
