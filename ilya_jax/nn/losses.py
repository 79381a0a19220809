"""Cross entropy with class labels, in the form that each platform computes fastest."""

import jax
import jax.numpy as jnp
import optax
from jax import lax


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """-ln softmax(logits)[label] in nats: logits [..., V] in float32 or wider, labels [...] (int) -> [...].

  Away from the CPU the label's logit is a masked sum: its derivative becomes part of the softmax's, where that of an indexed
  element is a scatter into an array of all logits (experiments/LOG.md has what that costs on a GPU).
  """
  indexed = optax.softmax_cross_entropy_with_integer_labels
  return lax.platform_dependent(logits, labels, cpu=indexed, default=masked_cross_entropy)


def masked_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """`cross_entropy` without an index into the logits."""
  classes = jnp.arange(logits.shape[-1], dtype=labels.dtype)
  is_label = labels[..., None] == classes.reshape((1,) * labels.ndim + (-1,))
  return jax.nn.logsumexp(logits, axis=-1) - jnp.where(is_label, logits, jnp.zeros((), logits.dtype)).sum(-1)
