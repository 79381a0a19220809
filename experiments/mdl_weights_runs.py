"""Data, networks and rivals of the claims in `mdl_weights.py`: noisy weights with an annealed price, and what they compete with.

The paper's peptides (128 inputs, 105 training and 420 test cases) are not public. In their place, by a seed: X = Z F / sqrt(10) +
.3 E with Z [n, 10], F [10, I] and E standard normal, so that inputs are as correlated as measurements are; the target is the
sum of 12 random inputs with signs, taken straight (linear) or through tanh, at unit variance, with noise of standard deviation .4.
Inputs and targets are standardised by the training cases alone.

Training is by L-BFGS, where the paper took conjugate gradients: 100 updates at each price below 1, then until an update changes the
cost by less than 1e-6 nats (on average over ten). A run is collapsed where its relative error on the training cases themselves is above .9.

Axis letters: N cases, I inputs.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ilya_jax.complexity import noisy_weights
from ilya_jax.complexity.descent import minimise
from ilya_jax.complexity.noisy_weights import Network

Array = np.ndarray

LATENT, RELEVANT, BLUR, NOISE = 10, 12, 0.3, 0.4
TEACHERS = ("linear", "tanh")
SCHEDULE = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
COLLAPSED = 0.9  # relative error on the training cases
CHEAP = 0.1  # nats: a weight below is as good as gone


class Size(NamedTuple):
  """inputs, hidden units, training and test cases; the prices of the weights; updates at each, and at most at the last."""

  inputs: int
  hidden: int
  train: int
  test: int
  schedule: tuple[float, ...]
  updates: int
  last: int


SIZES = {
  "tiny": Size(32, 3, 30, 120, (0.05, 0.2, 0.5, 1.0), 30, 30),
  "small": Size(128, 4, 105, 420, SCHEDULE, 100, 5000),
}
WEIGHT_SEEDS = {"tiny": (0,), "small": (0, 1, 2)}


class Cases(NamedTuple):
  """Standardised cases: x [N, I], y [N, 1] of training, test_x and test_y."""

  x: Array
  y: Array
  test_x: Array
  test_y: Array


@functools.cache
def draw_cases(size: Size, teacher: str, seed: int) -> Cases:
  """The cases of a teacher and a seed."""
  rng = np.random.default_rng([seed, TEACHERS.index(teacher), size.inputs])
  n = size.train + size.test
  x = rng.standard_normal((n, LATENT)) @ rng.standard_normal((LATENT, size.inputs)) / np.sqrt(LATENT)
  x = x + BLUR * rng.standard_normal((n, size.inputs))
  chosen, signs = rng.permutation(size.inputs)[:RELEVANT], rng.choice([-1.0, 1.0], RELEVANT)
  target = (x[:, chosen] @ signs)[:, None]
  target = target / target.std()
  if teacher == "tanh":
    target = np.tanh(target)
    target = target / target.std()
  target = target + NOISE * rng.standard_normal((n, 1))
  train = slice(0, size.train)
  x, y = ((each - each[train].mean(0)) / each[train].std(0) for each in (x, target))
  return Cases(x[train], y[train], x[size.train :], y[size.train :])


def relative_error(predicted: Array, y: Array) -> float:
  """Equation 27: Σ (d - y)² over Σ (d - mean of these d)²."""
  return float(np.square(y - predicted).sum() / np.square(y - y.mean(axis=0)).sum())


def predicted(network: Network, x: Array) -> Array:
  """The mean outputs [N, 1] of a noisy network, which is what it predicts."""
  with jax.enable_x64(True):
    return np.asarray(_mean_outputs(jax.tree.map(jnp.asarray, network), jnp.asarray(x)))


@jax.jit
def _mean_outputs(network: Network, x: jax.Array) -> jax.Array:
  return noisy_weights.expected_outputs(network, x)[0]


def _total(network: Network, x: jax.Array, y: jax.Array, price: jax.Array) -> jax.Array:
  return noisy_weights.description_length(network, x, y, price)


class Stage(NamedTuple):
  """Where training stands at the end of a price: nats of misfit and weights, relative errors, how many weights cost under .1 nats."""

  price: float
  misfit: float
  weights: float
  error: float
  train_error: float
  cheap: int
  updates: int


class Noisy(NamedTuple):
  """A trained network with noisy weights and its course, one stage for each price."""

  network: Network
  course: tuple[Stage, ...]

  @property
  def total(self) -> float:
    """Its description length at price 1, nats, without constants of the precision."""
    return self.course[-1].misfit + self.course[-1].weights

  @property
  def error(self) -> float:
    """Its relative error on the test cases."""
    return self.course[-1].error

  @property
  def collapsed(self) -> bool:
    """Whether it predicts little more than the mean of its own training cases."""
    return self.course[-1].train_error > COLLAPSED


@functools.cache
def train_noisy(size: Size, teacher: str, seed: int, *, weights: int, annealed: bool) -> Noisy:
  """Noisy weights from the start of seed `weights`; the price rises by the schedule, or is 1 at once."""
  cases = draw_cases(size, teacher, seed)
  network: Any = noisy_weights.initial(weights, inputs=size.inputs, hidden=size.hidden, outputs=1)
  course = []
  for price in size.schedule if annealed else (1.0,):
    last = price == 1.0
    found = minimise(
      _total, network, (cases.x, cases.y, price), updates=size.last if last else size.updates, tolerance=1e-6 if last else 0.0
    )  # fmt: skip
    network = found.tree
    course.append(_stage(network, cases, price=price, updates=found.updates))
  return Noisy(network, tuple(course))


@jax.jit
def _parts(network: Network, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
  return noisy_weights.misfit(network, x, y), noisy_weights.weight_costs(network)


def _stage(network: Network, cases: Cases, *, price: float, updates: int) -> Stage:
  with jax.enable_x64(True):
    misfit, costs = _parts(jax.tree.map(jnp.asarray, network), jnp.asarray(cases.x), jnp.asarray(cases.y))
    costs = np.asarray(costs)
  errors = [relative_error(predicted(network, x), y) for x, y in ((cases.test_x, cases.test_y), (cases.x, cases.y))]
  return Stage(price, float(misfit), float(costs.sum()), *errors, int((costs < CHEAP).sum()), updates)


def best_of(runs: list[Noisy]) -> Noisy:
  """The run of lowest description length among those that have not collapsed; of all where every one has."""
  alive = [run for run in runs if not run.collapsed]
  return min(alive or runs, key=lambda run: run.total)


# Rivals

DECAYS = tuple(
  10.0 ** (k / 2) for k in range(-2, 7)
)  # coefficients of Σ w²/2 beside Σ (d - y)²/2 of all training cases
RIDGES = tuple(10.0 ** (k / 2) for k in range(-2, 9))
SHARE = 3  # a third of the training cases chooses a coefficient


def _decayed(weights: Any, x: jax.Array, y: jax.Array, coefficient: jax.Array) -> jax.Array:
  """Equation 4 times 2 sigma_j²: the squared error and the decay, which costs every weight and bias alike."""
  squares = sum(jnp.square(each).sum() for each in jax.tree.leaves(weights))
  return jnp.square(y - noisy_weights.outputs(weights, x)).sum() / 2 + coefficient * squares / 2


@functools.cache
def train_plain(
  size: Size, teacher: str, seed: int, *, weights: int, decay: float, rows: str = "all"
) -> tuple[float, float, float]:
  """A network without noise, trained to convergence: relative errors on test cases and on the third, and its objective.

  rows: "all" training cases, or "part", all but the third that chooses a coefficient.
  """
  cases = draw_cases(size, teacher, seed)
  cut = size.train - size.train // SHARE if rows == "part" else size.train
  start = noisy_weights.initial_means(weights, inputs=size.inputs, hidden=size.hidden, outputs=1)
  scaled = decay * cut / size.train  # the same per case
  found = minimise(_decayed, start, (cases.x[:cut], cases.y[:cut], scaled), updates=5 * size.last, tolerance=1e-8)
  left = size.train - size.train // SHARE
  test, third = (
    relative_error(_plain_outputs(found.tree, x), y)
    for x, y in ((cases.test_x, cases.test_y), (cases.x[left:], cases.y[left:]))
  )
  return test, third, found.value


def _plain_outputs(weights: Any, x: Array) -> Array:
  with jax.enable_x64(True):
    return np.asarray(noisy_weights.outputs(jax.tree.map(jnp.asarray, weights), jnp.asarray(x)))


def decayed_errors(size: Size, teacher: str, seed: int, *, weights: tuple[int, ...]) -> dict[str, float]:
  """Relative errors with weight decay whose coefficient a third of the training cases chose, and the best on the test cases.

  At every coefficient the start of lowest objective counts.
  """

  def at(decay: float, rows: str) -> tuple[float, float, float]:
    found = [train_plain(size, teacher, seed, weights=each, decay=decay, rows=rows) for each in weights]
    return min(found, key=lambda each: each[2])

  chosen = min(DECAYS, key=lambda decay: at(decay, "part")[1])
  return {
    "decay": at(chosen, "all")[0], "coefficient": chosen, "decay_by_test": min(at(decay, "all")[0] for decay in DECAYS),
  }  # fmt: skip


def linear_errors(cases: Cases) -> dict[str, float]:
  """Relative errors of linear regression (least norm where cases are few) and of ridge, its coefficient by the third or by the test."""
  n = len(cases.y)
  left = n - n // SHARE

  def ridge(rows: slice, coefficient: float, x: Array) -> Array:
    """Predictions at x; the mean of the targets is not penalised."""
    design, y = cases.x[rows], cases.y[rows]
    centre, level = design.mean(0), y.mean(0)
    inside = design - centre
    # In the cases' own space: I + inputs may be more than cases.
    kernel = inside @ inside.T + coefficient * np.eye(len(y))
    return level + (x - centre) @ inside.T @ np.linalg.solve(kernel, y - level)

  def by_third(coefficient: float) -> float:
    return relative_error(ridge(slice(0, left), coefficient * left / n, cases.x[left:]), cases.y[left:])

  by_test = {c: relative_error(ridge(slice(0, n), c, cases.test_x), cases.test_y) for c in RIDGES}
  plain, *_ = np.linalg.lstsq(np.c_[cases.x, np.ones(n)], cases.y, rcond=None)
  return {
    "ridge": by_test[min(RIDGES, key=by_third)], "ridge_by_test": min(by_test.values()),
    "linear": relative_error(np.c_[cases.test_x, np.ones(len(cases.test_y))] @ plain, cases.test_y),
  }  # fmt: skip
