"""The text of an optimized XLA program, read: its computations, how often each runs a step, and the bytes it moves in memory.

Source: the text format of XLA (https://openxla.org/xla/hlo_dumps); XLA's own cost analysis counts the body of a loop once, here
it counts as often as it runs. Loops whose length is an argument count once.
"""

import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

_BYTES = {"pred": 1, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([^\s(]+) \(.*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?(\S+) = (.*)$")
_FREE = {
  "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "conditional", "call", "after-all", "iota",
  "partition-id", "replica-id", "optimization-barrier", "broadcast", "custom-call",
}  # fmt: skip


class Instruction(NamedTuple):
  """One instruction: its name, opcode, the text of its type, the names it reads, the text between its parentheses, and the
  text of its attributes."""

  name: str
  opcode: str
  type: str
  operands: tuple[str, ...]
  inside: str
  attributes: str


class Computation(NamedTuple):
  """The instructions of a computation by name, in order; the last one is `root` where none says so."""

  name: str
  instructions: Mapping[str, Instruction]
  root: str


class Module(NamedTuple):
  """A program: its computations by name, and the name of the one that runs first."""

  computations: Mapping[str, Computation]
  entry: str


def parse(text: str) -> Module:
  """Reads the text of a module."""
  computations: dict[str, Computation] = {}
  entry, name, root = "", "", ""
  own: dict[str, Instruction] = {}
  for line in text.splitlines():
    if not name:
      header = _HEADER.match(line)
      if header:
        name, own, root = header[2], {}, ""
        entry = name if header[1] else entry
    elif line.startswith("}"):
      computations[name] = Computation(name, own, root or next(reversed(own), ""))
      name = ""
    else:
      match = _LINE.match(line)
      if match:
        instruction = _instruction(match[2], match[3])
        own[instruction.name] = instruction
        root = instruction.name if match[1] else root
  return Module(computations, entry)


def _instruction(name: str, text: str) -> Instruction:
  end = _closing(text) if text.startswith("(") else text.index(" ")
  opcode, _, rest = text[end:].strip().partition("(")
  close = _closing("(" + rest) - 2
  inside = rest[:close]
  operands = tuple(re.findall(r"%([^\s,()]+)", inside))
  return Instruction(name, opcode, text[:end], operands, inside, rest[close + 1 :])


def _closing(text: str) -> int:
  """One past the parenthesis that closes the one `text` begins with."""
  depth = 0
  for index, letter in enumerate(text):
    depth += (letter == "(") - (letter == ")")
    if not depth:
      return index + 1
  return len(text)


def arrays(type_text: str) -> list[tuple[float, bool]]:
  """(bytes, whether in the device's main memory) of every array in the text of a type.

  A layout that names a memory space, as in `{1,0:T(8,128)S(1)}`, stands for another memory: VMEM on a TPU.
  """
  found = []
  for dtype, sizes, layout in _ARRAY.findall(type_text):
    elements = math.prod(int(size) for size in sizes.split(",") if size)
    found.append((elements * _element_bytes(dtype), "S(" not in layout))
  return found


def _element_bytes(dtype: str) -> float:
  """Bytes of an element: from the digits in the type's name (f8e4m3fn: 8 bits)."""
  digits = re.search(r"\d+", dtype)
  return _BYTES[dtype] if dtype in _BYTES else int(digits[0]) / 8 if digits else 0


def size(type_text: str) -> int:
  """Bytes of all arrays of a type."""
  return int(sum(n for n, _ in arrays(type_text)))


def called(instruction: Instruction, *roles: str) -> list[str]:
  """Names of the computations that an instruction calls in these roles (`body`, `condition`, `calls`, …)."""
  found: list[str] = []
  for role in roles:
    match = re.search(rf"\b{role}=(\{{[^}}]*\}}|%?[^\s,]+)", instruction.attributes)
    if match:
      found += [name.lstrip("%") for name in re.findall(r"[^\s,{}]+", match[1])]
  return found


def fold(module: Module, own: Callable[[Computation], Mapping[Any, float]]) -> dict[Any, float]:
  """The sum of `own(computation)` over all computations that run, each as often as it does in one run of the program.

  Of the branches of a conditional the one with the largest total counts. `own` sees to what fusions contain.
  """

  @functools.cache
  def total(name: str) -> dict[Any, float]:
    computation = module.computations[name]
    result = dict(own(computation))

    def add(more: Mapping[Any, float], times: int = 1) -> None:
      for key, value in more.items():
        result[key] = result.get(key, 0.0) + times * value

    for instruction in computation.instructions.values():
      if instruction.opcode == "while":
        for part in called(instruction, "body", "condition"):
          add(total(part), trip_count(module, computation, instruction))
      elif instruction.opcode == "conditional":
        branches = called(instruction, "branch_computations", "true_computation", "false_computation")
        add(max((total(branch) for branch in branches), key=lambda found: sum(found.values())))
      elif instruction.opcode in ("call", "async-start"):
        for part in called(instruction, "to_apply", "calls", "called_computations"):
          add(total(part))
    return result

  return total(module.entry)


def trip_count(module: Module, computation: Computation, loop: Instruction) -> int:
  """How often a loop runs: what XLA notes, else read off a condition `index < constant`; 1 where it is not known."""
  known = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes)
  if known:
    return int(known[1])
  condition = module.computations[called(loop, "condition")[0]]
  compare = condition.instructions[condition.root]
  if compare.opcode != "compare" or "direction=LT" not in compare.attributes:
    return 1
  index, bound = (condition.instructions[name] for name in compare.operands)
  place = re.search(r"index=(\d+)", index.attributes)
  end = _constant(condition, bound)
  if index.opcode != "get-tuple-element" or place is None or end is None:
    return 1
  start = _constant(computation, _element(computation, loop.operands[0], int(place[1])))
  body = module.computations[called(loop, "body")[0]]
  change = _element(body, body.root, int(place[1]))
  step = None
  if change is not None and change.opcode == "add":
    step = next(filter(None, (_constant(body, body.instructions[name]) for name in change.operands)), None)
  return max(math.ceil((end - (start or 0)) / (step or 1)), 0)


def _element(computation: Computation, name: str, place: int) -> Instruction | None:
  """What stands at a place of the tuple that an instruction makes."""
  made = computation.instructions.get(name)
  if made is None or made.opcode != "tuple":
    return None
  return computation.instructions.get(made.operands[place])


def _constant(computation: Computation, instruction: Instruction | None) -> int | None:
  """The whole number that an instruction stands for, through copies."""
  while instruction is not None and instruction.opcode in ("copy", "bitcast", "convert"):
    instruction = computation.instructions.get(instruction.operands[0])
  if instruction is None or instruction.opcode != "constant" or not re.fullmatch(r"-?\d+", instruction.inside):
    return None
  return int(instruction.inside)


def memory_traffic(module: Module) -> float:
  """Bytes that one run of the program reads from and writes to main memory, fusion by fusion.

  What a fusion keeps inside costs nothing; of an operand of which it only reads slices these count, and of a result that it
  updates in place the update. Copies between main memory and a TPU's VMEM count at the end in main memory.
  """
  return fold(module, lambda computation: {"bytes": _own_traffic(module, computation)})["bytes"]


def _own_traffic(module: Module, computation: Computation) -> float:
  return sum(
    _instruction_traffic(module, computation, instruction) for instruction in computation.instructions.values()
  )


def _main(type_text: str) -> float:
  return sum(n for n, main in arrays(type_text) if main)


def _instruction_traffic(module: Module, computation: Computation, instruction: Instruction) -> float:
  opcode = instruction.opcode
  if opcode in _FREE or opcode.endswith(("-done", "-update")) or opcode == "async-start":
    return 0.0
  types = [computation.instructions[name].type for name in instruction.operands if name in computation.instructions]
  if opcode in ("copy-start", "slice-start"):  # between memories: (destination, source, context)
    moved = size(types[0]) if opcode == "copy-start" else max((n for n, _ in arrays(instruction.type)[:1]), default=0)
    ends = [main for _, main in arrays(types[0])[:1] + arrays(instruction.type)[:1]]
    return float(moved * sum(ends))
  if opcode in ("dynamic-slice", "slice", "gather"):
    return _main(instruction.type) * (2 if any(main for _, main in arrays(types[0])) else 1)
  if opcode in ("dynamic-update-slice", "scatter"):
    return 2 * (_main(types[1]) if opcode == "dynamic-update-slice" else _main(types[-1]))
  if opcode == "fusion":
    fused = module.computations[called(instruction, "calls")[0]]
    return _fusion_traffic(fused, types, instruction.type)
  if opcode.endswith("-start"):
    return sum(_main(kind) for kind in types) * 2
  return sum(_main(kind) for kind in types) + _main(instruction.type)


def _fusion_traffic(fused: Computation, types: list[str], result: str) -> float:
  """Bytes of the operands that are read, and of the results that are written."""
  parameters: dict[str, int] = {}
  users: dict[str, list[Instruction]] = {}
  for instruction in fused.instructions.values():
    if instruction.opcode == "parameter":
      parameters[instruction.name] = int(instruction.inside)
    for name in instruction.operands:
      users.setdefault(name, []).append(instruction)
  read = 0.0
  updated: set[str] = set()
  for name, place in parameters.items():
    if place >= len(types) or not _main(types[place]):
      continue
    uses = list(_uses(name, users))
    if uses and all(use.opcode in ("dynamic-slice", "slice", "gather") and use.operands[0] == by for by, use in uses):
      read += sum(size(use.type) for _, use in uses)
    elif uses and all(use.opcode == "dynamic-update-slice" and use.operands[0] == by for by, use in uses):
      updated |= {use.name for _, use in uses}
    else:
      read += _main(types[place])
  written = 0.0
  root = fused.instructions[fused.root]
  outputs = [fused.instructions[name] for name in root.operands] if root.opcode == "tuple" else [root]
  kinds = _ARRAY.finditer(result)
  for output, kind in zip(outputs, kinds, strict=False):
    made = _through(fused, output)
    if made.name in updated:
      written += size(fused.instructions[made.operands[1]].type)
    else:
      written += _main(kind[0])
  return read + written


def _uses(name: str, users: Mapping[str, list[Instruction]]) -> Iterator[tuple[str, Instruction]]:
  """(name used, user) of a value, looking through bitcasts."""
  for user in users.get(name, []):
    if user.opcode == "bitcast":
      yield from _uses(user.name, users)
    else:
      yield name, user


def _through(computation: Computation, instruction: Instruction) -> Instruction:
  while instruction.opcode == "bitcast":
    instruction = computation.instructions[instruction.operands[0]]
  return instruction
