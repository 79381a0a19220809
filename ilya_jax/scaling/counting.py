"""Parameters and FLOP of the language models, by formula; a multiply and an add are 2 FLOP.

Sources: Kaplan et al. 2020, https://arxiv.org/abs/2001.08361, eq. 2.1 (N) and 2.2 (forward FLOP per token); Zaremba et
al. 2014, https://arxiv.org/abs/1409.2329 (the LSTM language model).

What is counted: matrix products, that is projections, attention scores and weighted values, and the softmax over the
vocabulary. What is not: norms, biases, activations, softmaxes, rotary turns, embedding lookups (1-10 % more in XLA's
own count, the more the narrower the model).
Deviations from eq. 2.2, `C = 2 N + 2 n_layer n_ctx d_attn`: attention is counted as computed, two products of n_ctx
keys for each query (4 n_layer n_ctx d_attn), where Kaplan counts half of it, the keys that a causal mask leaves visible
on average; and the head, 2 d_model n_vocab, is added. Training costs three times the forward pass: a product has two
others as its derivatives.
"""

from typing import NamedTuple


class LanguageModelCounts(NamedTuple):
  """Size of a language model and its forward FLOP per token, term by term.

  n: parameters in matrix products, without embeddings, head, biases and norms. n_total: all parameters.
  projections: FLOP per token of the products with these n parameters (2 n). attention: of scores and weighted values.
  head: of the softmax over the vocabulary.
  """

  n: int
  n_total: int
  projections: int
  attention: int
  head: int

  @property
  def forward_flops(self) -> int:
    """FLOP per token of one forward pass."""
    return self.projections + self.attention + self.head

  @property
  def training_flops(self) -> int:
    """FLOP per token, forward and backward."""
    return 3 * self.forward_flops


def transformer_counts(
  *,
  vocab_size: int,
  context: int,
  n_layers: int,
  d_model: int,
  d_ff: int,
  n_heads: int,
  learned_positions: bool = True,
  gated: bool = False,
  use_bias: bool = True,
  norm_bias: bool = True,
  qk_norm: bool = False,
  tied: bool = True,
) -> LanguageModelCounts:
  """The decoder-only Transformer at its full context, with d_attn = d_model.

  n is eq. 2.1, 2 d_model n_layer (2 d_attn + d_ff); `gated` (SwiGLU) has three feed-forward matrices, two of them
  inwards: d_model n_layer (4 d_attn + 3 d_ff). The defaults are the GPT-2 form. `norm_bias`: norms with a shift
  (LayerNorm); `qk_norm`: an RMSNorm of width d_model / n_heads on queries and one on keys in each layer.
  """
  inward = 2 if gated else 1
  n = n_layers * d_model * (4 * d_model + (inward + 1) * d_ff)
  biases = n_layers * (3 * d_model + d_model + inward * d_ff + d_model) if use_bias else 0
  norms = (2 * n_layers + 1) * d_model * (2 if norm_bias else 1)
  if qk_norm:
    norms += n_layers * 2 * (d_model // n_heads)
  tables = vocab_size * (1 if tied else 2) + (context if learned_positions else 0)
  return LanguageModelCounts(
    n=n,
    n_total=n + biases + norms + tables * d_model,
    projections=2 * n,
    attention=4 * n_layers * context * d_model,
    head=2 * d_model * vocab_size,
  )


def lstm_counts(*, vocab_size: int, n_layers: int, d_model: int, tied: bool = False) -> LanguageModelCounts:
  """The stacked LSTM whose layers and embedding are all `d_model` wide, with one bias per gate and a softmax bias.

  n = 8 n_layers d_model^2: the input and the recurrent matrix of four gates. `tied`: the embedding is the softmax's
  matrix.
  """
  n = 8 * n_layers * d_model**2
  tables = vocab_size * d_model * (1 if tied else 2)
  return LanguageModelCounts(
    n=n,
    n_total=n + 4 * n_layers * d_model + tables + vocab_size,
    projections=2 * n,
    attention=0,
    head=2 * d_model * vocab_size,
  )
