"""Batches of labelled pictures as a Source, from any named set: in memory, streamed from disk, or generated.

Every source gives {"image": [B, H, W, C], "label": int32 [B]}, uint8 pictures (float32 where they are generated), and in `info`:
shape (H, W, C), classes, mean (float32, [H, W, C] or a part of it), std (one number), of the training pictures: what
`standardise` takes. An epoch is a permutation of the training set, drawn from (seed, epoch); batches follow one another through
the epochs, so that every picture is seen equally often.

Names: `templates:NUMBER` (`ilya_jax.data.templates`) and those of `ilya_jax.data.image_sets`.
"""

import functools
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ilya_jax.data.epochs import order_of_epochs
from ilya_jax.data.image_sets import digest_of, features_of, identity_of, load_images, split_names
from ilya_jax.data.prepared import open_builder, open_split
from ilya_jax.data.templates import template_source
from ilya_jax.errors import UserError
from ilya_jax.task import Source

SHORT_SIDES = (
  256,
  480,
)  # of a streamed training picture, drawn uniformly (He et al. 2015, section 3.4); the first for testing
_TEST_BATCH = 500  # at most
_STATISTICS = 1024  # pictures of a stream that its mean and deviation are taken from


def image_source(
  name: str, *, path: str = "", batch_size: int, seed: int, train_examples: int = 0, size: int = 0, channels: int = 1,
  classes: int = 10, noise: float = 1.0, test_examples: int = 0,
) -> Source:  # fmt: skip
  """The pictures of a name (see above), with the held-out set "test".

  path: where the files are, "" for the usual place. train_examples: only so many of the training pictures, the first (0: all).
  size: side of generated pictures, and of those cut from a stream. channels, classes, noise, test_examples: of generated ones.
  Raises UserError for what is not there or makes no sense.
  """
  kind, _, number = name.partition(":")
  if kind == "templates":
    if number and not number.isdecimal():
      raise UserError(f"data.name = {name!r}", "templates:NUMBER", "--config.data.name")
    return template_source(
      int(number or 0), size=size, channels=channels, classes=classes, noise=noise, batch_size=batch_size, seed=seed,
      test_examples=test_examples, test_batch=whole_batches(test_examples),
    )  # fmt: skip
  if kind == "tfds":
    builder, _ = open_builder(number, path)
    if None in features_of(number, builder)[0]:
      return _streamed(number, path, size=size, batch_size=batch_size, seed=seed, train_examples=train_examples)
  return _in_memory(name, path, batch_size=batch_size, seed=seed, train_examples=train_examples)


def standardise(images: jax.Array, *, mean: np.ndarray, std: float) -> jax.Array:
  """(images - mean) / std for images [B, H, W, C] of any type: float32, or the type of images that are floats already."""
  images = jnp.asarray(images)
  dtype = images.dtype if jnp.issubdtype(images.dtype, jnp.floating) else jnp.float32
  return (images.astype(dtype) - jnp.asarray(mean, dtype)[None]) / jnp.asarray(std, dtype)


def whole_batches(examples: int, *, most: int = _TEST_BATCH) -> int:
  """Pictures a batch of a held-out set: the most that divide it, at least an eighth of `most`; else `most`, with an odd last batch."""
  sizes = [size for size in range(min(most, examples), 0, -1) if examples % size == 0]
  return sizes[0] if sizes and (sizes[0] >= most // 8 or sizes[0] == examples) else most


def _positions(step: int, *, batch_size: int, rows: slice) -> np.ndarray:
  return (np.int64(step) * batch_size + np.arange(batch_size, dtype=np.int64))[rows]


def _in_memory(name: str, path: str, *, batch_size: int, seed: int, train_examples: int) -> Source:
  images = load_images(name, path)
  count = _used(train_examples, of=len(images.train_labels))
  mean, std = _statistics(images.train_images[:count])
  test_batch = whole_batches(len(images.test_labels))

  def batch(step: int, *, split: str, rows: slice = slice(None)) -> dict[str, np.ndarray]:
    if split == "train":
      chosen = order_of_epochs(_positions(step, batch_size=batch_size, rows=rows), count=count, seed=seed)
      return {"image": images.train_images[chosen], "label": images.train_labels[chosen]}
    part = slice(step * test_batch, (step + 1) * test_batch)
    return {"image": np.asarray(images.test_images[part][rows]), "label": images.test_labels[part][rows]}

  fingerprint = hashlib.sha256(f"{_digest(name, path)} {count}".encode()).hexdigest()
  info = {
    "name": name, "fingerprint": fingerprint, "shape": images.train_images.shape[1:], "classes": images.classes,
    "mean": mean, "std": std, "train_examples": count, "test_examples": len(images.test_labels), "d_unique_total": count,
  }  # fmt: skip
  return Source(batch, {"test": -(-len(images.test_labels) // test_batch)}, info)


@functools.lru_cache(maxsize=4)
def _digest(name: str, path: str) -> str:
  """The digest of a set that `load_images` keeps, taken once in a process."""
  return digest_of(load_images(name, path))


def _used(train_examples: int, *, of: int) -> int:
  """How many training examples are used. Raises UserError where there are not as many."""
  if not 0 <= train_examples <= of:
    raise UserError(f"data.train_examples = {train_examples}", f"0 to {of}", "--config.data.train_examples")
  return train_examples or of


def _statistics(images: np.ndarray) -> tuple[np.ndarray, float]:
  """Mean of each pixel, float32 [H, W, C], and the deviation of all pixels from it, of uint8 images [n, H, W, C]."""
  mean = images.mean(0, dtype=np.float64)
  squares = np.mean([np.square(part - mean).mean() for part in np.array_split(images, max(len(images) // 1000, 1))])
  return mean.astype(np.float32), float(np.sqrt(squares))


def _streamed(name: str, path: str, *, size: int, batch_size: int, seed: int, train_examples: int) -> Source:
  """Pictures of different sizes, read and decoded one by one: cut out of the picture at random for training, of its middle for tests.

  A training picture's short side is scaled to a whole number of SHORT_SIDES, then a square of side `size` is cut out of it
  at random; both are drawn from (seed, position in the sequence of epochs).
  """
  builder, splits = open_builder(name, path)
  (*_, channels), classes = features_of(name, builder)
  train, test = (open_split(name, builder, split) for split in split_names(name, splits))
  if not 1 <= size <= SHORT_SIDES[0]:
    raise UserError(f"data.size = {size}", f"a side from 1 to {SHORT_SIDES[0]}", "--config.data.size")
  count, test_batch = _used(train_examples, of=len(train)), whole_batches(len(test))

  def training(position: int, index: int) -> tuple[np.ndarray, int]:
    rng = np.random.Generator(np.random.Philox(key=np.asarray([seed, position], np.uint64)))
    example = train[index]
    picture = scaled(example["image"], short_side=int(rng.integers(SHORT_SIDES[0], SHORT_SIDES[1] + 1)))
    top, left = (int(rng.integers(0, side - size + 1)) for side in picture.shape[:2])
    return picture[top : top + size, left : left + size], int(example["label"])

  def testing(index: int) -> tuple[np.ndarray, int]:
    example = test[index]
    return middle(scaled(example["image"], short_side=SHORT_SIDES[0]), size=size), int(example["label"])

  pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="pictures")

  def batch(step: int, *, split: str, rows: slice = slice(None)) -> dict[str, np.ndarray]:
    if split == "train":
      positions = _positions(step, batch_size=batch_size, rows=rows)
      made = list(pool.map(training, positions, order_of_epochs(positions, count=count, seed=seed)))
    else:
      made = list(pool.map(testing, range(len(test))[step * test_batch : (step + 1) * test_batch][rows]))
    return {
      "image": np.stack([image for image, _ in made]),
      "label": np.asarray([label for _, label in made], np.int32),
    }

  mean, std = _stream_statistics(train, size=size)
  fingerprint = hashlib.sha256(repr((identity_of(builder), size, SHORT_SIDES, count)).encode()).hexdigest()
  info = {
    "name": f"tfds:{name}", "fingerprint": fingerprint, "shape": (size, size, channels), "classes": classes,
    "mean": mean, "std": std, "train_examples": count, "test_examples": len(test), "d_unique_total": count,
  }  # fmt: skip
  return Source(batch, {"test": -(-len(test) // test_batch)}, info)


def scaled(picture: np.ndarray, *, short_side: int) -> np.ndarray:
  """A picture uint8 [H, W, C] scaled so that its shorter side is `short_side`, by Pillow's bilinear filter."""
  from PIL import Image

  h, w, c = picture.shape
  factor = short_side / min(h, w)
  sides = max(round(w * factor), short_side), max(round(h * factor), short_side)
  image = Image.fromarray(picture[..., 0] if c == 1 else picture)
  return np.asarray(image.resize(sides, Image.Resampling.BILINEAR)).reshape(sides[1], sides[0], c)


def middle(picture: np.ndarray, *, size: int) -> np.ndarray:
  """The square of side `size` in the middle of a picture [H, W, C]."""
  top, left = ((side - size) // 2 for side in picture.shape[:2])
  return picture[top : top + size, left : left + size]


def _stream_statistics(examples: Sequence[Any], *, size: int) -> tuple[np.ndarray, float]:
  """Mean of each channel, float32 [1, 1, C], and the deviation of all pixels from it, of the first training pictures."""
  first = range(min(_STATISTICS, len(examples)))
  pictures = np.stack([middle(scaled(examples[k]["image"], short_side=SHORT_SIDES[0]), size=size) for k in first])
  mean = pictures.mean((0, 1, 2), dtype=np.float64)
  deviation = np.sqrt(np.mean([np.square(picture - mean).mean() for picture in pictures]))
  return mean.astype(np.float32)[None, None], float(deviation)
