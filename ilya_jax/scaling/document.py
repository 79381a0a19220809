"""The words and tables of a report: numbers, equations, paragraphs and rows, from fit.json and the runs of a sweep."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup, escape

from ilya_jax.scaling.curves import Run
from ilya_jax.scaling.drawing import short
from ilya_jax.train.metrics import clock

_GREEK = {"alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "eta": "η"}


class Row(NamedTuple):
  """A row of a table; `mark` (held, chosen, failed, waiting, trunk, dropped) decides its look."""

  cells: Sequence[str]
  mark: str = ""


class Table(NamedTuple):
  """A table: columns named in `text` are words, the others numbers; `note` stands below it."""

  title: str
  header: Sequence[str]
  rows: Sequence[Row]
  text: Sequence[str] = ()
  note: str = ""


class Picture(NamedTuple):
  """A figure in the report: `source` is a data URI, width and height are in pixels."""

  id: str
  title: str
  caption: str
  source: str
  width: int
  height: int


class Part(NamedTuple):
  """What stands under one heading, in this order: a law, notices, paragraphs, figures, tables, named facts."""

  title: str = ""
  id: str = ""
  law: str = ""
  notices: Sequence[str] = ()
  text: Sequence[str] = ()
  figures: Sequence[Picture] = ()
  tables: Sequence[Table] = ()
  facts: Sequence[tuple[str, str]] = ()


class Section(NamedTuple):
  """A section of the report, with an entry in its contents."""

  title: str
  id: str
  parts: Sequence[Part]


def number(value: float | None, digits: int = 4) -> str:
  """A number with `digits` significant digits, as 0.3456 or 6.4×10¹³; an em dash where there is none."""
  if value is None or not math.isfinite(value):
    return "—" if value is None or math.isnan(value) else "∞" if value > 0 else "−∞"
  if value == 0 or 1e-3 <= abs(value) < 1e5:
    text = f"{value:#.{digits}g}".rstrip(".")
    return (f"{value:.0f}" if "e" in text else text).replace("-", "−")
  mantissa, exponent = f"{value:.{min(digits, 3) - 1}e}".split("e")
  raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
  return f"{mantissa}×10{raised}".replace("-", "−")


def loss_text(value: float | None) -> str:
  """A loss with three decimals, as 1.280; an em dash where there is none."""
  plain = value is not None and 0.1 <= abs(value) < 1000
  return f"{value:.3f}" if plain else number(value)


def loss_interval(low: float | None, high: float | None) -> str:
  """An interval of losses as [1.263, 1.300]."""
  return "—" if low is None or high is None else f"[{loss_text(low)}, {loss_text(high)}]"


def percent(value: float | None, *, signed: bool = False) -> str:
  """A percentage with one or two decimals and a space that does not break, as −0.7 %."""
  if value is None or not math.isfinite(value):
    return "—"
  if abs(value) >= 1000:
    return f"{number(value, 2)}\u00a0%"
  return f"{value:{'+' if signed else ''}.{2 if abs(value) < 1 else 1}f}\u00a0%".replace("-", "−")


def interval(low: float | None, high: float | None, digits: int = 4) -> str:
  """An interval as [0.31, 0.36], or ≤ 0.36 where it is open below."""
  if (low is None) != (high is None):
    return f"≤\u00a0{number(high, digits)}" if low is None else f"≥\u00a0{number(low, digits)}"
  if low is None or high is None or math.isnan(low) or math.isnan(high):
    return "—"
  return f"[{number(low, digits)}, {number(high, digits)}]"


def symbol(name: str) -> Markup:
  """A parameter's name as it is printed in papers: alpha_N becomes α with the index N."""
  head, _, index = name.partition("_")
  shown = escape(_GREEK.get(head, head))
  return shown + Markup("<sub>") + escape(index) + Markup("</sub>") if index else shown


def equation(text: str) -> Markup:
  """An equation of `laws.FORMS` with raised exponents, indices and Greek letters."""

  # plain, exponent in brackets or None, exponent or None, plain, …
  pieces = re.split(r"\^\(([^()]*)\)|\^(-?\w+)", text)
  shown = Markup("")
  for k, piece in enumerate(pieces):
    if piece is not None:
      words = Markup("").join(symbol(word) for word in re.split(r"([A-Za-z]+(?:_[A-Za-z]+)?)", piece))
      shown += words if k % 3 == 0 else Markup("<sup>") + words + Markup("</sup>")
  return shown


def cell_table(runs: Sequence[Run], failed: Mapping[str, str], *, roles: Mapping[str, str]) -> Table:
  """All cells, in the order of the sweep: sizes, results and state; failed and missing ones are marked.

  roles: id -> the part that a cell played in the fits, where it is not the one it was meant for.
  """
  rows = []
  for run in runs:
    cell, measured = run.cell, run.evaluation
    state = "failed" if cell.id in failed else run.state.get("state", "waiting")
    done = state == "done"
    loss = f"{measured['loss']:.4f} ± {measured.get('loss_se', math.nan):.4f}" if done and measured else "—"
    role = roles.get(cell.id, cell.role.replace("_", " "))
    mark = {"held out": "held", "trunk": "trunk", "dropped": "dropped"}.get(role, "")
    why = failed.get(cell.id) or run.state.get("error", "")
    rows.append(Row(
      [Markup("<code>{}</code>").format(cell.id), cell.family, short(cell.counts.n), short(cell.units), f"{cell.flops:.2e}",
       f"{cell.config.optim.learning_rate:.3g}", str(cell.config.seed), loss,
       f"{measured['bits_per_byte']:.3f}" if done and "bits_per_byte" in measured else "—",
       clock(run.state["wall_s"]) if "wall_s" in run.state else "—",
       Markup("<code>{}</code>").format(cell.trunk) if run.is_branch else "own", role,
       f"{state}: {why}" if why and not done else state],
      "failed" if state == "failed" else mark if done else "waiting",
    ))  # fmt: skip
  header = ("cell", "family", "N", "D", "C (FLOP)", "learning rate", "seed", "loss ± s.e.", "bits per byte", "time",
            "trunk", "role", "state")  # fmt: skip
  note = (
    "N: non-embedding parameters; D: training tokens; C: training FLOP. Loss: nats per token (per byte where the text is "
    "read as bytes) on the held-out text at the end of the run, with its standard error over batches. Trunk: the "
    "constant-rate run whose checkpoint a cooldown began from; time is what the cell itself took, hours or minutes:seconds."
  )
  return Table("Cells of the sweep", header, rows, ("cell", "family", "trunk", "role", "state"), note)


def corpus_sentence(runs: Sequence[Run]) -> str:
  """On what text the runs were trained and tested, by the records that they left."""
  infos = {
    run.record["data"]["fingerprint"]: run.record["data"] for run in runs if "fingerprint" in run.record.get("data", {})
  }
  sentences = []
  for info in infos.values():
    if info.get("d_unique_total") is None:
      sentences.append(_language_sentence(info))
      continue
    removed = info.get("duplicates_removed") or {}
    gone = (
      f"{counted(removed.get('documents', 0), 'document')} and {counted(removed.get('paragraphs', 0), 'paragraph')}"
    )
    sentences.append(
      f"The text is the corpus {info['name']} (SHA-256 {info['fingerprint'][:12]}…), "
      f"{counted(info.get('train_documents', 0), 'document')} with {short(info.get('d_unique_total', math.nan))} tokens to train "
      f"on; losses are measured on {counted(info.get('heldout_tokens', 0), 'token')} of "
      f"{counted(info.get('heldout_documents', 0), 'document')} never seen in training, freed of what also stands there "
      f"({gone} removed)."
    )
  return " ".join(sentences) or "Of the text there is no record."


def _language_sentence(info: Mapping[str, Any]) -> str:
  """On what generated language the runs were trained."""
  known = info.get("entropy", info.get("entropy_rate"))
  floor = (
    f" No model can have an expected loss under {number(known, 5)} nats per token, the entropy of the language."
    if known
    else ""
  )
  return (
    f"The text is generated, from the language {info['name']} (SHA-256 {info['fingerprint'][:12]}…), and never repeats; losses are "
    f"measured on {counted(info.get('heldout_tokens', 0), 'token')} that no run has seen.{floor}"
  )


def counted(count: int, what: str) -> str:
  """A number of things, as 1 document or 1,546 documents."""
  return f"{count:,} {what}{'' if count == 1 else 's'}"


def plain_symbol(name: str) -> str:
  """A parameter's name in plain text with its Greek letter: alpha_N becomes α_N."""
  head, underscore, index = name.partition("_")
  return f"{_GREEK.get(head, head)}{underscore}{index}"


def family_title(name: str) -> str:
  """A family's name as a heading."""
  return {"lstm": "LSTM"}.get(name, name[:1].upper() + name[1:])


def cell_words(run: Run) -> str:
  """A cell by its id and what makes it: family, N, D and seed."""
  cell = run.cell
  return f"{cell.id} ({cell.family}, N {short(cell.counts.n)}, D {short(cell.units)}, seed {cell.config.seed})"
