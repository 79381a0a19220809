"""Cross entropy: both forms against the definition in NumPy and against one another's derivatives, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ilya_jax.nn.losses import cross_entropy, masked_cross_entropy


@pytest.mark.parametrize("shape", [(7,), (3, 5), ()])
@pytest.mark.parametrize("form", [cross_entropy, masked_cross_entropy])
def test_it_is_minus_the_log_of_the_labels_probability(form, shape):
  rng = np.random.default_rng(0)
  logits, labels = 30 * rng.normal(size=(*shape, 11)), rng.integers(11, size=shape).astype(np.int32)
  picked = np.take_along_axis(logits, labels[..., None], -1)[..., 0]
  largest = logits.max(-1)
  expected = np.log(np.exp(logits - largest[..., None]).sum(-1)) + largest - picked
  with jax.enable_x64(True):
    np.testing.assert_allclose(jax.jit(form)(logits, labels), expected, rtol=1e-12, atol=1e-12)


def test_both_forms_have_the_derivative_of_softmax_less_one_at_the_label():
  rng = np.random.default_rng(1)
  logits, labels = rng.normal(size=(4, 6, 9)), rng.integers(9, size=(4, 6)).astype(np.uint16)
  weights = rng.normal(size=(4, 6))
  probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  expected = weights[..., None] * (probabilities - (labels[..., None] == np.arange(9)))
  with jax.enable_x64(True):
    for form in (masked_cross_entropy, optax.softmax_cross_entropy_with_integer_labels, cross_entropy):
      found = jax.jit(jax.grad(lambda x, form=form: jnp.sum(weights * form(x, labels))))(logits)
      np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)


def test_on_an_accelerator_no_gradient_is_scattered():
  """Lowered for CUDA, which needs no GPU: a scatter would write all logits once more."""

  def total(logits, labels):
    return cross_entropy(logits, labels).sum()

  shapes = jax.ShapeDtypeStruct((8, 100), jnp.float32), jax.ShapeDtypeStruct((8,), jnp.int32)
  traced = jax.jit(jax.grad(total)).trace(*shapes)
  assert "scatter" in traced.lower(lowering_platforms=("cpu",)).as_text()
  assert "scatter" not in traced.lower(lowering_platforms=("cuda",)).as_text()
