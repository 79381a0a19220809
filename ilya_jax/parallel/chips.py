"""TPU chips: what each can do, what a slice of them is called, and the devices of a slice that is not there, to compile for.

Sources (Google Cloud TPU documentation, "Key specifications" of each chip; read 2026-10): https://cloud.google.com/tpu/docs/v4,
https://cloud.google.com/tpu/docs/v5e, https://cloud.google.com/tpu/docs/v5p, https://cloud.google.com/tpu/docs/v6e.
Bandwidths of v5e's and v6e's memory are those of the tables' earlier issue; later ones round them to 800 and 1600 GB/s.
The memory that a program may use is what the compiler names when a program does not fit (libtpu 0.0.42.1): the chip's less what
the runtime keeps.
"""

import importlib.util
import itertools
import math
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from ilya_jax.errors import UserError

_NAME = re.compile(r"(\w+):(\d+(?:x\d+)*)")


class Chip(NamedTuple):
  """What one chip has.

  flops: peak bfloat16 FLOP/s. hbm: bytes that a program may use. hbm_bandwidth: bytes/s.
  ici_bandwidth: bytes/s that it sends over all its links together: half of the documented figure, which counts both directions
    (the table of v4 has none: six links of 50 GB/s one way, with which its 24 TB/s across the middle of a pod's 16 x 16 x 16 torus,
    512 links, agrees).
  dimensions: of its torus, with two links each. wraps: where a slice's size along a dimension is a multiple of it, the links
    there close to a ring. largest: chips of a slice.
  accelerator: its name for the runtime, before the number of cores; cores: in that number, for each chip; options: of the
    compiler's description of a slice.
  """

  flops: float
  hbm: float
  hbm_bandwidth: float
  ici_bandwidth: float
  dimensions: int
  wraps: int
  largest: int
  accelerator: str
  cores: int
  options: dict[str, str] = {}

  @property
  def link_bandwidth(self) -> float:
    """Bytes/s that one link carries in one direction."""
    return self.ici_bandwidth / (2 * self.dimensions)


_GIB = 2.0**30
CHIPS = {
  # flops, memory, its bandwidth, links' bandwidth one way, torus, ring at, largest slice, accelerator type, cores
  "v4": Chip(275e12, 30.75 * _GIB, 1200e9, 300e9, 3, 4, 4096, "v4", 2, {"chip_config_name": "megacore"}),
  "v5e": Chip(197e12, 15.75 * _GIB, 819e9, 200e9, 2, 16, 256, "v5litepod", 1),
  "v5p": Chip(459e12, 95.74 * _GIB, 2765e9, 600e9, 3, 4, 6144, "v5p", 2),
  "v6e": Chip(918e12, 31.25 * _GIB, 1640e9, 400e9, 2, 16, 256, "v6e", 1),
}


class Topology(NamedTuple):
  """A slice: the name of its chips and its size along each dimension of the torus."""

  chip: str
  shape: tuple[int, ...]

  @property
  def size(self) -> int:
    """How many chips."""
    return math.prod(self.shape)

  @property
  def name(self) -> str:
    """As on the command line: v5p:4x4x4."""
    return f"{self.chip}:{'x'.join(map(str, self.shape))}"

  @property
  def spec(self) -> Chip:
    """What each chip has."""
    return CHIPS[self.chip]


def parse_topology(text: str) -> Topology:
  """Reads `v5p:4x4x4`. Raises UserError on another form, a chip not in CHIPS, or a shape that its torus cannot have."""
  match = _NAME.fullmatch(text)
  if not match:
    raise UserError(f"topology {text!r}", "CHIP:AxB or CHIP:AxBxC, as in v5e:4x4 or v5p:4x4x4", "--topology")
  chip, shape = match[1], tuple(int(size) for size in match[2].split("x"))
  if chip not in CHIPS:
    raise UserError(f"chip {chip!r}", f"one of {', '.join(CHIPS)}", "--topology")
  dimensions = CHIPS[chip].dimensions
  if len(shape) > dimensions or len(shape) < 2 or min(shape) < 1 or math.prod(shape) > CHIPS[chip].largest:
    expected = f"{'2 or 3' if dimensions == 3 else 2} sizes of at least 1, at most {CHIPS[chip].largest} chips in all"
    raise UserError(f"topology {text!r}", expected, "--topology")
  return Topology(chip, shape + (1,) * (dimensions - len(shape)))


def slice_devices(topology: Topology) -> Sequence[Any]:
  """Devices to compile for, of a slice that need not be there; one a chip, their `coords` on the torus.

  Raises UserError where libtpu, whose compiler this is, is not installed, or does not know the slice.
  """
  if importlib.util.find_spec("libtpu") is None:
    raise UserError("no libtpu, which holds the TPU compiler", "pip install 'ilya-jax[tpu]'", "--topology")
  import libtpu
  from jax.experimental import topologies

  chip = topology.spec
  settings = {  # without them libtpu looks for a TPU of this machine, and says at length that it finds none
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # compiling takes no TPU away from another process
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": f"{chip.accelerator}-{topology.size * chip.cores}",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_LIBRARY_PATH": libtpu.get_library_path(),
  }
  host = [2 if size % 2 == 0 else 1 for size in topology.shape[:2]] + [1]
  before = {name: os.environ.get(name) for name in settings}
  os.environ.update({name: value for name, value in settings.items() if before[name] is None})
  try:
    found = topologies.get_topology_desc(
      platform="tpu", topology_name=topology.name, chips_per_host_bounds=host, **chip.options
    )
  except jax.errors.JaxRuntimeError as error:
    raise UserError(
      f"topology {topology.name}: {str(error).splitlines()[0]}", "a slice that the TPU compiler knows", "--topology"
    ) from error
  finally:
    for name, value in before.items():
      if value is None:
        os.environ.pop(name)
  return found.devices


def compile_for(lowered: Any) -> Any:
  """Compiles a lowered program for devices that are not there. It is not kept on disk: without them nothing can read it back."""
  name = "jax_persistent_cache_min_compile_time_secs"
  before = getattr(jax.config, name)
  jax.config.update(name, math.inf)
  try:
    return lowered.compile()
  finally:
    jax.config.update(name, before)


def bandwidth(topology: Topology, coordinates: Sequence[Sequence[int]]) -> float:
  """Bytes/s that each chip of a group can send for an operation among the group at these places on the torus.

  Along each dimension over which the group extends one link carries, both ways round where the group goes round a ring.
  A group that lies apart (no two neighbours) shares links with others like it: their gap divides what each gets.
  """
  chip = topology.spec
  links, gaps = 0.0, []
  for size, own in zip(topology.shape, zip(*coordinates, strict=True), strict=False):
    places = sorted(set(own))
    if len(places) > 1:
      gaps.append(min(b - a for a, b in itertools.pairwise(places)))
      links += 2 if len(places) == size and size % chip.wraps == 0 else 1
  return max(links, 1.0) * chip.link_bandwidth / max(gaps, default=1)
