"""Several steps a dispatch without a loop: written out one after another, for what a loop runs slowly.

XLA's CPU backend runs a convolution inside a loop over a hundred times slower than outside one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any


class Unrolled(NamedTuple):
  """`Programs.steps` of two programs: a whole dispatch of `capacity` steps written out, and a single step.

  whole(state, batches, rates, n) -> (state, metrics), with n = capacity; single(state, metrics, batches, rates, index) ->
  (state, metrics), which writes row `index` of the metrics; begin(state, batches, rates) -> metrics, all zeros.
  """

  whole: Any  # jitted
  single: Any  # jitted
  begin: Callable[..., PyTree]
  capacity: int

  def __call__(self, state: PyTree, batches: PyTree, rates: Any, n: Any) -> tuple[PyTree, PyTree]:
    """n <= capacity steps: those of a full dispatch in one program, fewer one at a time."""
    if int(n) == self.capacity:
      return self.whole(state, batches, rates, n)
    metrics = self.begin(state, batches, rates)
    for index in range(int(n)):
      state, metrics = self.single(state, metrics, batches, rates, np.int32(index))
    return state, metrics

  def lower(self, *arguments: Any) -> Any:
    """The program of a full dispatch, lowered for these arguments."""
    return self.whole.lower(*arguments)


def written_out(one: Callable[..., tuple[PyTree, PyTree]], *, capacity: int) -> tuple[Callable[..., Any], ...]:
  """The functions (whole, single) of `Unrolled` before they are compiled.

  one(state, batches, rates, index) -> (state, metrics of the step). A barrier before each step keeps XLA from mixing it with the
  one before: each is computed as it is alone.
  """

  def whole(state, batches, rates, n):
    kept = []
    for index in range(capacity):
      state, metrics = one(jax.lax.optimization_barrier(state), batches, rates, index)
      kept.append(metrics)
    return state, jax.tree.map(lambda *values: jnp.stack(values), *kept)

  def single(state, metrics, batches, rates, index):
    state, own = one(state, batches, rates, index)
    return state, jax.tree.map(lambda row, value: row.at[index].set(value), metrics, own)

  return whole, single
