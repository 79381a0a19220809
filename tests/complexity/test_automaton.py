"""The cups against one attempt after another, the enumerated chain, closed forms, and what must be conserved."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse, stats

from ilya_jax.complexity import automaton
from ilya_jax.errors import UserError


def one_by_one(cells, one, other):
  """The definition: attempts in their order."""
  cells, changed = cells.copy(), []
  for a, b in zip(one, other, strict=True):
    changed.append(cells[a] != cells[b])
    cells[a], cells[b] = cells[b], cells[a]
  return cells, np.array(changed, bool)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.sampled_from([2, 4, 10]), count=st.integers(0, 400))
def test_together_is_in_turn(seed, n, count):
  rng = np.random.default_rng(seed)
  cells = rng.integers(0, 9, n * n).astype(np.uint8)
  one, other = (end[rng.integers(0, 2 * n * (n - 1), count)] for end in automaton.edges(n))
  flipped = rng.random(count) < 0.5
  one, other = np.where(flipped, other, one), np.where(flipped, one, other)
  expected, expected_changed = one_by_one(cells, one, other)
  changed = automaton.swap_in_turn(cells, one, other, first=rng.integers(-9, 9, n * n))
  np.testing.assert_array_equal(cells, expected)
  np.testing.assert_array_equal(changed, expected_changed)


def test_edges_join_each_pair_of_neighbours_once():
  one, other = automaton.edges(6)
  assert len(one) == len(other) == 2 * 6 * 5
  assert len(set(zip(one.tolist(), other.tolist(), strict=True))) == len(one)
  (row, column), (next_row, next_column) = np.divmod(one, 6), np.divmod(other, 6)
  np.testing.assert_array_equal(np.abs(row - next_row) + np.abs(column - next_column), 1)


def test_edges_are_chosen_uniformly(monkeypatch):
  chosen = []
  plain = automaton.swap_in_turn

  def recorded(cells, one, other, *, first):
    chosen.append(one * 10_000 + other)
    return plain(cells, one, other, first=first)

  monkeypatch.setattr(automaton, "swap_in_turn", recorded)
  automaton.Mixer(10, [3]).mix(180_000)
  _, counts = np.unique(np.concatenate(chosen), return_counts=True)
  assert counts.sum() == 180_000
  assert len(counts) == 180
  assert stats.chisquare(counts).pvalue > 1e-3


def enumerated(n):
  """States of the n x n cup as rows of cells, and the interacting rule's transition matrix."""
  cells = n * n
  states = np.zeros((len(list(combinations(range(cells), cells // 2))), cells), np.uint8)
  for state, cream in zip(states, combinations(range(cells), cells // 2), strict=True):
    state[list(cream)] = 1
  numbers = states @ (1 << np.arange(cells))
  of_number = np.argsort(numbers)
  one, other = automaton.edges(n)
  matrix = sparse.csr_array((len(states), len(states)))
  for a, b in zip(one, other, strict=True):
    swapped = states.copy()
    swapped[:, [a, b]] = states[:, [b, a]]
    to = of_number[np.searchsorted(numbers[of_number], swapped @ (1 << np.arange(cells)))]
    matrix = matrix + sparse.csr_array((np.full(len(states), 1 / len(one)), (np.arange(len(states)), to)), matrix.shape)
  return states, matrix


def test_the_enumerated_chain_has_the_mean_profile_and_negative_dependence():
  n, last = 4, 60
  states, matrix = enumerated(n)
  chance = np.zeros(len(states))
  chance[np.flatnonzero((states == automaton.start(n).ravel()).all(axis=1))] = 1
  transposed = matrix.T.tocsr()
  profiles = automaton.interacting_mean(n, np.arange(last + 1))
  block = states.reshape(-1, n, n)[:, 1:3, 1:3].sum(axis=(1, 2))
  for time in range(last + 1):
    mean = (chance @ states).reshape(n, n)
    np.testing.assert_allclose(mean, np.repeat(profiles[time][:, None], n, axis=1), atol=1e-12)
    variance = chance @ block.astype(float) ** 2 - (chance @ block) ** 2
    independent = (mean * (1 - mean))[1:3, 1:3].sum()
    assert variance <= independent + 1e-12
    chance = transposed @ chance
  assert variance < 0.9 * independent


def test_simulated_states_have_the_enumerated_chances():
  states, matrix = enumerated(2)
  chance = (states == automaton.start(2).ravel()).all(axis=1).astype(float)
  for _ in range(3):
    chance = matrix.T @ chance
  found = automaton.interacting(2, np.array([3]), seeds=range(3000)).pictures[0].reshape(3000, 4)
  counts = (found[:, None] == states).all(axis=2).sum(axis=0)
  assert counts[chance == 0].sum() == 0
  assert stats.chisquare(counts[chance > 0], 3000 * chance[chance > 0]).pvalue > 1e-3


def test_mean_profiles_of_the_card():
  found = automaton.interacting_mean(10, [1000])[0]
  half = [0.86448718, 0.83025269, 0.76394743, 0.67065971, 0.55906025]
  np.testing.assert_allclose(found, half + [1 - value for value in half[::-1]], atol=5e-9)
  found = automaton.interacting_mean(20, [20_000])[0][[0, 5, 9, 10, 14, 19]]
  np.testing.assert_allclose(found, [0.831656, 0.717085, 0.526316, 0.473684, 0.282915, 0.168344], atol=5e-7)
  found = automaton.independent_mean(10, [50])[0][:5]
  np.testing.assert_allclose(found, [0.68292609, 0.6650214, 0.63096351, 0.58408489, 0.52897392], atol=5e-9)


def test_mean_profile_is_a_power_of_the_step():
  n, t = 8, 37
  path = np.diag([1.0] + [2.0] * (n - 2) + [1.0]) - np.eye(n, k=1) - np.eye(n, k=-1)
  step = np.eye(n) - path / (2 * n * (n - 1))
  expected = np.linalg.matrix_power(step, t) @ automaton.start(n)[:, 0]
  np.testing.assert_allclose(automaton.interacting_mean(n, [0, t])[1], expected, atol=1e-12)
  np.testing.assert_allclose(automaton.interacting_mean(n, [0, t])[0], automaton.start(n)[:, 0], atol=1e-12)


def test_simulated_means_are_the_exact_ones():
  runs, n = 400, 20
  rows = automaton.interacting(n, np.array([20_000]), seeds=range(runs)).pictures[0].mean(axis=2)  # [R, N]
  error = rows.std(axis=0, ddof=1) / np.sqrt(runs)
  assert (np.abs(rows.mean(axis=0) - automaton.interacting_mean(n, [20_000])[0]) < 4 * error).all()
  rows = automaton.independent(10, np.array([50]), seeds=range(runs)).pictures[0].mean(axis=2)
  error = rows.std(axis=0, ddof=1) / np.sqrt(runs)
  assert (np.abs(rows.mean(axis=0) - automaton.independent_mean(10, [50])[0]) < 4 * error).all()


@pytest.mark.parametrize("model", ["interacting", "independent", "stirred", "tendril"])
def test_cream_is_conserved_and_the_start_is_the_cup(model):
  n, times, seeds = 12, np.array([0, 1, 10, 200]), (0, 5)
  made = {
    "interacting": lambda: automaton.interacting(n, times, seeds=seeds),
    "independent": lambda: automaton.independent(n, times, seeds=seeds),
    "stirred": lambda: automaton.stirred(n, 20, seeds=seeds, amplitude=3, attempts=30),
    "tendril": lambda: automaton.tendril(n, times, seeds=seeds, attempts=5),
  }[model]()
  assert made.pictures.dtype == np.uint16
  assert made.pictures.shape[1:] == (2, n, n)
  np.testing.assert_array_equal(made.pictures[0], np.stack([automaton.start(n)] * 2))
  np.testing.assert_array_equal(made.pictures.sum(axis=(2, 3)), n * n // 2)
  if model != "independent":
    assert made.pictures.max() == 1
  assert (made.pictures[-1, 0] != made.pictures[-1, 1]).any()


def test_a_seed_gives_the_same_in_any_company_and_at_any_snapshots():
  times = np.array([0, 100, 5000])
  for model in (automaton.interacting, automaton.independent):
    alone, together = model(8, times, seeds=[4]), model(8, times[1:], seeds=[1, 4])
    np.testing.assert_array_equal(alone.pictures[1:, 0], together.pictures[:, 1])
    np.testing.assert_array_equal(alone.swaps[1:, 0], together.swaps[:, 1])


def test_half_of_the_attempts_swap_at_equilibrium():
  """An edge joins cells that differ with chance n^2 / (2 (n^2 - 1)) under the uniform distribution."""
  n, runs, attempts = 10, 200, 2000
  mixer = automaton.Mixer(n, range(runs))
  rng = np.random.default_rng(0)
  mixer.cells[:] = rng.permuted(mixer.cells.reshape(runs, -1), axis=1).reshape(mixer.cells.shape)
  mixer.mix(attempts)
  share = mixer.swaps / attempts
  assert abs(share.mean() - n * n / (2 * (n * n - 1))) < 4 * share.std(ddof=1) / np.sqrt(runs)


def test_independent_particles_end_uniform():
  """A cell's count is Binomial(n^2 / 2, 1 / n^2), near Poisson with mean 1/2."""
  n, runs = 8, 200
  counts = automaton.independent(n, np.array([200]), seeds=range(runs)).pictures[0].reshape(runs, -1)
  cell = counts[:, 27]  # one cell of each cup: independent draws
  chance = stats.binom(n * n // 2, 1 / n**2).pmf(np.arange(3))
  found = np.bincount(np.minimum(cell, 3), minlength=4)
  assert stats.chisquare(found, runs * np.append(chance, 1 - chance.sum())).pvalue > 1e-3
  np.testing.assert_allclose(chance, stats.poisson(0.5).pmf(np.arange(3)), rtol=0.03)


def test_shear_is_undone_by_its_inverse_and_moves_rows_to_the_right():
  rng = np.random.default_rng(1)
  cells, shifts = rng.integers(0, 2, (3, 10, 10)), rng.integers(-25, 25, (3, 10))
  np.testing.assert_array_equal(automaton.shear(automaton.shear(cells, shifts), -shifts), cells)
  np.testing.assert_array_equal(automaton.shear(cells, shifts)[1, 4], np.roll(cells[1, 4], shifts[1, 4]))


def test_stirring_with_amplitude_zero_is_mixing():
  n, steps, seeds = 10, 6, (2, 3)
  made = automaton.stirred(n, steps, seeds=seeds, amplitude=0, attempts=77)
  mixer = automaton.Mixer(n, seeds, stream="stirred")
  for step in range(steps):
    for rng in mixer.generators:
      rng.uniform(0, 2 * np.pi, 2)  # the phases
    mixer.mix(77)
    np.testing.assert_array_equal(made.pictures[step + 1], mixer.cells)
    np.testing.assert_array_equal(made.swaps[step + 1], mixer.swaps)


def test_an_unmixed_tendril_fills_the_lower_half_from_the_middle():
  made = automaton.tendril(10, np.array([0, 1, 20_000]), seeds=(0,), attempts=0)
  first = made.pictures[1, 0] != made.pictures[0, 0]
  assert first[0, 0]  # the cell of cream that was taken
  assert first[5:].sum() == 1
  np.testing.assert_array_equal(made.pictures[2, 0], 1 - automaton.start(10))


def test_blocks_of_independent_particles_deviate_no_more_than_chernoff_says():
  """The number in a block is a sum of independent Bernoulli variables, whose distribution is a convolution."""
  n, side = 40, 20
  chances = [row[5:25].sum() * side / n for row in _row_transitions(n, 60)[: n // 2]]  # of a particle of each row
  counts = np.ones(1)
  for chance in np.repeat(chances, n):
    counts = np.convolve(counts, [1 - chance, chance])
  expected = n * sum(chances)
  assert expected <= side**2
  for parts in (3, 5, 7, 10):
    beyond = counts[np.abs(np.arange(len(counts)) - expected) > side**2 / parts].sum()
    assert beyond <= automaton.deviation_bound(side, parts=parts)
  assert automaton.deviation_bound(30, parts=7) == pytest.approx(2 * np.exp(-900 / 147))


def _row_transitions(n, steps):
  """Row to row chances of one particle after so many steps [N, N]; columns are uniform and stay so."""
  path = np.diag([1.0] + [2.0] * (n - 2) + [1.0]) - np.eye(n, k=1) - np.eye(n, k=-1)
  return np.linalg.matrix_power(np.eye(n) - path / 4, steps)


def test_an_odd_cup_is_refused():
  with pytest.raises(UserError, match="even number"):
    automaton.start(7)
