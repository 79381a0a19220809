"""The two ingredients of the gradient noise scale, |G|^2 and tr(Sigma), from gradients of a batch and of parts of it.

McCandlish et al. 2018, https://arxiv.org/abs/1812.06162, appendix A.1. With G_s the gradient of a batch of B_s and G_b that of
B_b, E|G_s|^2 = |G|^2 + tr(Sigma)/B_s and likewise for B_b, so that

  |G|^2 = (B_b |G_b|^2 - B_s |G_s|^2) / (B_b - B_s),   tr(Sigma) = (|G_s|^2 - |G_b|^2) / (1/B_s - 1/B_b)

are unbiased where G_b is the mean of independent G_s; |G_s|^2 is the mean over all parts. Their ratio at one step is not
unbiased: average both over steps, then divide (`ilya_jax.scaling.noise_scale`).

Where gradients are accumulated, the parts are the micro-batches and the norms cost next to nothing. Elsewhere the batch is cut
into two halves for the estimate alone, which doubles the cost of the logged steps (of every step in a pack): one device's share
of a summed gradient is nothing that XLA lets a program see, and summing by hand would change the bits of training.
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ilya_jax.errors import UserError

HALVES = 2  # parts of a batch that is not accumulated


def wanted(config: ConfigDict) -> bool:
  """Whether the config asks for the estimates."""
  return bool(config.execution.get("noise_scale", False))


def extra_pass(config: ConfigDict) -> bool:
  """Whether the estimates need gradients that training does not take."""
  return wanted(config) and config.accumulate == 1


def check(config: ConfigDict, *, shards: int) -> None:
  """Raises UserError where the batch cannot be cut into the halves that the estimates need; shards: of the data."""
  piped = config.pipeline.microbatches > 1 or config.mesh.stage != 1
  parts = HALVES * (shards * config.pipeline.microbatches if piped else 1)
  if extra_pass(config) and config.batch_size % parts:
    got = f"config.execution.noise_scale with a batch of {config.batch_size}, which has no halves"
    over = (
      f" ({HALVES} halves, {shards} data shards, {config.pipeline.microbatches} micro-batches of the pipeline)"
      if piped
      else ""
    )
    expected = f"a multiple of {parts}{over}"
    raise UserError(got, f"{expected}, or accumulate above 1", "--config.batch_size or --config.execution.noise_scale")


def square_norm(tree: object) -> jax.Array:
  """The sum of squares of all leaves, float32."""
  return sum((jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree)), jnp.float32(0))


def estimates(small: jax.Array, big: jax.Array, *, parts: int, units: int) -> dict[str, jax.Array]:
  """Unbiased `grad_sq_norm`, |G|^2, and `grad_trace`, tr(Sigma) of one unit.

  small: mean |G_s|^2 over the `parts` of a batch; big: |G_b|^2 of the batch. units: the batch in units of the task (tokens of a
  language model, else examples), so that tr(Sigma)/|G|^2 is a batch size in these.
  """
  return {
    "grad_sq_norm": (parts * big - small) / (parts - 1),
    "grad_trace": (small - big) * (units / (parts - 1)),
  }
