"""LayerNorm and RMSNorm against their formulas, and in bfloat16 with statistics in float32."""

import jax
import jax.numpy as jnp
import numpy as np

from ilya_jax.nn.normalization import LayerNorm, RMSNorm

X = np.random.default_rng(0).normal(3.0, 2.0, size=(5, 4, 16))
SCALE, BIAS = np.random.default_rng(1).normal(size=(2, 16))


def test_layer_norm_formula():
  with jax.enable_x64(True):
    got = jax.jit(LayerNorm(dtype=jnp.float64).apply)({"params": {"scale": SCALE, "bias": BIAS}}, X)
  expected = (X - X.mean(-1, keepdims=True)) / np.sqrt(X.var(-1, keepdims=True) + 1e-5) * SCALE + BIAS
  np.testing.assert_allclose(np.asarray(got), expected, rtol=0, atol=1e-12)


def test_rms_norm_formula():
  with jax.enable_x64(True):
    got = jax.jit(RMSNorm(dtype=jnp.float64).apply)({"params": {"scale": SCALE}}, X)
  expected = X / np.sqrt((X**2).mean(-1, keepdims=True) + 1e-5) * SCALE
  np.testing.assert_allclose(np.asarray(got), expected, rtol=0, atol=1e-12)


def test_gradients_are_those_of_the_formula():
  def by_formula(x, scale, bias):
    mean = x.mean(-1, keepdims=True)
    variance = jnp.square(x - mean).mean(-1, keepdims=True)
    return jnp.sum(jnp.sin((x - mean) / jnp.sqrt(variance + 1e-5) * scale[None, None] + bias[None, None]))

  def ours(x, scale, bias):
    return jnp.sum(jnp.sin(LayerNorm(dtype=jnp.float64).apply({"params": {"scale": scale, "bias": bias}}, x)))

  with jax.enable_x64(True):
    expected = jax.jit(jax.grad(by_formula, argnums=(0, 1, 2)))(X, SCALE, BIAS)
    got = jax.jit(jax.grad(ours, argnums=(0, 1, 2)))(X, SCALE, BIAS)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-10), expected, got)


def test_bfloat16_in_and_out_with_float32_statistics():
  x = jnp.asarray(X * 1e3, jnp.bfloat16)
  got = jax.jit(RMSNorm(dtype=jnp.bfloat16).apply)({"params": {"scale": jnp.ones(16)}}, x)
  assert got.dtype == jnp.bfloat16
  x64 = np.asarray(x.astype(jnp.float32), np.float64)
  expected = x64 / np.sqrt((x64**2).mean(-1, keepdims=True))
  np.testing.assert_allclose(np.asarray(got.astype(jnp.float32)), expected, rtol=2**-8)
