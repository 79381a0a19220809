"""Text from a language model, token by token: the Transformer with a cache of keys and values, the LSTM with its state.

Letters: B batch, T positions, L layers, H heads, K head dim, V vocabulary. A writer is `begin(batch, length) -> state` and
`step(params, tokens [B], state, index) -> (logits [B, V] of the next token, state)`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ilya_jax.models.lstm_lm import LstmLM
from ilya_jax.models.transformer_layers import KeysValues, masked_attention
from ilya_jax.models.transformer_lm import TransformerBlock, TransformerLM, angles, block_fields

Array = jax.Array
PyTree = Any


class Writer(NamedTuple):
  """begin and step as above; context: how many positions it takes at most, 0 for any number."""

  begin: Callable[[int, int], PyTree]
  step: Callable[[PyTree, Array, PyTree, Array], tuple[Array, PyTree]]
  context: int


def transformer_writer(model: TransformerLM) -> Writer:
  """The Transformer, which keeps 2 L T D numbers of each sequence: fixed arrays, masked by position."""
  block = TransformerBlock(**block_fields(model))

  def begin(batch, length):
    shape = (model.n_layers, batch, length, model.n_heads, model.d_model // model.n_heads)
    return KeysValues(jnp.zeros(shape, model.dtype), jnp.zeros(shape, model.dtype))

  def step(params, tokens, cache, index):
    turned = angles(model, index[None])
    x = model.apply({"params": params}, tokens[:, None], index[None], train=False, method="enter")
    seen = (jnp.arange(cache.keys.shape[2]) <= index)[None, None]

    def layer(x, row):
      own, cached = row
      query, key, value = _heads(block, own, x, turned)
      cached = KeysValues(*(jax.lax.dynamic_update_slice_in_dim(old, new, index, 1)
                            for old, new in zip(cached, (key, value), strict=True)))  # fmt: skip
      attended = masked_attention(query, cached, visible=seen)
      return block.apply({"params": own}, x, attended, train=False, method="finish"), cached

    x, cache = jax.lax.scan(layer, x, (params["layers"], cache))
    logits: Any = model.apply({"params": params}, x, method="logits")
    return logits[:, 0], cache

  return Writer(begin, step, model.context)


def _heads(block: TransformerBlock, params: PyTree, x: Array, turned: Array | None) -> Any:
  return block.apply({"params": params}, x, turned, method="heads_of")


def lstm_writer(model: LstmLM) -> Writer:
  """The LSTM, which keeps its state."""

  def step(params, tokens, state, index):
    made: Any = model.apply({"params": params}, tokens[:, None], state, train=False, method="resume")
    logits, state = made
    return logits[:, 0], state

  return Writer(lambda batch, length: model.zero_state(batch), step, 0)


def chosen(logits: Array, rng: Array, *, temperature: float, top_k: int) -> Array:
  """A token drawn from softmax(logits [V] / temperature) over the top_k likeliest (0: all); the likeliest at temperature 0."""
  if not temperature:
    return jnp.argmax(logits)
  if top_k:
    least = jax.lax.top_k(logits, top_k)[0][-1]
    logits = jnp.where(logits < least, -jnp.inf, logits)
  return jax.random.categorical(rng, logits / temperature)


def continuation(
  writer: Writer, params: PyTree, prompt: Sequence[int], *, length: int, temperature: float, top_k: int, seed: int,
  end: int,
) -> list[int]:  # fmt: skip
  """At most `length` tokens that follow the prompt (one token or more), up to `end`, which is not among them.

  The draw of a token depends on the seed and on its place alone. Where the context is full, the later half of it is read anew.
  """
  size = min(writer.context or len(prompt) + length, len(prompt) + length)
  key = jax.random.key(seed)

  @jax.jit
  def fill(params, buffer, known, stop, offset):
    def body(carry):
      index, buffer, state, ended = carry
      logits, state = writer.step(params, buffer[index][None], state, index)
      place = index + 1
      drawn = chosen(logits[0], jax.random.fold_in(key, offset + place), temperature=temperature, top_k=top_k)
      token = jnp.where(place < known, buffer[place], drawn.astype(buffer.dtype))
      return place, buffer.at[place].set(token), state, (place >= known) & (token == end)

    def goes_on(carry):
      index, _, _, ended = carry
      return (index + 1 < stop) & ~ended

    carry = (jnp.int32(0), buffer, writer.begin(1, size), jnp.bool_(False))
    index, buffer, _, ended = jax.lax.while_loop(goes_on, body, carry)
    return buffer, index + 1, ended

  tokens, wanted, finished = list(prompt), len(prompt) + length, False
  while len(tokens) < wanted and not finished:
    kept = tokens if len(tokens) < size else tokens[-max(size // 2, 1) :]
    stop = min(size, len(kept) + wanted - len(tokens))
    buffer = np.zeros(size, np.int32)
    buffer[: len(kept)] = kept
    offset = len(tokens) - len(kept)
    filled, count, ended = fill(params, buffer, np.int32(len(kept)), np.int32(stop), np.int32(offset))
    tokens += np.asarray(filled)[len(kept) : int(count)].tolist()
    finished = bool(ended)
  return tokens[len(prompt) : len(tokens) - finished]
