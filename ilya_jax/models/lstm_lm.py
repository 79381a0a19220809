"""The stacked LSTM language model (Zaremba, Sutskever, Vinyals 2014, https://arxiv.org/abs/1409.2329, section 3).

Dropout acts on the non-recurrent connections alone: on the embedding, between layers and before the softmax, L + 1
places, with a fresh mask at every time step. Letters: B batch, T time, D width, L layers, V vocabulary; gates in the
order i, f, g, o (`ilya_jax.nn.lstm`), one bias per gate.

Deviations: the paper draws every parameter uniformly from [-s, s], s = 0.1, 0.05, 0.04 at widths 200, 650, 1500;
`init_scale` 0 stands for s = 1 / sqrt(D) (0.07, 0.04, 0.03), torch's rule. `forget_bias` (0 in the paper) is added to
the initial bias of the forget gate and learned from there. `tied`, a later idea, uses the embedding as the softmax's
matrix.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from ilya_jax.errors import UserError, check_positive
from ilya_jax.nn.linear import Kernel, Linear, tied_logits
from ilya_jax.nn.lstm import LstmState, lstm_recurrence
from ilya_jax.nn.precision import at_least_float32
from ilya_jax.scaling import counting
from ilya_jax.task import Counts, Pieces, Stack

# The gates' units over `tensor`, the axis they read over `fsdp`, stacked layers over `stage`.
RULES = (
  (r"(^|/)embed/embedding", PartitionSpec("tensor", "fsdp")),  # [V, D]
  (r"layers/(input|recurrent)/kernel", PartitionSpec("stage", "fsdp", None, "tensor")),  # [L, D, 4, D]
  (r"layers/input/bias", PartitionSpec("stage", None, "tensor")),  # [L, 4, D]
  (r"head/kernel", PartitionSpec("fsdp", "tensor")),  # [D, V]
)


class LstmLayer(nn.Module):
  """One layer over a whole sequence: dropout on its input, the input's projections in one product, the recurrence."""

  d_model: int
  dropout: float
  forget_bias: float
  init_scale: float
  dtype: jnp.dtype
  time_unroll: int

  def setup(self):
    uniform = uniform_init(self.init_scale)
    bias_init = gate_bias_init(self.init_scale, forget_bias=self.forget_bias)
    gates = (4, self.d_model)
    self.input = Linear(gates, kernel_init=uniform, bias_init=bias_init, dtype=self.dtype)
    self.recurrent = Kernel((self.d_model, *gates), uniform)
    self.drop = nn.Dropout(self.dropout)

  def __call__(self, x: jax.Array, state: LstmState, train: bool) -> tuple[jax.Array, LstmState]:
    """x [T, B, D], state [B, D] each -> hidden states [T, B, D], final state: the body of a scan over layers."""
    gates = self.input(self.drop(x, deterministic=not train))  # [T, B, 4, D]
    return lstm_recurrence(gates, self.recurrent().astype(self.dtype), state, self.time_unroll)


class LstmLM(nn.Module):
  """Logits of the next token at every position; embedding and all layers are `d_model` wide.

  Execution choices, which change results by rounding alone: `layer_unroll` (0: all), `time_unroll` (steps of the
  recurrence written out per iteration). `dtype` is the type of computation; parameters and logits are float32.
  Raises UserError on sizes that make no sense.
  """

  vocab_size: int
  n_layers: int
  d_model: int
  tied: bool = False
  dropout: float = 0.0
  forget_bias: float = 0.0
  init_scale: float = 0.0
  dtype: jnp.dtype = jnp.float32
  layer_unroll: int = 0
  time_unroll: int = 1

  def __post_init__(self):
    _check(self)
    super().__post_init__()

  def setup(self):
    uniform = uniform_init(_init_scale(self))
    self.embed = nn.Embed(self.vocab_size, self.d_model, dtype=self.dtype, embedding_init=uniform)
    self.layers = nn.scan(
      LstmLayer,
      variable_axes={"params": 0},
      split_rngs={"params": True, "dropout": True},
      in_axes=(0, nn.broadcast),
      length=self.n_layers,
      unroll=self.layer_unroll or self.n_layers,
    )(**layer_fields(self))
    self.drop = nn.Dropout(self.dropout)
    if self.tied:
      self.head_bias = self.param("head_bias", uniform, (self.vocab_size,))
    else:
      self.head = Linear((self.vocab_size,), kernel_init=uniform, bias_init=uniform, dtype=self.dtype)

  def __call__(self, tokens: jax.Array, *, train: bool) -> jax.Array:
    """tokens [B, T] (int) -> logits [B, T, V] (float32), from the zero state; `train` turns dropout on."""
    return self.resume(tokens, self.zero_state(tokens.shape[0]), train=train)[0]

  def resume(self, tokens: jax.Array, state: LstmState, *, train: bool) -> tuple[jax.Array, LstmState]:
    """tokens [B, T] read from a given state ([L, B, D] each) -> logits [B, T, V], state after the last token."""
    x, state = self.layers(self.enter(tokens), state, train)
    return self.logits(x, train=train), state

  def enter(self, tokens: jax.Array) -> jax.Array:
    """tokens [B, T] -> what the first layer reads, [T, B, D]."""
    return self.embed(tokens.T)

  def logits(self, x: jax.Array, *, train: bool) -> jax.Array:
    """What the last layer wrote [T, B, D] -> logits [B, T, V] in float32."""
    x = jnp.swapaxes(self.drop(x, deterministic=not train), 0, 1)  # here, as logits are V / D times as large
    if self.tied:
      logits = tied_logits(x, self.embed.embedding)
      logits = logits + self.head_bias.astype(logits.dtype)[None, None]
    else:
      logits = self.head(x)
    return at_least_float32(logits)

  def zero_state(self, batch_size: int) -> LstmState:
    """The state before a first token: zeros, [L, B, D] each."""
    zeros = jnp.zeros((self.n_layers, batch_size, self.d_model), self.dtype)
    return LstmState(zeros, zeros)


def layer_fields(model: LstmLM) -> dict[str, Any]:
  """The fields of the model's layers."""
  return {
    "d_model": model.d_model,
    "dropout": model.dropout,
    "forget_bias": model.forget_bias,
    "init_scale": _init_scale(model),
    "dtype": model.dtype,
    "time_unroll": model.time_unroll,
  }


def pieces(model: LstmLM) -> Pieces:
  """The model cut before and after its stack: tokens [B, T] -> x [T, B, D] -> ... -> logits [B, T, V], from zero states."""
  layer = LstmLayer(**layer_fields(model))

  def enter(params, tokens, rng, *, train):
    return model.apply({"params": params}, tokens, method="enter")

  def apply(params, state, x, rng, *, train):
    zeros = jnp.zeros((x.shape[1], model.d_model), model.dtype)
    rngs = {"dropout": rng} if train else None
    return layer.apply({"params": params}, x, LstmState(zeros, zeros), train, rngs=rngs)[0], state

  def logits(params, x, rng, *, train):
    return model.apply({"params": params}, x, train=train, rngs={"dropout": rng} if train else None, method="logits")

  stack = Stack("layers", model.n_layers, apply, model.layer_unroll or model.n_layers)
  return Pieces(enter, stack, logits, batch_axis=1)


def _init_scale(model: LstmLM) -> float:
  return model.init_scale or model.d_model**-0.5


def uniform_init(scale: float) -> nn.initializers.Initializer:
  """Uniform on [-scale, scale]."""

  def init(rng, shape, dtype=jnp.float32):
    return jax.random.uniform(rng, shape, dtype, -scale, scale)

  return init


def gate_bias_init(scale: float, *, forget_bias: float) -> nn.initializers.Initializer:
  """Uniform on [-scale, scale], `forget_bias` more for the forget gates: of biases [4 D], flat, in the order i, f, g, o."""
  uniform = uniform_init(scale)

  def init(rng, shape, dtype=jnp.float32):
    forget = jnp.repeat(jnp.array([0, 1, 0, 0], dtype), shape[-1] // 4)
    return uniform(rng, shape, dtype) + forget_bias * forget

  return init


def from_config(config: Any, *, vocab_size: int) -> LstmLM:
  """The model of `config.model`, executed as `config.execution` says; raises UserError where sizes make no sense."""
  model = config.model
  return LstmLM(
    vocab_size=vocab_size,
    n_layers=model.n_layers,
    d_model=model.d_model,
    tied=model.tied,
    dropout=model.dropout,
    forget_bias=model.forget_bias,
    init_scale=model.init_scale,
    dtype=jnp.dtype(config.dtype),
    layer_unroll=config.execution.layer_unroll,
    time_unroll=config.execution.time_unroll,
  )


def counts(config: Any, *, vocab_size: int) -> Counts:
  """Size and training cost of the model of `config`, by formula."""
  counted = count(from_config(config, vocab_size=vocab_size))
  return Counts(
    n=counted.n,
    n_total=counted.n_total,
    flops_per_unit=counted.training_flops,
    units_per_step=config.batch_size * config.data.context,
    outside_flops_per_unit=3 * counted.head,
  )


def count(model: LstmLM) -> counting.LanguageModelCounts:
  """The counts of a model."""
  return counting.lstm_counts(
    vocab_size=model.vocab_size, n_layers=model.n_layers, d_model=model.d_model, tied=model.tied
  )


def _check(model: LstmLM) -> None:
  check_positive(model, "n_layers", "d_model")
  if not 0 <= model.dropout < 1:
    raise UserError(f"model.dropout = {model.dropout}", "a probability of dropping in [0, 1)", "--config.model.dropout")
