"""A layer of recurrent cells whose last state answers a question about the whole sequence.

Olah 2015, https://colah.github.io/posts/2015-08-Understanding-LSTMs (the cells, `ilya_jax.models.recurrent_cells`);
Hochreiter, Schmidhuber 1997, Neural Computation 9(8), section 5 (the nets: cells, and outputs that see the cells alone).
Letters: B batch, T time, I inputs, D width of what the cells show, K outputs.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ilya_jax.errors import UserError
from ilya_jax.models.lstm_lm import uniform_init
from ilya_jax.models.recurrent_cells import MemoryBlocks, Recurrent, parameters
from ilya_jax.nn.linear import Linear
from ilya_jax.nn.precision import at_least_float32
from ilya_jax.task import Counts

BLOCKS = "memory_blocks"  # the name of the hidden layer of 1997 in `config.model.cell`


class LastStateNet(nn.Module):
  """Outputs from what the cells show after each sequence's last step; initial values of the output layer as the cells'."""

  cells: nn.Module
  outputs: int
  init_scale: float
  dtype: jnp.dtype = jnp.float32

  def setup(self):
    uniform = uniform_init(self.init_scale)
    self.head = Linear((self.outputs,), kernel_init=uniform, bias_init=uniform, dtype=self.dtype)

  def __call__(self, inputs: jax.Array, lengths: jax.Array) -> jax.Array:
    """inputs [B, T, I], lengths [B] (int) -> [B, K] in float32: logits, or numbers. What follows the end is not looked at."""
    shown = self.hidden(inputs)
    last = jnp.take_along_axis(shown, (lengths - 1)[None, :, None], axis=0)[0]  # [B, D]
    return at_least_float32(self.head(last))

  def hidden(self, inputs: jax.Array) -> jax.Array:
    """inputs [B, T, I] -> what the cells show at every step, [T, B, D]."""
    return self.cells(jnp.swapaxes(inputs, 0, 1).astype(self.dtype))[0]


def from_config(config: Any, *, outputs: int) -> LastStateNet:
  """The net of `config.model`, executed as `config.execution` says; raises UserError where sizes make no sense."""
  model, dtype = config.model, jnp.dtype(config.dtype)
  if model.cell == BLOCKS:
    if model.init_scale <= 0:
      raise UserError(
        f"model.init_scale = {model.init_scale}", "above 0 for memory_blocks", "--config.model.init_scale"
      )
    cells: nn.Module = MemoryBlocks(
      blocks=model.blocks,
      size=model.block_size,
      input_gate_bias=tuple(model.input_gate_bias),
      init_scale=model.init_scale,
      truncated=model.truncated,
      dtype=dtype,
      time_unroll=config.execution.time_unroll,
    )
    return LastStateNet(cells, outputs, model.init_scale, dtype)
  cells = Recurrent(
    cell=model.cell,
    width=model.width,
    forget_bias=model.forget_bias,
    init_scale=model.init_scale,
    dtype=dtype,
    time_unroll=config.execution.time_unroll,
  )
  return LastStateNet(cells, outputs, model.init_scale or model.width**-0.5, dtype)


def counts(config: Any, *, inputs: int, longest: int, outputs: int) -> Counts:
  """Size and training cost of the net of `config` on sequences of `longest` steps, by formula.

  n: the matrices. Every step multiplies with those of the cells once, the end of a sequence with that of the outputs.
  """
  model = config.model
  if model.cell == BLOCKS:
    width, units = model.blocks * model.block_size, model.blocks * (model.block_size + 2)
    matrices, cells = units * (inputs + units), units * (inputs + units + 1)
  else:
    width = model.width
    matrices, cells = parameters(model.cell, inputs=inputs, width=width)
  head = outputs * width
  return Counts(
    n=matrices + head,
    n_total=cells + head + outputs,
    flops_per_unit=3.0 * 2 * (longest * matrices + head),
    units_per_step=config.batch_size,
    unit="examples",
  )
