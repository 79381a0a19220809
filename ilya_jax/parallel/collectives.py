"""What a compiled program sends between devices: bytes of every collective operation, read off the optimized HLO text.

Bytes are those that one device sends in a ring (Chan et al. 2007, Collective communication: theory, practice, and experience,
https://doi.org/10.1002/cpe.1206), S the whole array and n the devices of a group:
all-gather and reduce-scatter (n - 1) / n S, all-reduce twice that, all-to-all (n - 1) / n S of what a device holds,
collective-permute what a device holds.
"""

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ilya_jax.parallel import hlo

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")


class Collective(NamedTuple):
  """A kind of operation among a group of devices (the first group, places in the program's list of devices)."""

  kind: str
  group: tuple[int, ...]


def sent(module: hlo.Module, *, devices: int) -> dict[Collective, float]:
  """Bytes that each device sends in one run of a program for so many devices, by kind and group."""
  return hlo.fold(module, lambda computation: _own(module, computation, devices))


def by_kind(found: Mapping[Collective, float]) -> dict[str, float]:
  """Bytes of each kind, in the order of KINDS, 0 for those that do not occur."""
  return {kind: sum(bytes_ for own, bytes_ in found.items() if own.kind == kind) for kind in KINDS}


def _own(module: hlo.Module, computation: hlo.Computation, devices: int) -> dict[Collective, float]:
  """Bytes of the collectives that a computation runs itself, in fusions too.

  A TPU cuts an operation that runs beside others into pieces in several fusions, some in loops of other operations, each
  piece holding the whole operation: only the first, whose flags are -1, counts.
  """
  total: dict[Collective, float] = {}
  for instruction, scatters in _with_fusions(module, computation):
    kind = _kind(instruction)
    piece = re.search(r'async_collective_fusion_config":\{"flag_start":"(-?\d+)"', instruction.attributes)
    if kind is None or (piece and int(piece[1]) >= 0):
      continue
    kind = "reduce-scatter" if scatters and kind == "all-reduce" else kind
    for group, bytes_ in _bytes(instruction, kind, devices=devices, scattered=scatters):
      own = Collective(kind, group)
      total[own] = total.get(own, 0.0) + bytes_
  return total


def _with_fusions(module: hlo.Module, computation: hlo.Computation) -> Iterator[tuple[hlo.Instruction, bool]]:
  """(instruction, whether in a TPU's fusion of an all-reduce with the slice each device keeps: a reduce-scatter)."""
  for instruction in computation.instructions.values():
    if instruction.opcode == "fusion":
      for name in hlo.called(instruction, "calls"):
        for inner, scatters in _with_fusions(module, module.computations[name]):
          yield inner, scatters or name.startswith("all-reduce-scatter")
    else:
      yield instruction, False


def _kind(instruction: hlo.Instruction) -> str | None:
  opcode = instruction.opcode.removesuffix("-start").replace("ragged-", "")
  return opcode if opcode in KINDS else None


def _bytes(
  instruction: hlo.Instruction, kind: str, *, devices: int, scattered: bool
) -> Iterator[tuple[tuple[int, ...], float]]:
  """(group, bytes that each of its devices sends) of one operation; nothing among a single device."""
  sizes = [n for n, _ in hlo.arrays(instruction.type)]
  if instruction.opcode in ("all-gather-start", "collective-permute-start"):  # (operands, results, contexts)
    count = len(instruction.operands)
    sizes = sizes[count : 2 * count]
  held = float(sum(sizes))
  if kind == "collective-permute":
    pairs = re.search(r"source_target_pairs=\{(.*?\})\}", instruction.attributes)
    moved = [pair for pair in _lists(pairs[1] if pairs else "") if pair[0] != pair[1]]
    if moved:
      yield moved[0], held
    return
  group = replica_groups(instruction.attributes, devices=devices)[0]
  n = len(group)
  if n == 1:
    return
  whole = held * n if kind == "reduce-scatter" and not scattered else held
  factor = {"all-reduce": 2.0, "collective-broadcast": n / (n - 1)}.get(kind, 1.0)
  yield group, factor * (n - 1) / n * whole


def replica_groups(attributes: str, *, devices: int) -> list[tuple[int, ...]]:
  """The groups of devices in an operation's attributes, in any of XLA's three ways to write them.

  {{0,1},{2,3}} lists them; [2,2]<=[4]T(…) arranges 0 … in an array, turns it, and cuts it into groups; and
  mesh['a'=2,'b'=2] {'b'} names the axes of a mesh along which a group extends.
  """
  lists = re.search(r"replica_groups=\{(\{.*?\})?\}", attributes)
  if lists:
    return _lists(lists[1] or "") or [tuple(range(devices))]
  shape = re.search(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", attributes)
  if shape:
    return [tuple(row) for row in _turned(shape[2]).reshape(_numbers(shape[1])).tolist()]
  mesh = re.search(
    r"replica_groups=(?:\w+)?mesh\[([^\]]*)\](?:, ?device_ids=\((\[[\d,]+\](?:T\([\d,]+\))?)\))? ?\{([^}]*)\}",
    attributes,
  )
  if not mesh:
    return [tuple(range(devices))]
  return _along_axes(mesh[1], mesh[2], mesh[3])


def _along_axes(axes: str, ids: str | None, along: str) -> list[tuple[int, ...]]:
  """Groups along axes `'a', 'b':(2)4` (the last: 4 of an axis, each step over all but its first 2 parts) of a mesh."""
  sizes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", axes)}
  wanted = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", along)
  parts: list[int] = []
  chosen: list[int] = []
  for name, n in sizes.items():
    own = [(int(before or 1), int(length or n)) for axis, before, length in wanted if axis == name]
    cuts = sorted({1, n, *itertools.chain.from_iterable((before, before * length) for before, length in own)})
    for low, high in itertools.pairwise(cuts if n > 1 else [1, 1]):
      if any(before <= low and high <= before * length for before, length in own):
        chosen.append(len(parts))
      parts.append(high // low)
  places = _turned(ids) if ids else np.arange(math.prod(parts))
  moved = np.moveaxis(places.reshape(parts), chosen, range(-len(chosen), 0))
  return [tuple(row) for row in moved.reshape(-1, math.prod(parts[index] for index in chosen)).tolist()]


def _turned(text: str) -> np.ndarray:
  """[4,2]T(1,0) -> the numbers 0 … 7 in an array of that shape, transposed so, and in a row."""
  shape, _, order = text.partition("T")
  array = np.arange(math.prod(_numbers(shape))).reshape(_numbers(shape))
  return (array.transpose(_numbers(order)) if order else array).reshape(-1)


def _numbers(text: str) -> Sequence[int]:
  return [int(number) for number in re.findall(r"\d+", text)]


def _lists(text: str) -> list[tuple[int, ...]]:
  return [tuple(_numbers(row)) for row in re.findall(r"\{([\d, ]+)\}?", text)]
