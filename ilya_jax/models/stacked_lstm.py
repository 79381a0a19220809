"""The stacked LSTM that Neural Turing Machines are compared with: every layer sees the inputs, the outputs see every layer.

Graves, Wayne, Danihelka 2014, https://arxiv.org/abs/1410.5401, table 3, whose numbers of weights this layout gives; stacked as in
Graves 2013, https://arxiv.org/abs/1308.0850, section 2, without peepholes. Letters: B batch, T time, I inputs, K outputs, D width,
L layers; gates in the order i, f, g, o, one bias a gate; states before the first step are learned.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ilya_jax.errors import check_positive
from ilya_jax.models.lstm_lm import gate_bias_init, uniform_init
from ilya_jax.nn.linear import Linear
from ilya_jax.nn.lstm import LstmState, lstm_recurrence
from ilya_jax.nn.precision import at_least_float32
from ilya_jax.task import Counts


class StackedLstm(nn.Module):
  """Layers of LSTM cells, each over the whole sequence in turn. `time_unroll`: steps written out per iteration, an execution choice.

  Raises UserError on sizes below 1.
  """

  layers: int
  width: int
  outputs: int
  forget_bias: float = 1.0
  dtype: jnp.dtype = jnp.float32
  time_unroll: int = 1

  def __post_init__(self):
    check_positive(self, "layers", "width")
    super().__post_init__()

  @nn.compact
  def __call__(self, inputs: jax.Array) -> jax.Array:
    """inputs [B, T, I] -> logits [B, T, K] in float32."""
    uniform = uniform_init(self.width**-0.5)
    bias_init = gate_bias_init(self.width**-0.5, forget_bias=self.forget_bias)
    x = jnp.swapaxes(inputs, 0, 1).astype(self.dtype)
    first = self.param("first_states", nn.initializers.zeros, (self.layers, 2, self.width)).astype(self.dtype)
    shown: list[jax.Array] = []
    for layer in range(self.layers):
      linear = Linear(
        (4, self.width), kernel_init=uniform, bias_init=bias_init, dtype=self.dtype, name=f"input_{layer}"
      )
      gates = linear(jnp.concatenate([x, *shown[-1:]], axis=-1))  # [T, B, 4, D]
      recurrent = self.param(f"recurrent_{layer}", uniform, (self.width, 4, self.width)).astype(self.dtype)
      state = LstmState(*(jnp.broadcast_to(part, (x.shape[1], self.width)) for part in first[layer]))
      shown.append(lstm_recurrence(gates, recurrent, state, self.time_unroll)[0])
    output = Linear((self.outputs,), dtype=self.dtype, name="output")
    return at_least_float32(jnp.swapaxes(output(jnp.concatenate(shown, axis=-1)), 0, 1))


def from_config(config: Any, *, outputs: int) -> StackedLstm:
  """The net of `config.model`, executed as `config.execution` says; raises UserError where sizes make no sense."""
  model = config.model
  return StackedLstm(
    layers=model.layers,
    width=model.width,
    outputs=outputs,
    forget_bias=model.forget_bias,
    dtype=jnp.dtype(config.dtype),
    time_unroll=config.execution.time_unroll,
  )


def counts(config: Any, *, inputs: int, outputs: int, longest: int) -> Counts:
  """Size and training cost of the net of `config` on sequences of `longest` steps, by formula; n: the matrices."""
  layers, width = config.model.layers, config.model.width
  matrices = 4 * width * (layers * (inputs + width) + (layers - 1) * width) + outputs * layers * width
  return Counts(
    n=matrices,
    n_total=matrices + 6 * layers * width + outputs,
    flops_per_unit=3.0 * 2 * longest * matrices,
    units_per_step=config.batch_size,
    unit="examples",
  )
