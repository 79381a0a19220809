"""`ilya-jax reproduce` and `ilya-jax list`: measures claims, prints them beside the published numbers, keeps the evidence."""

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ilya_jax.claims import evidence, pages
from ilya_jax.claims.claim import SCALES, Claim
from ilya_jax.claims.measuring import Options, measure_all
from ilya_jax.claims.readings import Reading, checkout, claims_of, find_reading
from ilya_jax.errors import RunFailed, UserError, did_you_mean
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
  with _folder(workdir, root=root, reading=reading, scale=scale) as folder:
    for each, (made, figures, error) in measure_all(reading, chosen, Options(scale, given, folder, command)):
      if made is None:
        assert error is not None
        if not each.optional or claim is not None:
          raise error
        print(f"{each.id} is optional and was left out: {error}", file=sys.stderr)
        continue
      print(shown(made), flush=True)
      if record:
        _keep_figures(figures, root / "experiments" / "results" / "figures" / reading.id)
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
def _folder(workdir: Path | None, *, root: Path, reading: Reading, scale: str) -> Iterator[Path]:
  """Where runs and figures go; a tiny measurement begins afresh each time, so that it tries the code."""
  if workdir is None and scale == "tiny":
    with tempfile.TemporaryDirectory(prefix="reproduce_") as folder:
      yield Path(folder)
  else:
    yield workdir or root / "runs" / "reproduce" / reading.id


def _keep_figures(files: Sequence[Path], folder: Path) -> None:
  folder.mkdir(parents=True, exist_ok=True)
  for file in files:
    (folder / file.name).write_bytes(file.read_bytes())


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
