"""Examples labelled by a fixed random network, the teacher: a regression task whose law of size has a known least exponent.

A piecewise linear student of N parameters can follow a smooth function of F variables with a mean squared error of N^(-4/F)
(Sharma & Kaplan 2020, https://arxiv.org/abs/2004.10802, sections 2 and 4; their students of random teachers follow it, or fall
faster). There is no noise, so that the floor of the loss is 0.

The inputs are normal, [B, F]; the teacher has two hidden layers of 96 tanh units, and its output has mean 0 and variance 1 over
65,536 inputs of a stream of their own.
"""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np

from ilya_jax.data.tokens import eval_batches
from ilya_jax.errors import UserError
from ilya_jax.task import Source

_WIDTH = 96  # of the teacher
_GAIN = 1.5  # of its weights: makes it bend
_MEASURED = 65_536  # inputs that its mean and variance are taken over
_HELD_OUT_SEED = 1959  # of the held-out inputs
_STREAMS = {"train": 0, "heldout": 1}


def teacher(number: int, *, features: int) -> list[np.ndarray]:
  """The weights of teacher `number`: float32 [F, 96], [96, 96], [96]."""
  rng = np.random.Generator(np.random.Philox(key=np.asarray([number, features], np.uint64)))
  shapes = ((features, _WIDTH), (_WIDTH, _WIDTH), (_WIDTH,))
  return [(_GAIN * rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32) for shape in shapes]


def answer(weights: list[np.ndarray], x: jax.Array) -> jax.Array:
  """What a teacher says of x [B, F], before it is standardised: [B]."""
  first, second, last = weights
  return jnp.tanh(jnp.tanh(x @ first) @ second) @ last


def teacher_source(number: int, *, features: int, batch_size: int, seed: int, eval_examples: int) -> Source:
  """Batches {"x": float32 [B, F], "y": float32 [B]} of teacher `number`, endless; the training inputs depend on `seed`.

  Raises UserError for a negative number, and for sizes below 1.
  """
  for field, value, least in (
    ("data.teacher", number, 0), ("data.features", features, 1), ("batch_size", batch_size, 1),
    ("eval.examples", eval_examples, 1),
  ):  # fmt: skip
    if value < least:
      raise UserError(f"config.{field} = {value}", f"at least {least}", f"--config.{field}")
  weights = teacher(number, features=features)
  inputs = np.random.Generator(np.random.Philox(key=[number, 1])).standard_normal((_MEASURED, features), np.float32)
  hidden = np.tanh(np.tanh(inputs @ weights[0]) @ weights[1]) @ weights[2]
  mean, deviation = np.float32(hidden.mean()), np.float32(hidden.std())
  batches, width = eval_batches(eval_examples, context=1)
  rows = {"train": batch_size, "heldout": width}
  seeds = {"train": seed % 2**32, "heldout": _HELD_OUT_SEED}

  def batch(step: jax.typing.ArrayLike, *, split: str = "train") -> dict[str, jax.Array]:
    stream = jax.random.fold_in(jax.random.key(seeds[split]), _STREAMS[split])
    x = jax.random.normal(jax.random.fold_in(stream, step), (rows[split], features), jnp.float32)
    return {"x": x, "y": (answer(weights, x) - mean) / deviation}

  content = np.concatenate([array.ravel() for array in weights]).astype("<f4")
  info = {
    "name": f"teacher {number}",
    "fingerprint": hashlib.sha256(content.tobytes()).hexdigest(),
    "features": features,
    "d_unique_total": None,  # never repeats
    "heldout_examples": batches * width,
  }
  return Source(batch=batch, eval_batches={"heldout": batches}, info=info, traced=True)
