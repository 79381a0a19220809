"""QM9: 130,831 molecules of up to 29 atoms with 13 properties from density functional theory, read from the package `qm9pack`.

Ramakrishnan, Dral, Rupp, von Lilienfeld 2014, Scientific Data 1, 140022; targets, units and chemical accuracies as in Gilmer et
al. 2017, https://arxiv.org/abs/1704.01212, table 2. The four energies are those of atomisation: less the energies of
the free atoms (the set's own atomref.txt), without which they tell little but the composition.

Split: 10,000 molecules at random for validation, 10,000 for testing, as in the paper, of another 130,831 than its 130,462.
Deviations: the package gives no bonds, so that a bond is a pair closer than 1.15 times the sum of its covalent radii (Cordero et al.
2008, Dalton Trans. 2832), of one kind; in 6,000 molecules every hydrogen then has one, and one carbon of 28,000 a fifth. Of the
paper's 13 numbers of an atom those are left that need no chemistry program: element (5), atomic number, number of hydrogens.
"""

import ast
import csv
import hashlib
import importlib.util
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ilya_jax.cache import cache_folder
from ilya_jax.errors import UserError, did_you_mean

Array = np.ndarray

HARTREE = 27.2114  # eV
ELEMENTS = {"H": 1, "C": 6, "N": 7, "O": 8, "F": 9}
_RADII = {1: 0.31, 6: 0.76, 7: 0.71, 8: 0.66, 9: 0.57}  # angstrom
_BONDED = 1.15  # times the sum of two radii
FREE_ATOMS = {  # hartree, in the order of ELEMENTS
  "U0": (-0.500273, -37.846772, -54.583861, -75.064579, -99.718730),
  "U": (-0.498857, -37.845355, -54.582445, -75.063163, -99.717314),
  "H": (-0.497912, -37.844411, -54.581501, -75.062219, -99.716370),
  "G": (-0.510927, -37.861317, -54.598897, -75.079532, -99.733544),
}
_LARGEST = 29
_HELD_OUT = 10_000  # molecules for validation, and for testing; at most a tenth of all
_SPLIT_SEED = 130_462
_CHUNK = 4_096
_FORMAT = 1  # of the kept file


class Target(NamedTuple):
  """A property: the column it stands in, its unit, what one of the column's is in it, and the chemical accuracy."""

  column: str
  unit: str
  factor: float
  accuracy: float


TARGETS: Mapping[str, Target] = {
  "mu": Target("Dipole_debye", "D", 1.0, 0.1),
  "alpha": Target("Polarizability_bohr3", "Bohr^3", 1.0, 0.1),
  "HOMO": Target("HOMO_au", "eV", HARTREE, 0.043),
  "LUMO": Target("LUMO_au", "eV", HARTREE, 0.043),
  "gap": Target("HOMO_LUMO_gap_au", "eV", HARTREE, 0.043),
  "R2": Target("R2_bohr2", "Bohr^2", 1.0, 1.2),
  "ZPVE": Target("ZPVE_au", "eV", HARTREE, 0.0012),
  "U0": Target("InternalEnergy_0K_au", "eV", HARTREE, 0.043),
  "U": Target("InternalEnergy_298K_au", "eV", HARTREE, 0.043),
  "H": Target("Enthalphy_298K_au", "eV", HARTREE, 0.043),
  "G": Target("GibbsFreeEnergy_298K_au", "eV", HARTREE, 0.043),
  "Cv": Target("Heatcapacity_Cv_cal_mol_K", "cal/mol K", 1.0, 0.050),
  "omega1": Target("Harmonic_Freq_cmi", "cm^-1", 1.0, 10.0),
}


def load_qm9(
  path: str = "", *, targets: tuple[str, ...], hydrogens: bool = True
) -> tuple[dict[str, tuple[Array, ...]], tuple[float, ...]]:
  """The arrays of `molecules.Molecules` of "train", "validation" and "test", and each target's chemical accuracy.

  path: a folder that holds qm9_part*.csv; "": that of the installed package. hydrogens: whether hydrogen atoms are nodes.
  Raises UserError on unknown targets, and where the files are not there.
  """
  for name in targets:
    if name not in TARGETS:
      got = f"data.targets: {name!r}{did_you_mean(name, TARGETS)}"
      raise UserError(got, f"of {', '.join(TARGETS)}", "--config.data.targets")
  if not targets:
    raise UserError("no data.targets", f"one or more of {', '.join(TARGETS)}", "--config.data.targets")
  kept = _read(find_folder(path))
  columns = [list(TARGETS).index(name) for name in targets]
  atoms, bonds, positions, mask = _atoms_of(kept["numbers"], kept["positions"], hydrogens=hydrogens)
  leaves = (atoms, bonds, positions, mask, kept["targets"][:, columns])
  order = np.random.Generator(np.random.Philox(key=[_SPLIT_SEED, 0])).permutation(len(mask))
  held_out = min(_HELD_OUT, len(mask) // 10)
  chosen = {
    "train": order[2 * held_out :], "validation": order[:held_out], "test": order[held_out : 2 * held_out],
  }  # fmt: skip
  parts = {split: tuple(leaf[rows] for leaf in leaves) for split, rows in chosen.items() if len(rows)}
  return parts, tuple(TARGETS[name].accuracy for name in targets)


def find_folder(path: str = "") -> Path:
  """The folder of the tables. Raises UserError where there is none."""
  folder = Path(path)
  if not path:
    spec = importlib.util.find_spec("qm9pack")  # not imported: it would import pandas
    if spec is None or not spec.submodule_search_locations:
      raise UserError("qm9 without the package qm9pack", "pip install 'ilya-jax[chem]'", "or set --config.data.path")
    folder = Path(spec.submodule_search_locations[0]) / "data"
  if not list(folder.glob("qm9_part*.csv")):
    raise UserError(f"no qm9_part*.csv in {folder}", "the data folder of qm9pack", "--config.data.path")
  return folder


def _read(folder: Path) -> dict[str, Array]:
  """numbers uint8 [n, 29], positions float32 [n, 29, 3], targets float64 [n, 13]; parsed once (a minute), then kept in the cache."""
  files = sorted(folder.glob("qm9_part*.csv"))
  stamp = repr([_FORMAT, *((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)])
  kept = cache_folder() / "qm9" / f"{hashlib.sha256(stamp.encode()).hexdigest()[:16]}.npz"
  if not kept.is_file():
    rows = (parse(row) for file in files for row in _rows(file))
    numbers, positions, targets = (np.stack(leaves) for leaves in zip(*rows, strict=True))
    kept.parent.mkdir(parents=True, exist_ok=True)
    partial = kept.with_suffix(f".{os.getpid()}.npz")
    np.savez(partial, numbers=numbers, positions=positions, targets=targets)
    partial.replace(kept)
  with np.load(kept) as stored:
    return {name: stored[name] for name in ("numbers", "positions", "targets")}


def _rows(file: Path) -> Iterator[dict[str, str]]:
  with file.open(newline="") as lines:
    yield from csv.DictReader(lines)


def parse(row: Mapping[str, str]) -> tuple[Array, Array, Array]:
  """A row of a table: atomic numbers uint8 [29] (0 beyond the molecule), positions [29, 3] in angstrom, the 13 targets."""
  elements = [ELEMENTS[symbol] for symbol in ast.literal_eval(row["Elements"])]
  numbers, positions = np.zeros(_LARGEST, np.uint8), np.zeros((_LARGEST, 3), np.float32)
  numbers[: len(elements)] = elements
  positions[: len(elements)] = ast.literal_eval(row["XYZ_Ang"])
  values = []
  for name, target in TARGETS.items():
    text: Any = row[target.column]
    value = max(ast.literal_eval(text)) if name == "omega1" else float(text)
    if name in FREE_ATOMS:
      free = dict(zip(ELEMENTS.values(), FREE_ATOMS[name], strict=True))
      value = math.fsum([value, *(-free[number] for number in elements)])
    values.append(value * target.factor)
  return numbers, positions, np.array(values)


def bonds_of(numbers: Array, positions: Array) -> Array:
  """numbers [n, N], positions [n, N, 3] -> bonds bool [n, N, N]."""
  radii = np.zeros(max(_RADII) + 1)
  radii[list(_RADII)] = list(_RADII.values())
  own = radii[numbers]
  places = positions.astype(np.float64)
  apart = np.sqrt(((places[:, :, None] - places[:, None]) ** 2).sum(-1))
  there = (numbers[:, :, None] > 0) & (numbers[:, None] > 0) & ~np.eye(numbers.shape[1], dtype=bool)
  return there & (apart < _BONDED * (own[:, :, None] + own[:, None]))


def _atoms_of(numbers: Array, positions: Array, *, hydrogens: bool) -> tuple[Array, Array, Array, Array]:
  """Atoms float32 [n, N, 7], bonds int8 [n, N, N], positions, mask bool [n, N]."""
  bonds = np.concatenate([
    bonds_of(numbers[k : k + _CHUNK], positions[k : k + _CHUNK]) for k in range(0, len(numbers), _CHUNK)
  ])  # fmt: skip
  attached = (bonds & (numbers == 1)[:, None]).sum(-1)
  if not hydrogens:
    heavy = numbers > 1
    order = np.argsort(~heavy, axis=1, kind="stable")[:, : int(heavy.sum(1).max())]
    rows = np.arange(len(numbers))[:, None]
    mask = heavy[rows, order]
    numbers, attached = np.where(mask, numbers[rows, order], 0), attached[rows, order]
    positions = positions[rows, order] * mask[..., None]
    bonds = bonds[rows[..., None], order[:, :, None], order[:, None]] & mask[:, :, None] & mask[:, None]
  mask = numbers > 0
  element = numbers[..., None] == np.array(list(ELEMENTS.values()))
  atoms = np.concatenate([element, numbers[..., None], attached[..., None]], axis=-1).astype(np.float32)
  return atoms * mask[..., None], bonds.astype(np.int8), positions.astype(np.float32), mask
