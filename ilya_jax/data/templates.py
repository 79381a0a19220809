"""A generated set of pictures in classes, drawn on the host, whose best possible classifier is known exactly.

Class k has a template T_k, a smooth random picture on a torus (white noise filtered by a Gaussian of WIDTH pixels, mean 0 and
variance 1). A picture of class k is T_k moved by s, uniform over the (2 r + 1)^2 moves of up to r pixels in each direction (what
leaves on one side comes back on the other), plus independent Gaussian noise of deviation sigma on every pixel:

  p(x | k) = mean over s of N(x; move(T_k, s), sigma^2),

so that the posterior p(k | x), its entropy (the least expected loss) and the least possible error are known (`log_posterior`).

B batch, S side, C channels, K classes.
"""

import hashlib
import itertools

import numpy as np
from scipy import ndimage

from ilya_jax.errors import UserError
from ilya_jax.task import Source

WIDTH = 1.0  # of the filter, pixels
MOVES = 1  # r
_STREAMS = {"train": 0, "test": 1}
_TEST_SEED = 1959  # of the held-out pictures


def make_templates(number: int, *, size: int, channels: int, classes: int) -> np.ndarray:
  """Templates float32 [K, S, S, C] of set `number`: the same for the same arguments.

  Raises UserError for a negative number, a side below 4, fewer than 2 classes and no channels.
  """
  if number < 0 or size < 4 or classes < 2 or channels < 1:
    raise UserError(
      f"templates:{number} of side {size}, {channels} channels, {classes} classes",
      "a number of 0 or more, a side of 4 or more, 1 channel or more, 2 classes or more",
      "change --config.data.name=templates:NUMBER, --config.data.size, .channels or .classes",
    )
  rng = np.random.Generator(np.random.Philox(key=np.asarray([number, size], np.uint64)))
  noise = rng.normal(size=(classes, size, size, channels))
  smooth = ndimage.gaussian_filter(noise, (0, WIDTH, WIDTH, 0), mode="wrap")
  smooth -= smooth.mean((1, 2, 3), keepdims=True)
  return (smooth / smooth.std((1, 2, 3), keepdims=True)).astype(np.float32)


def sample(rng: np.random.Generator, templates: np.ndarray, *, count: int, noise: float) -> dict[str, np.ndarray]:
  """{"image": float32 [B, S, S, C], "label": int32 [B]}: `count` pictures with noise of deviation `noise`."""
  classes, size, _, channels = templates.shape
  label = rng.integers(classes, size=count, dtype=np.int32)
  down, right = rng.integers(-MOVES, MOVES + 1, size=(2, count, 1, 1))
  rows, columns = (np.arange(size)[:, None] - down) % size, (np.arange(size) - right) % size
  image = templates[label[:, None, None], rows, columns]  # [B, S, S, C]
  return {"image": image + np.float32(noise) * rng.standard_normal(image.shape, np.float32), "label": label}


def log_posterior(images: np.ndarray, templates: np.ndarray, *, noise: float) -> np.ndarray:
  """log p(k | x) of images [B, S, S, C], exactly, float64 [B, K]: what no classifier can do better than."""
  flat = np.asarray(images, np.float64).reshape(len(images), -1)
  logs = []
  for move in itertools.product(range(-MOVES, MOVES + 1), repeat=2):
    moved = np.roll(np.asarray(templates, np.float64), move, (1, 2)).reshape(len(templates), -1)  # [K, S S C]
    squares = (flat**2).sum(1)[:, None] - 2 * flat @ moved.T + (moved**2).sum(1)
    logs.append(-squares / (2 * noise**2))
  joint = np.logaddexp.reduce(np.stack(logs), axis=0)  # [B, K], up to what all classes share
  return joint - np.logaddexp.reduce(joint, axis=1, keepdims=True)


def template_source(
  number: int, *, size: int, channels: int, classes: int, noise: float, batch_size: int, seed: int, test_examples: int,
  test_batch: int,
) -> Source:  # fmt: skip
  """Batches of `sample`, never the same picture twice; `seed` decides the training pictures, the held-out set "test" is fixed.

  test_examples: pictures of the held-out set, in batches of `test_batch`. `info` has what `images.image_source` gives.
  Raises UserError as `make_templates` does, and where `test_batch` does not divide `test_examples`.
  """
  templates = make_templates(number, size=size, channels=channels, classes=classes)
  if test_batch < 1 or test_examples % test_batch:
    raise UserError(
      f"{test_examples} test pictures in batches of {test_batch}", "a number of whole batches", "--config.eval.examples"
    )
  counts, seeds = {"train": batch_size, "test": test_batch}, {"train": seed, "test": _TEST_SEED}

  def batch(step: int, *, split: str, rows: slice = slice(None)) -> dict[str, np.ndarray]:
    key = np.asarray([seeds[split], 2 * int(step) + _STREAMS[split]], np.uint64)
    made = sample(np.random.Generator(np.random.Philox(key=key)), templates, count=counts[split], noise=noise)
    return {name: values[rows] for name, values in made.items()}

  content = hashlib.sha256(templates.astype("<f4").tobytes() + repr((MOVES, noise, test_examples, test_batch)).encode())
  info = {
    "name": f"templates:{number}",
    "fingerprint": content.hexdigest(),
    "shape": templates.shape[1:],
    "classes": classes,
    "mean": np.zeros((1, 1, channels), np.float32),
    "std": float(np.sqrt(1 + noise**2)),
    "train_examples": None,
    "test_examples": test_examples,
    "d_unique_total": None,  # never repeats
  }
  return Source(batch=batch, eval_batches={"test": test_examples // test_batch}, info=info)
