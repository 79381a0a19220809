"""Recurrent cells written out in NumPy, and random parameters and sequences for them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ilya_jax.models.recurrent_cells import CELLS, Recurrent

LENGTH, BATCH, INPUTS, WIDTH = 4, 3, 2, 4
ENDED = np.arange(LENGTH)[:, None] < np.array([4, 2, 3])[None]  # [T, B], False after the end


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


@functools.cache
def drawn(layer, inputs=INPUTS, width=1.0):
  """Random parameters of a layer in float64, as NumPy arrays."""
  layer = layer.clone(dtype=jnp.float32)
  shapes = jax.eval_shape(layer.init, jax.random.key(0), np.zeros((LENGTH, BATCH, inputs), np.float32))["params"]
  rng = np.random.default_rng(1)
  return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape) * width, shapes)


def sequence(seed=0, *, length=LENGTH, inputs=INPUTS):
  return np.random.default_rng(seed).normal(size=(length, BATCH, inputs))


def double(name, width=WIDTH, **fields):
  return Recurrent(name, width, dtype=jnp.float64, **fields)


def transcribed(name, params, x):
  """The cells' equations step by step: hidden states [T, B, D]."""
  w, b, u = params["input"]["kernel"], params["input"]["bias"], params["recurrent"]["kernel"]
  gates = {gate: k for k, gate in enumerate(CELLS[name].gates)}
  h = c = np.zeros((x.shape[1], w.shape[-1]))
  shown = []
  for x_t in x:
    seen = {gate: x_t @ w[:, k] + b[k] for gate, k in gates.items()}
    before = {gate: seen[gate] + h @ u[:, k] for gate, k in gates.items() if k < u.shape[1]}
    if name == "rnn":
      h = np.tanh(before["hidden"])
    elif name == "gru":
      z, r = sigmoid(before["update"]), sigmoid(before["reset"])
      n = np.tanh(seen["candidate"] + (r * h) @ params["candidate"]["kernel"][:, 0])
      h = (1 - z) * h + z * n
    elif name == "gru_torch":
      z, r = sigmoid(before["update"]), sigmoid(before["reset"])
      n = np.tanh(seen["candidate"] + r * (h @ u[:, 2] + params["candidate_bias"]))
      h = (1 - z) * n + z * h
    else:
      peephole = {"input": 0.0, "forget": 0.0, "output": 0.0}
      if name == "lstm_peephole":
        peephole = dict(zip(("input", "forget", "output"), (np.diag(p) for p in params["peephole"]), strict=True))
      if name == "lstm_peephole_full":
        p = params["peephole"]["kernel"]
        peephole = {"input": p[:, 0], "forget": p[:, 1], "output": params["peephole_output"]["kernel"][:, 0]}

      def gate(which, cell, before=before, peephole=peephole):
        return sigmoid(before[which] + (cell @ peephole[which] if np.ndim(peephole[which]) else 0.0))

      f = gate("forget", c) if "forget" in gates else 1.0
      i = gate("input", c) if "input" in gates else 1 - f
      c = f * c + i * np.tanh(before["candidate"])
      h = gate("output", c) * np.tanh(c)
    shown.append(h)
  return np.stack(shown)


def single(params):
  return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)


def run_all(name, params, x):
  """Hidden states in float32."""
  layer = Recurrent(name, params["input"]["kernel"].shape[-1])
  return np.asarray(jax.jit(layer.apply)({"params": single(params)}, x.astype(np.float32))[0])
