"""The LSTM recurrence over a sequence, with a backward pass that leaves one matrix product per weight gradient.

Source: Hochreiter, Schmidhuber 1997 with the forget gate of Gers, Schmidhuber, Cummins 2000, in the form of Zaremba,
Sutskever, Vinyals 2014, https://arxiv.org/abs/1409.2329. Letters: T time, B batch, D width. The four gates come in the
order of torch.nn.LSTM: input i, forget f, candidate g, output o.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ilya_jax.nn.linear import product_over_rows
from ilya_jax.nn.varying import vary_alike


class LstmState(NamedTuple):
  """cell and hidden, [B, D] each (with a leading axis of layers where layers are stacked)."""

  cell: jax.Array
  hidden: jax.Array


def lstm_step(state: LstmState, gates: jax.Array) -> tuple[LstmState, jax.Array]:
  """One step: state and pre-activations [B, 4, D] (i, f, g, o) -> new state, activated gates [B, 4, D].

  c_t = f * c_{t-1} + i * g; h_t = o * tanh(c_t), with i, f, o = sigmoid and g = tanh of their pre-activations.
  """
  # One tanh serves all four, as sigmoid(x) = (1 + tanh(x / 2)) / 2; the barrier keeps it from being computed per use.
  half = jnp.array([0.5, 0.5, 1.0, 0.5], gates.dtype)[None, :, None]
  gates = lax.optimization_barrier(half * jnp.tanh(half * gates) + (1 - half))
  i, f, g, o = jnp.moveaxis(gates, 1, 0)
  cell = f * state.cell + i * g
  return LstmState(cell, o * jnp.tanh(cell)), gates


def lstm_recurrence(
  inputs: jax.Array, recurrent: jax.Array, state: LstmState, unroll: int = 1
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
  return _recurrence(*vary_alike(inputs, recurrent, state), unroll)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _recurrence(inputs, recurrent, state, unroll):
  outputs, state, _ = _forward(inputs, recurrent, state, unroll)
  return outputs, state


def _forward(inputs, recurrent, state, unroll):
  def step(state, inputs_t):
    state, gates = lstm_step(state, inputs_t + jnp.tensordot(state.hidden, recurrent, 1))
    return state, (state.hidden, state.cell, gates)

  state, (hidden, cell, gates) = lax.scan(step, state, inputs, unroll=unroll)
  return hidden, state, (cell, gates)


def _save(inputs, recurrent, state, unroll):
  hidden, final, (cell, gates) = _forward(inputs, recurrent, state, unroll)
  return (hidden, final), (recurrent, state, hidden, cell, gates)


def _backward(unroll, saved, cotangents):
  recurrent, state, hidden, cell, gates = saved
  d_hidden, d_final = cotangents
  transposed = jnp.moveaxis(recurrent, 0, 2)  # [4, D, D]
  previous_cell = jnp.concatenate([state.cell[None], cell[:-1]])  # [T, B, D]
  previous_hidden = jnp.concatenate([state.hidden[None], hidden[:-1]])

  def step(d_state, saved_t):
    d_output, gates_t, cell_t, previous_t = saved_t
    i, f, g, o = jnp.moveaxis(gates_t, 1, 0)
    squashed = jnp.tanh(cell_t)
    d_h = d_output + d_state.hidden
    d_c = d_state.cell + d_h * o * (1 - squashed * squashed)
    parts = (d_c * g * i * (1 - i), d_c * previous_t * f * (1 - f), d_c * i * (1 - g * g), d_h * squashed * o * (1 - o))
    # The barrier keeps steps that are written out from being fused into one another, each computing all later ones anew.
    d_gates, d_cell = lax.optimization_barrier((jnp.stack(parts, axis=1), d_c * f))
    return LstmState(d_cell, jnp.tensordot(d_gates, transposed, 2)), d_gates

  per_step = (d_hidden, gates, cell, previous_cell)
  d_state, d_gates = lax.scan(step, LstmState(*d_final), per_step, reverse=True, unroll=unroll)  # [T, B, 4, D]
  return d_gates, product_over_rows(previous_hidden, d_gates, rows=2), d_state


_recurrence.defvjp(_save, _backward)
