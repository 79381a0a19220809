"""Heads of a Neural Turing Machine against the equations in NumPy loops, hand-made weights, permutations, scalings, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ilya_jax.models.addressing import (
  Heads,
  address,
  content_weights,
  interpolate,
  read,
  sharpen,
  shift,
  shift_by_window,
  write,
)


def quick(function):
  """Compiled in less time, to run more slowly."""
  return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def softmax(x):
  raised = np.exp(x - x.max(-1, keepdims=True))
  return raised / raised.sum(-1, keepdims=True)


def random_heads(rng, *, batch=2, heads=3, columns=4, shifts=3):
  """Heads as a controller might ask for them, in float64."""
  return Heads(
    rng.normal(size=(batch, heads, columns)),
    np.abs(rng.normal(size=(batch, heads))) * 3,
    rng.random((batch, heads)),
    softmax(rng.normal(size=(batch, heads, shifts))),
    1 + np.abs(rng.normal(size=(batch, heads))),
  )


def random_case(seed=0, *, batch=2, heads=3, rows=7, columns=4, shifts=3):
  rng = np.random.default_rng(seed)
  asked = random_heads(rng, batch=batch, heads=heads, columns=columns, shifts=shifts)
  return asked, softmax(rng.normal(size=(batch, heads, rows))), rng.normal(size=(batch, rows, columns))


def addressed(heads, previous, memory):
  """Eqs. 5 to 9, one head of one sequence, row by row."""
  key, strength, gate, shifts, sharpening = heads
  rows, half = len(memory), len(shifts) // 2
  content = np.array([strength * key @ row / np.linalg.norm(key) / np.linalg.norm(row) for row in memory])
  content = np.exp(content) / np.exp(content).sum()
  gated = gate * content + (1 - gate) * previous
  moved = np.zeros(rows)
  for i in range(rows):
    for j in range(rows):
      distance = (i - j + half) % rows
      if distance < len(shifts):
        moved[i] += gated[j] * shifts[distance]
  return moved**sharpening / (moved**sharpening).sum()


@pytest.mark.parametrize("shifts", [3, 5])
def test_addresses_reads_and_writes_are_those_of_the_equations(shifts):
  heads, previous, memory = random_case(shifts=shifts)
  rng = np.random.default_rng(1)
  erases, adds = rng.random((2, 3, 4)), rng.normal(size=(2, 3, 4))
  with jax.enable_x64(True):
    weights = np.asarray(quick(address)(Heads(*map(jnp.asarray, heads)), jnp.asarray(previous), jnp.asarray(memory)))
    reads = np.asarray(read(jnp.asarray(weights), jnp.asarray(memory)))
    after = write(jnp.asarray(memory), jnp.asarray(weights), erases=jnp.asarray(erases), adds=jnp.asarray(adds))
  for b in range(2):
    expected = memory[b].copy()
    for h in range(3):
      own = addressed([leaf[b, h] for leaf in heads], previous[b, h], memory[b])
      np.testing.assert_allclose(weights[b, h], own, rtol=1e-6)  # but for the small numbers added to norms and weights
      np.testing.assert_allclose(reads[b, h], sum(w * row for w, row in zip(weights[b, h], memory[b], strict=True)))
      expected *= 1 - np.outer(weights[b, h], erases[b, h])
    for h in range(3):
      expected += np.outer(weights[b, h], adds[b, h])
    np.testing.assert_allclose(np.asarray(after)[b], expected, rtol=1e-10)


def one_hot(row, rows=8):
  return jnp.zeros((1, 1, rows), jnp.float32).at[0, 0, row].set(1)


def asked(*, shifts, gate=0.0, sharpening=1.0, strength=50.0, key=None):
  key = jnp.ones(20, jnp.float32) if key is None else key
  numbers = [jnp.full((1, 1), value, jnp.float32) for value in (strength, gate, sharpening)]
  return Heads(key[None, None], numbers[0], numbers[1], jnp.asarray(shifts, jnp.float32)[None, None], numbers[2])


def test_a_strong_key_finds_its_row():
  memory = jnp.asarray(np.random.default_rng(0).normal(size=(1, 8, 20)), jnp.float32)
  found = quick(address)(asked(shifts=[0, 1, 0], gate=1.0, key=memory[0, 3]), one_hot(6), memory)
  np.testing.assert_allclose(found, one_hot(3), atol=1e-6)


def test_a_closed_gate_ignores_the_content_exactly():
  previous = jnp.asarray(softmax(np.random.default_rng(1).normal(size=(1, 1, 8))), jnp.float32)
  content = jnp.full((1, 1, 8), 1 / 8, jnp.float32)
  np.testing.assert_array_equal(interpolate(content, previous, jnp.zeros((1, 1), jnp.float32)), previous)
  moved = quick(address)(asked(shifts=[0, 1, 0]), one_hot(5), jnp.ones((1, 8, 20), jnp.float32))
  np.testing.assert_allclose(moved, one_hot(5), atol=1e-6)


@pytest.mark.parametrize("row", [0, 3, 7])
def test_a_positive_shift_moves_to_the_next_row_and_from_the_last_to_the_first(row):
  shifts = jnp.array([[[0.0, 0.0, 1.0]]], jnp.float32)
  np.testing.assert_array_equal(shift(one_hot(row), shifts), one_hot((row + 1) % 8))
  np.testing.assert_array_equal(shift(one_hot(row), shifts[..., ::-1]), one_hot((row - 1) % 8))


def test_spread_and_sharpened_weights():
  spread = shift(one_hot(4), jnp.array([[[0.1, 0.8, 0.1]]], jnp.float32))
  np.testing.assert_allclose(spread[0, 0, 3:6], [0.1, 0.8, 0.1], rtol=1e-6)
  sharp = sharpen(spread, jnp.full((1, 1), 2.0, jnp.float32))
  np.testing.assert_allclose(sharp[0, 0, 3:6], np.array([0.01, 0.64, 0.01]) / 0.66, rtol=1e-5)


@pytest.mark.parametrize("shifts", [3, 5, 7])
def test_circular_convolution_is_a_sum_of_rolls(shifts):
  rng = np.random.default_rng(shifts)
  weights, amounts = softmax(rng.normal(size=(2, 3, 9))), softmax(rng.normal(size=(2, 3, shifts)))
  rolled = sum(np.roll(weights, k - shifts // 2, axis=-1) * amounts[..., k, None] for k in range(shifts))
  with jax.enable_x64(True):
    np.testing.assert_allclose(shift(jnp.asarray(weights), jnp.asarray(amounts)), rolled, rtol=1e-12)


@pytest.mark.parametrize("lower", [6.7, -1.25, 0.0, 9.5])
def test_a_window_is_the_convolution_with_what_it_covers(lower):
  rows, weights = 8, softmax(np.random.default_rng(2).normal(size=(1, 1, 8)))
  whole, part = int(np.floor(lower)), lower - np.floor(lower)
  rolled = (1 - part) * np.roll(weights, whole, axis=-1) + part * np.roll(weights, whole + 1, axis=-1)
  with jax.enable_x64(True):
    moved = shift_by_window(jnp.asarray(weights), jnp.full((1, 1), lower))
  np.testing.assert_allclose(moved, rolled, rtol=1e-10)
  if lower == 6.7:
    spot = shift_by_window(one_hot(0, rows), jnp.full((1, 1), lower, jnp.float32))
    np.testing.assert_allclose(spot[0, 0, 6:], [0.3, 0.7], rtol=1e-5)


def test_two_heads_on_one_row_both_erase_before_either_adds():
  rng = np.random.default_rng(3)
  memory, adds = rng.normal(size=(1, 8, 5)), rng.normal(size=(1, 2, 5))
  weights = np.zeros((1, 2, 8))
  weights[0, :, 2] = 1
  with jax.enable_x64(True):
    after = write(jnp.asarray(memory), jnp.asarray(weights), erases=jnp.ones((1, 2, 5)), adds=jnp.asarray(adds))
  memory[0, 2] = adds.sum(1)[0]
  np.testing.assert_allclose(after, memory, rtol=1e-12)


def test_permuted_rows_are_found_where_they_went():
  heads, previous, memory = random_case(4)
  order = np.random.default_rng(5).permutation(7)
  with jax.enable_x64(True):
    keys, strengths, gates = (jnp.asarray(leaf) for leaf in heads[:3])
    both = []
    for own in (np.arange(7), order):
      content = content_weights(keys, strengths, jnp.asarray(memory[:, own]))
      both.append((content, interpolate(content, jnp.asarray(previous[..., own]), gates)))
  for whole, permuted in zip(*both, strict=True):
    np.testing.assert_allclose(np.asarray(whole)[..., order], permuted, rtol=1e-10)


def test_content_does_not_depend_on_lengths():
  heads, _, memory = random_case(6)
  factors = np.random.default_rng(7).uniform(0.5, 20, (2, 7, 1))
  with jax.enable_x64(True):
    plain = content_weights(*map(jnp.asarray, heads[:2]), jnp.asarray(memory))
    scaled = content_weights(jnp.asarray(heads.keys * 3), jnp.asarray(heads.strengths), jnp.asarray(memory * factors))
  np.testing.assert_allclose(plain, scaled, rtol=1e-6)  # but for the small number added to norms


def test_rows_and_keys_of_zero_have_finite_values_and_gradients():
  heads, previous, memory = random_case(8)
  memory[:, 2], heads.keys[:, 1] = 0, 0
  previous[:, 0] = np.eye(7)[3]
  heads.gates[:, 0] = 0
  arguments = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), (heads, previous, memory))

  def value(arguments):
    heads, previous, memory = arguments
    weights = address(heads, previous, memory)
    return jnp.sum(read(weights, memory) ** 2)

  found, gradients = quick(jax.value_and_grad(value))(arguments)
  assert np.isfinite(found)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("window", [False, True])
def test_gradients_against_finite_differences(window):
  heads, previous, memory = random_case(9)
  if window:
    heads = heads._replace(shifts=np.random.default_rng(1).uniform(0.2, 0.8, (2, 3, 1)) + 2)
  rng, step = np.random.default_rng(10), 1e-6
  arguments = (heads, previous, memory, rng.random((2, 3, 4)), rng.normal(size=(2, 3, 4)))
  direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), arguments)

  def value(arguments):
    heads, previous, memory, erases, adds = arguments
    weights = address(heads, previous, memory)
    after = write(memory, weights, erases=erases, adds=adds)
    return jnp.sum(jnp.sin(read(weights, after)))

  with jax.enable_x64(True):
    both = quick(jax.value_and_grad(value))
    ahead, behind = (both(jax.tree.map(lambda a, d, s=s: a + s * d, arguments, direction))[0] for s in (step, -step))
    gradient = jax.tree.map(np.asarray, both(arguments)[1])
  slope = sum(np.sum(a * d) for a, d in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True))
  assert (float(ahead) - float(behind)) / (2 * step) == pytest.approx(slope, rel=1e-6)
