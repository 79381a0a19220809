"""The encoder-decoder Transformer of Vaswani et al. 2017, as printed.

Attention Is All You Need, https://arxiv.org/abs/1706.03762: encoder and decoder (section 3.1, figure 1; their layers are in
`ilya_jax/models/transformer_layers.py`), one matrix for both embeddings, times sqrt(D), and the softmax (section 3.4), sinusoids
added to both (section 3.5). Letters: B batch, S source, T target, D width, V vocabulary, N layers of each kind.

  x = LayerNorm(x + Dropout(Sublayer(x)));  dropout also on the sums of embeddings and positions, nowhere else

Departures are fields: `norm_first` (x + Sublayer(LayerNorm(x)), Xiong et al. 2020, https://arxiv.org/abs/2002.04745),
`final_norm` (after the last layer of each kind, as norm_first wants and torch.nn.Transformer has always), `attention_bias`,
`activation` "gelu" (by erf, as BERT), `positions` "learned" or "none".
Deviations: the paper names neither initial values nor LayerNorm's epsilon: uniform over the average of both fans (tensor2tensor and
The Annotated Transformer), each of a layer's matrices on its own; embeddings N(0, 1/D), so that they enter with variance 1; 1e-6.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from ilya_jax.errors import UserError, check_positive
from ilya_jax.models.transformer_layers import KeysValues, TransformerLayer, sinusoids
from ilya_jax.nn.linear import tied_logits
from ilya_jax.nn.precision import at_least_float32
from ilya_jax.task import Counts, Layer, Layers

Array = jax.Array
PAD = 0  # the token of positions where a sequence has ended

# Heads and feed-forward units over `tensor`, the other matrix axis over `fsdp`, as the language model's.
RULES = (
  (r"(^|/)embed/embedding", PartitionSpec("tensor", "fsdp")),  # [V, D]
  (r"position_embed/embedding", PartitionSpec(None, "fsdp")),  # [T, D]
  (r"attention/(query|key|value)/kernel", PartitionSpec("fsdp", "tensor", None)),  # [D, H, K]
  (r"attention/(query|key|value)/bias", PartitionSpec("tensor", None)),  # [H, K]
  (r"attention/out/kernel", PartitionSpec("tensor", None, "fsdp")),  # [H, K, D]
  (r"inward/kernel", PartitionSpec("fsdp", "tensor")),  # [D, F]
  (r"inward/bias", PartitionSpec("tensor")),  # [F]
  (r"outward/kernel", PartitionSpec("tensor", "fsdp")),  # [F, D]
)


class Memory(NamedTuple):
  """What a decoder keeps of a source: each layer's keys and values, and which positions are there, float [B, S]."""

  cross: tuple[KeysValues, ...]
  visible: Array


class Transformer(nn.Module):
  """Logits of the next target token at every position, given a source.

  d_k, d_v: 0 stands for d_model / n_heads. max_positions: rows of the learned table, more than which no sequence may have.
  `dtype` is the type of computation; parameters, softmax and logits are float32. Raises UserError on sizes and switches that do not
  fit together.
  """

  vocab_size: int
  n_layers: int
  d_model: int
  n_heads: int
  d_ff: int
  d_k: int = 0
  d_v: int = 0
  positions: str = "sinusoidal"
  max_positions: int = 0
  norm_first: bool = False
  final_norm: bool = False
  attention_bias: bool = False
  activation: str = "relu"
  norm_epsilon: float = 1e-6
  dropout: float = 0.0
  dtype: jnp.dtype = jnp.float32

  def __post_init__(self):
    _check(self)
    super().__post_init__()

  def setup(self):
    init = nn.initializers.normal(self.d_model**-0.5)
    self.embed = nn.Embed(self.vocab_size, self.d_model, dtype=self.dtype, embedding_init=init)
    if self.positions == "learned":
      self.position_embed = nn.Embed(self.max_positions, self.d_model, dtype=self.dtype, embedding_init=init)
    self.drop = nn.Dropout(self.dropout)
    self.encoder = [TransformerLayer(**layer_fields(self, index, crosses=False)) for index in range(self.n_layers)]
    self.decoder = [TransformerLayer(**layer_fields(self, index, crosses=True)) for index in range(self.n_layers)]

  def __call__(self, source: Array, target: Array, *, train: bool) -> Array:
    """source [B, S], target [B, T] shifted right (int, PAD where a sequence has ended) -> logits [B, T, V] in float32."""
    return self.logits(self.states(source, target, train=train))

  def states(self, source: Array, target: Array, *, train: bool) -> Array:
    """What the last decoder layer writes, [B, T, D]; `train` turns dropout on (stream "dropout")."""
    memory, visible = self.encode(source, train=train)
    x = self.enter(target, train=train)
    for layer in self.decoder:
      x = layer.decode(x, memory, visible, train)
    return x

  def encode(self, source: Array, *, train: bool) -> tuple[Array, Array]:
    """source [B, S] -> the encoder's output [B, S, D], and which positions there are, [B, S]."""
    visible = visible_positions(source, dtype=self.dtype)
    x = self.enter(source, train=train)
    for layer in self.encoder:
      x = layer.encode(x, visible, train)
    return x, visible

  def enter(self, tokens: Array, *, train: bool) -> Array:
    """tokens [B, T] -> what the first layer reads, [B, T, D]."""
    return self._enter(tokens, jnp.arange(tokens.shape[1]), longest=tokens.shape[1], train=train)

  def _enter(self, tokens: Array, positions: Array, *, longest: int, train: bool) -> Array:
    """tokens [B, T] at positions [T], all of them below `longest`."""
    x = self.embed(tokens) * jnp.asarray(self.d_model**0.5, self.dtype)
    if self.positions == "learned":
      if longest > self.max_positions:
        expected = f"at most model.max_positions = {self.max_positions}"
        raise UserError(f"{longest} positions", expected, "--config.model.max_positions")
      x = x + self.position_embed(positions)[None]
    elif self.positions == "sinusoidal":
      x = x + jnp.asarray(sinusoids(longest, self.d_model), self.dtype)[positions][None]
    return self.drop(x, deterministic=not train)

  def logits(self, x: Array) -> Array:
    """x [B, T, D] -> logits [B, T, V] in float32 at least, by the embedding's own matrix."""
    return at_least_float32(tied_logits(x, self.embed.embedding))

  def remember(self, source: Array) -> Memory:
    """source [B, S] -> what decoding needs of it, 2 N S D numbers a sentence."""
    memory, visible = self.encode(source, train=False)
    return Memory(tuple(layer.cross_keys_values(memory) for layer in self.decoder), visible)

  def begin(self, memory: Memory, length: int) -> tuple[KeysValues, ...]:
    """An empty cache of `length` target positions for each sentence of `memory`, 2 N T D numbers each."""
    return tuple(
      KeysValues(*(jnp.zeros((each.shape[0], length, *each.shape[2:]), each.dtype) for each in own))
      for own in memory.cross
    )

  def step(
    self, tokens: Array, cache: tuple[KeysValues, ...], *, index: Array, memory: Memory
  ) -> tuple[Array, tuple[KeysValues, ...]]:
    """The target tokens [B] at position `index` -> logits [B, V] of the next, and the cache with this position."""
    longest = cache[0].keys.shape[1]
    x = self._enter(tokens[:, None], index[None], longest=longest, train=False)  # [B, 1, D]
    kept = []
    for layer, own, cross in zip(self.decoder, cache, memory.cross, strict=True):
      x, own = layer.step(x, own, index=index, cross=cross, visible=memory.visible)
      kept.append(own)
    return self.logits(x)[:, 0], tuple(kept)


def visible_positions(tokens: Array, *, dtype: jnp.dtype = jnp.float32) -> Array:
  """1 where tokens [B, T] are no PAD, 0 elsewhere."""
  return (tokens != PAD).astype(dtype)


def layer_fields(model: Transformer, index: int, *, crosses: bool) -> dict[str, Any]:
  """The fields of the model's layer `index`, of the decoder where it `crosses`."""
  return {
    "d_model": model.d_model,
    "n_heads": model.n_heads,
    "d_k": model.d_k or model.d_model // model.n_heads,
    "d_v": model.d_v or model.d_model // model.n_heads,
    "d_ff": model.d_ff,
    "crosses": crosses,
    "norm_first": model.norm_first,
    "attention_bias": model.attention_bias,
    "activation": model.activation,
    "norm_epsilon": model.norm_epsilon,
    "dropout": model.dropout,
    "dtype": model.dtype,
    "ends": model.final_norm and index == model.n_layers - 1,
  }


def layers(model: Transformer) -> Layers:
  """The layer list: encoder, decoder; between layers goes {"source" [B, S, D], "target" [B, T, D], "visible" [B, S]}.

  What stands after it is the loss, which a task gives (`ilya_jax.tasks.translation`); here it returns the logits [B, T, V].
  """

  def enter(params, tokens, rng, *, train):
    rngs = {"dropout": rng} if train else None
    return model.apply({"params": params}, tokens, train=train, rngs=rngs, method="enter")

  def before(params, batch, rng, *, train):
    keys = jax.random.split(rng)
    return {
      "source": enter(params, batch["source"], keys[0], train=train),
      "target": enter(params, batch["target"][:, :-1], keys[1], train=train),
      "visible": visible_positions(batch["source"], dtype=model.dtype),
    }

  def applied(index, *, crosses):
    layer = TransformerLayer(**layer_fields(model, index, crosses=crosses))

    def apply(params, state, x, rng, *, train):
      variables, rngs = {"params": params}, {"dropout": rng} if train else None
      if crosses:
        memory = x["source"]
        new = layer.apply(variables, x["target"], memory, x["visible"], train, rngs=rngs, method="decode")
        return {**x, "target": new}, state
      return {
        **x,
        "source": layer.apply(variables, x["source"], x["visible"], train, rngs=rngs, method="encode"),
      }, state

    return Layer(f"{'decoder' if crosses else 'encoder'}_{index}", apply)

  def after(params, x, batch, rng, *, train):
    return model.apply({"params": params}, x["target"], method="logits")

  members = [applied(index, crosses=crosses) for crosses in (False, True) for index in range(model.n_layers)]
  return Layers(before, tuple(members), after)


def from_config(config: Any, *, vocab_size: int, longest: int) -> Transformer:
  """The model of `config.model`; `longest` positions where the table of learned ones has no size of its own."""
  model = config.model
  return Transformer(
    vocab_size=vocab_size,
    n_layers=model.n_layers,
    d_model=model.d_model,
    n_heads=model.n_heads,
    d_ff=model.d_ff,
    d_k=model.d_k,
    d_v=model.d_v,
    positions=model.positions,
    max_positions=model.max_positions or longest,
    norm_first=model.norm_first,
    final_norm=model.final_norm,
    attention_bias=model.attention_bias,
    dropout=model.dropout,
    dtype=jnp.dtype(config.dtype),
  )


def count(model: Transformer, *, source: int, target: int) -> tuple[int, int, int, int]:
  """(parameters in matrices, all parameters, FLOP of a forward pass over so many positions, of them the softmax's).

  Matrix products alone, scores and weighted values of all pairs of positions among them.
  """
  d, f, h, n, v = model.d_model, model.d_ff, model.n_heads, model.n_layers, model.vocab_size
  d_k, d_v = model.d_k or d // h, model.d_v or d // h
  attention, feed_forward = 2 * d * h * (d_k + d_v), 2 * d * f
  biases = h * (2 * d_k + d_v) + d if model.attention_bias else 0
  matrices = n * (3 * attention + 2 * feed_forward)
  others = n * (3 * biases + 2 * (f + d) + 5 * 2 * d) + (4 * d if model.final_norm else 0)
  tables = v * d + (model.max_positions * d if model.positions == "learned" else 0)
  pairs = source * source + target * target + target * source
  projected = (source + target) * (attention + feed_forward) + attention // 2 * (source + target)
  head = 2 * target * d * v
  flops = n * (2 * projected + 2 * pairs * h * (d_k + d_v)) + head
  return matrices, matrices + others + tables, flops, head


def counts(config: Any, *, vocab_size: int, source: int, target: int) -> Counts:
  """Size and training cost of the model of `config` on sentences padded to so many positions, by formula."""
  model = from_config(config, vocab_size=vocab_size, longest=max(source, target))
  n, n_total, flops, head = count(model, source=source, target=target)
  return Counts(n, n_total, 3.0 * flops, config.batch_size, "examples", 3.0 * head)


def _check(model: Transformer) -> None:
  switches = {"positions": ("sinusoidal", "learned", "none"), "activation": ("relu", "gelu")}
  for field, known in switches.items():
    if getattr(model, field) not in known:
      raise UserError(f"model.{field} = {getattr(model, field)!r}", " or ".join(known), f"--config.model.{field}")
  check_positive(model, "n_layers", "d_model", "n_heads", "d_ff")
  if model.d_model % model.n_heads and not (model.d_k and model.d_v):
    got = f"model.n_heads = {model.n_heads} at a width of {model.d_model}"
    raise UserError(got, "a number of heads that divides the width, or d_k and d_v", "--config.model.n_heads")
  if model.positions == "sinusoidal" and model.d_model % 2:
    raise UserError(f"model.d_model = {model.d_model}", "an even width for sinusoids", "--config.model.d_model")
  if not 0 <= model.dropout < 1:
    raise UserError(f"model.dropout = {model.dropout}", "a probability of dropping in [0, 1)", "--config.model.dropout")
