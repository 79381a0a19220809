"""The five tasks on bits: every sequence read back step by step, sizes, seeds, the best predictor of n-grams, bad sizes."""

import dataclasses

import jax
import numpy as np
import pytest
from scipy import special, stats

from ilya_jax.data.bit_sequences import (
  PROBLEMS,
  Sizes,
  bit_sequence_source,
  cost_in_bits,
  find_problem,
  normalised_count,
  predictions,
  sizes_of_test,
)
from ilya_jax.errors import UserError

ROWS = 200


def drawn(name, rows=ROWS, seed=0, **sizes):
  """A problem, and a batch of it as NumPy arrays."""
  problem = find_problem(name, Sizes(**sizes))
  batch = jax.jit(problem.draw, static_argnums=1)(jax.random.key(seed), rows)
  batch = {part: np.asarray(batch[part]) for part in ("inputs", "targets", "asked")}
  assert batch["inputs"].shape == (rows, problem.longest, problem.inputs)
  assert batch["targets"].shape == (rows, problem.longest, problem.outputs)
  assert {str(leaf.dtype) for leaf in batch.values()} == {"float32"}
  answers = batch["asked"].sum(1) * problem.outputs
  assert problem.answers[0] <= answers.min() <= answers.max() <= problem.answers[1]
  assert not batch["targets"][batch["asked"] == 0].any()
  return problem, batch


def uniform(counts, first, last):
  """Whether whole numbers look uniform over first .. last."""
  found = np.bincount(np.asarray(counts, int), minlength=last + 1)
  assert found[:first].sum() == 0
  assert len(found) == last + 1
  return stats.chisquare(found[first:]).pvalue > 1e-4


def fair(bits):
  """Whether bits look like fair ones."""
  return stats.binomtest(int(bits.sum()), bits.size).pvalue > 1e-4


def test_copy():
  _, batch = drawn("copy", bits=5, length=(1, 7))
  lengths = []
  for inputs, targets, asked in zip(*batch.values(), strict=True):
    (delimiter,) = np.flatnonzero(inputs[:, 5])
    lengths.append(delimiter)
    expected = np.zeros_like(targets)
    expected[delimiter + 1 : 2 * delimiter + 1] = inputs[:delimiter, :5]
    np.testing.assert_array_equal(targets, expected)
    np.testing.assert_array_equal(np.flatnonzero(asked), np.arange(delimiter + 1, 2 * delimiter + 1))
    assert not inputs[delimiter + 1 :].any()
    assert not inputs[delimiter, :5].any()
  assert uniform(lengths, 1, 7)
  _, whole = drawn("copy", bits=5, length=(7, 7))
  assert fair(whole["inputs"][:, :7, :5])


def test_repeat_copy():
  _, batch = drawn("repeat", bits=4, length=(1, 3), repeats=(1, 4), most_repeats=4)
  lengths, repeats = [], []
  for inputs, targets, asked in zip(*batch.values(), strict=True):
    (delimiter,) = np.flatnonzero(inputs[:, 4])
    count = round(float(inputs[delimiter, 5]) * 1.25**0.5 + 2.5)
    lengths.append(delimiter)
    repeats.append(count)
    assert not np.delete(inputs[:, 5], delimiter).any()
    assert not inputs[delimiter:, :4].any()
    answer = np.concatenate([np.tile(inputs[:delimiter, :4], (count, 1)), np.zeros((1, 4))])
    end = np.zeros((len(answer), 1))
    end[-1] = 1
    answer = np.concatenate([answer, end], axis=1)
    np.testing.assert_array_equal(targets[delimiter + 1 :][: len(answer)], answer)
    np.testing.assert_array_equal(np.flatnonzero(asked), delimiter + 1 + np.arange(len(answer)))
  assert uniform(lengths, 1, 3)
  assert uniform(repeats, 1, 4)


def test_counts_of_repeats_have_mean_0_and_variance_1():
  counts = np.asarray(normalised_count(np.arange(1, 11, dtype=np.int32), 10))
  np.testing.assert_allclose(counts, (np.arange(1, 11) - 5.5) / 8.25**0.5, rtol=1e-6)
  assert counts.mean() == pytest.approx(0, abs=1e-6)
  assert counts.var() == pytest.approx(1, rel=1e-6)
  _, batch = drawn("repeat", length=(2, 2), repeats=(20, 20))
  assert batch["inputs"][0, 2, 9] == pytest.approx((20 - 5.5) / 8.25**0.5)  # as in training, and beyond it


def test_associative_recall():
  _, batch = drawn("recall", bits=6, item_count=(2, 5), item_length=3)
  counts, places = [], []
  for inputs, targets, asked in zip(*batch.values(), strict=True):
    items = np.flatnonzero(inputs[:, 6])
    begin, end = np.flatnonzero(inputs[:, 7])
    counts.append(len(items))
    np.testing.assert_array_equal(items, 4 * np.arange(len(items)))
    assert (begin, end) == (4 * len(items), 4 * len(items) + 4)
    assert not inputs[[*items, begin, end], :6].any()
    assert not inputs[end + 1 :].any()
    shown = [inputs[k + 1 : k + 4, :6] for k in items]
    query = inputs[begin + 1 : begin + 4, :6]
    answer = targets[end + 1 : end + 4]
    np.testing.assert_array_equal(np.flatnonzero(asked), end + 1 + np.arange(3))
    matches = [k for k, item in enumerate(shown[:-1]) if (item == query).all() and (shown[k + 1] == answer).all()]
    assert len(matches) == 1  # two equal items of 18 bits would be one in 26,000 sequences
    places.append(matches[0])
  assert uniform(counts, 2, 5)
  assert {place for place, count in zip(places, counts, strict=True) if count == 5} == {0, 1, 2, 3}


def test_dynamic_ngrams_depend_on_their_history_alone():
  problem, batch = drawn("ngrams", rows=16, length=(2000, 2000), history=2)
  bits = batch["targets"][..., 0]
  np.testing.assert_array_equal(batch["inputs"][:, 1:, 0], bits[:, :-1])
  assert not batch["inputs"][:, 0].any()
  assert batch["asked"].all()
  assert problem.answers == (2000, 2000)
  shares = []
  for row in bits.astype(int):
    context = 4 * row[:-3] + 2 * row[1:-2] + row[2:-1]  # three bits, the oldest of which must not matter
    for last_two in range(4):
      own = [row[3:][context == last_two + 4 * oldest] for oldest in (0, 1)]
      if min(map(len, own)) > 50:
        table = [[np.sum(part == bit) + 1 for bit in (0, 1)] for part in own]
        assert stats.chi2_contingency(table).pvalue > 1e-5
      if len(own[0]) + len(own[1]) > 200:
        shares.append(np.concatenate(own).mean())
  assert np.std(shares) > 0.2  # a table of its own for each sequence
  _, short = drawn("ngrams", rows=4000, length=(3, 3), history=2)
  assert fair(short["targets"][:, :2])


def test_tables_of_ngrams_are_beta_distributed():
  """Two bits in a row after the same one: 1 in E[p^2 + (1 - p)^2] = 3/4 of the sequences for Beta(1/2, 1/2) are equal."""
  _, batch = drawn("ngrams", rows=20_000, length=(4, 4), history=1)
  bits = batch["targets"][..., 0].astype(int)
  rows = bits[(bits[:, 0] == bits[:, 1]) | (bits[:, 0] == bits[:, 2])]
  both = rows[rows[:, 0] == rows[:, 1]]  # 0 0 x: the same context, the first bit being drawn fairly
  repeated = np.mean(both[:, 2] == both[:, 0])
  # The context of the second bit and the third is the same, and the second is as it is: E[p^2] / E[p] = 3/4.
  assert stats.binomtest(int(np.sum(both[:, 2] == both[:, 0])), len(both), 0.75).pvalue > 1e-4, repeated


def test_priority_sort():
  _, batch = drawn("sort", bits=8, vectors=9, answered=6)
  for inputs, targets, asked in zip(*batch.values(), strict=True):
    np.testing.assert_array_equal(np.flatnonzero(inputs[:, 9]), [9])
    assert not inputs[9:, :9].any()
    order = sorted(range(9), key=lambda k: -inputs[k, 8])
    np.testing.assert_array_equal(targets[10:16], inputs[order[:6], :8])
    np.testing.assert_array_equal(np.flatnonzero(asked), np.arange(10, 16))
  priorities = batch["inputs"][:, :9, 8].ravel()
  assert stats.kstest(priorities, stats.uniform(-1, 2).cdf).pvalue > 1e-4


@pytest.mark.parametrize(("name", "inputs", "outputs", "longest"), [
  ("copy", 9, 8, 41), ("repeat", 10, 9, 222), ("recall", 8, 6, 32), ("ngrams", 1, 1, 200), ("sort", 10, 8, 37),
])  # fmt: skip
def test_channels_and_steps_at_the_sizes_of_the_paper(name, inputs, outputs, longest):
  sizes = Sizes(bits=6 if name == "recall" else 8, length=(200, 200) if name == "ngrams" else (1, 20))
  problem = find_problem(name, sizes)
  assert (problem.inputs, problem.outputs, problem.longest) == (inputs, outputs, longest)


@pytest.mark.parametrize(("steps", "history", "expected", "tolerance"), [(200, 5, 132.7, 1.0), (40, 2, 25.85, 0.3)])
def test_the_best_predictor_of_ngrams_costs_what_was_simulated_elsewhere(steps, history, expected, tolerance):
  """20,000 sequences there and here, whose costs have deviations of 36 and 11 bits."""
  _, batch = drawn("ngrams", rows=20_000, length=(steps, steps), history=history)
  bits = batch["targets"][..., 0]
  assert cost_in_bits(predictions(bits, history), bits).mean() == pytest.approx(expected, abs=tolerance)


def test_the_best_predictor_of_ngrams_gives_every_sequence_its_probability():
  """That of the generator, its table integrated out: one Beta function for each context."""
  steps, history = 9, 2
  bits = (np.arange(2**steps)[:, None] >> np.arange(steps)) & 1
  context = 2 * bits[:, :-2] + bits[:, 1:-1]
  expected = np.full(len(bits), 0.25)
  for own in range(4):
    ones, zeros = (((context == own) & (bits[:, 2:] == bit)).sum(1) for bit in (1, 0))
    expected *= special.beta(ones + 0.5, zeros + 0.5) / special.beta(0.5, 0.5)
  np.testing.assert_allclose(2 ** -cost_in_bits(predictions(bits, history), bits), expected, rtol=1e-10)
  assert expected.sum() == pytest.approx(1)


def test_the_best_predictor_of_ngrams_by_hand():
  bits = np.array([[1, 0, 1, 1, 1, 0, 1]])
  #  history 1; after 1: 0, 1, 1, 0; after 0: 1, 1
  expected = [1 / 2, 1 / 2, 1 / 2, 0.5 / 2, 1.5 / 3, 2.5 / 4, 1.5 / 2]
  np.testing.assert_allclose(predictions(bits, 1)[0], expected)
  cost = -np.log2([1 / 2, 1 / 2, 1 / 2, 1 / 4, 1 / 2, 3 / 8, 3 / 4]).sum()
  np.testing.assert_allclose(cost_in_bits(predictions(bits, 1), bits), [cost])


def source(seed=0, tests=("length=9",), name="copy", **sizes):
  return bit_sequence_source(name, Sizes(**sizes), tests=tests, batch_size=4, seed=seed, eval_examples=130)


def test_batches_are_functions_of_seed_and_step_and_held_out_sets_of_the_task_alone():
  one, other = source(), source(seed=1, tests=("length=8", "length=9"))
  batch = jax.jit(one.batch)
  first = np.asarray(batch(0)["inputs"])
  np.testing.assert_array_equal(first, batch(0)["inputs"])
  assert not np.array_equal(first, batch(1)["inputs"])
  assert not np.array_equal(first, other.batch(0)["inputs"])
  for split in ("heldout", "length=9"):
    np.testing.assert_array_equal(one.batch(1, split=split)["inputs"], other.batch(1, split=split)["inputs"])
  assert one.eval_batches == {"heldout": 2, "length=9": 2}
  long = one.batch(0, split="length=9")
  assert long["inputs"].shape == (128, 19, 9)
  assert (np.asarray(long["asked"]).sum(1) == 9).all()
  assert one.info["d_unique_total"] is None
  assert one.info["heldout_examples"] == 256
  assert len({source().info["fingerprint"], source(bits=7).info["fingerprint"], other.info["fingerprint"]}) == 3
  assert source().info["fingerprint"] == source(seed=3).info["fingerprint"]


def test_test_sets_change_what_they_name():
  sizes = Sizes()
  assert sizes_of_test("repeat", "length=20,repeats=10", sizes) == dataclasses.replace(
    sizes, length=(20, 20), repeats=(10, 10)
  )
  assert sizes_of_test("recall", "item_count=8", sizes) == dataclasses.replace(sizes, item_count=(8, 8))
  for name, text in (
    ("copy", "repeats=3"),
    ("copy", "length"),
    ("sort", "length=3"),
    ("copy", "length=-1"),
    ("copy", ""),
  ):
    with pytest.raises(UserError):
      sizes_of_test(name, text, sizes)


@pytest.mark.parametrize("changes", [
  {"name": "copi"}, {"bits": 0}, {"length": (0, 3)}, {"length": (4, 3)}, {"length": (3,)}, {"repeats": (0, 2)},
  {"name": "recall", "item_count": (1, 3)}, {"name": "recall", "item_length": 0}, {"name": "repeat", "most_repeats": 1},
  {"name": "ngrams"}, {"name": "ngrams", "length": (5, 5)}, {"name": "ngrams", "length": (9, 9), "history": 0},
  {"name": "sort", "answered": 21}, {"name": "sort", "vectors": 0}, {"batch_size": 0}, {"eval_examples": 0},
  {"tests": ("length=0",)},
])  # fmt: skip
def test_bad_sizes_are_refused(changes):
  others = {"name": "copy", "tests": (), "batch_size": 2, "seed": 0, "eval_examples": 10}
  rest = {**others, **{field: value for field, value in changes.items() if field in others}}
  sizes = Sizes(**{field: value for field, value in changes.items() if field not in others})
  with pytest.raises(UserError):
    bit_sequence_source(rest.pop("name"), sizes, **rest)


def test_every_task_is_named():
  assert set(PROBLEMS) == {"copy", "repeat", "recall", "ngrams", "sort"}
