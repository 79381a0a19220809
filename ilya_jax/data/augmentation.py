"""Random shifts and mirror images of a batch of pictures: pure functions that run inside the compiled step.

B batch, H, W height and width, C channels.
"""

import jax
import jax.numpy as jnp
from jax import lax


def augment(rng: jax.Array, images: jax.Array, *, pad: int, flip: bool) -> jax.Array:
  """Each image [B, H, W, C] padded by `pad` zeros and cut out again at a random place, then mirrored with probability 1/2.

  The augmentation of He et al. 2015 (section 4.2: pad 4, crop, flip). Zeros are the mean where the mean was subtracted.
  """
  for_crop, for_flip = jax.random.split(rng)
  if pad:
    offsets = jax.random.randint(for_crop, (images.shape[0], 2), 0, 2 * pad + 1)
    images = shift(images, offsets, pad=pad)
  if flip:
    images = mirror(images, jax.random.bernoulli(for_flip, 0.5, images.shape[:1]))
  return images


def shift(images: jax.Array, offsets: jax.Array, *, pad: int) -> jax.Array:
  """Windows of the padded images [B, H, W, C] that begin at offsets [B, 2] (rows, columns), 0 .. 2 pad; (pad, pad) is the image."""
  _, h, w, c = images.shape
  padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))

  def window(image, offset):
    zero = jnp.zeros((), offset.dtype)
    return lax.dynamic_slice(image, (offset[0], offset[1], zero), (h, w, c))

  return jax.vmap(window)(padded, offsets)


def mirror(images: jax.Array, chosen: jax.Array) -> jax.Array:
  """Images [B, H, W, C], those that are chosen ([B], bool) with left and right exchanged."""
  return jnp.where(chosen[:, None, None, None], images[:, :, ::-1], images)
