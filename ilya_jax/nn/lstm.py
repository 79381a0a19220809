"""The LSTM recurrence over a sequence, with a backward pass that leaves one matrix product per weight gradient.

Source: Hochreiter, Schmidhuber 1997 with the forget gate of Gers, Schmidhuber, Cummins 2000, in the form of Zaremba,
Sutskever, Vinyals 2014, https://arxiv.org/abs/1409.2329. Letters: T time, B batch, D width. The four gates come in the
order of torch.nn.LSTM: input i, forget f, candidate g, output o.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp


class LstmState(NamedTuple):
  """cell and hidden, [B, D] each (with a leading axis of layers where layers are stacked)."""

  cell: jax.Array
  hidden: jax.Array


def lstm_step(state: LstmState, gates: jax.Array) -> tuple[LstmState, jax.Array]:
  """One step: state and pre-activations [B, 4, D] -> new state, activated gates [B, 4, D].

  c_t = f * c_{t-1} + i * g; h_t = o * tanh(c_t), with i, f, o = sigmoid and g = tanh of their pre-activations.
  """
  i, f, o = (jax.nn.sigmoid(gates[:, index]) for index in (0, 1, 3))
  g = jnp.tanh(gates[:, 2])
  cell = f * state.cell + i * g
  return LstmState(cell, o * jnp.tanh(cell)), jnp.stack([i, f, g, o], axis=1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def lstm_recurrence(
  inputs: jax.Array, recurrent: jax.Array, state: LstmState, unroll: int = 5
) -> tuple[jax.Array, LstmState]:
  """Runs the recurrence; the input's part of the gates (with biases) is computed beforehand, for all steps at once.

  Args:
    inputs: [T, B, 4, D], the input's contribution to the pre-activations.
    recurrent: [D, 4, D], from h_{t-1} to the four gates.
    state: before the first step.
    unroll: steps written out per iteration of the loop, an execution choice.

  Returns: hidden states [T, B, D] and the state after the last step. The derivative is that of the plain loop up to
  rounding: the loop backwards collects the gradients of the gates, and the gradient of `recurrent` is one product.
  """
  outputs, state, _ = _forward(inputs, recurrent, state, unroll)
  return outputs, state


def _forward(inputs, recurrent, state, unroll):
  width = recurrent.shape[0]
  matrix = recurrent.reshape(width, 4 * width)

  def step(state, inputs_t):
    gates = inputs_t + (state.hidden @ matrix).reshape(inputs_t.shape)
    state, gates = lstm_step(state, gates)
    return state, (state.hidden, state.cell, gates)

  state, (hidden, cell, gates) = jax.lax.scan(step, state, inputs, unroll=unroll)
  return hidden, state, (cell, gates)


def _save(inputs, recurrent, state, unroll):
  hidden, final, (cell, gates) = _forward(inputs, recurrent, state, unroll)
  return (hidden, final), (recurrent, state, hidden, cell, gates)


def _backward(unroll, saved, cotangents):
  recurrent, state, hidden, cell, gates = saved
  d_hidden, d_final = cotangents
  width = recurrent.shape[0]
  transposed = recurrent.reshape(width, 4 * width).T
  previous_cell = jnp.concatenate([state.cell[None], cell[:-1]])  # [T, B, D]
  previous_hidden = jnp.concatenate([state.hidden[None], hidden[:-1]])

  def step(carry, saved_t):
    d_state, (d_output, gates_t, cell_t, previous_t) = carry, saved_t
    i, f, g, o = (gates_t[:, index] for index in range(4))
    squashed = jnp.tanh(cell_t)
    d_h = d_output + d_state.hidden
    d_c = d_state.cell + d_h * o * (1 - squashed * squashed)
    d_gates = jnp.stack(
      [d_c * g * i * (1 - i), d_c * previous_t * f * (1 - f), d_c * i * (1 - g * g), d_h * squashed * o * (1 - o)],
      axis=1,
    )  # [B, 4, D]
    return LstmState(d_c * f, d_gates.reshape(-1, 4 * width) @ transposed), d_gates

  per_step = (d_hidden, gates, cell, previous_cell)
  d_state, d_inputs = jax.lax.scan(step, LstmState(*d_final), per_step, reverse=True, unroll=unroll)
  d_recurrent = jnp.einsum("tbk,tbgd->kgd", previous_hidden, d_inputs)
  return d_inputs, d_recurrent, d_state


lstm_recurrence.defvjp(_save, _backward)
