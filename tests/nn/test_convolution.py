"""Convolutions: their derivatives in both forms against XLA's own, in float64; splitting over devices; refusals of nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ilya_jax.nn import convolution
from ilya_jax.nn.convolution import Conv, convolve


def plain(x, kernel, stride, padding):
  return lax.conv_general_dilated(
    x, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
  )


def arrays(batch, height, width, inputs, features, size, dtype=np.float64):
  rng = np.random.default_rng(0)
  shapes = (batch, height, width, inputs), (size, size, inputs, features)
  return (jnp.asarray(rng.normal(size=shape).astype(dtype)) for shape in shapes)


CASES = [  # batch, height, width, channels of both, size; stride, padding
  ((6, 8, 9, 3, 5, 3), 1, 1), ((2, 6, 7, 4, 4, 3), 1, 0), ((3, 5, 5, 2, 3, 5), 1, 2), ((2, 6, 6, 3, 2, 3), 1, 2),
  ((2, 5, 4, 2, 3, 1), 1, 0), ((6, 8, 8, 3, 5, 3), 2, 1), ((6, 8, 9, 3, 5, 3), 2, 1), ((5, 8, 6, 2, 4, 1), 2, 0),
  ((5, 9, 9, 2, 4, 1), 2, 0), ((4, 12, 14, 3, 2, 7), 2, 3), ((2, 9, 6, 2, 3, 3), 3, 0), ((2, 8, 8, 2, 3, 4), 4, 0),
  ((2, 8, 8, 2, 3, 2), 2, 0), ((3, 6, 6, 2, 3, 5), 2, 2),
]  # fmt: skip


@pytest.mark.parametrize(("sizes", "stride", "padding"), CASES)
@pytest.mark.parametrize("block", [1, 900, 1 << 19])
def test_derivatives_are_those_of_the_plain_convolution(monkeypatch, sizes, stride, padding, block):
  """With blocks of one image, of some, and of all of them."""
  monkeypatch.setattr(convolution, "_BLOCK", block)
  with jax.enable_x64(True):
    x, kernel = arrays(*sizes)
    wanted, back = jax.vjp(functools.partial(plain, stride=stride, padding=padding), x, kernel)
    got, own_back = jax.vjp(functools.partial(convolve, stride=stride, padding=padding), x, kernel)
    np.testing.assert_array_equal(got, wanted)
    cotangent = jnp.asarray(np.random.default_rng(1).normal(size=wanted.shape))
    for one, other in zip(own_back(cotangent), back(cotangent), strict=True):
      np.testing.assert_allclose(one, other, atol=1e-11, rtol=0)


@pytest.mark.parametrize("stride", [1, 2])
def test_both_forms_of_the_gradients_are_alike_in_float32(stride):
  x, kernel = arrays(8, 16, 16, 8, 16, 3, np.float32)
  shape = plain(x, kernel, stride, 1).shape
  cotangent = jnp.asarray(np.random.default_rng(1).normal(size=shape).astype(np.float32))
  forms = [
    jax.jit(functools.partial(form, stride=stride, padding=1))(x, kernel, cotangent)
    for form in (convolution._gradients, convolution._gradients_on_cpu)
  ]
  for one, other in zip(*forms, strict=True):
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * float(jnp.abs(one).max()))


def test_bfloat16_sums_in_float32():
  x, kernel = (leaf.astype(jnp.bfloat16) for leaf in arrays(8, 8, 8, 4, 4, 3, np.float32))
  grads = jax.grad(lambda x, k: convolve(x, k, padding=1).astype(jnp.float32).sum(), (0, 1))(x, kernel)
  assert all(leaf.dtype == jnp.bfloat16 for leaf in grads)
  exact = jax.grad(lambda k: plain(x.astype(jnp.float32), k, 1, 1).sum())(kernel.astype(jnp.float32))
  np.testing.assert_allclose(grads[1].astype(jnp.float32), exact, atol=0.02 * float(jnp.abs(exact).max()))


def test_a_batch_that_is_split_over_devices_is_summed_over_them_once():
  """No image is moved, and the sum over devices stands outside the loop over blocks."""
  mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
  split, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
  x, kernel = arrays(64, 16, 16, 8, 8, 3, np.float32)

  def f(x, kernel):
    return jax.grad(lambda k: jnp.square(convolve(x, k, padding=1)).sum())(kernel)

  step = jax.jit(f, in_shardings=(split, whole), out_shardings=whole)
  text = step.lower(x, kernel).compile().as_text()
  assert "all-gather" not in text
  assert "all-to-all" not in text
  body = [part for part in text.split("\n\n") if "while/body" in part and "ENTRY" not in part]
  assert body
  assert not any("all-reduce(" in part for part in body)
  np.testing.assert_allclose(step(x, kernel), jax.jit(f)(x, kernel), rtol=1e-4)


def test_padding_is_the_same_on_every_side():
  x = jnp.zeros((1, 4, 4, 1)).at[0, 0, 0].set(1.0)
  kernel = jnp.arange(9.0).reshape(3, 3, 1, 1)
  np.testing.assert_array_equal(convolve(x, kernel, stride=2, padding=1)[0, :, :, 0], [[4.0, 0.0], [0.0, 0.0]])


def test_initial_values_keep_the_variance_of_a_rectified_signal():
  kernel = Conv(64, 3).init(jax.random.key(0), jnp.zeros((1, 8, 8, 32)))["params"]["kernel"]
  assert kernel.shape == (3, 3, 32, 64)
  assert float(kernel.std()) == pytest.approx(np.sqrt(2 / (9 * 32)), rel=0.02)
  assert float(jnp.abs(kernel).max()) > 3 * float(kernel.std())  # not truncated
