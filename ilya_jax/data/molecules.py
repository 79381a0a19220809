"""Molecules in memory: generated ones whose answer is known, QM9 (`ilya_jax.data.qm9`), and their batches, padded with nothing.

Gilmer et al. 2017, https://arxiv.org/abs/1704.01212, whose claims the generated sets try without quantum chemistry.

  name     atoms                                   target
  charges  5 to 9 of 4 types, at uniform places    sum over pairs of q_i q_j exp(-r_ij), charges 1, -1, 1/2, -1/2 by type
           in a cube of side 2.2
  wiener   5 to 9 of 4 types, nowhere              the Wiener index of their tree: the sum of all distances along bonds
  pair     2 of 4 types, .5 to 2.5 apart           1 / r
  qm9      the molecules of QM9                    its 13 targets

Generated atoms are joined by a random labelled tree, all n^(n-2) alike (Pruefer 1918), whose bonds have labels 1 to 4. Neither tells
anything of the positions: grown along its bonds, a molecule would give its distances away.

A batch is {"atoms": float32 [B, N, F], "bonds": int32 [B, N, N] (0: none), "positions": float32 [B, N, 3], "mask": bool [B, N],
"targets": float32 [B, K]}; N is the largest molecule's size, what lies beyond a molecule's own is zero.
"""

import functools
import hashlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from ilya_jax.data.epochs import order_of_epochs
from ilya_jax.data.qm9 import load_qm9
from ilya_jax.errors import UserError, did_you_mean
from ilya_jax.task import Source

Array = np.ndarray

TYPES = 4
CHARGES = np.array([1.0, -1.0, 0.5, -0.5])  # of the types of `charges`
LABELS = 4  # of bonds
SIDE = 2.2  # of the cube of `charges`
APART = (0.5, 2.5)  # of the atoms of `pair`
_FEWEST, _MOST = 5, 9
_HELD_OUT = 1_000  # generated molecules
_EVALUATED = 200  # molecules of a held-out batch
_SEED = 1704  # of the generated sets


class Molecules(NamedTuple):
  """Molecules, padded: atoms float32 [n, N, F], bonds int8 [n, N, N], positions float32 [n, N, 3], mask bool [n, N], targets
  float64 [n, K] in their own units."""

  atoms: Array
  bonds: Array
  positions: Array
  mask: Array
  targets: Array

  def take(self, chosen: Array | slice) -> "Molecules":
    """These molecules."""
    return Molecules(*(leaf[chosen] for leaf in self))

  def batch(self) -> dict[str, Array]:
    """All of them as a batch."""
    made = self._asdict()
    return {**made, "bonds": self.bonds.astype(np.int32), "targets": self.targets.astype(np.float32)}


class MoleculeSet(NamedTuple):
  """parts: split -> molecules; "train" is one of them. targets: their names. yardsticks: an error of 1 in each target's unit, none
  where it is the deviation of the training targets. labels: kinds of bonds."""

  parts: Mapping[str, Molecules]
  targets: tuple[str, ...]
  yardsticks: tuple[float, ...] | None
  labels: int


def random_tree(rng: np.random.Generator, size: int) -> list[tuple[int, int]]:
  """The edges of a random labelled tree of 2 or more nodes, each tree as likely as any other."""
  sequence = rng.integers(0, size, size - 2).tolist()
  degree = [1 + sequence.count(node) for node in range(size)]
  edges = []
  for node in sequence:
    leaf = degree.index(1)
    edges.append((leaf, node))
    degree[leaf], degree[node] = 0, degree[node] - 1
  first, second = (node for node in range(size) if degree[node] == 1)
  return [*edges, (first, second)]


def steps_apart(bonds: Array) -> Array:
  """bonds [n, N, N] (0: none) -> the length of the shortest path along bonds, float64 [n, N, N], inf where there is none."""
  size = bonds.shape[1]
  lengths = np.where(bonds > 0, 1.0, np.inf)
  lengths[:, range(size), range(size)] = 0.0
  for middle in range(size):
    lengths = np.minimum(lengths, lengths[:, :, middle, None] + lengths[:, middle, None])
  return lengths


def distances(positions: Array) -> Array:
  """positions [n, N, 3] -> distances [n, N, N], in float64."""
  places = positions.astype(np.float64)
  return np.sqrt(((places[:, :, None] - places[:, None]) ** 2).sum(-1))


def _trees(rng: np.random.Generator, count: int, *, fewest: int, most: int) -> tuple[Array, Array, Array]:
  """Types int [n, N], bonds int8 [n, N, N], mask bool [n, N] of random trees of `fewest` to `most` atoms."""
  sizes = rng.integers(fewest, most + 1, count)
  mask = np.arange(most) < sizes[:, None]
  types = np.where(mask, rng.integers(0, TYPES, (count, most)), -1)
  bonds = np.zeros((count, most, most), np.int8)
  for own, size in zip(bonds, sizes, strict=True):
    for one, other in random_tree(rng, int(size)):
      own[one, other] = own[other, one] = rng.integers(1, LABELS + 1)
  return types, bonds, mask


def _draw_charges(rng: np.random.Generator, count: int) -> Molecules:
  types, bonds, mask = _trees(rng, count, fewest=_FEWEST, most=_MOST)
  positions = (rng.uniform(0, SIDE, (*types.shape, 3)) * mask[..., None]).astype(np.float32)
  charges = np.where(mask, CHARGES[types], 0.0)
  products = charges[:, :, None] * charges[:, None] * np.exp(-distances(positions))
  targets = np.triu(products, k=1).sum((1, 2))
  return Molecules(_one_hot(types), bonds, positions, mask, targets[:, None])


def _draw_wiener(rng: np.random.Generator, count: int) -> Molecules:
  types, bonds, mask = _trees(rng, count, fewest=_FEWEST, most=_MOST)
  lengths = np.where(mask[:, :, None] & mask[:, None], steps_apart(bonds), 0.0)
  targets = lengths.sum((1, 2)) / 2
  return Molecules(_one_hot(types), bonds, np.zeros((*types.shape, 3), np.float32), mask, targets[:, None])


def _draw_pair(rng: np.random.Generator, count: int) -> Molecules:
  types, bonds, mask = _trees(rng, count, fewest=2, most=2)
  directions = rng.standard_normal((count, 3))
  directions /= np.linalg.norm(directions, axis=1, keepdims=True)
  apart = rng.uniform(*APART, (count, 1))
  positions = np.stack([-apart * directions / 2, apart * directions / 2], axis=1).astype(np.float32)
  return Molecules(_one_hot(types), bonds, positions, mask, 1 / apart)


def _one_hot(types: Array) -> Array:
  return (types[..., None] == np.arange(TYPES)).astype(np.float32)


GENERATED: Mapping[str, Callable[[np.random.Generator, int], Molecules]] = {
  "charges": _draw_charges, "wiener": _draw_wiener, "pair": _draw_pair,
}  # fmt: skip


@functools.lru_cache(maxsize=4)
def load_molecules(
  name: str, *, train_examples: int, targets: tuple[str, ...] = (), hydrogens: bool = True, path: str = ""
) -> MoleculeSet:
  """The set of a name; the generated ones are the same always, a smaller training set the beginning of a larger one.

  targets, hydrogens, path: of qm9 (`qm9.load_qm9`). Raises UserError on an unknown name and a set that has not as many
  training molecules.
  """
  if name in GENERATED:
    parts = {}
    for stream, (split, count) in enumerate({"train": train_examples, "heldout": _HELD_OUT}.items()):
      chunks = []  # drawn in chunks of a fixed size, so that a larger set begins with a smaller one
      for chunk in range(-(-count // _EVALUATED)):
        rng = np.random.Generator(np.random.Philox(key=[_SEED, 1 << 32 | stream << 16 | chunk]))
        chunks.append(GENERATED[name](rng, _EVALUATED))
      parts[split] = Molecules(*(np.concatenate(leaves)[:count] for leaves in zip(*chunks, strict=True)))
    return MoleculeSet(parts, (name,), None, LABELS)
  if name == "qm9":
    arrays, yardsticks = load_qm9(path, targets=targets, hydrogens=hydrogens)
    parts = {split: Molecules(*leaves) for split, leaves in arrays.items()}
    known = len(parts["train"].mask)
    if not 0 <= train_examples <= known:
      raise UserError(f"data.train_examples = {train_examples}", f"0 to {known}", "--config.data.train_examples")
    parts["train"] = parts["train"].take(slice(train_examples or known))
    return MoleculeSet(parts, targets, yardsticks, 1)
  names = (*GENERATED, "qm9")
  raise UserError(
    f"data.name = {name!r}{did_you_mean(name, names)}", f"one of {', '.join(names)}", "--config.data.name"
  )


def molecule_source(molecules: MoleculeSet, *, name: str, batch_size: int, seed: int) -> Source:
  """Batches of a set: training molecules epoch by epoch in orders that depend on `seed`, every other part as held-out set.

  `info`: mean and deviation of the training targets and the yardsticks, K numbers each; features of an atom, labels of bonds,
  the largest molecule's atoms. Raises UserError on numbers below 1.
  """
  train = molecules.parts["train"]
  count = len(train.mask)
  for field, value in (("batch_size", batch_size), ("data.train_examples", count)):
    if value < 1:
      raise UserError(f"{field} = {value}", "at least 1", f"--config.{field}")
  parts = {split: part for split, part in molecules.parts.items() if split != "train"}

  def batch(step: int, *, split: str = "train", rows: slice = slice(None)) -> dict[str, Array]:
    if split == "train":
      positions = (np.int64(step) * batch_size + np.arange(batch_size, dtype=np.int64))[rows]
      return train.take(order_of_epochs(positions, count=count, seed=seed)).batch()
    part = parts[split]
    return part.take(np.arange(len(part.mask))[step * _EVALUATED : (step + 1) * _EVALUATED][rows]).batch()

  mean, deviation = train.targets.mean(0), train.targets.std(0)
  deviation = np.where(deviation > 0, deviation, 1.0)  # of a single molecule
  info = {
    "name": name,
    "fingerprint": fingerprint(molecules),
    "d_unique_total": count,
    "targets": molecules.targets,
    "mean": tuple(mean.tolist()),
    "std": tuple(deviation.tolist()),
    "yardsticks": molecules.yardsticks or tuple(deviation.tolist()),
    "features": train.atoms.shape[2], "labels": molecules.labels, "longest": train.mask.shape[1],
    **{f"{split}_examples": len(part.mask) for split, part in molecules.parts.items()},
  }  # fmt: skip
  return Source(batch, {split: -(-len(part.mask) // _EVALUATED) for split, part in parts.items()}, info)


def fingerprint(molecules: MoleculeSet) -> str:
  """The digest of everything in a set."""
  digest = hashlib.sha256(repr((molecules.targets, molecules.yardsticks, molecules.labels)).encode())
  for split in sorted(molecules.parts):
    digest.update(split.encode())
    for leaf in molecules.parts[split]:
      digest.update(f"{leaf.dtype.str} {leaf.shape}".encode() + np.ascontiguousarray(leaf).tobytes())
  return digest.hexdigest()
