"""A language of look-up tables with an exactly known entropy, whose loss falls as a power law in what a model can store.

A text is a sequence of records: a key of two symbols (a, b), then M answers. There are K = V^2 keys; key k has probability
p_k ~ k^-(1+s) (a Zipf law over keys in random order), and answer m of key k is drawn from a table row of its own, Q_km, a
Dirichlet distribution over the V symbols. Given the key the answers are independent of one another and of other records.

Entropy, nats (the chain rule, record by record; no token outside its record says anything about it):

  a                 H(a)                   of the marginal p_a = Σ_b p_ab
  b after a         H(p) - H(a)
  answer m          h_m = Σ_k p_k H(Q_km)
  a record          H(p) + Σ_m h_m         over M + 2 tokens

A window of T + 1 tokens begins with a record, so the mean over the T predicted tokens is exact, not a limit (`mean_entropy`).

Why a power law: a model that knows the n likeliest keys and takes the mean row for the others loses Σ_{k>n} p_k Δ_k ~ n^-s
nats an answer, Δ the entropy that the key takes from an answer. With n proportional to N, the loss falls as N^-s. Key k is
seen D p_k times; with n keys seen often enough, n ~ D^(1/(1+s)) and the loss falls as D^(-s/(1+s)) (cf. Michaud et al. 2023,
https://arxiv.org/abs/2303.13506). Where n nears K the law ends: the true excess is n^-s - K^-s, which a fit far from K takes
for a floor lower by that K^-s. The defaults keep this under half a per cent of the entropy.

Axes: B batch, T context, V vocabulary, K keys, M answers.
"""

import hashlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from ilya_jax.data.tokens import eval_batches
from ilya_jax.errors import UserError
from ilya_jax.task import Source

ANSWERS, EXPONENT, CONCENTRATION = 6, 1.0, 0.1
_KEY = 2  # symbols of a key
_HELD_OUT_SEED = 1953  # of the held-out text
_STREAMS = {"train": 0, "heldout": 1}


class LookupLanguage(NamedTuple):
  """keys: float64 [V, V], probability of each key (a, b). tables: float64 [V, V, M, V], the distribution of each answer."""

  keys: np.ndarray
  tables: np.ndarray

  @property
  def record(self) -> int:
    """Tokens of a record."""
    return _KEY + self.tables.shape[2]


def lookup_language(
  number: int,
  *,
  vocab_size: int,
  answers: int = ANSWERS,
  exponent: float = EXPONENT,
  concentration: float = CONCENTRATION,
) -> LookupLanguage:
  """Language `number` of its kind: the same for the same arguments.

  exponent: s of p_k ~ k^-(1+s). concentration: of the Dirichlet rows; small values make answers certain given their key.
  Raises UserError for a negative number, fewer than 2 symbols or no answers, and an exponent or concentration that is not positive.
  """
  if number < 0 or vocab_size < 2 or answers < 1 or exponent <= 0 or concentration <= 0:
    raise UserError(
      f"a look-up language {number} of {vocab_size} symbols, {answers} answers, exponent {exponent}, concentration {concentration}",
      "a number of 0 or more, 2 symbols or more, 1 answer or more, positive exponent and concentration",
      "change --config.data.name=lookup:NUMBER or --config.data.vocab_size",
    )
  rng = np.random.Generator(np.random.Philox(key=np.asarray([number, vocab_size], np.uint64)))
  keys = vocab_size**_KEY
  weights = np.arange(1.0, keys + 1) ** -(1.0 + exponent)
  probabilities = rng.permutation(weights / weights.sum())
  tables = rng.dirichlet(np.full(vocab_size, concentration), size=(keys, answers))
  return LookupLanguage(
    probabilities.reshape(vocab_size, vocab_size), tables.reshape(vocab_size, vocab_size, answers, vocab_size)
  )


def token_entropies(language: LookupLanguage) -> np.ndarray:
  """Entropy of each token of a record given all before it, nats, [M + 2]."""
  first = special.entr(language.keys.sum(axis=1)).sum()
  second = special.entr(language.keys).sum() - first
  answers = (language.keys[..., None] * special.entr(language.tables).sum(axis=-1)).sum(axis=(0, 1))  # [M]
  return np.concatenate([[first, second], answers])


def mean_entropy(language: LookupLanguage, *, context: int) -> float:
  """Mean entropy, nats a token, of the `context` tokens after the first of a window that begins with a record."""
  positions = np.arange(1, context + 1) % language.record
  return float(token_entropies(language)[positions].mean())


def lookup_source(
  number: int, *, vocab_size: int, batch_size: int, context: int, seed: int, eval_tokens: int
) -> Source:
  """Batches `{"tokens": int32 [B, T+1]}` of look-up language `number`; every row begins with a record.

  `info["entropy"]` is the least expected loss of `tokens[:, 1:]` given the tokens before, in nats a token. A token counts as
  one byte. The training text depends on `seed`, the held-out set "heldout" (of `eval_tokens` predicted tokens) on the language
  alone. Raises UserError for sizes below 1 and a held-out set smaller than one window.
  """
  for field, value in (("batch_size", batch_size), ("data.context", context)):
    if value < 1:
      raise UserError(f"{field} = {value}", "at least 1", f"change --config.{field}")
  if eval_tokens < context:
    raise UserError(f"eval_tokens = {eval_tokens}", f"at least one window of {context}", "raise --config.eval.tokens")
  language = lookup_language(number, vocab_size=vocab_size)
  batches, width = eval_batches(eval_tokens, context=context)
  rows = {"train": batch_size, "heldout": width}
  seeds = {"train": seed % 2**32, "heldout": _HELD_OUT_SEED}

  def batch(step: jax.typing.ArrayLike, *, split: str = "train") -> dict[str, jax.Array]:
    stream = jax.random.fold_in(jax.random.key(seeds[split]), _STREAMS[split])
    return {"tokens": sample(jax.random.fold_in(stream, step), language, shape=(rows[split], context + 1))}

  content = np.concatenate([language.keys.ravel(), language.tables.ravel()]).astype("<f8")
  info = {
    "name": f"lookup:{number}",
    "fingerprint": hashlib.sha256(content.tobytes()).hexdigest(),
    "vocab_size": vocab_size,
    "bytes_per_token": 1.0,
    "d_unique_total": None,  # never repeats
    "heldout_tokens": batches * width * context,
    "entropy": mean_entropy(language, context=context),
  }
  return Source(batch=batch, eval_batches={"heldout": batches}, info=info, traced=True)


def sample(rng: jax.Array, language: LookupLanguage, *, shape: tuple[int, int]) -> jax.Array:
  """Draws int32 [B, n], whole records cut to n tokens, one uniform number a key and one an answer."""
  b, n = shape
  vocab_size, answers = language.tables.shape[-1], language.tables.shape[2]
  records = -(-n // language.record)
  # The last value of each distribution function is 1 and never compared with, whatever it was rounded to.
  cumulative_keys = jnp.asarray(np.cumsum(language.keys.ravel())[:-1], jnp.float32)  # [K-1]
  cumulative = np.cumsum(language.tables, axis=-1)[..., :-1].reshape(vocab_size**_KEY, answers, vocab_size - 1)
  for_keys, for_answers = jax.random.split(rng)
  uniform = jax.random.uniform(for_keys, (b, records), jnp.float32)
  key = jnp.searchsorted(cumulative_keys, uniform, side="right").astype(jnp.int32)
  uniform = jax.random.uniform(for_answers, (b, records, answers, 1), jnp.float32)
  drawn = jnp.sum(uniform >= jnp.asarray(cumulative, jnp.float32)[key], axis=-1, dtype=jnp.int32)  # [B, records, M]
  pair = jnp.stack([key // vocab_size, key % vocab_size], axis=-1)
  return jnp.concatenate([pair, drawn], axis=-1).reshape(b, -1)[:, :n]
