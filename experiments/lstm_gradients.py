"""What gradients and gates of recurrent layers say: d h_T / d x_t against the lag, initial nets, an LSTM's gates.

For the claims in `lstm.py`: Olah 2015, https://colah.github.io/posts/2015-08-Understanding-LSTMs; Hochreiter, Schmidhuber 1997,
Neural Computation 9(8), sections 3 and 4. Along the direct path dC_t / dC_{t-1} = f_t; of an RNN it is diag(1 - h^2) W.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ilya_jax.claims.trainings import Trained
from ilya_jax.data.long_lag import adding
from ilya_jax.models.recurrent_cells import Recurrent
from ilya_jax.nn.lstm import LstmState, lstm_step

Array = np.ndarray

LAGS = 100  # steps of the sequences that gradients are taken on
FITTED = (20, 99)  # lags between which the gradient's factor per step is fitted


@functools.cache
def _norms(cell: str, width: int) -> Callable[[Any, Array], jax.Array]:
  """The function of `by_lag` for a kind of cell, of parameters and inputs [T, B, I] in float64, compiled once."""
  layer = Recurrent(cell, width, dtype=jnp.float64)

  def norms(params, x):
    shown, back = jax.vjp(lambda x: layer.apply({"params": params}, x)[0][-1], x)  # [B, D]

    def row(direction):
      return jnp.sum(back(jnp.broadcast_to(direction[None], shown.shape))[0] ** 2, axis=-1)  # [T, B]

    return jnp.sqrt(jax.vmap(row)(jnp.eye(width, dtype=x.dtype)).sum(0)).mean(1)

  return jax.jit(norms)


def adding_inputs(seed: int) -> Array:
  """Sequences that gradients are taken on, [16, T, 2]."""
  return np.asarray(adding(LAGS, 0).draw(jax.random.key(seed), 16)["inputs"])


def by_lag(cell: str, params: Any, *, inputs: Array) -> Array:
  """Mean over the batch of the Frobenius norm of d h_T / d x_t, at lags T - t = 0, 1, ..., float64 [T].

  cell, params: a layer of `Recurrent`. inputs: [B, T, I].
  """
  width = params["input"]["kernel"].shape[-1]
  with jax.enable_x64(True):
    double = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    return np.asarray(_norms(cell, width)(double, np.swapaxes(inputs, 0, 1).astype(np.float64)))[::-1]


def direct_by_lag(params: Any, *, inputs: Array) -> Array:
  """The same of d C_T / d C_t along the cell state alone, the product of the forget gates f_{t+1} .. f_T of an LSTM."""
  gates, _ = traced(params, inputs)
  logs = np.log(gates[:, :, 1].astype(np.float64))[::-1]  # [T, B, D], from the last step back
  products = np.concatenate([np.ones_like(logs[:1]), np.exp(np.cumsum(logs, axis=0))[:-1]])
  return np.sqrt(np.square(products).sum(-1)).mean(1)


def factor(norms: Array) -> float:
  """By what the gradient is multiplied per step of lag: the slope of its logarithm."""
  first, last = FITTED
  return float(np.exp(np.polyfit(np.arange(first, last + 1), np.log(norms[first : last + 1]), 1)[0]))


def falling(norms: Array) -> dict[str, float]:
  """The factor per step, and how much of the gradient is left over 50 steps."""
  return {"factor": factor(norms), "log10_at_lag_50": float(np.log10(norms[50] / norms[0]))}


def log_gate(bias: float) -> float:
  """ln s(bias)."""
  return -math.log1p(math.exp(-bias))


def near(found: float, bias: float) -> bool:
  """Whether a factor per step is that of a gate at `bias`, within 10 % of its logarithm."""
  return abs(math.log(found) / log_gate(bias) - 1) < 0.1


@functools.cache
def _drawn(cell: str, width: int, seed: int) -> Any:
  params = jax.jit(Recurrent(cell, width).init)(jax.random.key(seed), jnp.zeros((1, 1, 2)))["params"]
  return jax.tree.map(np.asarray, params)


def initial(cell: str, *, width: int, seed: int, forget_bias: float = 0.0) -> dict[str, Any]:
  """Initial parameters of a layer (an LSTM, where there is a forget bias) with two inputs, arrays that may be changed."""
  params = jax.tree.map(np.array, _drawn(cell, width, seed))
  if forget_bias:
    params["input"]["bias"][1] += forget_bias
  return params


def nets_of(scale: str, seed: int) -> dict[tuple[str, str], dict[str, Any]]:
  """(name, cell) -> initial parameters: RNNs, LSTMs, and LSTMs whose gates see nothing; narrow ones at tiny scale."""
  width = 16 if scale == "tiny" else 64
  radius = initial("rnn", width=width, seed=seed)
  kernel = radius["recurrent"]["kernel"]
  kernel *= 0.9 / np.abs(np.linalg.eigvals(kernel[:, 0])).max()
  nets = {("RNN", "rnn"): initial("rnn", width=width, seed=seed), ("RNN, spectral radius 0.9", "rnn"): radius}
  for bias in (1.0, 5.0):
    nets[f"LSTM, forget bias {bias:g}", "lstm"] = initial("lstm", width=width, seed=seed, forget_bias=bias)
    alone = initial("lstm", width=width, seed=seed)
    alone["recurrent"]["kernel"][:] = 0
    alone["input"]["kernel"][:, [0, 1, 3]] = 0
    alone["input"]["bias"][:] = 0
    alone["input"]["bias"][1] = bias
    nets[f"gates alone, forget bias {bias:g}", "lstm"] = alone
  return nets


def traced(cells: Mapping[str, Any], inputs: Array) -> tuple[Array, Array]:
  """Gates (i, f, g, o) and cell states of an LSTM layer at every step of inputs [B, T, I]."""
  seen = np.einsum("bti,igd->tbgd", inputs, cells["input"]["kernel"]) + cells["input"]["bias"]
  zeros = jnp.zeros((inputs.shape[0], seen.shape[-1]))

  def step(state, seen_t):
    state, gates = lstm_step(state, seen_t + jnp.tensordot(state.hidden, jnp.asarray(cells["recurrent"]["kernel"]), 1))
    return state, (gates, state.cell)

  _, (gates, states) = jax.lax.scan(step, LstmState(zeros, zeros), jnp.asarray(seen))
  return np.asarray(gates), np.asarray(states)


def gate_traces(run: Trained) -> tuple[Array, dict[str, Array]]:
  """Inputs [T, 2] of a held-out adding sequence, and input gate, forget gate and cell state on it, [T, 3] each, of the three
  cells of a trained LSTM that end nearest to the sum."""
  loaded = run.load()
  batch = jax.tree.map(np.asarray, loaded.source.batch(0, split="heldout"))
  cells = jax.tree.map(np.asarray, loaded.params["cells"])
  gates, states = traced(cells, batch["inputs"])  # [T, B, 4, D], [T, B, D]
  last, sums = states[-1] - states[-1].mean(0), batch["targets"] - batch["targets"].mean()
  correlation = (last * sums).mean(0) / (last.std(0) * sums.std() + 1e-9)
  best = np.argsort(-np.abs(correlation))[:3]
  marks = np.argsort(-batch["inputs"][:, :, 1], axis=1, kind="stable")[:, :2] / batch["inputs"].shape[1]
  row = int(np.abs(marks - [0.25, 0.75]).sum(1).argmin())  # marks far from each other and from both ends
  traces = {
    "input gate": gates[:, row, 0, best],
    "forget gate": gates[:, row, 1, best],
    "cell state": states[:, row, best],
  }
  return batch["inputs"][row], traces
