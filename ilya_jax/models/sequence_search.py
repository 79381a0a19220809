"""Greedy and beam search for the likeliest output of a model that writes token by token, with GNMT's length penalty.

Wu et al. 2016, https://arxiv.org/abs/1609.08144, eq. 14: a hypothesis of n tokens, the end among them, scores
log P / lp(n), lp(n) = ((5 + n) / 6)^alpha; Vaswani et al. 2017, section 6.1: alpha 0.6, 4 beams.
Letters: B sentences, W beams, T steps, V vocabulary.

The search ends where no hypothesis under way can still beat the worst of the W finished ones, not at the first that is
finished: with alpha above 0 a longer one may score higher. A hypothesis ends where its end is among the W best continuations
(so that one beam without a penalty is greedy search); one that has not ended after T tokens counts only where none of its
sentence has. Deviations: eq. 14 also has a coverage penalty, which the Transformer's authors leave out.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
PyTree = Any
Step = Callable[[Array, PyTree, Array], tuple[Array, PyTree]]  # (tokens [n], state, index) -> (logits [n, V], state)


class Found(NamedTuple):
  """tokens: int32 [B, T], PAD (0) after the end; scores: float32 [B], log-probability over the length penalty."""

  tokens: Array
  scores: Array


def length_penalty(length: Array, alpha: float) -> Array:
  """((5 + n) / 6)^alpha of n tokens."""
  return ((5.0 + jnp.asarray(length, jnp.float32)) / 6.0) ** alpha


def greedy_search(
  step: Step, state: PyTree, *, rows: int, length: int, begin: int, end: int, never: Sequence[int] = ()
) -> Found:
  """The likeliest token at every step, for `rows` sentences and at most `length` tokens; the score is the log-probability.

  step: from the last token of each sentence [B] to logits of the next; state: a tree of arrays, batch first. never: tokens
  that are not written. It ends when all sentences have.
  """

  def body(carry):
    index, tokens, scores, last, ended, state = carry
    logits, state = step(last, state, index)
    chances = _log_chances(logits, never)
    chosen = jnp.argmax(chances, axis=-1).astype(jnp.int32)
    gained = jnp.take_along_axis(chances, chosen[:, None], axis=1)[:, 0]
    written = jnp.where(ended, 0, chosen)
    tokens = jax.lax.dynamic_update_slice_in_dim(tokens, written[:, None], index, 1)
    scores = scores + jnp.where(ended, 0.0, gained)
    return index + 1, tokens, scores, chosen, ended | (chosen == end), state

  def goes_on(carry):
    index, _, _, _, ended, _ = carry
    return (index < length) & ~jnp.all(ended)

  carry = (
    jnp.int32(0), jnp.zeros((rows, length), jnp.int32), jnp.zeros(rows, jnp.float32), jnp.full(rows, begin, jnp.int32),
    jnp.zeros(rows, bool), state,
  )  # fmt: skip
  _, tokens, scores, *_ = jax.lax.while_loop(goes_on, body, carry)
  return Found(tokens, scores)


def beam_search(
  step: Step, state: PyTree, *, rows: int, beams: int, length: int, begin: int, end: int, alpha: float = 0.6,
  never: Sequence[int] = (), stops_early: bool = True,
) -> Found:  # fmt: skip
  """The best of the hypotheses that a beam of `beams` finds for each of `rows` sentences.

  step, state: as `greedy_search`, for B W hypotheses, those of a sentence side by side (`spread` makes such a state of one for
  B). stops_early: whether the search ends where nothing better can follow, which does not change what it finds.
  """
  kept = jnp.arange(beams)

  def sentences(x):
    return x.reshape(rows, beams, *x.shape[1:])

  def body(carry):
    index, alive, finished, state = carry
    logits, state = step(alive.tokens_at(index, begin), state, index)
    chances = sentences(_log_chances(logits, never))  # [B, W, V]
    v = chances.shape[-1]
    totals = (alive.scores[:, :, None] + chances).reshape(rows, beams * v)
    best, where = jax.lax.top_k(totals, min(2 * beams, beams * v))  # [B, 2 W]
    parent, token = where // v, (where % v).astype(jnp.int32)
    tokens = jnp.take_along_axis(alive.tokens, parent[..., None], axis=1)  # [B, 2 W, T]
    tokens = jax.lax.dynamic_update_slice_in_dim(tokens, token[..., None], index, 2)
    ends = token == end
    among_best = jnp.arange(ends.shape[1])[None] < beams
    done = jnp.where(ends & among_best, best / length_penalty(index + 1, alpha), -jnp.inf)
    finished = _best_of(
      jnp.concatenate([finished.scores, done], axis=1), jnp.concatenate([finished.tokens, tokens], axis=1), beams
    )[0]
    alive, order = _best_of(jnp.where(ends, -jnp.inf, best), tokens, beams)
    parent = jnp.take_along_axis(parent, order, axis=1)  # [B, W]
    flat = (jnp.arange(rows)[:, None] * beams + parent).reshape(-1)
    return index + 1, alive, finished, jax.tree.map(lambda leaf: leaf[flat], state)

  def goes_on(carry):
    index, alive, finished, _ = carry
    # A log-probability only falls, and is divided by lp(T) at most.
    attainable = jnp.max(alive.scores, axis=1) / length_penalty(jnp.int32(length), alpha)
    worst = jnp.min(finished.scores, axis=1)
    return (index < length) & (jnp.any(attainable > worst) | (not stops_early))

  nothing = jnp.zeros((rows, beams, length), jnp.int32)
  alive = _Beam(jnp.broadcast_to(jnp.where(kept == 0, 0.0, -jnp.inf)[None], (rows, beams)).astype(jnp.float32), nothing)
  finished = _Beam(jnp.full((rows, beams), -jnp.inf, jnp.float32), nothing)
  index, alive, finished, _ = jax.lax.while_loop(goes_on, body, (jnp.int32(0), alive, finished, state))
  unfinished = alive.scores[:, :1] / length_penalty(index, alpha)
  none = jnp.isneginf(finished.scores[:, 0])
  tokens = jnp.where(none[:, None], alive.tokens[:, 0], finished.tokens[:, 0])
  return Found(tokens, jnp.where(none, unfinished[:, 0], finished.scores[:, 0]))


class _Beam(NamedTuple):
  """scores: [B, W], best first; tokens: [B, W, T]."""

  scores: Array
  tokens: Array

  def tokens_at(self, index: Array, begin: int) -> Array:
    """The last token of each hypothesis [B W] before `index`."""
    b, w, _ = self.tokens.shape
    before = jax.lax.dynamic_index_in_dim(self.tokens, jnp.maximum(index - 1, 0), axis=2, keepdims=False)
    return jnp.where(index == 0, begin, before).reshape(b * w)


def _best_of(scores: Array, tokens: Array, beams: int) -> tuple[_Beam, Array]:
  best, order = jax.lax.top_k(scores, beams)
  return _Beam(best, jnp.take_along_axis(tokens, order[..., None], axis=1)), order


def spread(state: PyTree, beams: int) -> PyTree:
  """Each row of a state `beams` times, side by side: [B, ...] -> [B W, ...]."""
  return jax.tree.map(lambda leaf: jnp.repeat(leaf, beams, axis=0), state)


def _log_chances(logits: Array, never: Sequence[int]) -> Array:
  chances = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
  if not never:
    return chances
  return chances.at[:, jnp.array(never)].set(-jnp.inf)
