"""What is generated from the evidence: `ilya-jax list`, the table in README.md, and one Markdown page for each reading."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ilya_jax.claims.claim import SCALES, Claim
from ilya_jax.claims.evidence import read_records, results_file, verdicts
from ilya_jax.claims.readings import READINGS, Reading, claims_of, configs_of

BEGIN, END = "<!-- readings: written by `ilya-jax reproduce --record` -->", "<!-- end of readings -->"
_MARKS = {"holds": "holds", "does not hold": "**does not hold**", "inconclusive": "inconclusive"}


def listing(root: Path) -> list[dict[str, Any]]:
  """The 26 readings as `ilya-jax list --json` gives them."""
  listed = []
  for reading in READINGS:
    claims, records = claims_of(reading, root), read_records(root, reading.id)
    entries = [
      {
        "id": claim.id, "scales": list(claim.criteria), "optional": claim.optional,
        "verdict": {scale: verdicts(records, claim.id).get(scale) for scale in claim.criteria},
      }
      for claim in claims
    ]  # fmt: skip
    listed.append({
      "id": reading.id, "title": reading.title, "year": reading.year, "kind": reading.kind,
      "configs": configs_of(reading, root), "claims": entries, "status": _status(entries),
    })  # fmt: skip
  return listed


def _status(entries: Sequence[Mapping[str, Any]]) -> str:
  """How far the evidence of a reading goes, optional claims aside."""
  if not entries:
    return "no claims yet"
  wanted = [each["verdict"].get("small", each["verdict"].get("tiny")) for each in entries if not each["optional"]]
  measured = sum(verdict is not None for verdict in wanted)
  return "measured" if measured == len(wanted) else f"{measured} of {len(wanted)} claims measured"


def list_text(root: Path) -> str:
  """`ilya-jax list` for people: a line for each reading."""
  rows = [("reading", "year", "kind", "claims", "holds", "title")]
  for each in listing(root):
    found = [_best(claim["verdict"])[1] for claim in each["claims"]]
    known = [verdict for verdict in found if verdict]
    holds = f"{known.count('holds')} of {len(known)}" if known else ""
    rows.append((each["id"], str(each["year"]), each["kind"], str(len(each["claims"]) or ""), holds, each["title"]))
  widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
  lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
  lines.append(
    "kind: T trains, C computes, L is of the base; holds: claims with a verdict at their largest measured scale"
  )
  return "\n".join(lines)


def _best(by_scale: Mapping[str, str | None]) -> tuple[str, str | None]:
  """The largest scale with a verdict, and that verdict; ("", None) without one."""
  measured = [scale for scale in SCALES if by_scale.get(scale)]
  return (measured[-1], by_scale[measured[-1]]) if measured else ("", None)


def readme_table(root: Path) -> str:
  """The table of readings in README.md: each reading with its claims, our numbers beside the published ones."""
  lines = ["| reading | claim | published | ours | scale | verdict |", "|---|---|---|---|---|---|"]
  for reading in READINGS:
    records = {(each["claim"], each["scale"]): each for each in read_records(root, reading.id)}
    claims = claims_of(reading, root)
    title = f"{reading.title} ({reading.year})"
    linked = f"[{title}](experiments/results/{reading.id}.md)" if records else title
    shown = [
      (claim, scale) for claim in claims if (scale := _best(verdicts(list(records.values()), claim.id))[0]) != ""
    ]
    if not shown:
      lines.append(f"| {linked} | | | | | not measured yet |")
    for k, (claim, scale) in enumerate(shown):
      record = records[claim.id, scale]
      cells = (
        "" if k else linked, claim.statement, claim.published, record["finding"], scale, _MARKS[record["verdict"]],
      )  # fmt: skip
      lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
  return "\n".join(lines)


def _cell(text: str) -> str:
  return " ".join(text.split()).replace("|", "\\|")


def write_readme(root: Path) -> None:
  """Puts the present table into README.md, between its marks."""
  path = root / "README.md"
  text = path.read_text()
  path.write_text(with_table(text, readme_table(root)))


def with_table(text: str, table: str) -> str:
  """A README with this table between its marks. Raises ValueError where it has none."""
  head, begin, rest = text.partition(BEGIN)
  _, end, tail = rest.partition(END)
  if not begin or not end:
    raise ValueError(f"README.md has no marks {BEGIN} and {END}")
  return f"{head}{BEGIN}\n{table}\n{END}{tail}"


def write_page(root: Path, reading: Reading) -> None:
  """Writes experiments/results/<reading>.md."""
  results_file(root, reading.id).with_suffix(".md").write_text(page(root, reading))


def page(root: Path, reading: Reading) -> str:
  """The page of a reading: claims, numbers, figures, commands."""
  records = read_records(root, reading.id)
  claims = claims_of(reading, root)
  lines = [
    f"# {reading.title}", "",
    f"{reading.authors}, {reading.year}. Written by `ilya-jax reproduce {reading.id} --record` from "
    f"[{reading.id}.json]({reading.id}.json), which holds every number; criteria were fixed before anything was measured.",
  ]  # fmt: skip
  configs = configs_of(reading, root)
  if configs:
    lines += ["", "Configs: " + ", ".join(f"`{config}`" for config in configs) + "."]
  for claim in claims:
    own = [record for record in records if record["claim"] == claim.id]
    lines += ["", f"## {claim.statement}", "", f"{claim.where}. Published: {claim.published}"]
    for record in own:
      lines += _section(record, claim, reading)
    if not own:
      lines += ["", f"Not measured yet: `ilya-jax reproduce {reading.id} --claim {claim.id} --scale small`."]
  return "\n".join(lines) + "\n"


def _section(record: Mapping[str, Any], claim: Claim, reading: Reading) -> list[str]:
  """One scale of a claim: criterion, finding, numbers, figures, command."""
  seeds = "exact" if record["exact"] else f"seeds {', '.join(map(str, record['seeds']))}"
  lines = [
    "", f"### {record['scale']}: {_MARKS[record['verdict']]}", "", f"Criterion: {record['criterion']}", "",
    f"Found: {record['finding']} ({seeds}; {_time(record)} on {record['hardware']}; commit {record['commit'][:12]})",
  ]  # fmt: skip
  lines += [f"\n{remark}" for remark in record["remarks"]]
  lines += ["", *_numbers(record["summary"])]
  for name in record["figures"]:
    lines += ["", f"![{name}](figures/{reading.id}/{name}.svg)"]
  return [*lines, "", f"`{record['command']}`"]


def _time(record: Mapping[str, Any]) -> str:
  """Seconds that the measurement took, and its runs one by one, also those that were done before."""
  took = f"{record['wall_s']:.0f} s"
  return f"{took}, its {record['runs']} runs {record['runs_s']:.0f} s" if record.get("runs") else took


def _numbers(summary: Sequence[Mapping[str, Any]]) -> list[str]:
  """The summary as tables, one for each set of columns."""
  lines: list[str] = []
  before: tuple[str, ...] = ()
  for row in summary:
    columns = tuple(row)
    if columns != before:
      lines += [""] * bool(lines) + ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
      before = columns
    lines.append("| " + " | ".join(_value(row[name]) for name in columns) + " |")
  return lines


def _value(value: Any) -> str:
  """A condition as it is; a measured number as its mean with the interval."""
  if not isinstance(value, Mapping):
    return _cell(f"{value:g}" if isinstance(value, float) else str(value))
  if value["mean"] is None:
    return "not finite"
  if value["low"] is None:
    return f"{value['mean']:.4g}"
  return f"{value['mean']:.4g} [{value['low']:.4g}, {value['high']:.4g}]"
