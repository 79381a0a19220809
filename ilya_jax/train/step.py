"""One optimizer step: gradients of a batch, whole or in micro-batches one after another, and the update from them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ilya_jax.parallel.mesh import batch_sharding, micro_batches, replicated
from ilya_jax.task import Task
from ilya_jax.train import gradient_noise
from ilya_jax.train.optimizer import with_learning_rate
from ilya_jax.train.state import TrainState

PyTree = Any
_SQUARES = "micro_grad_sq_norm"  # a metric between `gradients` and the step, not logged


def make_step(
  config: ConfigDict, *, task: Task, optimizer: optax.GradientTransformation, mesh: Mesh
) -> Callable[[TrainState, PyTree, jax.Array], tuple[TrainState, PyTree]]:
  """The function (state, batch, learning rate) -> (state, metrics as (total, weight) pairs)."""
  noisy = gradient_noise.wanted(config)

  def step(state, batch, learning_rate):
    batch = jax.lax.with_sharding_constraint(batch, batch_sharding(mesh))
    grads, metrics, model_state = gradients(
      task, state, batch, accumulate=config.accumulate, mesh=mesh, squares=noisy, unroll=config.execution.unroll_steps
    )
    noise = _gradient_noise(config, task, state, batch, metrics=metrics, grads=grads, mesh=mesh) if noisy else {}
    opt_state = with_learning_rate(state.opt_state, learning_rate)
    with jax.numpy_dtype_promotion("standard"):  # optax multiplies integers with floats; our own code does not
      updates, opt_state = optimizer.update(grads, opt_state, state.params)
    params = jax.tree.map(lambda p, u: p + u.astype(p.dtype), state.params, updates)
    metrics = {
      **{name: pair for name, pair in metrics.items() if name != _SQUARES},
      **noise,
      "grad_norm": (jnp.sqrt(gradient_noise.square_norm(grads)), jnp.float32(1)),
      "learning_rate": (learning_rate, jnp.float32(1)),
    }
    return TrainState(state.step + 1, params, model_state, opt_state, state.rng), metrics

  return step


def gradients(
  task: Task, state: TrainState, batch: PyTree, *, accumulate: int, mesh: Mesh, squares: bool = False,
  unroll: bool = False,
) -> tuple[PyTree, Any, PyTree]:  # fmt: skip
  """(gradients, metrics, model state) of the batch, taken in `accumulate` equal micro-batches one after another.

  Gradients are the mean over micro-batches; metrics are summed. squares: with one more metric where there are several, the
  square of the norm of a micro-batch's gradient. unroll: the micro-batches are written out, not looped over.
  """
  rng = jax.random.fold_in(state.rng, state.step)
  grad = jax.value_and_grad(task.loss, has_aux=True)
  if accumulate == 1:
    (_, (metrics, model_state)), grads = grad(state.params, state.model_state, batch, rng, train=True)
    return grads, dict(metrics), model_state

  rows = jax.tree.leaves(batch)[0].shape[0] // accumulate
  # Halves that are estimated from may be too small to be split.
  even = rows % (mesh.shape["data"] * mesh.shape["fsdp"]) == 0
  over = batch_sharding(mesh, leading=1) if even else replicated(mesh)

  def split(leaf):
    return jax.lax.with_sharding_constraint(micro_batches(leaf, accumulate), over)

  def body(carry, xs):
    total, model_state = carry
    index, micro = xs
    (_, (metrics, model_state)), grads = grad(
      state.params, model_state, micro, jax.random.fold_in(rng, index), train=True
    )
    summed = jax.tree.map(jnp.add, total, grads)
    if squares:
      # Read off the sums: a second use of the gradients themselves would keep XLA from adding them up as it makes them,
      # and so change how training is rounded.
      own = jax.tree.map(jnp.subtract, *jax.lax.optimization_barrier((summed, total)))
      metrics = {**metrics, _SQUARES: (gradient_noise.square_norm(own), jnp.float32(1))}
    return (summed, model_state), metrics

  zeros = jax.tree.map(jnp.zeros_like, state.params)
  parts = jax.tree.map(split, batch)
  indices = jnp.arange(accumulate, dtype=jnp.uint32)
  carry = (zeros, state.model_state)
  (total, model_state), metrics = jax.lax.scan(body, carry, (indices, parts), unroll=accumulate if unroll else 1)
  grads = jax.tree.map(lambda leaf: leaf / accumulate, total)
  return grads, jax.tree.map(lambda leaf: leaf.sum(0), dict(metrics)), model_state


def _gradient_noise(
  config: ConfigDict, task: Task, state: TrainState, batch: PyTree, *, metrics: Any, grads: PyTree, mesh: Mesh
) -> dict[str, tuple[jax.Array, jax.Array]]:
  """The estimates of `gradient_noise` as metrics, of weight 0 at steps that do not make them."""

  def measured(squares, grads, parts):
    made = gradient_noise.estimates(
      squares[0] / squares[1], gradient_noise.square_norm(grads), parts=parts, units=task.counts.units_per_step
    )
    return {name: (value, jnp.float32(1)) for name, value in made.items()}

  if not gradient_noise.extra_pass(config):
    return measured(metrics[_SQUARES], grads, config.accumulate)

  def extra(_):
    halved, own, _ = gradients(task, state, batch, accumulate=gradient_noise.HALVES, mesh=mesh, squares=True)
    return measured(own[_SQUARES], halved, gradient_noise.HALVES)

  def nothing(_):
    return {name: (jnp.float32(0), jnp.float32(0)) for name in ("grad_sq_norm", "grad_trace")}

  return jax.lax.cond((state.step + 1) % config.log_every == 0, extra, nothing, None)
