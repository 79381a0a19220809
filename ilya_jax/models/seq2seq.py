"""Sequence to sequence with LSTMs: one vector between encoder and decoder, or additive attention over the whole source.

Sutskever, Vinyals, Le 2014, https://arxiv.org/abs/1409.3215 (the plain form, one layer of each); Bahdanau, Cho, Bengio 2015,
https://arxiv.org/abs/1409.0473, section 3.1 and appendix A.1.2 (attention: e_ts = v . tanh(W h_{t-1} + U m_s), a = softmax(e),
c_t = sum_s a_ts m_s, which the decoder reads beside the last target token). They stand here as what a Transformer is compared with,
so the rest follows it: one embedding E for source, target and softmax, logits = (P h_t + p) E^T.
Letters: B batch, S source, T target, E width of the embedding, H width of the LSTMs, V vocabulary.

Deviations: LSTMs for the GRUs of Bahdanau et al., an encoder in one direction, as wide as the decoder, whose last state is the
decoder's first. Initial values uniform on [-s, s], s = 1 / sqrt(H); forget bias 1; embeddings N(0, 1/E).
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from ilya_jax.errors import check_positive
from ilya_jax.models.lstm_lm import gate_bias_init, uniform_init
from ilya_jax.models.recurrent_cells import Recurrent
from ilya_jax.models.transformer import visible_positions
from ilya_jax.models.transformer_layers import masked_softmax
from ilya_jax.nn.linear import Linear, tied_logits
from ilya_jax.nn.lstm import LstmState, lstm_recurrence, lstm_step
from ilya_jax.nn.precision import at_least_float32
from ilya_jax.task import Counts

Array = jax.Array
RULES = (
  (r"(^|/)embed/embedding", PartitionSpec("tensor", "fsdp")),  # [V, E]
  (r"(input|context|recurrent)/kernel", PartitionSpec("fsdp", None, "tensor")),  # [E or H, 4, H]
  (r"input/bias", PartitionSpec(None, "tensor")),  # [4, H]
)


class Memory(NamedTuple):
  """What a decoder keeps of a source: hidden states [B, S, H], U of them, which positions are there, float [B, S], and the
  encoder's last state."""

  states: Array
  keys: Array
  visible: Array
  final: LstmState


class Seq2Seq(nn.Module):
  """Logits of the next target token at every position, given a source. Raises UserError on sizes that make no sense."""

  vocab_size: int
  d_model: int
  width: int
  attention: bool
  dropout: float = 0.0
  dtype: jnp.dtype = jnp.float32
  time_unroll: int = 1

  def __post_init__(self):
    check_positive(self, "d_model", "width")
    super().__post_init__()

  def setup(self):
    init, gates = uniform_init(self.width**-0.5), (4, self.width)
    bias_init = gate_bias_init(self.width**-0.5, forget_bias=1.0)
    embedding_init = nn.initializers.normal(self.d_model**-0.5)
    self.embed = nn.Embed(self.vocab_size, self.d_model, dtype=self.dtype, embedding_init=embedding_init)
    self.encoder = Recurrent("lstm", self.width, 1.0, dtype=self.dtype, time_unroll=self.time_unroll)
    self.input = Linear(gates, kernel_init=init, bias_init=bias_init, dtype=self.dtype)  # of the decoder, as all below
    self.recurrent = self.param("recurrent", init, (self.width, *gates))
    if self.attention:
      self.context = self.param("context", init, (self.width, *gates))
      self.query = self.param("query", init, (self.width, self.width))
      self.energy = self.param("energy", init, (self.width,))
      self.key = Linear((self.width,), use_bias=False, kernel_init=init, dtype=self.dtype)
    self.project = Linear((self.d_model,), kernel_init=init, bias_init=init, dtype=self.dtype)
    self.drop = nn.Dropout(self.dropout)

  def __call__(self, source: Array, target: Array, *, train: bool) -> Array:
    """source [B, S], target [B, T] shifted right (int, PAD where a sequence has ended) -> logits [B, T, V] in float32."""
    memory = self.remember(source, train=train)
    inputs = jnp.moveaxis(self.input(self._embedded(target, train=train)), 1, 0)  # [T, B, 4, H]
    if self.attention:
      shown = self._attending(inputs, memory)
    else:
      shown, _ = lstm_recurrence(inputs, self.recurrent.astype(self.dtype), memory.final, self.time_unroll)
    return self._logits(jnp.moveaxis(shown, 0, 1), train=train)

  def remember(self, source: Array, *, train: bool = False) -> Memory:
    """source [B, S] -> what decoding needs of it."""
    visible = visible_positions(source, dtype=self.dtype)
    x = jnp.swapaxes(self._embedded(source, train=train), 0, 1)  # [S, B, E]
    states, final = self.encoder(x, mask=visible.T > 0)
    states = jnp.swapaxes(states, 0, 1)  # [B, S, H]
    return Memory(states, self.key(states) if self.attention else states, visible, final)

  def begin(self, memory: Memory, length: int) -> LstmState:
    """The state before the first target token."""
    return memory.final

  def step(self, tokens: Array, state: LstmState, *, index: Array, memory: Memory) -> tuple[Array, LstmState]:
    """The target tokens [B] at position `index` -> logits [B, V] of the next, and the state after them."""
    inputs = self.input(self._embedded(tokens, train=False))  # [B, 4, H]
    state = self._advance(state, inputs, memory)
    return self._logits(state.hidden, train=False), state

  def _attending(self, inputs: Array, memory: Memory) -> Array:
    """inputs [T, B, 4, H] -> hidden states [T, B, H], with a look at the source before each step."""

    def step(state, inputs_t):
      state = self._advance(state, inputs_t, memory)
      return state, state.hidden

    return jax.lax.scan(step, memory.final, inputs, unroll=self.time_unroll)[1]

  def _advance(self, state: LstmState, inputs: Array, memory: Memory) -> LstmState:
    gates = inputs + jnp.tensordot(state.hidden, self.recurrent.astype(self.dtype), 1)
    if self.attention:
      asked = jnp.dot(state.hidden, self.query.astype(self.dtype))[:, None]  # [B, 1, H]
      scores = jnp.tanh(asked + memory.keys) @ self.energy.astype(self.dtype)  # [B, S]
      weights = masked_softmax(scores, memory.visible > 0)
      context = jnp.einsum("bs,bsh->bh", weights.astype(self.dtype), memory.states)
      gates = gates + jnp.tensordot(context, self.context.astype(self.dtype), 1)
    return lstm_step(state, gates)[0]

  def _embedded(self, tokens: Array, *, train: bool) -> Array:
    return self.drop(self.embed(tokens) * jnp.asarray(self.d_model**0.5, self.dtype), deterministic=not train)

  def _logits(self, hidden: Array, *, train: bool) -> Array:
    x = self.project(self.drop(hidden, deterministic=not train))
    return at_least_float32(tied_logits(x, self.embed.embedding))


def from_config(config: Any, *, vocab_size: int, longest: int) -> Seq2Seq:
  """The model of `config.model`, executed as `config.execution` says; it does not depend on `longest`."""
  model = config.model
  return Seq2Seq(
    vocab_size=vocab_size,
    d_model=model.d_model,
    width=model.width,
    attention=model.attention,
    dropout=model.dropout,
    dtype=jnp.dtype(config.dtype),
    time_unroll=config.execution.time_unroll,
  )


def count(model: Seq2Seq) -> tuple[int, int]:
  """(parameters in matrices but for the embedding, all parameters)."""
  e, h = model.d_model, model.width
  matrices = 2 * 4 * h * (e + h) + h * e + (4 * h * h + 2 * h * h if model.attention else 0)
  return matrices, matrices + 2 * 4 * h + e + (h if model.attention else 0) + model.vocab_size * e


def counts(config: Any, *, vocab_size: int, source: int, target: int) -> Counts:
  """Size and training cost of the model of `config` on sentences padded to so many positions, by formula."""
  model = from_config(config, vocab_size=vocab_size, longest=max(source, target))
  e, h = model.d_model, model.width
  n, n_total = count(model)
  cells = (source + target) * 4 * h * (e + h)
  attention = source * h * h + target * (5 * h * h + 2 * source * h) if model.attention else 0
  head = 2 * target * e * vocab_size
  flops = 2 * (cells + attention + target * h * e) + head
  return Counts(n, n_total, 3.0 * flops, config.batch_size, "examples", 3.0 * head)
