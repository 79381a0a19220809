"""Batch normalisation: statistics, moving averages, derivatives against the plain formula's, devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from ilya_jax.nn.batch_norm import BatchNorm, normalise


def test_moving_averages_are_geometric_and_training_normalises_over_batch_and_pixels():
  norm = BatchNorm()
  wide = lambda channels: np.asarray(channels)[None, None, None]  # noqa: E731
  x = jnp.asarray(np.random.default_rng(6).normal(2.0, 3.0, size=(5, 4, 3, 2)), jnp.float32)
  variables = norm.init(jax.random.key(0), x, train=False)
  state = variables["batch_stats"]
  for _ in range(3):
    y, new = norm.apply({"params": variables["params"], "batch_stats": state}, x, train=True, mutable=["batch_stats"])
    state = new["batch_stats"]
  np.testing.assert_allclose(y.mean((0, 1, 2)), 0.0, atol=1e-6)
  np.testing.assert_allclose(y.var((0, 1, 2)), 1.0, atol=1e-4)
  share = 1 - 0.9**3
  np.testing.assert_allclose(state["mean"], share * x.mean((0, 1, 2)), rtol=1e-5)
  np.testing.assert_allclose(state["var"], share * x.var((0, 1, 2)) + 0.9**3, rtol=1e-5)
  z = norm.apply({"params": variables["params"], "batch_stats": state}, x, train=False)
  np.testing.assert_allclose(z, (x - wide(state["mean"])) / np.sqrt(wide(state["var"]) + 1e-5), rtol=1e-4, atol=1e-5)


def plain(x, scale, bias):
  axes = tuple(range(x.ndim - 1))
  mean = x.mean(axes, keepdims=True)
  variance = jnp.square(x - mean).mean(axes, keepdims=True)
  wide = (1,) * (x.ndim - 1) + scale.shape
  return (x - mean) / jnp.sqrt(variance + 1e-5) * scale.reshape(wide) + bias.reshape(wide)


def arrays(shape, seed=0):
  rng = np.random.default_rng(seed)
  x = jnp.asarray(rng.normal(1.5, 2.0, size=shape))
  return x, jnp.asarray(rng.normal(size=shape[-1])), jnp.asarray(rng.normal(size=shape[-1]))


@pytest.mark.parametrize("shape", [(7, 3), (4, 5, 3, 2), (3, 2, 2, 2, 4)])
def test_values_and_derivatives_are_those_of_the_plain_formula(shape):
  with jax.enable_x64(True):
    wanted, back = jax.vjp(plain, *arrays(shape))
    got, own_back = jax.vjp(lambda *a: normalise(*a, epsilon=1e-5)[0], *arrays(shape))
    np.testing.assert_allclose(got, wanted, atol=1e-12)
    cotangent = jnp.asarray(np.random.default_rng(1).normal(size=shape))
    for one, other in zip(own_back(cotangent), back(cotangent), strict=True):
      np.testing.assert_allclose(one, other, atol=1e-11)


def test_statistics_in_float32_stand_a_mean_of_ten_deviations():
  x = jnp.asarray(np.random.default_rng(2).normal(10.0, 1.0, size=(64, 16, 16, 4)).astype(np.float32))
  y, mean, variance = jax.jit(functools.partial(normalise, epsilon=1e-5))(x, jnp.ones(4), jnp.zeros(4))
  exact = np.asarray(x, np.float64)
  np.testing.assert_allclose(mean, exact.mean((0, 1, 2)), rtol=1e-5)
  np.testing.assert_allclose(variance, exact.var((0, 1, 2)), rtol=1e-4)
  np.testing.assert_allclose(y, (exact - exact.mean((0, 1, 2))) / exact.std((0, 1, 2)), atol=1e-3)


def test_no_derivative_flows_through_the_statistics():
  with jax.enable_x64(True):
    grads = jax.grad(lambda x, s, b: sum(leaf.sum() for leaf in normalise(x, s, b, epsilon=1e-5)[1:]), (0, 1, 2))(
      *arrays((4, 3))
    )
    assert all((np.asarray(leaf) == 0).all() for leaf in grads)


def test_parts_of_a_batch_on_several_devices_have_the_statistics_of_the_whole():
  """As in a pipeline with a data axis: each device sees its own rows alone."""
  with jax.enable_x64(True):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    x, scale, bias = arrays((8, 3, 2))
    weights = jnp.asarray(np.random.default_rng(3).normal(size=x.shape))

    def own(x, scale, bias, weights):
      y, mean, variance = normalise(x, scale, bias, epsilon=1e-5)
      return jax.lax.psum((y * weights).sum(), "data"), (mean, variance)

    rows, whole = PartitionSpec("data"), PartitionSpec()
    split = jax.shard_map(own, mesh=mesh, in_specs=(rows, whole, whole, rows), out_specs=(whole, (whole, whole)))
    got, grads = jax.jit(jax.value_and_grad(split, (0, 1, 2), has_aux=True))(x, scale, bias, weights)
    wanted, wanted_grads = jax.value_and_grad(lambda *a: (plain(*a) * weights).sum(), (0, 1, 2))(x, scale, bias)
    assert float(got[0]) == pytest.approx(float(wanted), abs=1e-10)
    np.testing.assert_allclose(got[1][1], np.var(np.asarray(x), axis=(0, 1)), atol=1e-12)
    for one, other in zip(grads, wanted_grads, strict=True):
      np.testing.assert_allclose(one, other, atol=1e-10)
