"""The decoder-only Transformer language model, in the GPT-2 form of Kaplan et al. 2020 and in a modern form.

Sources: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762 (attention eq. 1, feed-forward eq. 2); Radford et al.
2019, GPT-2 (pre-LN, tanh GELU, tied softmax, initialisation); Kaplan et al. 2020, https://arxiv.org/abs/2001.08361;
Touvron et al. 2023, https://arxiv.org/abs/2302.13971 (rotary, RMSNorm, SwiGLU, no biases); Qwen3 2025 (QK-norm).
Letters: B batch, T time, D width, H heads, K head dim, F feed-forward width, G maps into it (1, SwiGLU 2), L layers,
V vocabulary.

Deviations: GPT-2 draws every matrix from N(0, 0.02^2) at width 768; here the deviation is 0.02 sqrt(768 / D), the same
at that width, so that narrow models start from activations and logits of the same size (`init_std` sets it by hand).
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from ilya_jax.errors import UserError, check_positive
from ilya_jax.nn.attention import best_kernel, causal_attention, fused_attention
from ilya_jax.nn.linear import Linear, tied_logits
from ilya_jax.nn.normalization import LayerNorm, RMSNorm
from ilya_jax.nn.precision import at_least_float32
from ilya_jax.nn.rotary import rotary_angles, rotate
from ilya_jax.scaling import counting
from ilya_jax.task import Counts, Pieces, Stack

FORMS: dict[str, dict[str, Any]] = {
  "gpt2": {
    "positions": "learned",
    "norm": "layernorm",
    "activation": "gelu",
    "use_bias": True,
    "qk_norm": False,
    "tied": True,
  },
  "modern": {
    "positions": "rotary",
    "norm": "rmsnorm",
    "activation": "swiglu",
    "use_bias": False,
    "qk_norm": True,
    "tied": False,
  },
}

# Column and row split of Megatron-LM over `tensor`, the other matrix axis over `fsdp`, stacked layers over `stage`.
RULES = (
  (r"(^|/)embed/embedding", PartitionSpec("tensor", "fsdp")),  # [V, D]
  (r"position_embed/embedding", PartitionSpec(None, "fsdp")),  # [T, D]
  (r"layers/qkv/kernel", PartitionSpec("stage", "fsdp", None, "tensor", None)),  # [L, D, 3, H, K]
  (r"layers/qkv/bias", PartitionSpec("stage", None, "tensor", None)),  # [L, 3, H, K]
  (r"layers/attention_out/kernel", PartitionSpec("stage", "tensor", None, "fsdp")),  # [L, H, K, D]
  (r"layers/mlp_in/kernel", PartitionSpec("stage", "fsdp", None, "tensor")),  # [L, D, G, F]
  (r"layers/mlp_in/bias", PartitionSpec("stage", None, "tensor")),  # [L, G, F]
  (r"layers/mlp_out/kernel", PartitionSpec("stage", "tensor", "fsdp")),  # [L, F, D]
  (r"layers/", PartitionSpec("stage")),  # norms and the biases of outputs
  (r"head/kernel", PartitionSpec("fsdp", "tensor")),  # [D, V]
)


class TransformerBlock(nn.Module):
  """x + Attention(Norm(x)), then x + FeedForward(Norm(x)): one layer, carrying x [B, T, D].

  `heads_of` and `finish` are the two halves around attention: a cache of keys and values keeps what `heads_of` returns.
  """

  n_heads: int
  d_model: int
  d_ff: int
  n_layers: int
  norm: str
  activation: str
  use_bias: bool
  qk_norm: bool
  norm_epsilon: float
  dropout: float
  init_std: float
  dtype: jnp.dtype
  attention_blocks: int
  attention_kernel: str

  def setup(self):
    def linear(*features, axes=1, std=self.init_std):
      init = nn.initializers.normal(std)
      return Linear(features, axes=axes, use_bias=self.use_bias, kernel_init=init, dtype=self.dtype)

    residual_std = self.init_std * (2 * self.n_layers) ** -0.5  # GPT-2: 2 L sums into the residual stream
    self.attention_norm = _norm(self)
    self.qkv = linear(3, self.n_heads, self.d_model // self.n_heads)
    self.attention_out = linear(self.d_model, axes=2, std=residual_std)
    if self.qk_norm:
      self.query_norm = RMSNorm(epsilon=self.norm_epsilon, dtype=self.dtype)
      self.key_norm = RMSNorm(epsilon=self.norm_epsilon, dtype=self.dtype)
    self.mlp_norm = _norm(self)
    self.mlp_in = linear(2 if self.activation == "swiglu" else 1, self.d_ff)
    self.mlp_out = linear(self.d_model, std=residual_std)
    self.drop = nn.Dropout(self.dropout)

  def __call__(self, x: jax.Array, angles: jax.Array | None, train: bool) -> tuple[jax.Array, None]:
    """x [B, T, D], rotary angles [T, K/2] or None -> ([B, T, D], None): the body of a scan over layers."""
    query, key, value = self.heads_of(x, angles)
    width = self.d_model // self.n_heads
    kernel = self.attention_kernel or best_kernel(self.dtype, length=x.shape[1], head_width=width, dropout=self.dropout)
    if kernel != "ours":
      attended = fused_attention(query, key, value=value, kernel=kernel)
    else:
      dropout = functools.partial(self.drop, deterministic=not train)
      attended = causal_attention(query, key, value=value, blocks=self.attention_blocks, dropout=dropout)
    return self.finish(x, attended, train=train), None

  def heads_of(self, x: jax.Array, angles: jax.Array | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x [B, T, D] -> queries, keys and values, each [B, T, H, K], at the positions that `angles` [T, K/2] stand for."""
    query, key, value = jnp.moveaxis(self.qkv(self.attention_norm(x)), 2, 0)
    if self.qk_norm:
      query, key = self.query_norm(query), self.key_norm(key)
    if angles is not None:
      query, key = rotate(query, angles), rotate(key, angles)
    return query, key, value

  def finish(self, x: jax.Array, attended: jax.Array, *, train: bool) -> jax.Array:
    """The rest of the layer: x [B, T, D] and what its heads attended to [B, T, H, K] -> [B, T, D]."""
    x = x + self.drop(self.attention_out(attended), deterministic=not train)
    hidden = self.mlp_in(self.mlp_norm(x))  # [B, T, G, F]
    if self.activation == "swiglu":
      hidden = nn.silu(hidden[..., 0, :]) * hidden[..., 1, :]  # [B, T, F]
    else:
      hidden = nn.gelu(hidden[..., 0, :], approximate=True)
    return x + self.drop(self.mlp_out(hidden), deterministic=not train)


class TransformerLM(nn.Module):
  """Logits of the next token at every position.

  The switches of form (`positions` ... `tied`) are listed in FORMS. `d_ff` 0 stands for `feed_forward_width`,
  `init_std` 0 for 0.02 sqrt(768 / d_model). Execution choices, which change results by rounding alone: `layer_unroll`
  (layers written out per iteration of the scan over layers; 0: all), `attention_blocks` (see `causal_attention`) and
  `attention_kernel` (see `fused_attention`; "ours": `causal_attention`; "": `best_kernel`). `dtype` is the type of computation; parameters,
  softmax and logits are float32.
  Raises UserError on sizes and switches that do not fit together.
  """

  vocab_size: int
  context: int
  n_layers: int
  d_model: int
  n_heads: int
  d_ff: int = 0
  positions: str = "learned"
  norm: str = "layernorm"
  activation: str = "gelu"
  use_bias: bool = True
  qk_norm: bool = False
  tied: bool = True
  norm_epsilon: float = 1e-5
  dropout: float = 0.0
  init_std: float = 0.0
  dtype: jnp.dtype = jnp.float32
  layer_unroll: int = 0
  attention_blocks: int = 1
  attention_kernel: str = ""

  def __post_init__(self):
    _check(self)
    super().__post_init__()

  def setup(self):
    init = nn.initializers.normal(_init_std(self))
    self.embed = nn.Embed(self.vocab_size, self.d_model, dtype=self.dtype, embedding_init=init)
    if self.positions == "learned":
      self.position_embed = nn.Embed(self.context, self.d_model, dtype=self.dtype, embedding_init=init)
    self.drop = nn.Dropout(self.dropout)
    self.layers = nn.scan(
      TransformerBlock,
      variable_axes={"params": 0},
      split_rngs={"params": True, "dropout": True},
      in_axes=(nn.broadcast, nn.broadcast),
      length=self.n_layers,
      unroll=self.layer_unroll or self.n_layers,
    )(**block_fields(self))
    self.final_norm = _norm(self)
    if not self.tied:
      self.head = Linear((self.vocab_size,), use_bias=False, kernel_init=init, dtype=self.dtype)

  def __call__(self, tokens: jax.Array, *, train: bool) -> jax.Array:
    """tokens [B, T] (int) -> logits [B, T, V] (float32); `train` turns dropout on (stream "dropout")."""
    positions = jnp.arange(tokens.shape[1])
    x = self.enter(tokens, positions, train=train)  # [B, T, D]
    x, _ = self.layers(x, angles(self, positions), train)
    return self.logits(x)

  def enter(self, tokens: jax.Array, positions: jax.Array, *, train: bool) -> jax.Array:
    """tokens [B, T] at positions [T] -> what the first layer reads, [B, T, D]."""
    if tokens.shape[1] > self.context:
      raise UserError(f"{tokens.shape[1]} positions", f"at most the context of {self.context}", "--config.data.context")
    x = self.embed(tokens)
    if self.positions == "learned":
      x = x + self.position_embed(positions)[None]
    return self.drop(x, deterministic=not train)

  def logits(self, x: jax.Array) -> jax.Array:
    """What the last layer wrote [B, T, D] -> logits [B, T, V] in float32 (float64 computation keeps float64)."""
    x = self.final_norm(x)
    return at_least_float32(tied_logits(x, self.embed.embedding) if self.tied else self.head(x))


def angles(model: TransformerLM, positions: jax.Array) -> jax.Array | None:
  """Rotary angles [T, K/2] of positions [T]; None with learned positions."""
  if model.positions == "learned":
    return None
  dtype = jnp.float64 if model.dtype == jnp.float64 else jnp.float32
  return rotary_angles(positions, model.d_model // model.n_heads, dtype=dtype)


def block_fields(model: TransformerLM) -> dict[str, Any]:
  """The fields of the model's blocks."""
  return {
    "n_heads": model.n_heads,
    "d_model": model.d_model,
    "d_ff": model.d_ff or feed_forward_width(model.d_model, activation=model.activation),
    "n_layers": model.n_layers,
    "norm": model.norm,
    "activation": model.activation,
    "use_bias": model.use_bias,
    "qk_norm": model.qk_norm,
    "norm_epsilon": model.norm_epsilon,
    "dropout": model.dropout,
    "init_std": _init_std(model),
    "dtype": model.dtype,
    "attention_blocks": model.attention_blocks,
    "attention_kernel": model.attention_kernel,
  }


def pieces(model: TransformerLM) -> Pieces:
  """The model cut before and after its stack of blocks: tokens [B, T] -> x [B, T, D] -> ... -> logits [B, T, V]."""
  block = TransformerBlock(**block_fields(model))

  def enter(params, tokens, rng, *, train):
    positions = jnp.arange(tokens.shape[1])
    rngs = {"dropout": rng} if train else None
    return model.apply({"params": params}, tokens, positions, train=train, rngs=rngs, method="enter")

  def apply(params, state, x, rng, *, train):
    rngs = {"dropout": rng} if train else None
    return block.apply({"params": params}, x, angles(model, jnp.arange(x.shape[1])), train, rngs=rngs)[0], state

  def logits(params, x, rng, *, train):
    return model.apply({"params": params}, x, method="logits")

  return Pieces(enter, Stack("layers", model.n_layers, apply, model.layer_unroll or model.n_layers), logits)


def _init_std(model: TransformerLM) -> float:
  return model.init_std or 0.02 * (768 / model.d_model) ** 0.5


def _norm(module: Any) -> nn.Module:
  """The norm that a block's or a model's fields ask for."""
  if module.norm == "rmsnorm":
    return RMSNorm(epsilon=module.norm_epsilon, dtype=module.dtype)
  return LayerNorm(epsilon=module.norm_epsilon, use_bias=module.use_bias, dtype=module.dtype)


def feed_forward_width(d_model: int, *, activation: str) -> int:
  """4 D; with SwiGLU (three matrices for two) 8/3 D to the nearest multiple of 8 (Shazeer 2020, section 3)."""
  return max(round(d_model / 3) * 8, 8) if activation == "swiglu" else 4 * d_model


def from_config(config: Any, *, vocab_size: int) -> TransformerLM:
  """The model of `config.model`, executed as `config.execution` says; raises UserError where sizes do not fit."""
  model, execution = config.model, config.execution
  if model.form not in FORMS:
    raise UserError(f"config.model.form = {model.form!r}", f"one of {', '.join(FORMS)}", "--config.model.form")
  return TransformerLM(
    vocab_size=vocab_size,
    context=config.data.context,
    n_layers=model.n_layers,
    d_model=model.d_model,
    n_heads=model.n_heads,
    d_ff=model.d_ff,
    dropout=model.dropout,
    dtype=jnp.dtype(config.dtype),
    layer_unroll=execution.layer_unroll,
    attention_blocks=execution.attention_blocks,
    attention_kernel=execution.attention_kernel,
    **{**FORMS[model.form], "qk_norm": model.qk_norm, "tied": model.tied},
  )


def counts(config: Any, *, vocab_size: int) -> Counts:
  """Size and training cost of the model of `config`, by formula."""
  model = from_config(config, vocab_size=vocab_size)
  counted = count(model)
  return Counts(
    n=counted.n,
    n_total=counted.n_total,
    flops_per_unit=counted.training_flops,
    units_per_step=config.batch_size * config.data.context,
    outside_flops_per_unit=3 * counted.head,
  )


def count(model: TransformerLM) -> counting.LanguageModelCounts:
  """The counts of a model, at its full context."""
  return counting.transformer_counts(
    vocab_size=model.vocab_size,
    context=model.context,
    n_layers=model.n_layers,
    d_model=model.d_model,
    n_heads=model.n_heads,
    d_ff=model.d_ff or feed_forward_width(model.d_model, activation=model.activation),
    learned_positions=model.positions == "learned",
    gated=model.activation == "swiglu",
    use_bias=model.use_bias,
    norm_bias=model.norm == "layernorm" and model.use_bias,
    qk_norm=model.qk_norm,
    tied=model.tied,
  )


def _check(model: TransformerLM) -> None:
  switches = {"positions": ("learned", "rotary"), "norm": ("layernorm", "rmsnorm"), "activation": ("gelu", "swiglu")}
  for field, known in switches.items():
    if getattr(model, field) not in known:
      raise UserError(f"model.{field} = {getattr(model, field)!r}", " or ".join(known), "--config.model.form")
  check_positive(model, "n_layers", "d_model", "n_heads")
  if model.d_model % model.n_heads:
    got = f"model.n_heads = {model.n_heads} at a width of {model.d_model}"
    raise UserError(got, "a number of heads that divides the width", "--config.model.n_heads or --config.model.d_model")
  if model.positions == "rotary" and model.d_model // model.n_heads % 2:
    got = f"heads {model.d_model // model.n_heads} wide (model.d_model / model.n_heads)"
    raise UserError(got, "an even width, which rotary positions turn in pairs", "--config.model.n_heads")
  if model.attention_kernel not in ("", "ours", "xla", "cudnn"):
    got = f"execution.attention_kernel = {model.attention_kernel!r}"
    raise UserError(got, "ours, xla, cudnn or nothing", "--config.execution.attention_kernel")
  if model.attention_kernel in ("xla", "cudnn") and model.dropout:
    got = f"execution.attention_kernel = {model.attention_kernel!r} with dropout on the attention weights"
    raise UserError(got, "model.dropout = 0, or ours", "--config.execution.attention_kernel")
  if model.attention_kernel == "cudnn" and model.dtype not in (jnp.bfloat16, jnp.float16):
    got = f"execution.attention_kernel = 'cudnn' in {jnp.dtype(model.dtype).name}"
    raise UserError(got, "bfloat16 or float16", "--config.dtype")
  if not 0 <= model.dropout < 1:
    raise UserError(f"model.dropout = {model.dropout}", "a probability of dropping in [0, 1)", "--config.model.dropout")
