"""The sections of a report about the sweep as a whole: summary, cells, how the runs were made, checklist."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ilya_jax.config import fields
from ilya_jax.scaling import document, law_tables
from ilya_jax.scaling.curves import Run
from ilya_jax.scaling.document import Part, Row, Section, Table, interval, number, percent, plain_symbol
from ilya_jax.scaling.drawing import short
from ilya_jax.scaling.families import Family
from ilya_jax.scaling.sweep import Sweep
from ilya_jax.train.metrics import clock


def headline_table(families: Sequence[Family]) -> Table:
  """Per family the chosen law, its exponents, and the held-out loss, predicted and measured."""
  rows = []
  for family in families:
    best = family.best
    if best is None:
      rows.append(Row([document.family_title(family.name), "none could be fitted", *["—"] * 5]))
      continue
    powers = [_exponent(best, name) for name in best["parameters"] if name.startswith(("alpha", "beta"))]
    held = best.get("held_out") or {}
    point = law_tables.held_out_point(best)
    error = 100 * (point["predicted"] / point["loss"] - 1) if point else held.get("mape")
    rows.append(Row([
      document.family_title(family.name), best["form"], ", ".join(powers), document.loss_text(point.get("predicted")),
      document.loss_interval(point.get("low"), point.get("high")), document.loss_text(point.get("loss")),
      percent(error, signed=bool(point)),
    ]))  # fmt: skip
  header = ("family", "law", "exponents with 95 % intervals", "predicted", "95 % band", "measured", "error")
  return Table(
    "Held-out loss, predicted and measured", header, rows, ("family", "law", "exponents with 95 % intervals")
  )


def _exponent(form: Mapping[str, Any], name: str) -> str:
  """An exponent with its interval, and a word where the points do not determine it."""
  known = (form.get("intervals") or {}).get(name) or {}
  text = (
    f"{plain_symbol(name)} = {number(form['parameters'][name], 3)} {interval(known.get('low'), known.get('high'), 3)}"
  )
  return text + (" (not identified)" if known.get("identified") is False else "")


def summary_section(runs: Sequence[Run], families: Sequence[Family]) -> Section:
  """One paragraph in words and the headline numbers."""
  done = [run for run in runs if run.state.get("state") == "done"]
  finished = [run for run in done if run.cell.role != "trunk"]
  described = []
  for family in families:
    mine = [run.cell for run in finished if run.cell.family == family.name]
    if mine:
      sizes, lengths = sorted({cell.counts.n for cell in mine}), sorted({cell.units for cell in mine})
      unit = mine[0].counts.unit
      described.append(
        f"{len(mine)} {document.family_title(family.name)} runs of {_span(sizes)} non-embedding parameters on {_span(lengths)} {unit}"
      )
  flops = sum(run.own_steps * run.cell.counts.units_per_step * run.cell.counts.flops_per_unit for run in done)
  seconds = sum(run.state.get("wall_s", 0.0) for run in done)
  hardware = " and ".join(dict.fromkeys(run.record["hardware"] for run in done if "hardware" in run.record))
  branches = sum(1 for run in finished if run.is_branch)
  saved = (
    f", {branches} of them by a cooldown from one of {len(done) - len(finished)} constant-rate trunks"
    if branches
    else ""
  )
  text = (
    f"{len(finished)} models were trained{saved}: {'; '.join(described)}. {document.corpus_sentence(done)} Training took "
    f"{number(flops, 2)} FLOP and {clock(seconds)} of computing, summed over all runs, on {hardware or 'unknown hardware'}."
  )
  said = []
  for family in families:
    title, best = document.family_title(family.name), family.best
    if best is not None:
      sentence = law_tables.held_out_sentence(best, family.measured.loss_unit)
      said.append(
        f"{title}: the law with the smallest inner error is {best['form']}. {sentence} {family.test_note}".rstrip()
      )
    else:
      said.append(f"{title}: {' '.join(family.remarks) or 'no law could be fitted.'}")
  return Section("Summary", "summary", [Part(text=[text, *said], tables=[headline_table(families)])])


def _span(values: Sequence[float]) -> str:
  return short(values[0]) if len(values) == 1 else f"{short(values[0])} to {short(values[-1])}"


def cells_section(runs: Sequence[Run], failed: Mapping[str, str], *, families: Sequence[Family]) -> Section:
  """The table of cells."""
  roles = {cell: "dropped" for family in families for cell in family.dropped}
  roles |= {cell: "held out" for family in families for cell in family.held_out}
  return Section("Cells", "cells", [Part(tables=[document.cell_table(runs, failed, roles=roles)])])


def making_section(sweep: Sweep, runs: Sequence[Run], families: Sequence[Family]) -> Section:
  """How the runs were made: the notes of the sweep (its learning-rate rule), what all cells of a family share, versions."""
  facts = [(name[:1].upper() + name[1:], text) for name, text in sweep.notes.items()]
  for family in families:
    mine = [run.cell for run in runs if run.cell.family == family.name]
    configs = [dict(fields(cell.config)) for cell in mine]
    shared = {name: value for name, value in configs[0].items() if all(config.get(name) == value for config in configs)}
    wanted = ("model.name", "model.form", "model.n_layers", "model.n_heads", "data.context", "data.tokenizer", "batch_size",
              "optim.name", "optim.clip_norm", "schedule.cooldown_fraction", "schedule.warmup_steps", "dtype", "eval.tokens")  # fmt: skip
    kept = [f"{name} {shared[name]}" for name in wanted if name in shared]
    facts.append((f"{document.family_title(family.name)}: the same in all cells", ", ".join(kept)))
    specs = ", ".join(dict.fromkeys(cell.spec for cell in mine))
    facts.append((f"{document.family_title(family.name)}: config", specs))
  record = next((run.record for run in runs if run.record), {})
  if record:
    facts.append(("Versions", ", ".join(f"{name} {version}" for name, version in record.get("versions", {}).items())))
    facts.append(("Git commit", record.get("git_commit") or "not recorded"))
  return Section("How the runs were made", "making", [Part(facts=facts)])


def checklist_section(families: Sequence[Family]) -> Section:
  """The checklist of Li et al. 2025 for papers on scaling laws, answered from fit.json."""
  parts = []
  for family in families:
    facts = list(_flat(family.result.get("checklist") or {}))
    title = document.family_title(family.name) if len(families) > 1 else ""
    parts.append(Part(title, f"checklist-{family.name}" if title else "", facts=facts))
  lead = Part(text=["What a reader needs in order to repeat or to doubt the fit, after Li et al. 2025."])
  return Section("Checklist", "checklist", [lead, *parts])


def _flat(value: Mapping[str, Any], above: str = "") -> list[tuple[str, str]]:
  """The entries of a nested mapping as (name, text), lists joined by commas."""
  entries = []
  for name, item in value.items():
    label = f"{above}: {name}" if above else str(name)
    if isinstance(item, Mapping):
      entries += _flat(item, label)
    elif isinstance(item, (list, tuple)):
      entries.append((label, ", ".join(str(part) for part in item) or "none"))
    else:
      entries.append((label, number(item) if isinstance(item, float) else str(item)))
  return [(name.replace("_", " "), text) for name, text in entries]


def table_sections(family: Family) -> list[Section]:
  """Summary and data of the fit of a table."""
  best = family.best
  text = []
  if best is not None:
    text.append(
      f"By inner error the law is {best['form']}. {law_tables.held_out_sentence(best, family.measured.loss_unit)}"
    )
  data = family.result["data"]
  facts = [
    (str(path), f"SHA-256 {digest}")
    for path, digest in zip(_listed(data["path"]), _listed(data["sha256"]), strict=True)
  ]
  columns = [f"{q} from {name!r}, one unit of it {data['units'].get(q, 1.0):g}" for q, name in data["columns"].items()]
  facts.append(("Columns", "; ".join([*columns, *data.get("derived", [])])))
  reasons = Counter(entry["reason"] for entry in data["dropped"])
  facts += [("Left out", f"{count} rows: {reason}") for reason, count in reasons.items()]
  facts.append(("Command", family.result["command"] or "not recorded"))
  facts.append(("Versions", ", ".join(f"{name} {version}" for name, version in family.result["versions"].items())))
  summary = Section(
    "Summary", "summary", [Part(text=text, tables=[headline_table([family])]), Part("Data", "data", facts=facts)]
  )
  return [summary]


def _listed(value: Any) -> list[Any]:
  return value if isinstance(value, list) else [value]
