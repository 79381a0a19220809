"""Moments of a logistic unit with Gaussian input: dense quadrature, Monte Carlo, symmetries, limits, finite differences, the table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from ilya_jax.complexity import logistic_moments as lm


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


def points(count, *, widest=12.0, seed=0):
  rng = np.random.default_rng(seed)
  return rng.uniform(-12, 12, count), rng.uniform(0, widest, count)


def dense(mean, deviation):
  """Mean and variance by a trapezoid of 2001 points over 8 deviations, in NumPy."""
  z = np.linspace(-8, 8, 2001)
  s = special.expit(mean[:, None] + deviation[:, None] * z)
  weights = stats.norm.pdf(z) * (z[1] - z[0])
  first = s @ weights
  return first, np.square(s - first[:, None]) @ weights


def test_moments_equal_a_dense_trapezoid():
  mean, deviation = points(400)
  for found, expected in zip(
    lm.moments_quadrature(jnp.asarray(mean), jnp.asarray(deviation**2)), dense(mean, deviation), strict=True
  ):
    np.testing.assert_allclose(found, expected, atol=3e-7)
  narrow = deviation / 2  # to deviations of 6
  for found, expected in zip(
    lm.moments_quadrature(jnp.asarray(mean), jnp.asarray(narrow**2)), dense(mean, narrow), strict=True
  ):
    np.testing.assert_allclose(found, expected, atol=1e-13)


@pytest.mark.parametrize(("mean", "deviation"), [(0.5, 1.3), (-2.0, 6.0)])
def test_moments_equal_monte_carlo(mean, deviation):
  s = special.expit(mean + deviation * np.random.default_rng(0).standard_normal(2_000_000))
  found = lm.moments_quadrature(jnp.asarray(mean), jnp.asarray(deviation**2))
  assert float(found[0]) == pytest.approx(s.mean(), abs=4 * s.std() / np.sqrt(len(s)))
  squares = np.square(s - s.mean())
  assert float(found[1]) == pytest.approx(s.var(), abs=4 * squares.std() / np.sqrt(len(s)))


def test_symmetry_and_limits():
  mean, deviation = (jnp.asarray(each) for each in points(200))
  one, other = lm.moments_quadrature(mean, deviation**2), lm.moments_quadrature(-mean, deviation**2)
  np.testing.assert_allclose(one[0], 1 - other[0], atol=1e-12)
  np.testing.assert_allclose(one[1], other[1], atol=1e-12)
  np.testing.assert_allclose(lm.moments_quadrature(0 * mean, deviation**2)[0], 0.5, atol=1e-12)
  near = lm.moments_quadrature(mean, jnp.full(200, 1e-10))
  slope = special.expit(mean) * special.expit(-mean)
  np.testing.assert_allclose(near[0], special.expit(mean), atol=1e-10)
  np.testing.assert_allclose(near[1], slope**2 * 1e-10, rtol=1e-7, atol=1e-24)
  wide = lm.all_moments(jnp.asarray([30.0, -90.0, 0.0]), jnp.full(3, 100.0**2), nodes=8001)
  step = stats.norm.cdf(np.array([0.3, -0.9, 0.0]))
  np.testing.assert_allclose(wide.mean, step, atol=2e-4)
  np.testing.assert_allclose(wide.variance, step * (1 - step), atol=1e-2)


def test_partial_derivatives_equal_finite_differences():
  mean, deviation = points(60, widest=5.0)
  variance, h = deviation**2 + 0.01, 1e-5
  found = lm.all_moments(jnp.asarray(mean), jnp.asarray(variance))

  def moved(by_mean, by_variance):
    return lm.all_moments(jnp.asarray(mean + by_mean), jnp.asarray(variance + by_variance))

  for name in ("mean", "variance"):
    for of, step in (("mean", (h, 0.0)), ("var", (0.0, h))):
      difference = (getattr(moved(*step), name) - getattr(moved(*(-each for each in step)), name)) / (2 * h)
      np.testing.assert_allclose(getattr(found, f"{name}_d_{of}"), difference, atol=1e-9)


@pytest.mark.parametrize("moments", [lm.moments_quadrature, lm.moments_table])
def test_gradients_are_the_partial_derivatives(moments):
  found = (lm.all_moments if moments is lm.moments_quadrature else lm.look_up)(jnp.asarray([0.7]), jnp.asarray([2.0]))

  def mixed(mean, variance):
    one, other = moments(mean, variance)
    return (2 * one + 3 * other).sum()

  by_mean, by_variance = jax.grad(mixed, argnums=(0, 1))(jnp.asarray([0.7]), jnp.asarray([2.0]))
  np.testing.assert_allclose(by_mean, 2 * found.mean_d_mean + 3 * found.variance_d_mean, rtol=1e-12)
  np.testing.assert_allclose(by_variance, 2 * found.mean_d_var + 3 * found.variance_d_var, rtol=1e-12)


def test_the_table_agrees_with_quadrature():
  mean, deviation = (jnp.asarray(each) for each in points(20_000))
  exact = lm.all_moments(mean, deviation**2)
  read = jax.jit(lm.look_up)(mean, deviation**2)
  limits = {"mean": 1e-4, "variance": 2.6e-5, "mean_d_mean": 1.3e-4, "mean_d_var": 7e-5, "variance_d_mean": 3e-5,
            "variance_d_var": 7.5e-5}  # fmt: skip
  for name, limit in limits.items():
    np.testing.assert_allclose(getattr(read, name), getattr(exact, name), atol=limit, err_msg=name)


def test_derivative_tables_near_no_noise():
  """Where the derivatives by the variance are steep: deviations below a twentieth."""
  rng = np.random.default_rng(1)
  mean, deviation = jnp.asarray(rng.uniform(-6, 6, 2000)), jnp.asarray(rng.uniform(0, 0.05, 2000))
  exact, read = lm.all_moments(mean, deviation**2), lm.look_up(mean, deviation**2)
  for name in lm.Moments._fields:
    np.testing.assert_allclose(getattr(read, name), getattr(exact, name), atol=2e-4, err_msg=name)


def test_the_table_stays_at_its_edge_outside():
  inside, outside = (
    lm.look_up(jnp.asarray([12.0]), jnp.asarray([144.0])),
    lm.look_up(jnp.asarray([40.0]), jnp.asarray([1e4])),
  )
  for one, other in zip(inside, outside, strict=True):
    np.testing.assert_array_equal(one, other)
  assert lm.table().shape == (6, 300, 300)
