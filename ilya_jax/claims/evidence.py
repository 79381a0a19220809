"""Evidence of claims: records in experiments/results/<reading>.json, one for each claim and scale."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from ilya_jax.claims.claim import SCALES, Claim, Judged, Measured, Row, plain
from ilya_jax.train.metrics import write_json
from ilya_jax.train.workdir import git_commit, hardware, versions

LEVEL = 0.95


def make_record(
  claim: Claim, measured: Measured, judged: Judged, *, scale: str, seeds: Sequence[int], wall_s: float,
  runs_s: Sequence[float], command: str,
) -> dict[str, Any]:  # fmt: skip
  """What is kept of a measurement (INTERFACES.md, "Evidence of a claim").

  wall_s: of this measurement; runs that were done already are not in it. runs_s: how long each of the runs took, whenever
  that was.
  """
  return {
    "claim": claim.id, "statement": claim.statement, "where": claim.where, "published": claim.published, "scale": scale,
    "criterion": claim.criteria[scale], "seeds": list(seeds), "values": [plain(row) for row in measured.rows],
    "summary": summarise(measured.rows, by=claim.by), "verdict": judged.verdict, "finding": judged.finding,
    "remarks": list(measured.remarks), "figures": list(measured.figures), "exact": claim.exact, "optional": claim.optional,
    "wall_s": round(wall_s, 1), "runs": len(runs_s), "runs_s": round(sum(runs_s), 1),
    "hardware": hardware(), "versions": versions(), "commit": git_commit(),
    "command": command,
  }  # fmt: skip


def summarise(rows: Sequence[Row], *, by: Sequence[str]) -> list[dict[str, Any]]:
  """For each condition, in order, every measured number's mean, 95 % interval and n over the seeds.

  The interval is Student's, None with a single seed; the mean is None where a value is missing or not finite.
  """
  groups: dict[tuple[tuple[str, Any], ...], list[Mapping[str, Any]]] = {}
  for row in map(plain, rows):
    condition = tuple((name, value) for name, value in row.items() if isinstance(value, str) or name in by)
    groups.setdefault(condition, []).append(row)
  summary = []
  for condition, group in groups.items():
    named = {name for name, _ in condition} | {"seed"}
    measures = dict.fromkeys(name for row in group for name in row if name not in named)
    summary.append({**dict(condition), **{name: _interval([row.get(name) for row in group]) for name in measures}})
  return summary


def _interval(values: Sequence[Any]) -> dict[str, Any]:
  record: dict[str, Any] = {"mean": None, "low": None, "high": None, "n": len(values)}
  if any(value is None for value in values):
    return record
  numbers = np.asarray(values, np.float64)
  record["mean"] = float(numbers.mean())
  if len(numbers) > 1:
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(numbers) - 1) * numbers.std(ddof=1) / np.sqrt(len(numbers)))
    record |= {"low": record["mean"] - half, "high": record["mean"] + half}
  return record


def results_file(root: Path, reading: str) -> Path:
  """Where the records of a reading are kept."""
  return root / "experiments" / "results" / f"{reading}.json"


def read_records(root: Path, reading: str) -> list[dict[str, Any]]:
  """The records of a reading; none where nothing was recorded."""
  path = results_file(root, reading)
  return json.loads(path.read_text()) if path.is_file() else []


def keep(root: Path, reading: str, record: Mapping[str, Any], *, claims: Sequence[Claim]) -> None:
  """Adds a record in place of the one of the same claim and scale; in the order of the claims, then of the scales."""
  known = {(each["claim"], each["scale"]): each for each in read_records(root, reading)}
  known[record["claim"], record["scale"]] = dict(record)
  order = [(claim.id, scale) for claim in claims for scale in SCALES]
  results_file(root, reading).parent.mkdir(parents=True, exist_ok=True)
  write_json(results_file(root, reading), [known[key] for key in order if key in known])


def verdicts(records: Sequence[Mapping[str, Any]], claim: str) -> dict[str, str]:
  """scale -> verdict of what was recorded of a claim."""
  return {each["scale"]: each["verdict"] for each in records if each["claim"] == claim}
