"""A multilayer perceptron with ReLUs: L hidden layers of equal width and one linear output.

Axes: B batch, F features of the input, D width.
"""

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from ilya_jax.nn.linear import Linear
from ilya_jax.task import Counts


class Mlp(nn.Module):
  """x [B, F] -> [B]. width, layers: of the hidden layers."""

  width: int
  layers: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x [B, F] -> [B]."""
    he = nn.initializers.he_normal()
    for k in range(self.layers):
      x = nn.relu(Linear((self.width,), kernel_init=he, name=f"hidden_{k}")(x))
    return Linear((1,), name="output")(x)[:, 0]


def from_config(config: ConfigDict) -> Mlp:
  """The network of `config.model`."""
  return Mlp(width=config.model.width, layers=config.model.n_layers)


def counts(config: ConfigDict, *, features: int) -> Counts:
  """N: the weights of all matrices; 6 FLOP a weight and example in training."""
  width, layers = config.model.width, config.model.n_layers
  n = features * width + (layers - 1) * width**2 + width
  return Counts(n, n + layers * width + 1, 6.0 * n, config.batch_size, unit="examples")
