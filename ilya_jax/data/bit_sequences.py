"""Five tasks on sequences of bits that ask for small algorithms, generated inside the step: copy, repeat, recall, ngrams, sort.

Graves, Wayne, Danihelka 2014, https://arxiv.org/abs/1410.5401, section 4. Letters: B batch, T longest sequence, I inputs, K outputs.

  name    inputs, one channel a bit                                  asked for, with inputs of zero
  copy    `length` random vectors, then a delimiter (channel `bits`)  the vectors
  repeat  as copy; with the delimiter the number of repeats on a       the vectors, `repeats` times over, then an end marker on an
          channel of its own, with mean 0 and variance 1 over           output of its own
          1 .. its largest in training
  recall  `item_count` of `item_length` vectors, a delimiter before each;  the item that came after it
          then one of all but the last, between two query delimiters
          (channels `bits`, `bits` + 1)
  ngrams  `length` bits, each seen a step late (the first step shows   each bit before it is seen; the first `history` ones are fair,
          0); their probabilities are a new table each sequence,        the others depend on the `history` before through
          Beta(1/2, 1/2)                                                2^history numbers
  sort    `vectors`, each with a priority in U(-1, 1) on channel       the `answered` ones of highest priority, highest first
          `bits`, then a delimiter (channel `bits` + 1)

A batch is {"inputs": float32 [B, T, I], "targets": float32 [B, T, K], "asked": float32 [B, T], 1 where targets count}. Sizes that
are ranges (`length`, `repeats`, `item_count`) are uniform, drawn for each sequence; what stands after its end is zero.

Deviations: the paper's counts of weights say that its copy task had a second flag and a ninth output, which the text does not
mention; here there are 9 inputs and 8 outputs. Repeat copy has vectors of eight bits as in the text; the counts fit six.
"""

import dataclasses
import hashlib
import json
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ilya_jax.errors import UserError, did_you_mean
from ilya_jax.task import Source

Range = tuple[int, int]
_HELD_OUT_SEED = 2014
_EVALUATED = 128  # held-out sequences a batch


@dataclasses.dataclass(frozen=True)
class Sizes:
  """What a task may be told: bits of a vector, ranges (first, last) of lengths, repeats and items, and the fixed sizes.

  most_repeats: the largest number of repeats in training, by which the count is normalised.
  """

  bits: int = 8
  length: Range = (1, 20)
  repeats: Range = (1, 10)
  most_repeats: int = 10
  item_count: Range = (2, 6)
  item_length: int = 3
  history: int = 5
  vectors: int = 20
  answered: int = 16


class Problem(NamedTuple):
  """A task at given sizes: inputs I, outputs K, longest T; draw(rng, rows) -> batch; answers: bits asked for, (least, most)."""

  inputs: int
  outputs: int
  longest: int
  draw: Callable[[jax.Array, int], dict[str, jax.Array]]
  answers: Range


def copy(sizes: Sizes) -> Problem:
  """Copy: T = 2 length + 1."""
  _, most = sizes.length
  longest = 2 * most + 1

  def draw(rng: jax.Array, rows: int) -> dict[str, jax.Array]:
    for_length, for_bits = jax.random.split(rng)
    length = _uniform(for_length, sizes.length, rows)
    vectors = _bits(for_bits, (rows, most, sizes.bits)) * _before(length, most)
    flag = _at(length, longest)
    inputs = jnp.concatenate([_padded(vectors, longest), flag[..., None]], axis=-1)
    targets = _moved(_padded(vectors, longest), length + 1)
    return _batch(inputs, targets, length + 1, length)

  return Problem(sizes.bits + 1, sizes.bits, longest, draw, _times(sizes.length, sizes.bits))


def repeat(sizes: Sizes) -> Problem:
  """Repeat copy: T = length + 1 + length repeats + 1; the end marker counts as an answer."""
  most, repeats = sizes.length[1], sizes.repeats[1]
  longest = most + most * repeats + 2

  def draw(rng: jax.Array, rows: int) -> dict[str, jax.Array]:
    for_length, for_repeats, for_bits = jax.random.split(rng, 3)
    length, count = _uniform(for_length, sizes.length, rows), _uniform(for_repeats, sizes.repeats, rows)
    vectors = _bits(for_bits, (rows, most, sizes.bits)) * _before(length, most)
    flag = _at(length, longest)
    counted = flag * normalised_count(count, sizes.most_repeats)[:, None]
    inputs = jnp.concatenate([_padded(vectors, longest), flag[..., None], counted[..., None]], axis=-1)
    steps = jnp.arange(longest, dtype=jnp.int32)[None] - (length + 1)[:, None]  # since the answer began
    answer = jnp.take_along_axis(vectors, (steps % length[:, None])[..., None], axis=1)
    total = length * count
    answer = answer * ((steps >= 0) & (steps < total[:, None]))[..., None].astype(jnp.float32)
    end = _at(length + 1 + total, longest)
    return _batch(inputs, jnp.concatenate([answer, end[..., None]], axis=-1), length + 1, total + 1)

  outputs = sizes.bits + 1
  answers = tuple((sizes.length[k] * sizes.repeats[k] + 1) * outputs for k in (0, 1))
  return Problem(sizes.bits + 2, outputs, longest, draw, (answers[0], answers[1]))


def normalised_count(count: jax.Array, most: int) -> jax.Array:
  """A count [B] (int) with the mean 0 and the variance 1 of the uniform distribution over 1 .. most, which is at least 2."""
  return (count.astype(jnp.float32) - (most + 1) / 2) / ((most**2 - 1) / 12) ** 0.5


def recall(sizes: Sizes) -> Problem:
  """Associative recall: T = (item_length + 1) item_count + 2 item_length + 2."""
  most, each = sizes.item_count[1], sizes.item_length
  shown, longest = most * (each + 1), (each + 1) * most + 2 * each + 2

  def draw(rng: jax.Array, rows: int) -> dict[str, jax.Array]:
    for_items, for_query, for_bits = jax.random.split(rng, 3)
    count = _uniform(for_items, sizes.item_count, rows)
    query = jax.random.randint(for_query, (rows,), 0, count - 1, jnp.int32)
    items = _bits(for_bits, (rows, most, each, sizes.bits))
    framed = _framed(items).reshape(rows, shown, sizes.bits + 1) * _before(count * (each + 1), shown)
    asked, answer = (jnp.take_along_axis(items, (query + k)[:, None, None, None], axis=1)[:, 0] for k in (0, 1))
    end = jnp.zeros((rows, 1, sizes.bits), jnp.float32)
    question = jnp.concatenate([end, asked, end], axis=1)  # [B, item_length + 2, bits]
    ends = _at(jnp.zeros(rows, jnp.int32), each + 2) + _at(jnp.full(rows, each + 1, jnp.int32), each + 2)
    question = jnp.concatenate([question, jnp.zeros_like(ends)[..., None], ends[..., None]], axis=-1)
    framed = jnp.concatenate([framed, jnp.zeros((rows, shown, 1), jnp.float32)], axis=-1)
    begin = count * (each + 1)
    inputs = _padded(framed, longest) + _moved(_padded(question, longest), begin)
    first = begin + each + 2
    return _batch(inputs, _moved(_padded(answer, longest), first), first, jnp.full(rows, each, jnp.int32))

  return Problem(sizes.bits + 2, sizes.bits, longest, draw, _times((each, each), sizes.bits))


def _framed(items: jax.Array) -> jax.Array:
  """Items [B, n, item_length, bits] with a delimiter before each -> [B, n, item_length + 1, bits + 1]."""
  rows, count, each, _ = items.shape
  before = jnp.pad(items, ((0, 0), (0, 0), (1, 0), (0, 0)))
  flags = jnp.broadcast_to(jnp.zeros(each + 1, jnp.float32).at[0].set(1), (rows, count, each + 1))
  return jnp.concatenate([before, flags[..., None]], axis=-1)


def ngrams(sizes: Sizes) -> Problem:
  """Dynamic n-grams: T = length, all of it asked for."""
  _, steps = sizes.length
  history = sizes.history

  def draw(rng: jax.Array, rows: int) -> dict[str, jax.Array]:
    for_table, for_first, for_bits = jax.random.split(rng, 3)
    angles = jax.random.uniform(for_table, (rows, 2**history), jnp.float32, 0.0, jnp.pi / 2)
    table = jnp.sin(angles) ** 2  # Beta(1/2, 1/2) is the arcsine law
    first = jax.random.bernoulli(for_first, 0.5, (history, rows)).astype(jnp.int32)
    uniform = jax.random.uniform(for_bits, (steps - history, rows), jnp.float32)

    def next_bit(context, u):  # [B], the last `history` bits as a number, the newest its lowest digit
      bit = (u < jnp.take_along_axis(table, context[:, None], axis=1)[:, 0]).astype(jnp.int32)
      return (2 * context + bit) % 2**history, bit

    context = jnp.sum(first * 2 ** jnp.arange(history - 1, -1, -1, dtype=jnp.int32)[:, None], axis=0)
    _, rest = jax.lax.scan(next_bit, context, uniform)
    bits = jnp.concatenate([first, rest]).T.astype(jnp.float32)[..., None]  # [B, T, 1]
    inputs = jnp.pad(bits, ((0, 0), (1, 0), (0, 0)))[:, :-1]
    return _batch(inputs, bits, jnp.zeros(rows, jnp.int32), jnp.full(rows, steps, jnp.int32))

  return Problem(1, 1, steps, draw, (steps, steps))


def sort(sizes: Sizes) -> Problem:
  """Priority sort: T = vectors + 1 + answered."""
  longest = sizes.vectors + 1 + sizes.answered

  def draw(rng: jax.Array, rows: int) -> dict[str, jax.Array]:
    for_bits, for_priorities = jax.random.split(rng)
    vectors = _bits(for_bits, (rows, sizes.vectors, sizes.bits))
    priorities = jax.random.uniform(for_priorities, (rows, sizes.vectors), jnp.float32, -1.0, 1.0)
    order = jnp.argsort(-priorities, axis=1)[:, : sizes.answered]
    answer = jnp.take_along_axis(vectors, order[..., None], axis=1)
    begin = jnp.full(rows, sizes.vectors + 1, jnp.int32)
    flag = _at(begin - 1, longest)
    shown = jnp.concatenate([vectors, priorities[..., None]], axis=-1)
    inputs = jnp.concatenate([_padded(shown, longest), flag[..., None]], axis=-1)
    return _batch(inputs, _moved(_padded(answer, longest), begin), begin, jnp.full(rows, sizes.answered, jnp.int32))

  return Problem(sizes.bits + 2, sizes.bits, longest, draw, _times((sizes.answered,) * 2, sizes.bits))


PROBLEMS = {"copy": copy, "repeat": repeat, "recall": recall, "ngrams": ngrams, "sort": sort}
ASKED = {
  "copy": ("length",),
  "repeat": ("length", "repeats"),
  "recall": ("item_count",),
  "ngrams": (),
  "sort": (),
}  # of test sets


def find_problem(name: str, sizes: Sizes) -> Problem:
  """The task of a name. Raises UserError on an unknown name and on sizes that it cannot have."""
  if name not in PROBLEMS:
    expected = f"one of {', '.join(PROBLEMS)}"
    raise UserError(f"data.name = {name!r}{did_you_mean(name, PROBLEMS)}", expected, "--config.data.name")
  least = {"length": 1, "repeats": 1, "item_count": 2}
  for field, smallest in least.items():
    pair = getattr(sizes, field)
    if len(pair) != 2 or not smallest <= pair[0] <= pair[1]:
      expected = f"a first and a last, {smallest} or more, in order"
      raise UserError(f"data.{field} = {pair}", expected, f"--config.data.{field}")
  for field in ("bits", "item_length", "history", "vectors", "answered"):
    if getattr(sizes, field) < 1:
      raise UserError(f"data.{field} = {getattr(sizes, field)}", "1 or more", f"--config.data.{field}")
  if name == "repeat" and sizes.most_repeats < 2:
    raise UserError(f"data.repeats up to {sizes.most_repeats}", "2 or more", "--config.data.repeats")
  if name == "ngrams" and (sizes.length[0] != sizes.length[1] or sizes.length[0] <= sizes.history):
    got = f"data.length = {sizes.length} of n-grams with data.history = {sizes.history}"
    raise UserError(got, "one length above the history, given twice", "--config.data.length")
  if name == "sort" and sizes.answered > sizes.vectors:
    got = f"data.answered = {sizes.answered} of {sizes.vectors} vectors"
    raise UserError(got, "no more than there are", "--config.data.answered")
  return PROBLEMS[name](sizes)


def sizes_of_test(name: str, text: str, sizes: Sizes) -> Sizes:
  """The sizes of a test set such as "length=30" or "length=10,repeats=20". Raises UserError on anything else."""
  changes: dict[str, Range] = {}
  for part in text.split(","):
    field, _, number = part.partition("=")
    if field not in ASKED.get(name, ()) or not number.isdecimal():
      expected = f"numbers of {' and '.join(ASKED.get(name, ())) or 'nothing'}, as length=30, joined by commas"
      raise UserError(f"data.tests with {text!r} for {name}", expected, "--config.data.tests")
    changes[field] = (int(number), int(number))
  return dataclasses.replace(sizes, **changes)  # type: ignore[arg-type]


def bit_sequence_source(
  name: str, sizes: Sizes, *, tests: Sequence[str] = (), batch_size: int, seed: int, eval_examples: int
) -> Source:
  """A task as a Source, sampled inside the step and endless; held-out sets "heldout" (as in training) and each of `tests`.

  The training sequences depend on `seed`, the held-out sets (of `eval_examples` each, rounded up to whole batches) on the task
  alone. Raises UserError on an unknown task, sizes that it cannot have, and numbers below 1.
  """
  for field, value in (("batch_size", batch_size), ("eval.examples", eval_examples)):
    if value < 1:
      raise UserError(f"{field} = {value}", "at least 1", f"--config.{field}")
  problem = find_problem(name, sizes)
  problems = {"train": problem, "heldout": problem}
  problems |= {test: find_problem(name, sizes_of_test(name, test, sizes)) for test in tests}
  width = min(eval_examples, _EVALUATED)
  streams = {split: zlib.crc32(split.encode()) for split in problems}

  def batch(step: jax.typing.ArrayLike, *, split: str = "train") -> dict[str, jax.Array]:
    base = jax.random.key(seed % 2**32 if split == "train" else _HELD_OUT_SEED)
    rng = jax.random.fold_in(jax.random.fold_in(base, streams[split]), step)
    return problems[split].draw(rng, batch_size if split == "train" else width)

  batches = -(-eval_examples // width)
  defined = {"name": name, **dataclasses.asdict(sizes), "tests": list(tests)}
  info = {
    "name": name,
    "fingerprint": hashlib.sha256(json.dumps(defined, sort_keys=True).encode()).hexdigest(),
    "d_unique_total": None,  # never repeats
    "heldout_examples": batches * width,
    "inputs": problem.inputs,
    "outputs": problem.outputs,
    "longest": problem.longest,
  }
  return Source(batch=batch, eval_batches=dict.fromkeys(list(problems)[1:], batches), info=info, traced=True)


# The best that can be done with n-grams


def predictions(bits: np.ndarray, history: int) -> np.ndarray:
  """Eq. 10: the probability of a 1 at every step of bits [B, T] (0 or 1), given those before, when the table is not known.

  (N1 + 1/2) / (N1 + N0 + 1) of the ones and zeros that have followed the same `history` bits so far; 1/2 for the first bits.
  """
  bits = np.asarray(bits, np.int64)
  rows, steps = bits.shape
  counts = np.zeros((rows, 2**history, 2))
  found = np.full((rows, steps), 0.5)
  every, context = np.arange(rows), np.zeros(rows, np.int64)
  for step in range(steps):
    if step >= history:
      zeros, ones = counts[every, context].T
      found[:, step] = (ones + 0.5) / (zeros + ones + 1)
      counts[every, context, bits[:, step]] += 1
    context = (2 * context + bits[:, step]) % 2**history
  return found


def cost_in_bits(probabilities: np.ndarray, bits: np.ndarray) -> np.ndarray:
  """What each sequence of bits [B, T] costs at the predicted probabilities of a 1 [B, T], in bits a sequence [B]."""
  return -np.log2(np.where(bits > 0.5, probabilities, 1 - probabilities)).sum(axis=1)


# Pieces of batches


def _batch(inputs: jax.Array, targets: jax.Array, first: jax.Array, count: jax.Array) -> dict[str, jax.Array]:
  """A batch whose answers stand at `count` [B] steps from `first` [B] on."""
  steps = jnp.arange(inputs.shape[1], dtype=jnp.int32)[None]
  asked = (steps >= first[:, None]) & (steps < (first + count)[:, None])
  return {"inputs": inputs, "targets": targets, "asked": asked.astype(jnp.float32)}


def _uniform(rng: jax.Array, both: Range, rows: int) -> jax.Array:
  return jax.random.randint(rng, (rows,), both[0], both[1] + 1, jnp.int32)


def _bits(rng: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  return jax.random.bernoulli(rng, 0.5, shape).astype(jnp.float32)


def _before(length: jax.Array, most: int) -> jax.Array:
  """length [B] -> float32 [B, most, 1]: 1 at the first `length` steps."""
  return (jnp.arange(most, dtype=jnp.int32)[None] < length[:, None]).astype(jnp.float32)[..., None]


def _at(places: jax.Array, longest: int) -> jax.Array:
  """places [B] -> float32 [B, longest], 1 there."""
  return jax.nn.one_hot(places, longest)


def _padded(x: jax.Array, longest: int) -> jax.Array:
  """x [B, n, C] with zeros up to [B, longest, C]."""
  return jnp.pad(x, ((0, 0), (0, longest - x.shape[1]), (0, 0)))


def _moved(x: jax.Array, by: jax.Array) -> jax.Array:
  """x [B, T, C], each sequence `by` [B] steps later; what leaves at the end comes back at the beginning."""
  places = (jnp.arange(x.shape[1], dtype=jnp.int32)[None] - by[:, None]) % x.shape[1]
  return jnp.take_along_axis(x, places[..., None], axis=1)


def _times(pair: Range, bits: int) -> Range:
  return pair[0] * bits, pair[1] * bits
