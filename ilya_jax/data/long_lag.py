"""Tasks whose answer lies many steps back: adding, temporal order and the first symbol, generated inside the step.

Hochreiter, Schmidhuber 1997, Long Short-Term Memory, Neural Computation 9(8), experiments 2a, 4 and 6, as the evidence that
the cells of Olah 2015 (https://colah.github.io/posts/2015-08-Understanding-LSTMs) stand on; `adding` is the form of Le,
Jaitly, Hinton 2015, https://arxiv.org/abs/1504.00941, section 4.1. Letters: B batch, T longest sequence, I inputs.

  name            inputs                                                        target
  adding          (value in U[0, 1], mark): one mark 1 in each half, else 0     the sum of the two marked values
  adding_1997     (value in U[-1, 1], mark): 1 at one of the first ten steps    1/2 + (X1 + X2) / 4
                  and at one of the first T/2 - 1 others, -1 at both ends
  temporal_order  E, then a b c d at random with X or Y once in each window,    which of 2^windows orders: XX, XY, YX, YY
                  then B; one-hot                                               and so on, counted in binary
  first_symbol    x or y, then always the same p - 1 symbols; one-hot           which it was

A batch is {"inputs": float32 [B, T, I], "lengths": int32 [B], "targets": float32 [B, 1] or int32 [B]}; what stands after
the end of a sequence is zero. Lengths are `length` to `length + spread` (adding_1997: to 1.1 times `length`, and `spread` is not
asked).

Deviations: of adding_1997 the paper says that "in the rare case where the first pair of the sequence gets marked, we set X1
to zero"; here the mark stays -1 and the value of that step is set to zero as well, for either mark. The positions of
temporal_order are counted from 1, as the paper does not say from where.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ilya_jax.errors import UserError, did_you_mean
from ilya_jax.task import Source

SYMBOLS = ("a", "b", "c", "d", "E", "B", "X", "Y")  # of temporal_order, as they stand in the one-hot vector
_NOISE, _BEGIN, _END, _FIRST = 4, 4, 5, 6
_FIRST_TEN = 10
_HELD_OUT_SEED = 1997
_STREAMS = {"train": 0, "heldout": 1}
_EVALUATED = 256  # held-out sequences a batch


class Problem(NamedTuple):
  """A task as sizes and a generator.

  inputs: I. longest: T. classes: how many answers there are; 0: the answer is a number.
  draw(rng, rows) -> batch. guess_loss: the least loss of an answer that does not look at the sequence (squared error, or
    nats). span: the width of the interval of targets, 0 for classes.
  """

  inputs: int
  longest: int
  classes: int
  draw: Callable[[jax.Array, int], dict[str, jax.Array]]
  guess_loss: float
  span: float = 0.0


def adding(length: int, spread: int) -> Problem:
  """The adding problem of 2015. Guessing 1 costs 1/6, twice the variance of U[0, 1]."""
  _check_length(length, least=2, spread=spread)
  longest = length + spread

  def draw(rng: jax.Array, rows: int) -> dict[str, jax.Array]:
    for_lengths, for_values, *for_marks = jax.random.split(rng, 4)
    lengths = jax.random.randint(for_lengths, (rows,), length, longest + 1, jnp.int32)
    values = jax.random.uniform(for_values, (rows, longest), jnp.float32)
    half = lengths // 2
    first = _below(for_marks[0], half)
    second = half + _below(for_marks[1], lengths - half)
    marks = _at(first, longest) + _at(second, longest)
    targets = jnp.sum(values * marks, axis=1, keepdims=True)
    return _batch(jnp.stack([values, marks], axis=-1), lengths, targets)

  return Problem(2, longest, 0, draw, guess_loss=1 / 6, span=2.0)


def adding_1997(length: int) -> Problem:
  """The adding problem of 1997 at minimal length `length` (their T). Guessing 1/2 costs nearly 1/24, (1/3 + 1/3) / 16."""
  _check_length(length, least=2 * _FIRST_TEN, spread=0)
  longest = length + length // 10

  def draw(rng: jax.Array, rows: int) -> dict[str, jax.Array]:
    for_lengths, for_values, *for_marks = jax.random.split(rng, 4)
    lengths = jax.random.randint(for_lengths, (rows,), length, longest + 1, jnp.int32)
    values = jax.random.uniform(for_values, (rows, longest), jnp.float32, -1.0, 1.0)
    first = jax.random.randint(for_marks[0], (rows,), 0, _FIRST_TEN, jnp.int32)
    second = jax.random.randint(for_marks[1], (rows,), 0, length // 2 - 1, jnp.int32)
    second = second + (second >= first).astype(jnp.int32)  # of those still unmarked
    chosen = _at(first, longest) + _at(second, longest)
    begin = _at(jnp.zeros_like(first), longest)
    values = values * (1 - chosen * begin)
    ends = jnp.maximum(begin, _at(lengths - 1, longest))
    targets = 0.5 + jnp.sum(values * chosen, axis=1, keepdims=True) / 4
    return _batch(jnp.stack([values, chosen * (1 - begin) - ends], axis=-1), lengths, targets)

  not_first = (_FIRST_TEN - 1) / _FIRST_TEN  # the chance that X1 counts, and X2 but for the same chance
  counted = not_first + 1 - not_first / (length // 2 - 1)
  return Problem(2, longest, 0, draw, guess_loss=counted / 3 / 16, span=1.0)


def temporal_order(length: int, spread: int, windows: Sequence[Sequence[int]]) -> Problem:
  """Experiments 6a (two windows) and 6b (three): in which order X and Y stood. Guessing costs the entropy of the classes."""
  before = 1  # the position of E
  for window in windows:
    before = window[-1] if len(window) == 2 and before < window[0] <= window[1] else length
  if not windows or before >= length:
    got = f"data.windows = {tuple(map(tuple, windows))} at length {length}"
    expected = "pairs of a first and a last position, one after another, all between 1 and the length"
    raise UserError(got, expected, "--config.data.windows")
  _check_length(length, least=1, spread=spread)
  longest, count = length + spread, len(windows)

  def draw(rng: jax.Array, rows: int) -> dict[str, jax.Array]:
    for_lengths, for_noise, for_places, for_symbols = jax.random.split(rng, 4)
    lengths = jax.random.randint(for_lengths, (rows,), length, longest + 1, jnp.int32)
    symbols = jax.random.randint(for_noise, (rows, longest), 0, _NOISE, jnp.int32)
    symbols = symbols.at[:, 0].set(_BEGIN)
    lows, highs = (jnp.asarray([window[k] for window in windows], jnp.int32) for k in (0, 1))
    places = jax.random.randint(for_places, (rows, count), lows[None], highs[None] + 1, jnp.int32) - 1
    bits = jax.random.randint(for_symbols, (rows, count), 0, 2, jnp.int32)
    every = jnp.arange(rows, dtype=jnp.int32)
    symbols = symbols.at[every[:, None], places].set(_FIRST + bits)
    symbols = symbols.at[every, lengths - 1].set(_END)
    weights = 2 ** jnp.arange(count - 1, -1, -1, dtype=jnp.int32)
    return _batch(jax.nn.one_hot(symbols, len(SYMBOLS)), lengths, jnp.sum(bits * weights[None], axis=1))

  return Problem(len(SYMBOLS), longest, 2**count, draw, guess_loss=float(count * np.log(2)))


def first_symbol(length: int) -> Problem:
  """Experiment 2a at lag p = `length`: a sequence of p + 1 symbols whose last, which is asked for, is its first."""
  _check_length(length, least=1, spread=0)

  def draw(rng: jax.Array, rows: int) -> dict[str, jax.Array]:
    which = jax.random.randint(rng, (rows,), 0, 2, jnp.int32)
    rest = jnp.broadcast_to(jnp.arange(2, length + 1, dtype=jnp.int32)[None], (rows, length - 1))
    symbols = jnp.concatenate([which[:, None], rest], axis=1)  # [B, p]
    return _batch(jax.nn.one_hot(symbols, length + 1), jnp.full(rows, length, jnp.int32), which)

  return Problem(length + 1, length, 2, draw, guess_loss=float(np.log(2)))


PROBLEMS = ("adding", "adding_1997", "temporal_order", "first_symbol")


def find_problem(name: str, *, length: int, spread: int, windows: Sequence[Sequence[int]]) -> Problem:
  """The problem of a name; each takes of the sizes what it has. Raises UserError on an unknown name and impossible sizes."""
  if name == "adding":
    return adding(length, spread)
  if name == "adding_1997":
    return adding_1997(length)
  if name == "temporal_order":
    return temporal_order(length, spread, windows)
  if name == "first_symbol":
    return first_symbol(length)
  raise UserError(
    f"data.name = {name!r}{did_you_mean(name, PROBLEMS)}", f"one of {', '.join(PROBLEMS)}", "--config.data.name"
  )


def long_lag_source(
  name: str, *, length: int, spread: int = 0, windows: Sequence[Sequence[int]] = (), batch_size: int, seed: int,
  eval_examples: int,
) -> Source:  # fmt: skip
  """A problem as a Source, sampled inside the step and endless; `info["problem"]` are its sizes.

  The training sequences depend on `seed`, the held-out set "heldout" (`eval_examples`, rounded up to whole batches) on the
  problem alone. Raises UserError on an unknown problem, sizes that it cannot have, and numbers below 1.
  """
  problem = find_problem(name, length=length, spread=spread, windows=windows)
  for field, value in (("batch_size", batch_size), ("eval.examples", eval_examples)):
    if value < 1:
      raise UserError(f"{field} = {value}", "at least 1", f"--config.{field}")
  width = min(eval_examples, _EVALUATED)
  rows = {"train": batch_size, "heldout": width}
  seeds = {"train": seed % 2**32, "heldout": _HELD_OUT_SEED}

  def batch(step: jax.typing.ArrayLike, *, split: str = "train") -> dict[str, jax.Array]:
    stream = jax.random.fold_in(jax.random.key(seeds[split]), _STREAMS[split])
    return problem.draw(jax.random.fold_in(stream, step), rows[split])

  batches = -(-eval_examples // width)
  defined: dict[str, Any] = {"name": name, "length": length, "longest": problem.longest, "windows": windows}
  info = {
    "name": name,
    "fingerprint": hashlib.sha256(json.dumps(defined, sort_keys=True).encode()).hexdigest(),
    "d_unique_total": None,  # never repeats
    "heldout_examples": batches * width,
    "inputs": problem.inputs, "longest": problem.longest, "classes": problem.classes, "span": problem.span,
    "guess_loss": problem.guess_loss,
  }  # fmt: skip
  return Source(batch=batch, eval_batches={"heldout": batches}, info=info, traced=True)


def _batch(inputs: jax.Array, lengths: jax.Array, targets: jax.Array) -> dict[str, jax.Array]:
  """A batch, zero after the end of each sequence."""
  inside = jnp.arange(inputs.shape[1], dtype=jnp.int32)[None] < lengths[:, None]
  return {"inputs": inputs * inside[..., None].astype(inputs.dtype), "lengths": lengths, "targets": targets}


def _at(places: jax.Array, length: int) -> jax.Array:
  """places [B] -> float32 [B, length], 1 there and 0 elsewhere."""
  return jax.nn.one_hot(places, length)


def _below(rng: jax.Array, limits: jax.Array) -> jax.Array:
  """A whole number below each limit [B]."""
  return jax.random.randint(rng, limits.shape, 0, limits, jnp.int32)


def _check_length(length: int, *, least: int, spread: int) -> None:
  if length < least:
    raise UserError(f"data.length = {length}", f"at least {least}", "--config.data.length")
  if spread < 0:
    raise UserError(f"data.spread = {spread}", "at least 0", "--config.data.spread")
