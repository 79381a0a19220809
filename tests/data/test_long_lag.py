"""Long-lag tasks: answers recomputed from the sequences, the rules of 1997 symbol by symbol, streams, costs of guessing."""

import jax
import numpy as np
import pytest

from ilya_jax.data.long_lag import SYMBOLS, long_lag_source
from ilya_jax.errors import UserError

WINDOWS_6A, WINDOWS_6B = ((10, 20), (50, 60)), ((10, 20), (33, 43), (66, 76))


def draw(name, *, length, rows=4096, step=0, split="train", seed=0, **sizes):
  source = long_lag_source(name, length=length, batch_size=rows, seed=seed, eval_examples=512, **sizes)
  batch = jax.jit(source.batch, static_argnames="split")(step, split=split)
  return source, jax.tree.map(np.asarray, batch)


@pytest.mark.parametrize(("length", "spread"), [(20, 0), (7, 6)])
def test_adding_has_a_mark_in_each_half_and_asks_for_the_sum(length, spread):
  source, batch = draw("adding", length=length, spread=spread)
  inputs, lengths = batch["inputs"], batch["lengths"]
  assert set(lengths) == set(range(length, length + spread + 1))
  assert source.info["longest"] == inputs.shape[1] == length + spread
  places = []
  for values, marks, end, target in zip(inputs[..., 0], inputs[..., 1], lengths, batch["targets"][:, 0], strict=True):
    first, second = np.flatnonzero(marks)
    assert marks[first] == marks[second] == 1
    assert first < end // 2 <= second < end
    assert target == pytest.approx(values[first] + values[second], abs=1e-6)
    assert not values[end:].any()
    assert 0 <= values.min() <= values.max() < 1
    places.append((first, second))
  assert {first for first, _ in places} == set(range((length + spread) // 2))
  assert max(second for _, second in places) == length + spread - 1


def test_guessing_the_mean_of_adding_costs_a_sixth():
  source, batch = draw("adding", length=10, rows=100_000)
  targets = batch["targets"]
  assert targets.mean() == pytest.approx(1.0, abs=0.01)
  assert targets.var() == pytest.approx(1 / 6, rel=0.03)
  assert source.info["guess_loss"] == pytest.approx(1 / 6)


def test_adding_of_1997_follows_the_paper():
  source, batch = draw("adding_1997", length=100, rows=8192)
  lengths, longest = batch["lengths"], source.info["longest"]
  assert longest == 110
  counts = np.bincount(lengths, minlength=111)[100:]
  assert counts.sum() == 8192
  assert np.abs(counts - 8192 / 11).max() < 5 * np.sqrt(8192 / 11)
  seen, firsts_marked = set(), 0
  for inputs, end, target in zip(batch["inputs"], lengths, batch["targets"][:, 0], strict=True):
    values, marks = inputs.T
    assert marks[0] == marks[end - 1] == -1
    assert np.abs(values).max() <= 1
    assert not inputs[end:].any()
    chosen = np.flatnonzero(marks == 1)
    assert set(np.unique(marks[:end])) <= {-1, 0, 1}
    assert np.flatnonzero(marks == -1).tolist() == [0, end - 1]
    assert target == pytest.approx(0.5 + values[chosen].sum() / 4, abs=1e-6)
    if len(chosen) == 1:  # the first step was chosen, and counts nothing
      assert values[0] == 0
      firsts_marked += 1
    else:
      assert len(chosen) == 2
      assert chosen[0] < 10
    assert chosen[-1] <= 49  # half the shortest sequence lies behind
    seen.update(chosen.tolist())
  assert seen == set(range(1, 50))
  expected = 8192 * (0.1 + 0.9 / 49)
  assert abs(firsts_marked - expected) < 4 * np.sqrt(expected)
  assert np.square(batch["targets"] - 0.5).mean() == pytest.approx(source.info["guess_loss"], rel=0.05)
  assert source.info["guess_loss"] == pytest.approx(1 / 24, rel=0.07)


@pytest.mark.parametrize("windows", [WINDOWS_6A, WINDOWS_6B])
def test_temporal_order_symbol_by_symbol(windows):
  source, batch = draw("temporal_order", length=100, spread=10, windows=windows)
  classes = {"XX": 0, "XY": 1, "YX": 2, "YY": 3, "XXX": 0, "XXY": 1, "XYX": 2, "XYY": 3, "YXX": 4, "YXY": 5, "YYX": 6,
             "YYY": 7}  # fmt: skip
  assert source.info["classes"] == 2 ** len(windows)
  assert source.info["guess_loss"] == pytest.approx(np.log(2 ** len(windows)))
  seen, found = [set() for _ in windows], []
  for inputs, end, target in zip(batch["inputs"], batch["lengths"], batch["targets"], strict=True):
    assert 100 <= end <= 110
    assert (inputs[:end].sum(1) == 1).all()
    assert not inputs[end:].any()
    text = [SYMBOLS[k] for k in inputs[:end].argmax(1)]
    assert text[0] == "E"
    assert text[-1] == "B"
    places = [position for position, symbol in enumerate(text, start=1) if symbol in "XY"]
    assert all(low <= place <= high for place, (low, high) in zip(places, windows, strict=True))
    assert set(text[1:-1]) - set("XY") <= set("abcd")
    assert classes["".join(text[place - 1] for place in places)] == target
    found.append(target)
    for places_seen, place in zip(seen, places, strict=True):
      places_seen.add(place)
  assert seen == [set(range(low, high + 1)) for low, high in windows]
  counts = np.bincount(found)
  assert np.abs(counts - 4096 / len(counts)).max() < 5 * np.sqrt(4096 / len(counts))


def test_first_symbol():
  source, batch = draw("first_symbol", length=10, rows=512)
  assert source.info["inputs"] == 11
  symbols = batch["inputs"].argmax(2)
  np.testing.assert_array_equal(symbols[:, 0], batch["targets"])
  np.testing.assert_array_equal(symbols[:, 1:], np.tile(np.arange(2, 11), (512, 1)))
  assert 190 < batch["targets"].sum() < 322
  assert (batch["lengths"] == 10).all()


def test_batches_are_functions_of_seed_and_step_and_the_held_out_set_of_the_problem_alone():
  sizes = {"length": 30, "spread": 3, "windows": ((4, 8), (20, 24))}
  source, first = draw("temporal_order", rows=4, **sizes)
  batch = jax.jit(long_lag_source("temporal_order", batch_size=4, seed=0, eval_examples=9, **sizes).batch)
  np.testing.assert_array_equal(first["inputs"], batch(0)["inputs"])
  assert not np.array_equal(first["inputs"], batch(1)["inputs"])
  assert not np.array_equal(first["inputs"], draw("temporal_order", rows=4, seed=1, **sizes)[1]["inputs"])
  one, held = draw("temporal_order", rows=4, split="heldout", **sizes)
  _, other = draw("temporal_order", rows=7, split="heldout", seed=5, **sizes)
  np.testing.assert_array_equal(held["inputs"], other["inputs"])
  assert held["inputs"].shape == (256, 33, 8)
  assert one.eval_batches == {"heldout": 2}
  assert one.info["heldout_examples"] == 512
  changed = long_lag_source(
    "temporal_order", batch_size=4, seed=0, eval_examples=9, **{**sizes, "windows": ((4, 8), (20, 25))}
  )
  assert source.info["fingerprint"] == one.info["fingerprint"] != changed.info["fingerprint"]
  assert source.info["d_unique_total"] is None


@pytest.mark.parametrize("changes", [
  {"name": "additon"}, {"length": 1}, {"spread": -1}, {"batch_size": 0}, {"eval_examples": 0},
  {"name": "adding_1997", "length": 19}, {"name": "first_symbol", "length": 0},
  {"name": "temporal_order", "windows": ()}, {"name": "temporal_order", "windows": ((2,), (5, 6))},
  {"name": "temporal_order", "windows": ((1, 5),)}, {"name": "temporal_order", "windows": ((5, 9), (9, 12))},
  {"name": "temporal_order", "windows": ((5, 4),)}, {"name": "temporal_order", "windows": ((5, 30),)},
])  # fmt: skip
def test_bad_sizes_are_refused(changes):
  sizes = {"name": "adding", "length": 30, "spread": 0, "batch_size": 2, "seed": 0, "eval_examples": 10, **changes}
  with pytest.raises(UserError):
    long_lag_source(sizes.pop("name"), **sizes)
