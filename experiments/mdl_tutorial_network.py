"""The networks whose labels are coded in `mdl_tutorial.py`: a teacher, a perceptron fitted to a prefix, a variational one.

A hidden layer of H units, tanh, or none (H = 0: logistic regression); every parameter has the prior N(0, 1), maps are divided by
the square root of their inputs. Fits go to the most probable parameters, Σ log loss + |w|² / 2, by Adam on minibatches. The
variational code (Hinton & van Camp 1993; Graves 2011) takes an independent normal distribution for each parameter and costs its
divergence from the prior and the mean log loss. These fits are not runs of the training loop: a code of n labels trains anew
from a prefix of them, a dozen times, each a matter of a second.

Axes: B batch, D inputs, H hidden units, K classes, n examples.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ilya_jax.complexity import prequential
from ilya_jax.errors import UserError

Array = np.ndarray
Params = Any

RATE, BATCH, DRAWS = 0.02, 128, 64  # of Adam; of examples; of parameters, for the mean loss of the variational code
START = 0.05  # standard deviation of the posterior before it is fitted


class Labelled(NamedTuple):
  """x: float32 [n, D]. labels: int32 [n] in 0 … classes - 1."""

  x: Array
  labels: Array
  classes: int


class Size(NamedTuple):
  """hidden: units (0: none). steps: of a fit to the most probable parameters; the variational one takes three times as many."""

  hidden: int
  steps: int


def init(rng: jax.Array, *, inputs: int, hidden: int, classes: int) -> Params:
  """Parameters from the prior: a list of (kernel, bias)."""
  widths = [inputs, *([hidden] if hidden else []), classes]
  keys = jax.random.split(rng, 2 * len(widths))
  return [
    (jax.random.normal(keys[2 * k], (widths[k], widths[k + 1])), jax.random.normal(keys[2 * k + 1], (widths[k + 1],)))
    for k in range(len(widths) - 1)
  ]


def log_chances(params: Params, x: jax.Array) -> jax.Array:
  """ln of the probability of each class: x [n, D] -> [n, K]."""
  for k, (kernel, bias) in enumerate(params):
    x = x @ kernel / np.float32(np.sqrt(kernel.shape[0])) + bias[None]
    x = jnp.tanh(x) if k < len(params) - 1 else x
  return jax.nn.log_softmax(x)


def teacher(seed: int, *, examples: int, inputs: int, hidden: int, classes: int) -> Labelled:
  """Standard normal inputs, labelled by the likeliest class of a network drawn from the prior."""
  for_network, for_inputs = jax.random.split(jax.random.key(seed))
  x = jax.random.normal(for_inputs, (examples, inputs))
  params = init(for_network, inputs=inputs, hidden=hidden, classes=classes)
  return Labelled(np.asarray(x), np.asarray(log_chances(params, x).argmax(-1), np.int32), classes)


def load_images(name: str) -> Labelled:
  """The training set of an image classification set of TFDS, pixels flat, scaled to mean 0 and variance 1.

  Raises UserError where it is not there: `tfds build NAME` makes it (with pip install 'ilya-jax[tf]').
  """
  import tensorflow_datasets as tfds

  try:
    source = tfds.data_source(name, split="train")
  except Exception as error:  # TFDS has one for each way in which a set may be missing
    raise UserError(f"no data set {name}: {error}", f"a prepared one: `tfds build {name}`", "ilya-jax[tf]") from error
  rows = [source[k] for k in range(len(source))]
  x = np.stack([np.asarray(row["image"], np.float32).ravel() for row in rows])
  labels = np.array([row["label"] for row in rows], np.int32)
  return Labelled((x - x.mean()) / x.std(), labels, int(labels.max()) + 1)


def _nll(params: Params, x: jax.Array, labels: jax.Array) -> jax.Array:
  return -jnp.take_along_axis(log_chances(params, x), labels[:, None], axis=1).mean()


def _most_probable(params: Params, x: jax.Array, labels: jax.Array, count: jax.Array, rng: jax.Array) -> jax.Array:
  """The mean loss with the prior's share of one example, nats."""
  penalty = sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(params)) / 2
  return _nll(params, x, labels) + penalty / count


def divergence(posterior: Params) -> jax.Array:
  """Σ KL(N(μ, σ²) || N(0, 1)), nats, of (means, ln of deviations)."""
  terms = jax.tree.map(lambda m, s: (jnp.square(m) + jnp.exp(2 * s) - 1 - 2 * s).sum() / 2, *posterior)
  return jnp.asarray(sum(jax.tree.leaves(terms)))


def draw(posterior: Params, rng: jax.Array) -> Params:
  """Parameters from the posterior."""
  means, deviations = posterior
  leaves, tree = jax.tree.flatten(means)
  noise = [
    jax.random.normal(key, leaf.shape) for key, leaf in zip(jax.random.split(rng, len(leaves)), leaves, strict=True)
  ]
  return jax.tree.map(lambda m, s, z: m + jnp.exp(s) * z, means, deviations, jax.tree.unflatten(tree, noise))


def _variational(posterior: Params, x: jax.Array, labels: jax.Array, count: jax.Array, rng: jax.Array) -> jax.Array:
  return _nll(draw(posterior, rng), x, labels) + divergence(posterior) / count


@functools.partial(jax.jit, static_argnames=("objective", "steps"))
def fit(
  start: Params, x: jax.Array, labels: jax.Array, count: jax.Array, rng: jax.Array, *, objective: Callable[..., Any], steps: int
) -> Params:  # fmt: skip
  """Adam with a cosine schedule on minibatches of the first `count` examples alone; one program for every count."""
  optimizer = optax.adam(optax.cosine_decay_schedule(RATE, steps))
  grad = jax.grad(objective)

  def step(carry, key):
    params, state = carry
    for_rows, for_noise = jax.random.split(key)
    rows = jax.random.randint(for_rows, (BATCH,), 0, count)
    grads = grad(params, x[rows], labels[rows], count.astype(jnp.float32), for_noise)
    with jax.numpy_dtype_promotion("standard"):  # optax multiplies integers with floats
      updates, state = optimizer.update(grads, state, params)
    return (optax.apply_updates(params, updates), state), None

  return jax.lax.scan(step, (start, optimizer.init(start)), jax.random.split(rng, steps))[0][0]


def fitted(data: Labelled, seen: int, *, size: Size, seed: int) -> Params:
  """The most probable parameters given the first `seen` labels, from a start of their own."""
  for_start, for_steps = jax.random.split(jax.random.fold_in(jax.random.key(seed), seen))
  start = init(for_start, inputs=data.x.shape[1], hidden=size.hidden, classes=data.classes)
  return fit(start, data.x, data.labels, jnp.int32(seen), for_steps, objective=_most_probable, steps=size.steps)


def code_lengths(data: Labelled, *, size: Size, chunks: int, seed: int) -> tuple[dict[str, float], Array]:
  """Bits of all labels by three codes, and bits a label in each chunk of the prequential one [chunks]."""
  n = len(data.labels)
  ends = prequential.doubling_ends(n, chunks=chunks)

  def predict(seen: int, until: int) -> Array:
    return np.asarray(log_chances(fitted(data, seen, size=size, seed=seed), jnp.asarray(data.x[seen:until])))

  bits = prequential.chunk_bits(data.labels, classes=data.classes, ends=ends, predict=predict)
  last = fitted(data, n, size=size, seed=seed)
  parameters = sum(leaf.size for leaf in jax.tree.leaves(last))
  chances = np.asarray(log_chances(last, jnp.asarray(data.x)))
  lengths = {
    "uniform": prequential.uniform_bits(data.labels, classes=data.classes),
    "prequential": float(bits.sum()),
    "two_part": float(prequential.two_part_bits(chances, data.labels, parameters=parameters)),
  }
  return lengths, bits / np.diff(ends, prepend=0)


@jax.jit
def _mean_loss(posterior: Params, x: jax.Array, labels: jax.Array, keys: jax.Array) -> jax.Array:
  """The mean log loss of an example over draws from the posterior, nats."""
  return jax.lax.map(lambda key: _nll(draw(posterior, key), x, labels), keys).mean()


def variational_bits(data: Labelled, *, size: Size, seed: int) -> float:
  """Divergence of the fitted posterior from the prior, and the mean log loss of all labels over DRAWS draws from it, bits."""
  for_start, for_steps, for_draws = jax.random.split(jax.random.fold_in(jax.random.key(seed), len(data.labels) + 1), 3)
  means = init(for_start, inputs=data.x.shape[1], hidden=size.hidden, classes=data.classes)
  start = means, jax.tree.map(lambda leaf: jnp.full_like(leaf, np.log(START)), means)
  count = jnp.int32(len(data.labels))
  posterior = fit(start, data.x, data.labels, count, for_steps, objective=_variational, steps=3 * size.steps)
  mean = _mean_loss(posterior, data.x, data.labels, jax.random.split(for_draws, DRAWS))
  return (float(divergence(posterior)) + len(data.labels) * float(mean)) / float(np.log(2))
