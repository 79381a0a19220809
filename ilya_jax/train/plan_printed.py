"""What `ilya-jax plan` prints and records: the parts of a plan as lines of text, a table of candidates, and JSON."""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh
from ml_collections import ConfigDict

from ilya_jax.parallel.chips import Topology
from ilya_jax.parallel.collectives import Collective, by_kind
from ilya_jax.parallel.mesh import AXES
from ilya_jax.task import Task
from ilya_jax.train.metrics import clock
from ilya_jax.train.plan_search import Ranking
from ilya_jax.train.roofline import Flops, Roofline

RECORDS = Path("experiments") / "results" / "plans.json"
_GIB = 2.0**30
_DAY = 86_400.0


class Compiled(NamedTuple):
  """A compiled step: bytes that a chip needs, its parts by name where it fits, bytes sent by kind and group, bytes of memory
  traffic, and seconds it took to compile. mesh: of the slice's devices."""

  mesh: Mesh
  needed: float
  parts: Mapping[str, float]
  sent: Mapping[Collective, float]
  traffic: float
  seconds: float

  @property
  def fits(self) -> bool:
    """Whether the compiler found room for it."""
    return bool(self.parts)


class Report(NamedTuple):
  """All that is said of a plan; flops and roof are of the busiest chip."""

  config: ConfigDict
  task: Task
  topology: Topology
  compiled: Compiled
  flops: Flops
  roof: Roofline
  suggestion: str

  @property
  def units_per_second(self) -> float:
    """Tokens (or examples) a second at the roofline."""
    return self.task.counts.units_per_step / self.roof.step

  @property
  def mfu(self) -> float:
    """FLOP by formula over what the used chips could do in the time: a bound, like the time."""
    return self.flops.formula / (self.roof.step * self.topology.spec.flops)


def print_report(found: Report, *, tokens: float) -> None:
  """Prints one plan; tokens: how many the days are for (0: those of the config's steps)."""
  compiled, counts, roof, flops = found.compiled, found.task.counts, found.roof, found.flops
  available = gib(found.topology.spec.hbm)
  print(f"\n{mesh_text(found)}: {counts.units_per_step:,} {counts.unit} a step, compiled in {compiled.seconds:.0f} s")
  if not compiled.fits:
    print(f"  memory a chip    needs {gib(compiled.needed)} of {available} GiB: does not fit")
    print(f"  what to change   {found.suggestion}")
    return
  parts = ", ".join(f"{name} {gib(bytes_)}" for name, bytes_ in compiled.parts.items())
  print(f"  memory a chip    {gib(compiled.needed)} of {available} GiB: fits ({parts})")
  extra = (
    f", {flops.recomputed:.3g} recomputed, {flops.idle:.3g} idle or padding" if flops.total > flops.formula else ""
  )
  print(f"  FLOP a chip      {flops.formula:.4g} by formula{extra}")
  sent = {kind: bytes_ for kind, bytes_ in by_kind(compiled.sent).items() if bytes_}
  print(f"  sent by a chip   {', '.join(f'{kind} {amount(bytes_)}' for kind, bytes_ in sent.items()) or 'nothing'}")
  print(
    f"  seconds a step   arithmetic {roof.compute:.3g}, memory {roof.memory:.3g} ({amount(compiled.traffic)}), "
    f"links {roof.links:.3g}: at least {roof.step:.4g} ({roof.apart:.3g} if nothing overlapped)"
  )
  total = tokens or found.config.steps * counts.units_per_step
  print(
    f"  at most          {found.units_per_second:,.0f} {counts.unit}/s, {found.mfu:.1%} of the peak by formula; "
    f"{total:.3g} {counts.unit} in at least {clock_or_days(total / found.units_per_second)}"
  )


def mesh_text(found: Report) -> str:
  """The mesh and how the batch is cut, in words."""
  sizes = dict(found.compiled.mesh.shape)
  axes = " x ".join(f"{axis} {sizes[axis]}" for axis in AXES if sizes[axis] > 1) or "one chip"
  unused = found.topology.size - found.compiled.mesh.size
  return axes + micro_text(found.config) + (f", {unused} chips unused" if unused else "")


def micro_text(config: ConfigDict) -> str:
  """How the batch is cut, empty where it is not."""
  counts = {"accumulated": config.accumulate, "micro-batches": config.pipeline.microbatches}
  return "".join(f", {n} {name}" for name, n in counts.items() if n > 1)


def amount(bytes_: float) -> str:
  """Bytes with three digits and a decimal unit."""
  for unit, one in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
    if bytes_ >= one:
      return f"{bytes_ / one:.3g} {unit}"
  return f"{bytes_:.0f} B"


def gib(bytes_: float) -> str:
  """GiB with three digits or two decimals."""
  return f"{bytes_ / _GIB:.2f}" if bytes_ >= _GIB / 10 else f"{bytes_ / _GIB:.2g}"


def clock_or_days(seconds: float) -> str:
  """Days, or hours and minutes of less than one."""
  return f"{seconds / _DAY:.3g} days" if seconds >= _DAY else clock(seconds)


def print_ranking(ranked: Ranking, *, rows: int = 10) -> None:
  """Prints the best candidates by formula, and why others are not among them."""
  found = len(ranked.fitting)
  print(
    f"by formula: {found} candidates fit, {ranked.too_large} do not; {sum(ranked.skipped.values())} meshes cannot be",
    end="",
  )
  print(f" ({'; '.join(f'{n}: {reason}' for reason, n in list(ranked.skipped.items())[:3])})" if ranked.skipped else "")
  if found:
    print(
      f"{'data':>5}{'fsdp':>6}{'tensor':>8}{'stage':>7}{'parts':>8}{'GiB':>8}{'arithm.':>9}{'memory':>9}{'links':>9}  s a step"
    )
  for one in ranked.fitting[:rows]:
    sizes, roof = one.sizes, one.roof
    parts = f"{one.config.accumulate} x {one.config.pipeline.microbatches}"
    print(
      f"{sizes['data']:5}{sizes['fsdp']:6}{sizes['tensor']:8}{sizes['stage']:7}{parts:>8}{one.memory / _GIB:8.2f}"
      f"{roof.compute:9.3g}{roof.memory:9.3g}{roof.links:9.3g}  {roof.step:.3g}"
    )


def print_best(found: Sequence[Report]) -> None:
  """Prints the compiled candidates as a table, fastest first, and the flags of the first."""
  fitting = sorted((one for one in found if one.compiled.fits), key=lambda one: one.roof.step)
  print("\ncompiled:")
  for one in [*fitting, *(one for one in found if not one.compiled.fits)]:
    speed = f"{one.roof.step:.4g} s a step" if one.compiled.fits else "does not fit"
    print(f"  {mesh_text(one):50} {gib(one.compiled.needed):>8} GiB  {speed}")
  if fitting:
    config = fitting[0].config
    flags = [f"--config.mesh.{axis}={config.mesh[axis]}" for axis in AXES]
    flags += [
      f"--config.accumulate={config.accumulate}",
      f"--config.pipeline.microbatches={config.pipeline.microbatches}",
    ]
    print(f"best: {' '.join(flags)}")


def record(found: Report, *, command: str, tokens: float) -> dict[str, Any]:
  """A plan as JSON."""
  compiled, roof, counts = found.compiled, found.roof, found.task.counts
  rate = found.units_per_second
  return {
    "command": command,
    "topology": found.topology.name,
    "mesh": {axis: int(compiled.mesh.shape[axis]) for axis in AXES},
    "accumulate": found.config.accumulate,
    "microbatches": found.config.pipeline.microbatches,
    "remat": bool(found.config.execution.remat),
    "stage_remat": bool(compiled.mesh.shape["stage"] > 1 and found.config.pipeline.remat),
    "units_per_step": counts.units_per_step,
    "parameters": counts.n_total,
    "fits": compiled.fits,
    "bytes": compiled.needed,
    "bytes_available": found.topology.spec.hbm,
    "bytes_of": dict(compiled.parts),
    "flops": found.flops._asdict(),
    "sent": by_kind(compiled.sent),
    "memory_traffic": compiled.traffic,
    "seconds": {**roof._asdict(), "step": roof.step, "apart": roof.apart},
    "units_per_second": rate,
    "mfu_bound": found.mfu,
    "days": (tokens or found.config.steps * counts.units_per_step) / rate / _DAY,
    "suggestion": found.suggestion,
    "versions": {name: version(name) for name in ("jax", "libtpu")},
  }


def write_records(found: Sequence[Report], *, command: str, tokens: float) -> None:
  """Puts the plans into RECORDS, in place of what the same command recorded before."""
  before = json.loads(RECORDS.read_text()) if RECORDS.is_file() else []
  kept = [one for one in before if one["command"] != command]
  rows = [*kept, *(record(one, command=command, tokens=tokens) for one in found)]
  RECORDS.write_text(json.dumps(rows, indent=1) + "\n")
  print(f"\n{RECORDS}: {len(rows)} plans")


def table(records: Sequence[Mapping[str, Any]]) -> str:
  """RECORDS as the table of README.md."""
  lines = [
    "| slice | mesh, cuts of the batch | GiB a chip | sent by a chip, GB a step: gather / scatter / sum / permute | seconds a step:"
    " arithmetic, memory, links | tokens/s, of peak |",
    "|---|---|---|---|---|---|",
  ]
  for one in records:
    mesh = " × ".join(f"{axis} {n}" for axis, n in one["mesh"].items() if n > 1)
    cuts = [
      f"{one[name]} {text}"
      for name, text in (("accumulate", "accumulated"), ("microbatches", "micro-batches"))
      if one[name] > 1
    ]
    sent = " / ".join(
      f"{one['sent'][kind] / 1e9:.1f}" for kind in ("all-gather", "reduce-scatter", "all-reduce", "collective-permute")
    )
    seconds = one["seconds"]
    again = [name for name, recomputes in (("stage", one["stage_remat"]), ("layer", one["remat"])) if recomputes]
    cells = (
      one["topology"],
      ", ".join([mesh, *cuts, f"recomputed by {' and '.join(again)}" if again else "nothing recomputed"]),
      f"{one['bytes'] / _GIB:.1f} of {one['bytes_available'] / _GIB:.1f}",
      sent,
      ", ".join(f"{seconds[name]:.2f}" for name in ("compute", "memory", "links")),
      f"{one['units_per_second']:,.0f}, {one['mfu_bound']:.0%}",
    )
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines)
