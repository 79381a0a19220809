"""Linear maps: the same function and derivatives as the plain product, on every route to the weight's gradient."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from ilya_jax.nn.linear import Linear, matmul

# narrow on the left, wide on the left, both wide, both wide the other way round
SHAPES = [(5, 12), (12, 5), (130, 140), (140, 130)]


def draw(inputs, outputs, *, rows=(3, 4)):
  rng = np.random.default_rng(0)
  return rng.normal(size=(*rows, inputs)), rng.normal(size=(inputs, outputs))


def loss(product):
  return lambda x, weight: jnp.sum(jnp.sin(product(x, weight)))


@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_derivatives_are_those_of_the_plain_product(inputs, outputs):
  x, weight = draw(inputs, outputs)
  with jax.enable_x64(True):
    expected = jax.jit(jax.value_and_grad(loss(jnp.matmul), argnums=(0, 1)))(x, weight)
    got = jax.jit(jax.value_and_grad(loss(matmul), argnums=(0, 1)))(x, weight)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-10), expected, got)


def test_vmap_over_replicas():
  x, weight = draw(5, 12, rows=(2, 6))
  weights = np.stack([weight, 2 * weight])
  with jax.enable_x64(True):
    got = jax.jit(jax.vmap(jax.grad(loss(matmul), argnums=1)))(x, weights)
    expected = [jax.grad(loss(jnp.matmul), argnums=1)(*pair) for pair in zip(x, weights, strict=True)]
  np.testing.assert_allclose(np.asarray(got), np.stack(expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_other_platforms_get_the_plain_product(platform):
  x, weight = (jnp.asarray(a, jnp.float32) for a in draw(140, 130))
  traced = jax.jit(jax.grad(loss(matmul), argnums=1)).trace(x, weight)
  assert "optimization_barrier" not in traced.lower(lowering_platforms=(platform,)).as_text()
  assert "optimization_barrier" in traced.lower(lowering_platforms=("cpu",)).as_text()


def test_weight_shared_by_devices_gets_the_whole_gradient():
  x, weight = (jnp.asarray(a, jnp.float32) for a in draw(5, 12, rows=(8, 3)))
  mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
  specs = {"in_specs": (PartitionSpec("data"), PartitionSpec()), "out_specs": PartitionSpec()}

  def parts(x, weight):
    return jax.lax.psum(loss(matmul)(x, weight), "data")

  got = jax.jit(jax.grad(jax.shard_map(parts, mesh=mesh, **specs), argnums=1))(x, weight)
  expected = jax.jit(jax.grad(loss(jnp.matmul), argnums=1))(x, weight)
  np.testing.assert_allclose(np.asarray(got), np.asarray(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("features", "axes"), [((7,), 1), ((3, 2, 4), 1), ((6,), 2)])
def test_linear_is_dense_general(features, axes):
  x = np.random.default_rng(1).normal(size=(2, 5, 3, 4)).astype(np.float32)
  ours = Linear(features, axes=axes, kernel_init=nn.initializers.normal(0.3), bias_init=nn.initializers.normal(0.1))
  theirs = nn.DenseGeneral(features, axis=tuple(range(-axes, 0)))
  params = jax.jit(ours.init)(jax.random.key(0), x)
  shapes = jax.eval_shape(theirs.init, jax.random.key(0), x)
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
  got, expected = jax.jit(ours.apply)(params, x), jax.jit(theirs.apply)(params, x)
  np.testing.assert_allclose(np.asarray(got), np.asarray(expected), rtol=0, atol=1e-5)


def test_linear_computes_in_its_type():
  model = Linear((7,), dtype=jnp.bfloat16)
  x = np.ones((2, 3), np.float32)
  params = jax.jit(model.init)(jax.random.key(0), x)
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
  assert jax.jit(model.apply)(params, x).dtype == jnp.bfloat16
