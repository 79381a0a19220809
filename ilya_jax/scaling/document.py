"""The words and tables of a report: numbers, equations, paragraphs and rows, from fit.json and the runs of a sweep."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup, escape

from ilya_jax.scaling.curves import Run
from ilya_jax.scaling.drawing import short
from ilya_jax.scaling.laws import FORMS
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


def parameter_table(form: Mapping[str, Any]) -> Table:
  """The parameters of a form with intervals, and whether the points determine them."""
  rows = []
  for name, value in form["parameters"].items():
    known = (form.get("intervals") or {}).get(name, {})
    if known.get("identified") is False:
      verdict = f"not identified: {known.get('why') or 'the interval is too wide'}"
    else:
      verdict = "yes" if known else "no interval"
    rows.append(Row([symbol(name), number(value), interval(known.get("low"), known.get("high")), verdict]))
  starts, objective = form.get("starts") or {}, form.get("objective") or {}
  some: Mapping[str, Any] = next(iter((form.get("intervals") or {}).values()), {})
  second = starts.get("second_optimum")
  note = f"{form['n_points']} points. Objective: {objective.get('name')}"
  note += f" with δ = {objective['delta']:g}" if objective.get("name") == "huber" else ""
  note += f", {number(objective.get('value'), 5)} at the optimum. "
  if starts:
    note += f"{starts['n']} starts, {100 * starts['share_at_best']:.0f} % of them at the best optimum"
    if second and objective.get("value"):
      note += f"; the next local optimum is {percent(100 * (second['value'] / objective['value'] - 1))} higher"
    note += "."
  if some.get("method"):
    note += f" Intervals: {some['method']}."
  return Table(
    "Parameters", ("parameter", "value", "95 % interval", "identified"), rows, ("parameter", "identified"), note
  )


def single_table(forms: Sequence[Mapping[str, Any]]) -> Table:
  """Several small laws in one table: their parameters with intervals, the rows that they are fitted to."""
  rows = []
  for form in forms:
    for k, (name, value) in enumerate(form["parameters"].items()):
      known = (form.get("intervals") or {}).get(name, {})
      first = [form["form"], equation(form["equation"])] if k == 0 else ["", ""]
      verdict = (
        f"not identified: {known.get('why')}" if known.get("identified") is False else "yes" if known else "no interval"
      )
      which = str(form["n_points"]) if k == 0 else ""
      bounds = interval(known.get("low"), known.get("high"))
      rows.append(Row([*first, which, symbol(name), number(value), bounds, verdict]))
  header = ("form", "law", "points", "parameter", "value", "95 % interval", "identified")
  return Table("Parameters of the laws of one variable", header, rows, ("form", "law", "parameter", "identified"))


def ranking_table(result: Mapping[str, Any]) -> Table:
  """The forms in the order of the ranking: inner error, AICc, and the held-out error that grades the choice."""
  by_name = {form["form"]: form for form in result["forms"]}
  rows = []
  for place, name in enumerate(result["ranking"]):
    form = by_name[name]
    held = form.get("held_out") or {}
    points = held.get("points") or []
    first = points[0] if len(points) == 1 else {}
    rows.append(Row(
      [str(place + 1), name, equation(form["equation"]), str(len(form["parameters"])), percent(form.get("inner_mape")),
       number(form.get("aicc")), percent(held.get("mape")), loss_text(first.get("predicted")),
       loss_interval(first.get("low"), first.get("high"))],
      "chosen" if place == 0 else "",
    ))  # fmt: skip
  header = ("rank", "form", "law", "parameters", "inner error", "AICc", "held-out error", "predicted", "95 % band")
  note = (
    "Inner error: the mean error in % on the fitted runs or trunks of largest compute, each left out in turn. It orders the "
    "laws, AICc decides ties; the held-out run enters neither, so its error grades a choice made without it. Laws of one "
    "variable describe some of the runs (AICc does not compare across) and come after those of N and D. Band: where one new run "
    "should lie, by the law's uncertainty and the noise of a run together."
  )
  return Table("Forms by inner error", header, rows, ("form", "law"), note)


def held_out_sentence(form: Mapping[str, Any], unit: str) -> str:
  """What the law said of the held-out run and what was measured, in words."""
  held = form.get("held_out") or {}
  points = held.get("points") or []
  if not points:
    return "No run was held out, so the law is not tested on a larger run."
  if len(points) > 1:
    inside = sum(1 for p in points if p.get("low") is not None and p["low"] <= p["loss"] <= p["high"])
    return (
      f"On {len(points)} held-out points, up to {number(held.get('c_ratio'), 2)} times the largest fitted compute, its mean "
      f"error is {percent(held.get('mape'))}; {inside} of them lie inside their own 95 % band."
    )
  point = points[0]
  error = 100.0 * (point["predicted"] / point["loss"] - 1.0)
  inside = point.get("low") is not None and point["low"] <= point["loss"] <= point["high"]
  band = ""
  if point.get("low") is not None:
    band = f" (95 % band {loss_text(point['low'])} to {loss_text(point['high'])})"
  sizes = [f"{short(point[q])} {what}" for q, what in (("N", "parameters"), ("D", "tokens")) if q in point]
  nats = f" {unit}" if unit.startswith("nats") else ""
  named = f"the held-out run of {' and '.join(sizes)}" if sizes else "the held-out run"
  ratio = f", {number(held['c_ratio'], 2)} times the compute of the largest fitted run," if held.get("c_ratio") else ""
  return (
    f"For {named}{ratio} it predicted {loss_text(point['predicted'])}{nats}{band}; measured: "
    f"{loss_text(point['loss'])}. Error: {percent(error, signed=True)}"
    + (f", {'inside' if inside else 'outside'} the band." if band else ".")
  )


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


def variables(form: Mapping[str, Any]) -> tuple[str, ...]:
  """Which of N, D, C, S and D_unique a form takes."""
  return FORMS[form["form"]].variables


def optimal_table(form: Mapping[str, Any]) -> Table | None:
  """N*, D*, L* and tokens per parameter at the target computes, with intervals; None for a form without an optimum."""
  best = form.get("optimal")
  if best is None:
    return None
  rows = []
  for target in best["targets"]:
    cells = [number(target["C"], 3)]
    for name in ("N", "D", "loss", "tokens_per_parameter"):
      cells += [number(target[name], 3), interval(target.get(f"{name}_low"), target.get(f"{name}_high"), 3)]
    rows.append(Row(cells))
  header = ("C = 6ND (FLOP)", "N*", "95 %", "D* (tokens)", "95 %", "L*", "95 %", "D*/N*", "95 %")
  powers = [
    f"{quantity} ∝ C^{name} with {name} = {number(best[name]['value'], 3)} {interval(best[name]['low'], best[name]['high'], 3)}"
    for quantity, name in (("N*", "a"), ("D*", "b"))
  ]
  note = f"{'; '.join(powers)}. What lies far beyond the runs is extrapolation: the bands leave out that the form may be wrong."
  return Table(f"Compute-optimal allocation by {form['form']}", header, rows, (), note)


def sensitivity_table(form: Mapping[str, Any]) -> Table | None:
  """The form refitted under other choices; None where none was tried."""
  variants = form.get("sensitivity") or []
  if not variants:
    return None
  names = list(form["parameters"])
  rows = [
    Row([v["what"], str(v["n_points"]), *(number(v["parameters"][name], 3) for name in names), percent(v["held_out_error"], signed=True)],
        "chosen" if k == 0 else "")
    for k, v in enumerate(variants)
  ]  # fmt: skip
  note = "The same form after one change at a time. A number that jumps depends on a choice, not on the runs."
  header = ("change", "points", *map(symbol, names), "held-out error")
  return Table("Sensitivity to the choices of the fit", header, rows, ("change",), note)
