"""Full-batch minimisation of small objectives in float64: SciPy's L-BFGS through `jax.value_and_grad`.

L-BFGS: Liu & Nocedal 1989, "On the limited memory BFGS method for large scale optimization".
"""

import functools
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy import optimize

Tree = Any

_MEMORY = 50  # pairs that L-BFGS keeps
_WINDOW = 10  # updates over which a change is averaged


class Minimum(NamedTuple):
  """tree: the best point, NumPy float64. value: the objective there. updates: how many were made."""

  tree: Tree
  value: float
  updates: int


@functools.lru_cache(maxsize=64)
def _compiled(objective: Callable[..., jax.Array], structure: Any, shapes: tuple[tuple[int, ...], ...]):
  """The jitted value and gradient of an objective of trees, as a function of a flat vector and the objective's other arguments."""
  _, unravel = ravel_pytree(jax.tree.unflatten(structure, [jnp.zeros(shape, jnp.float64) for shape in shapes]))

  def flat_objective(flat: jax.Array, *data: Any) -> jax.Array:
    return objective(unravel(flat), *data)

  return jax.jit(jax.value_and_grad(flat_objective)), unravel


def minimise(
  objective: Callable[..., jax.Array], start: Tree, data: tuple[Any, ...] = (), *, updates: int, tolerance: float = 0.0
) -> Minimum:
  """Minimises objective(tree, *data) from the tree `start`, in float64.

  updates: at most so many. tolerance: stops where an update, on average over ten, changed the objective by less; 0: never for that reason.
  Compiled once for each objective (a function that is kept, not made anew) and shapes.
  """
  with jax.enable_x64(True):
    leaves, structure = jax.tree.flatten(start)
    arrays = [np.asarray(leaf, np.float64) for leaf in leaves]
    evaluate, unravel = _compiled(objective, structure, tuple(array.shape for array in arrays))
    placed = tuple(jnp.asarray(np.asarray(each, np.float64)) for each in data)
    recent: deque[float] = deque(maxlen=_WINDOW + 1)

    def value_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
      value, gradient = evaluate(flat, *placed)
      return float(value), np.asarray(gradient)

    def watch(*, intermediate_result: optimize.OptimizeResult) -> None:
      recent.append(float(intermediate_result.fun))
      if len(recent) > _WINDOW and recent[0] - recent[-1] < tolerance * _WINDOW:
        raise StopIteration

    flat = np.concatenate([array.ravel() for array in arrays])
    found = optimize.minimize(
      value_and_gradient, flat, jac=True, method="L-BFGS-B", callback=watch,
      options={"maxiter": updates, "maxfun": 20 * updates, "maxcor": _MEMORY, "ftol": 0.0, "gtol": 1e-10},
    )  # fmt: skip
    tree = jax.tree.map(np.asarray, unravel(jnp.asarray(found.x)))
  return Minimum(tree, float(found.fun), int(found.nit))
