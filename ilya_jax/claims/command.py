"""`ilya-jax reproduce` and `ilya-jax list`: measures claims, prints them beside the published numbers, keeps the evidence."""

import functools
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from ilya_jax.claims import evidence, pages
from ilya_jax.claims.claim import SCALES, VERDICTS, Claim, Measured, Setting, plain
from ilya_jax.claims.readings import Reading, checkout, claims_of, find_reading
from ilya_jax.claims.trainings import train_all
from ilya_jax.errors import RunFailed, UserError, did_you_mean
from ilya_jax.scaling.drawing import image
from ilya_jax.train.metrics import clock

_FEWEST_SEEDS = 3  # at small and paper scale, for evidence to be kept


def reproduce(
  name: str, *, claim: str | None, scale: str, seeds: str | None, record: bool, workdir: Path | None, command: str
) -> int:
  """Measures the claims of a reading at a scale, prints them, and with `record` keeps the evidence; the exit code.

  workdir: where runs and figures go (default runs/reproduce/<reading>; at `tiny` a folder that is removed afterwards).
  Raises UserError on an unknown reading, claim, scale or list of seeds, and RunFailed where the necessary condition of a
  tiny claim does not hold.
  """
  reading, root = find_reading(name), checkout()
  claims = claims_of(reading, root)
  chosen = choose(claims, reading, claim=claim, scale=scale)
  given = None if seeds is None else read_seeds(seeds)
  if record and scale != "tiny" and given is not None and len(given) < _FEWEST_SEEDS:
    raise UserError(f"--record with {len(given)} seeds", f"at least {_FEWEST_SEEDS} at {scale} scale", "--seeds")
  broken: list[str] = []
  with _folder(workdir, root=root, reading=reading, scale=scale) as folder, _compiling_for(scale):
    for each in chosen:
      try:
        made, measured = measure(each, scale=scale, seeds=given, folder=folder, command=command)
      except UserError as error:
        if not each.optional or claim is not None:
          raise
        print(f"{each.id} is optional and was left out: {error}", file=sys.stderr)
        continue
      print(shown(made), flush=True)
      _keep_figures(measured, folder / "figures")
      if record:
        _keep_figures(measured, root / "experiments" / "results" / "figures" / reading.id)
        evidence.keep(root, reading.id, made, claims=claims)
        pages.write_page(root, reading)
        pages.write_readme(root)
      if scale == "tiny" and made["verdict"] != "holds":
        broken.append(each.id)
  if broken:
    raise RunFailed(
      f"the necessary condition of {', '.join(broken)} does not hold at tiny scale; its numbers stand above"
    )
  return 0


def choose(claims: Sequence[Claim], reading: Reading, *, claim: str | None, scale: str) -> list[Claim]:
  """The claims that are asked for and have the scale. Raises UserError where there are none."""
  if scale not in SCALES:
    raise UserError(f"scale {scale!r}{did_you_mean(scale, SCALES)}", f"one of {', '.join(SCALES)}", "--scale")
  if not claims:
    raise UserError(f"{reading.id} has no claims yet", "a reading with experiments/<reading>.py", "READING")
  names = [each.id for each in claims]
  if claim is not None and claim not in names:
    raise UserError(f"claim {claim!r}{did_you_mean(claim, names)}", f"one of {', '.join(names)}", "--claim")
  wanted = [each for each in claims if claim in (None, each.id)]
  chosen = [each for each in wanted if scale in each.criteria]
  if not chosen:
    scales = sorted({name for each in wanted for name in each.criteria}, key=SCALES.index)
    raise UserError(f"no {scale} form of {claim or reading.id}", f"one of {', '.join(scales)}", "--scale")
  return chosen


def read_seeds(text: str) -> tuple[int, ...]:
  """`0,1,2` as numbers. Raises UserError on anything else, and on a seed that stands there twice."""
  try:
    seeds = tuple(int(part) for part in text.split(","))
  except ValueError:
    seeds = ()
  if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
    raise UserError(f"seeds {text!r}", "different whole numbers joined by commas, as 0,1,2", "--seeds")
  return seeds


@contextmanager
def _compiling_for(scale: str) -> Iterator[None]:
  """At tiny scale, here and in processes started meanwhile, XLA compiles without most of its optimisations.

  Programs run a few times there, and compiling them is most of the time (experiments/LOG.md): 14 to 41 % less of the CPU.
  JAX keeps one program per function and shapes, whatever the option, so what was compiled the other way is dropped.
  """
  name = "jax_disable_most_optimizations"
  before = os.environ.get(name.upper()), jax.config.read(name)
  if scale == "tiny":
    os.environ[name.upper()] = "true"
    _compile_with(name, True)
  try:
    yield
  finally:
    _compile_with(name, before[1])
    os.environ.pop(name.upper(), None)
    if before[0] is not None:
      os.environ[name.upper()] = before[0]


def _compile_with(name: str, value: bool) -> None:
  if jax.config.read(name) != value:
    jax.config.update(name, value)
    jax.clear_caches()


@contextmanager
def _folder(workdir: Path | None, *, root: Path, reading: Reading, scale: str) -> Iterator[Path]:
  """Where runs and figures go; a tiny measurement begins afresh each time, so that it tries the code."""
  if workdir is None and scale == "tiny":
    with tempfile.TemporaryDirectory(prefix="reproduce_") as folder:
      yield Path(folder)
  else:
    yield workdir or root / "runs" / "reproduce" / reading.id


def measure(
  claim: Claim, *, scale: str, seeds: Sequence[int] | None, folder: Path, command: str
) -> tuple[dict[str, Any], Measured]:
  """Measures a claim; its record and what was measured. seeds: None for the claim's own (one at tiny scale)."""
  own = () if claim.exact else tuple(seeds or (claim.seeds if scale != "tiny" else claim.seeds[:1]))
  began = time.monotonic()

  def say(line: str) -> None:
    print(f"{claim.id}: {line}", file=sys.stderr, flush=True)

  train = functools.partial(train_all, folder=folder, apart=scale != "tiny", say=say)
  measured = claim.measure(Setting(scale, own, folder, train, say))
  judged = claim.judge([plain(row) for row in measured.rows], scale)
  if judged.verdict not in VERDICTS:
    raise ValueError(f"{claim.id} judges {judged.verdict!r}, not one of {', '.join(VERDICTS)}")
  wall_s = time.monotonic() - began
  made = evidence.make_record(claim, measured, judged, scale=scale, seeds=own, wall_s=wall_s, command=command)
  return made, measured


def _keep_figures(measured: Measured, folder: Path) -> None:
  for name, figure in measured.figures.items():
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.svg").write_bytes(image(figure, kind="svg"))


def shown(record: dict[str, Any]) -> str:
  """A record for people: the statement, their number, ours, the rule, the verdict."""
  seeds = "exact" if record["exact"] else f"seeds {','.join(map(str, record['seeds']))}"
  lines = [
    f"{record['claim']} ({record['scale']}, {seeds}, {clock(record['wall_s'])})", f"  claim      {record['statement']}",
    f"  published  {record['published']} ({record['where']})", f"  ours       {record['finding']}",
    f"  criterion  {record['criterion']}", f"  verdict    {record['verdict']}",
  ]  # fmt: skip
  return "\n".join([*lines, *(f"  note       {remark}" for remark in record["remarks"])])


def list_readings(*, as_json: bool) -> int:
  """Prints the 26 readings; the exit code."""
  root = checkout()
  print(json.dumps(pages.listing(root), indent=1) if as_json else pages.list_text(root))
  return 0
