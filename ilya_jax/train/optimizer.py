"""Any optax optimizer and schedule by name; the learning rate stays an argument of the compiled step."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ilya_jax.errors import UserError

PyTree = Any
_BLOCK = 1024  # steps of a schedule evaluated at a time: one shape, so that its operations compile once


def make_optimizer(optim: Any) -> optax.GradientTransformation:
  """The optimizer of the config section `optim`, with a settable learning rate.

  optim: `name` (a function of optax that takes `learning_rate`), `clip_norm` (0: none), and `options`, the keyword
    arguments of that function. `clip_component`, where there is one: every component of the gradient is cut to +-it (0: none),
    before the norm is. Weight decay, where the optimizer has a `mask`, acts on matrices ("kernel") alone. `l2`, where
    there is one: the gradient of l2 / 2 times the squares of all parameters, biases and norms too, is added before the
    optimizer sees it (and after clipping), as the papers that train with momentum do.
  Raises UserError on an unknown optimizer or option.
  """
  build = getattr(optax, optim.name, None)
  if not callable(build) or "learning_rate" not in inspect.signature(build).parameters:
    raise UserError(f"optimizer {optim.name!r}", "an optimizer of optax, such as adamw or sgd", "--config.optim.name")
  known = inspect.signature(build).parameters
  options = {name: value for name, value in optim.options.items()}
  for name in options:
    if name not in known:
      raise UserError(
        f"option {name!r} of optax.{optim.name}", f"one of {', '.join(known)}", f"--config.optim.options.{name}"
      )
  if "mask" in known and "weight_decay" in known:
    options["mask"] = decayed

  def chained(learning_rate):
    steps = [optax.clip(optim.clip_component)] if optim.get("clip_component", 0.0) else []
    steps += [optax.clip_by_global_norm(optim.clip_norm)] if optim.clip_norm else []
    steps += [optax.add_decayed_weights(optim.l2)] if optim.get("l2", 0.0) else []
    return optax.chain(*steps, build(learning_rate, **options))

  return optax.inject_hyperparams(chained)(learning_rate=0.0)


def decayed(params: PyTree) -> PyTree:
  """Which parameters weight decay acts on: matrices of linear maps, whose last name is `kernel`."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: jax.tree_util.keystr(path[-1:], simple=True) == "kernel", params
  )


def with_learning_rate(opt_state: Any, learning_rate: jax.Array) -> Any:
  """The optimizer state with the learning rate of the coming step."""
  return opt_state._replace(hyperparams={**opt_state.hyperparams, "learning_rate": learning_rate})


def make_schedule(schedule: Any, *, learning_rate: float, steps: int) -> Callable[[Any], Any]:
  """Learning rate of a step (counted from 0).

  schedule.name: "constant"; "wsd" (constant, then a 1 - sqrt cooldown over the last `cooldown_fraction` of the steps:
    Hagele et al. 2024, arXiv 2405.18392); "cosine" (to `final_fraction` of the peak); "linear" (the same, straight);
    "drops" (constant, times options.factor at each of options.at, fractions of the steps); "inverse_sqrt" (the rate at step s,
    counted from 1, is the peak times sqrt(w / s) from the warm-up's end w on: Vaswani et al. 2017, arXiv 1706.03762, eq. 3,
    whose peak is d_model^-0.5 w^-0.5); or any schedule of optax, called with the options of the config.
  schedule.warmup_steps: linear warm-up from 0, in steps, before and on top of any of them.
  Raises UserError on an unknown name.
  """
  name, warmup = schedule.name, schedule.warmup_steps
  if name in ("wsd", "constant"):
    start, length = branch_step(schedule, steps=steps), max(steps - branch_step(schedule, steps=steps), 1)

    def base(step):
      share = jnp.clip((jnp.asarray(step, jnp.float32) - start) / length, 0.0, 1.0)
      return learning_rate * (1 - jnp.sqrt(share) * (1 - schedule.final_fraction))

    if name == "constant":
      base = optax.constant_schedule(learning_rate)
  elif name == "cosine":
    base = optax.cosine_decay_schedule(learning_rate, steps, alpha=schedule.final_fraction)
  elif name == "linear":
    base = optax.linear_schedule(learning_rate, learning_rate * schedule.final_fraction, steps)
  elif name == "drops":
    drops = {round(share * steps): schedule.options["factor"] for share in schedule.options["at"]}
    base = optax.piecewise_constant_schedule(learning_rate, drops)
  elif name == "inverse_sqrt":

    def base(step):
      least = max(warmup, 1)
      return learning_rate * jnp.sqrt(least / jnp.maximum(jnp.asarray(step, jnp.float32) + 1, least))

  elif name.endswith("_schedule") and callable(getattr(optax, name, None)):
    try:
      base = getattr(optax, name)(**schedule.options)
    except TypeError as error:
      raise UserError(
        f"options of optax.{name}: {error}", "its keyword arguments", "--config.schedule.options"
      ) from error
  else:
    expected = (
      "constant, wsd, cosine, linear, drops, inverse_sqrt, or a schedule of optax such as warmup_cosine_decay_schedule"
    )
    raise UserError(f"schedule {name!r}", expected, "--config.schedule.name")

  def with_warmup(step):
    share = jnp.clip((jnp.asarray(step, jnp.float32) + 1) / max(warmup, 1), 0.0, 1.0)
    return base(step) * share

  return with_warmup if warmup else base


def branch_step(schedule: Any, *, steps: int) -> int:
  """The step at which a run of `steps` leaves the constant rate: where a cooldown branches off its trunk."""
  return steps - round(steps * schedule.cooldown_fraction) if schedule.name == "wsd" else steps


def learning_rates(schedule: Callable[[Any], Any], *, first: int, last: int) -> np.ndarray:
  """float32 [last - first]: the schedule at steps first .. last-1, evaluated in blocks of one shape."""
  rates = np.empty(max(last - first, 0), np.float32)
  for start in range(0, len(rates), _BLOCK):
    block = jnp.asarray(np.arange(first + start, first + start + _BLOCK, dtype=np.int32))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # optax relies on both
      values = np.broadcast_to(np.asarray(jax.vmap(schedule)(block), np.float32), (_BLOCK,))
    rates[start : start + _BLOCK] = values[: len(rates) - start]
  return rates
