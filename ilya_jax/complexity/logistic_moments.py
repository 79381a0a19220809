"""Mean and variance of a logistic unit whose total input is Gaussian, by quadrature and by the paper's table.

Hinton & van Camp 1993, "Keeping Neural Networks Simple by Minimizing the Description Length of the Weights",
https://www.cs.toronto.edu/~hinton/absps/colt93.html: two 300 x 300 tables over mean and variance of the input, one of
mean and variance of the output, one of their four partial derivatives, read by linear interpolation.

Deviations: the table is indexed by the standard deviation, which is the square root of the paper's variance: a grid that is even in
the variance errs 8 (mean) to 40 times (variance) more near V = 0. The paper names neither ranges nor how cells are filled: ours are
|mean| and deviation up to 12, clamped outside, filled by quadrature. Derivatives come from the Gaussian identities
d E[f]/d mean = E[f'] and d E[f]/d V = E[f'']/2, so that nothing is differentiated through a square root.

Axis letters: ... any shape of inputs, K nodes of the quadrature, G cells of a side of the table.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = np.ndarray

NODES = 161  # of the trapezoid over 8 standard deviations: error under 1e-13 up to a deviation of 6, 1e-6 at 12
REACH = 8.0
CELLS, LARGEST = 300, 12.0  # of a side of the table; largest |mean| and largest deviation


class Moments(NamedTuple):
  """mean and variance of the output, and their partial derivatives by the mean (d_mean) and variance (d_var) of the input."""

  mean: jax.Array
  variance: jax.Array
  mean_d_mean: jax.Array
  mean_d_var: jax.Array
  variance_d_mean: jax.Array
  variance_d_var: jax.Array


def all_moments(mean: jax.Array, variance: jax.Array, nodes: int = NODES) -> Moments:
  """The moments of logistic(x), x ~ N(mean, variance), by the trapezoid rule: mean, variance [...] of one floating type."""
  z = np.linspace(-REACH, REACH, nodes)
  density = np.exp(-(z**2) / 2)
  weights = jnp.asarray(density / density.sum(), mean.dtype)
  shape = (1,) * mean.ndim + (nodes,)
  x = mean[..., None] + jnp.sqrt(variance)[..., None] * jnp.asarray(z, mean.dtype).reshape(shape)  # [..., K]
  s = jax.nn.sigmoid(x)
  slope = s * (1 - s)

  def expected(values: jax.Array) -> jax.Array:
    return jnp.einsum("...k,k->...", values, weights)

  output = expected(s)
  off = s - output[..., None]
  first, second = slope, slope * (1 - 2 * s)  # s', s''
  # With g = (s - E s)², E g' = 2 E[(s - E s) s'] and E g'' = 2 E[s'² + (s - E s) s'']; the moving centre adds nothing, as E(s - E s) = 0.
  return Moments(
    output,
    expected(off * off),
    expected(first),
    expected(second) / 2,
    2 * expected(off * first),
    expected(first * first + off * second),
  )


@jax.custom_vjp
def moments_quadrature(mean: jax.Array, variance: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Mean and variance of logistic(N(mean, variance)), arrays [...]; differentiable once."""
  found = all_moments(mean, variance)
  return found.mean, found.variance


def _forward(mean: jax.Array, variance: jax.Array):
  found = all_moments(mean, variance)
  return (found.mean, found.variance), found


def _backward(found: Moments, cotangents: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
  """Equations 13 and 14: the chain rule with the four partial derivatives."""
  by_mean, by_variance = cotangents
  return (
    by_mean * found.mean_d_mean + by_variance * found.variance_d_mean,
    by_mean * found.mean_d_var + by_variance * found.variance_d_var,
  )


moments_quadrature.defvjp(_forward, _backward)


@functools.cache
def table(cells: int = CELLS) -> Array:
  """The six moments on a grid of means -12 … 12 and deviations 0 … 12: float64 [6, G, G], in the order of `Moments`."""
  with (
    jax.ensure_compile_time_eval(),
    jax.enable_x64(True),
  ):  # also where it is first read while another program is traced
    means = jnp.asarray(np.linspace(-LARGEST, LARGEST, cells))
    deviations = np.linspace(0.0, LARGEST, cells)
    fill = jax.jit(functools.partial(all_moments, nodes=4 * NODES))
    columns = [fill(means, jnp.full(cells, float(deviation) ** 2, jnp.float64)) for deviation in deviations]
    return np.stack([np.stack([np.asarray(getattr(c, n)) for c in columns], axis=1) for n in Moments._fields])


def look_up(mean: jax.Array, variance: jax.Array) -> Moments:
  """The six moments by linear interpolation in mean and deviation; outside of the table as at its edge."""
  values = jnp.asarray(table(), mean.dtype)
  across = jnp.clip((mean + LARGEST) * ((CELLS - 1) / (2 * LARGEST)), 0, CELLS - 1)
  along = jnp.clip(jnp.sqrt(variance) * ((CELLS - 1) / LARGEST), 0, CELLS - 1)
  i = jnp.minimum(across.astype(jnp.int32), CELLS - 2)
  j = jnp.minimum(along.astype(jnp.int32), CELLS - 2)
  u, v = across - i.astype(mean.dtype), along - j.astype(mean.dtype)
  u, v = u[None], v[None]
  low = values[:, i, j] * (1 - v) + values[:, i, j + 1] * v
  high = values[:, i + 1, j] * (1 - v) + values[:, i + 1, j + 1] * v
  return Moments(*(low * (1 - u) + high * u))


@jax.custom_vjp
def moments_table(mean: jax.Array, variance: jax.Array) -> tuple[jax.Array, jax.Array]:
  """As `moments_quadrature`, read from the tables as in the paper; gradients are read from the derivative tables."""
  found = look_up(mean, variance)
  return found.mean, found.variance


def _table_forward(mean: jax.Array, variance: jax.Array):
  found = look_up(mean, variance)
  return (found.mean, found.variance), found


moments_table.defvjp(_table_forward, _backward)
