"""Text with a known entropy: a first-order Markov chain with Dirichlet rows, sampled inside the compiled step.

No model can have a lower expected loss than the chain's entropy rate, so a fitted loss floor can be compared with the
truth. The language (its transition matrix) depends on its own parameters alone, the training text on the run's seed,
the held-out text on neither seed nor batch size.

  h = Σ_i π_i H(P_i)            entropy rate, nats a token; π is the stationary distribution
  [H(π) + (n − 1) h] / n        mean entropy of n tokens of which the first has no context

Axes: B batch, T context, V vocabulary.
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

_LANGUAGE_SEED = 1948  # of the transition matrices and of the held-out text
_STREAMS = {"train": 0, "heldout": 1}


class MarkovLanguage(NamedTuple):
  """A stationary first-order Markov chain.

  transition: float64 [V, V], row i is the distribution of the token after i.
  stationary: float64 [V], the distribution π of a token without context.
  entropy_rate: h, nats a token.
  unigram_entropy: H(π), nats a token.
  """

  transition: np.ndarray
  stationary: np.ndarray
  entropy_rate: float
  unigram_entropy: float


def markov_language(*, vocab_size: int, concentration: float) -> MarkovLanguage:
  """The language whose rows are drawn from a symmetric Dirichlet distribution; the same for the same arguments.

  Args:
    vocab_size: number of tokens V.
    concentration: parameter of the Dirichlet distribution; small values give rows with few likely successors.

  Raises:
    UserError: fewer than 2 tokens, a concentration that is not positive or so small that the chain falls apart.
  """
  if vocab_size < 2 or concentration <= 0:
    raise UserError(
      f"a Markov language with data.vocab_size = {vocab_size} and concentration = {concentration}",
      "at least 2 tokens and a positive concentration",
      "change --config.data.vocab_size or --config.data.concentration",
    )
  rng = np.random.Generator(np.random.Philox(key=np.asarray([_LANGUAGE_SEED, vocab_size], np.uint64)))
  transition = rng.dirichlet(np.full(vocab_size, concentration), size=vocab_size)  # [V, V]
  if np.sum(np.linalg.eigvals(transition).real > 1 - 1e-6) > 1:  # texts would depend on their first token for ever
    raise UserError(
      f"a Markov language of {vocab_size} tokens with concentration = {concentration} that falls into separate parts",
      "one stationary distribution",
      "raise --config.data.concentration",
    )
  stationary = stationary_distribution(transition)
  return MarkovLanguage(
    transition=transition,
    stationary=stationary,
    entropy_rate=float(stationary @ special.entr(transition).sum(axis=1)),
    unigram_entropy=float(special.entr(stationary).sum()),
  )


def stationary_distribution(transition: np.ndarray) -> np.ndarray:
  """Solves π P = π, Σ π = 1 for a transition matrix P [V, V] with one recurrent class; returns π [V]."""
  vocab_size = len(transition)
  equations = transition.T - np.eye(vocab_size)
  equations[-1] = 1.0  # one of the V balance equations follows from the others
  solution = np.linalg.solve(equations, np.eye(vocab_size)[-1])
  return np.maximum(solution, 0.0) / np.maximum(solution, 0.0).sum()


def mean_entropy(language: MarkovLanguage, *, length: int) -> float:
  """Mean entropy, nats a token, of `length` tokens of which the first is predicted without context."""
  return (language.unigram_entropy + (length - 1) * language.entropy_rate) / length


def markov_source(
  *,
  vocab_size: int = 32,
  concentration: float = 0.1,
  batch_size: int,
  context: int,
  seed: int,
  eval_tokens: int,
) -> Source:
  """Batches `{"tokens": int32 [B, T+1]}` of a Markov language; each row is a stationary stretch of its own.

  The expected loss of `tokens[:, 1:]` given the tokens before is bounded below by `info["entropy_rate"]`: every target
  has its predecessor in the input. Each token counts as one byte.

  Args:
    vocab_size: V.
    concentration: of the Dirichlet rows.
    batch_size: training batch B.
    context: T, in tokens.
    seed: of the training text.
    eval_tokens: size of the held-out set "heldout", in predicted tokens.

  Raises:
    UserError: sizes below 1, a held-out set smaller than one window, a language without two tokens.
  """
  for field, value in (("batch_size", batch_size), ("data.context", context)):
    if value < 1:
      raise UserError(f"{field} = {value}", "at least 1", f"change --config.{field}")
  if eval_tokens < context:
    raise UserError(f"eval_tokens = {eval_tokens}", f"at least one window of {context}", "raise --config.eval.tokens")
  language = markov_language(vocab_size=vocab_size, concentration=concentration)
  batches, width = eval_batches(eval_tokens, context=context)
  rows = {"train": batch_size, "heldout": width}
  seeds = {"train": seed % 2**32, "heldout": _LANGUAGE_SEED}

  def batch(step: jax.typing.ArrayLike, *, split: str = "train") -> dict[str, jax.Array]:
    stream = jax.random.fold_in(jax.random.key(seeds[split]), _STREAMS[split])
    rng = jax.random.fold_in(stream, step)
    return {"tokens": sample(rng, language, shape=(rows[split], context + 1))}

  info = {
    "name": "markov",
    "fingerprint": hashlib.sha256(language.transition.astype("<f8").tobytes()).hexdigest(),
    "vocab_size": vocab_size,
    "bytes_per_token": 1.0,
    "d_unique_total": None,  # never repeats
    "heldout_tokens": batches * width * context,
    "entropy_rate": language.entropy_rate,
    "unigram_entropy": language.unigram_entropy,
  }
  return Source(batch=batch, eval_batches={"heldout": batches}, info=info, traced=True)


def sample(rng: jax.Array, language: MarkovLanguage, *, shape: tuple[int, int]) -> jax.Array:
  """Draws int32 [B, n] from the chain, one uniform number a token (inverse of the distribution function)."""
  b, n = shape
  # The last value of each distribution function is 1 and never compared with, whatever it was rounded to.
  first = jnp.asarray(np.cumsum(language.stationary)[None, :-1], jnp.float32)  # [1, V-1]
  following = jnp.asarray(np.cumsum(language.transition, axis=1)[:, :-1], jnp.float32)  # [V, V-1]
  uniform = jax.random.uniform(rng, (n, b, 1), jnp.float32)

  def draw(token, u):  # [B], [B, 1]
    token = jnp.sum(u >= following[token], axis=1, dtype=jnp.int32)
    return token, token

  start = jnp.sum(uniform[0] >= first, axis=1, dtype=jnp.int32)
  _, rest = jax.lax.scan(draw, start, uniform[1:])  # [n-1, B]
  return jnp.concatenate([start[None], rest]).T  # [B, n]
