"""Networks whose weights are Gaussian and cost what it takes to describe them: coding prior, bits back, exact expected error.

Hinton & van Camp 1993, "Keeping Neural Networks Simple by Minimizing the Description Length of the Weights",
https://www.cs.toronto.edu/~hinton/absps/colt93.html: equations 3 (misfit), 6 to 9 (bits back, Gaussian prior), 10 to 14 (one hidden
layer of logistic units and linear outputs, expected squared error and its derivatives), 15 to 26 (mixture of Gaussians as prior).
This is variational Bayes for networks, with expectations taken exactly: no sample is drawn.

Code lengths are nats; constants of the precision, k N in equation 3 and -ln t in 6 and 7, are dropped. Variances are kept as their
logarithms. Costs are sums in float64, in which they should be computed (`jax.enable_x64`).

Deviations: the bias of an output counts as a weight from a unit that is always 1 (its variance adds to equation 11).

Axis letters: N cases, I inputs, H hidden units, J outputs, K components of the prior.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ilya_jax.complexity.logistic_moments import moments_quadrature

Array = np.ndarray
Weights = dict[str, jax.Array]  # inward [I, H], hidden_bias [H], outward [H, J], output_bias [J]
MomentsOf = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]

COMPONENTS, SPAN = 5, 0.24  # of the prior: means at equal distances from -SPAN to SPAN, neighbours two deviations apart
MEAN_SPREAD, DEVIATION = 0.15, 0.1  # of the posterior before training: spread of its means, its standard deviation


class Prior(NamedTuple):
  """Means, log variances and logits of the mixture of Gaussians that weights are coded with, [K] each."""

  means: jax.Array
  log_variances: jax.Array
  logits: jax.Array


class Network(NamedTuple):
  """The posterior of every weight, means and log variances in the same structure, and the coding prior."""

  means: Weights
  log_variances: Weights
  prior: Prior


def shapes(*, inputs: int, hidden: int, outputs: int) -> dict[str, tuple[int, ...]]:
  """Name -> shape of the weights."""
  return {
    "inward": (inputs, hidden), "hidden_bias": (hidden,), "outward": (hidden, outputs), "output_bias": (outputs,),
  }  # fmt: skip


def initial_means(seed: int, *, inputs: int, hidden: int, outputs: int) -> dict[str, Array]:
  """Posterior means drawn from N(0, .15²), float64."""
  rng = np.random.default_rng([seed, inputs, hidden])
  named = shapes(inputs=inputs, hidden=hidden, outputs=outputs)
  return {name: MEAN_SPREAD * rng.standard_normal(shape) for name, shape in named.items()}


def initial(seed: int, *, inputs: int, hidden: int, outputs: int) -> Network:
  """The network that training starts from (NumPy float64): deviations .1, five equal components with deviations .06."""
  means: Any = initial_means(seed, inputs=inputs, hidden=hidden, outputs=outputs)
  log_variances: Any = {name: np.full(each.shape, 2 * np.log(DEVIATION)) for name, each in means.items()}
  centres: Any = np.linspace(-SPAN, SPAN, COMPONENTS)
  width = SPAN / (COMPONENTS - 1)
  prior = Prior(centres, centres * 0 + 2 * np.log(width), centres * 0)
  return Network(means, log_variances, prior)


def divergence(
  mean: jax.Array, log_variance: jax.Array, prior_mean: jax.Array, prior_log_variance: jax.Array
) -> jax.Array:
  """Equation 9: KL(N(mean, variance) || N(prior)) in nats, of arrays that broadcast; what bits back leaves of the cost."""
  gap = jnp.square(mean - prior_mean)
  ratio = jnp.exp(log_variance - prior_log_variance)
  return 0.5 * (prior_log_variance - log_variance + ratio - 1 + gap * jnp.exp(-prior_log_variance))


def component_costs(mean: jax.Array, log_variance: jax.Array, prior: Prior) -> jax.Array:
  """G_i of every weight: arrays [n] and [n] -> [n, K] nats."""
  return divergence(mean[:, None], log_variance[:, None], prior.means[None], prior.log_variances[None])


def mixture_cost(mean: jax.Array, log_variance: jax.Array, prior: Prior) -> jax.Array:
  """Equation 17: -ln Σ pi_i exp(-G_i) [n] nats, an upper bound on KL to the mixture."""
  weighted = jax.nn.log_softmax(prior.logits)[None] - component_costs(mean, log_variance, prior)
  return -jax.nn.logsumexp(weighted, axis=1)


def responsibilities(mean: jax.Array, log_variance: jax.Array, prior: Prior) -> jax.Array:
  """Equation 18: the chance [n, K] with which the sender picks each component."""
  return jax.nn.softmax(jax.nn.log_softmax(prior.logits)[None] - component_costs(mean, log_variance, prior), axis=1)


def flattened(weights: Weights) -> jax.Array:
  """All weights in one row [n], in the order of `shapes`."""
  return jnp.concatenate([weights[name].ravel() for name in ("inward", "hidden_bias", "outward", "output_bias")])


def weight_costs(network: Network) -> jax.Array:
  """The cost of every weight [n], nats."""
  return mixture_cost(flattened(network.means), flattened(network.log_variances), network.prior)


def expected_outputs(
  network: Network, x: jax.Array, *, moments: MomentsOf = moments_quadrature
) -> tuple[jax.Array, jax.Array]:
  """Equations 10 and 11: mean and variance [N, J] of the outputs over the weights; x [N, I]."""
  means, variances = network.means, {name: jnp.exp(each) for name, each in network.log_variances.items()}
  total = x @ means["inward"] + means["hidden_bias"][None]  # [N, H]
  spread = jnp.square(x) @ variances["inward"] + variances["hidden_bias"][None]
  hidden, noise = moments(total, spread)
  output = hidden @ means["outward"] + means["output_bias"][None]  # [N, J]
  variance = noise @ (jnp.square(means["outward"]) + variances["outward"])
  variance = variance + jnp.square(hidden) @ variances["outward"] + variances["output_bias"][None]
  return output, variance


def outputs(weights: Weights, x: jax.Array) -> jax.Array:
  """The outputs [N, J] of a network without noise; x [N, I]."""
  hidden = jax.nn.sigmoid(x @ weights["inward"] + weights["hidden_bias"][None])
  return hidden @ weights["outward"] + weights["output_bias"][None]


def misfit(network: Network, x: jax.Array, y: jax.Array, *, moments: MomentsOf = moments_quadrature) -> jax.Array:
  """Equations 3 and 12: Σ_j (N/2) ln of the expected mean squared error of output j, nats; x [N, I], y [N, J]."""
  output, variance = expected_outputs(network, x, moments=moments)
  mean_square = (jnp.square(y - output) + variance).mean(axis=0)
  return len(y) / 2 * jnp.log(mean_square).sum()


def description_length(
  network: Network, x: jax.Array, y: jax.Array, price: jax.Array | float, *, moments: MomentsOf = moments_quadrature
) -> jax.Array:
  """What is minimised: misfit plus `price` (lambda, annealed to 1) times the cost of the weights, nats."""
  return misfit(network, x, y, moments=moments) + price * weight_costs(network).sum()
