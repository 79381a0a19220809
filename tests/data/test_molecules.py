"""Generated molecules against brute force and scipy, trees against Cayley's count, sources, and QM9 on rows of its tables."""

import collections
import csv

import numpy as np
import pytest
from scipy.sparse import csgraph

from ilya_jax.data import qm9
from ilya_jax.data.epochs import order_of_epochs
from ilya_jax.data.molecules import CHARGES, load_molecules, molecule_source, random_tree, steps_apart
from ilya_jax.errors import UserError


def small(name, count=300):
  return load_molecules(name, train_examples=count)


def test_random_trees_are_all_alike():
  """There are 4^2 = 16 labelled trees of 4 nodes (Cayley); chi-squared with 15 degrees of freedom, its 99.99 % point."""
  rng = np.random.default_rng(0)
  draws = 4_000
  found = collections.Counter(frozenset(frozenset(edge) for edge in random_tree(rng, 4)) for _ in range(draws))
  assert len(found) == 16
  assert sum((count - draws / 16) ** 2 / (draws / 16) for count in found.values()) < 44.3


@pytest.mark.parametrize("name", ["charges", "wiener"])
def test_bonds_are_a_labelled_tree_of_five_to_nine_atoms(name):
  train = small(name).parts["train"]
  sizes = train.mask.sum(1)
  assert set(sizes) == set(range(5, 10))
  for bonds, size, atoms in zip(train.bonds, sizes, train.atoms, strict=True):
    assert (bonds == bonds.T).all()
    assert np.count_nonzero(bonds) == 2 * (size - 1)
    assert csgraph.connected_components(bonds[:size, :size])[0] == 1
    assert not bonds[size:].any()
    assert (atoms[:size].sum(1) == 1).all()
    assert not atoms[size:].any()
  assert set(np.unique(train.bonds)) == {0, 1, 2, 3, 4}


def test_charges_and_wiener_targets_by_brute_force():
  charges, wiener = small("charges").parts["train"], small("wiener").parts["train"]
  for row in range(20):
    size = charges.mask[row].sum()
    q, places = CHARGES[charges.atoms[row, :size].argmax(1)], charges.positions[row, :size].astype(np.float64)
    energy = sum(q[i] * q[j] * np.exp(-np.linalg.norm(places[i] - places[j])) for i in range(size) for j in range(i))
    assert charges.targets[row, 0] == pytest.approx(energy, rel=1e-10)
    size = wiener.mask[row].sum()
    lengths = csgraph.shortest_path(wiener.bonds[row, :size, :size], unweighted=True)
    assert wiener.targets[row, 0] == lengths.sum() / 2
    np.testing.assert_array_equal(steps_apart(wiener.bonds[row : row + 1, :size, :size])[0], lengths)


def test_pairs_are_apart_as_their_target_says():
  train = small("pair").parts["train"]
  apart = np.linalg.norm(train.positions[:, 0] - train.positions[:, 1], axis=1)
  np.testing.assert_allclose(train.targets[:, 0], 1 / apart, rtol=1e-5)
  assert 0.5 <= apart.min() < 0.6
  assert 2.4 < apart.max() <= 2.5


def test_epochs_are_permutations_and_seeds_order_them():
  drawn = order_of_epochs(np.arange(30), count=10, seed=0)
  for k in range(3):
    assert sorted(drawn[10 * k : 10 * k + 10]) == list(range(10))
  assert (drawn[:10] != drawn[10:20]).any()
  assert (order_of_epochs(np.arange(10), count=10, seed=1) != drawn[:10]).any()


def test_a_source_gives_epochs_rows_and_the_whole_held_out_set():
  chosen = small("charges")
  source = molecule_source(chosen, name="charges", batch_size=100, seed=3)
  train, heldout = chosen.parts["train"], chosen.parts["heldout"]
  batches = [source.batch(step, split="train") for step in range(3)]
  targets = np.concatenate([batch["targets"] for batch in batches])
  np.testing.assert_array_equal(np.sort(targets, axis=0), np.sort(train.targets.astype(np.float32), axis=0))
  part = source.batch(1, split="train", rows=slice(20, 30))
  for name, leaf in part.items():
    np.testing.assert_array_equal(leaf, batches[1][name][20:30])
  held = [source.batch(k, split="heldout")["targets"] for k in range(source.eval_batches["heldout"])]
  np.testing.assert_array_equal(np.concatenate(held), heldout.targets.astype(np.float32))
  assert source.info["mean"][0] == pytest.approx(train.targets.mean())
  assert source.info["std"] == source.info["yardsticks"] == (pytest.approx(train.targets.std()),)
  assert source.info["d_unique_total"] == 300
  other = molecule_source(small("charges", 299), name="charges", batch_size=100, seed=3).info
  assert other["fingerprint"] != source.info["fingerprint"]


def test_smaller_training_sets_begin_larger_ones():
  for a, b in zip(small("charges", 250).parts["train"], small("charges").parts["train"], strict=True):
    np.testing.assert_array_equal(a, b[:250])


ROWS = {  # of qm9_part1.csv
  "methane": (["C", "H", "H", "H", "H"],
              [[-0.0126981359, 1.0858041578, 0.0080009958], [0.002150416, -0.0060313176, 0.0019761204],
               [1.0117308433, 1.4637511618, 0.0002765748], [-0.540815069, 1.4475266138, -0.8766437152],
               [-0.5238136345, 1.4379326443, 0.9063972942]],
              [1341.307, 1341.3284, 1341.365, 1562.6731, 1562.7453, 3038.3205, 3151.6034, 3151.6788, 3151.7078],
              [0.0, 13.21, -0.3877, 0.1171, 0.5048, 35.3641, 0.044749, -40.47893, -40.476062, -40.475117, -40.498597, 6.469]),
  "water": (["O", "H", "H"],
            [[-0.0343604951, 0.9775395708, 0.0076015923], [0.0647664923, 0.0205721989, 0.0015346341],
             [0.8717903737, 1.3007924048, 0.0006931336]],
            [1671.4222, 3803.6305, 3907.698],
            [1.8511, 6.31, -0.2928, 0.0687, 0.3615, 19.0002, 0.021375, -76.404702, -76.401867, -76.400922, -76.422349, 6.002]),
  "acetylene": (["C", "C", "H", "H"],
                [[0.5995394918, 0.0, 1.0], [-0.5995394918, 0.0, 1.0], [-1.6616385861, 0.0, 1.0], [1.6616385861, 0.0, 1.0]],
                [549.7648, 549.7648, 795.2713, 795.2713, 2078.1131, 3455.8096, 3557.8599],
                [0.0, 16.28, -0.2845, 0.0506, 0.3351, 59.5248, 0.026841, -77.308427, -77.305527, -77.304583, -77.327429, 8.574]),
}  # fmt: skip
COLUMNS = [target.column for name, target in qm9.TARGETS.items() if name != "omega1"]


@pytest.fixture
def tables(tmp_path, monkeypatch):
  """A folder with tables of 30 molecules, ten of each kind, in the form of the package."""
  monkeypatch.setenv("ILYA_JAX_CACHE", str(tmp_path / "cache"))
  for number in (1, 2):
    with (tmp_path / f"qm9_part{number}.csv").open("w", newline="") as file:
      writer = csv.writer(file)
      writer.writerow(["Elements", "XYZ_Ang", "Harmonic_Freq_cmi", *COLUMNS])
      for elements, places, frequencies, values in list(ROWS.values()) * 5:
        writer.writerow([elements, places, frequencies, *values])
  return str(tmp_path)


def test_qm9_rows_become_atoms_bonds_and_energies_of_atomisation(tables):
  names = tuple(qm9.TARGETS)
  for _ in range(2):  # parsed, then from the cache
    whole = load_molecules.__wrapped__("qm9", train_examples=0, targets=names, path=tables)
  assert whole.targets == names
  assert whole.yardsticks[:2] == (0.1, 0.1)
  train = whole.parts["train"]
  assert {split: len(part.mask) for split, part in whole.parts.items()} == {"train": 24, "validation": 3, "test": 3}
  values = {size: train.targets[train.mask.sum(1) == size][0] for size in (3, 4, 5)}
  water = dict(zip(names, values[3], strict=True))
  assert water["mu"] == 1.8511
  assert water["omega1"] == 3907.698
  assert water["HOMO"] == pytest.approx(-0.2928 * 27.2114)
  assert water["U0"] == pytest.approx((-76.404702 + 75.064579 + 2 * 0.500273) * 27.2114)
  assert (
    -17.2 < dict(zip(names, values[5], strict=True))["U0"] < -17.0
  )  # methane: 17.1 eV of atomisation, less 0 K motion
  degrees = {size: sorted(train.bonds[train.mask.sum(1) == size][0].sum(1)[:size]) for size in (3, 4, 5)}
  assert degrees == {3: [1, 1, 2], 4: [1, 1, 2, 2], 5: [1, 1, 1, 1, 4]}
  atoms = train.atoms[train.mask.sum(1) == 3][0]
  np.testing.assert_array_equal(atoms[0], [0, 0, 0, 1, 0, 8, 2])
  np.testing.assert_array_equal(atoms[1], [1, 0, 0, 0, 0, 1, 0])
  assert not atoms[3:].any()


def test_qm9_without_hydrogens_keeps_the_heavy_atoms_and_counts_the_others(tables):
  heavy = load_molecules.__wrapped__("qm9", train_examples=5, targets=("mu", "U0"), hydrogens=False, path=tables)
  train = heavy.parts["train"]
  assert train.targets.shape == (5, 2)
  assert train.mask.shape == (5, 2)
  for atoms, bonds, mask in zip(train.atoms, train.bonds, train.mask, strict=True):
    assert bonds.sum() == 2 * (mask.sum() == 2)
    assert {6: {2: 1, 1: 4}, 8: {1: 2}}[atoms[0, 5]][mask.sum()] == atoms[0, 6]


@pytest.mark.parametrize(("name", "fields"), [
  ("charge", {}), ("qm9", {"targets": ("U9",)}), ("qm9", {"targets": ()}), ("qm9", {"path": "/nowhere", "targets": ("mu",)}),
])  # fmt: skip
def test_unknown_sets_targets_and_folders_are_refused(name, fields):
  with pytest.raises(UserError):
    load_molecules(name, train_examples=10, **fields)
