"""The section of a report about the critical batch size, and what it prints: figures, fits, laws compared, converted forms."""

from collections.abc import Mapping
from typing import Any

from ilya_jax.scaling import document, plots_batch
from ilya_jax.scaling.batch_laws import LAWS, NAMES
from ilya_jax.scaling.document import Part, Row, Section, Table, interval, number
from ilya_jax.scaling.drawing import short
from ilya_jax.scaling.hyperbola import NAMES as FITTED
from ilya_jax.scaling.law_tables import single_table
from ilya_jax.scaling.sections import Draw

Record = Mapping[str, Any]

_WORDS = {"L": "loss", "N": "size", "D": "tokens"}


def batch_section(record: Record, *, draw: Draw) -> Section:
  """The section of a record of `critical_batch.analyse`."""
  unit = record["unit"]
  kaplan = unit == "nats per token"
  figures = [
    draw(
      "batch_hyperbolas", plots_batch.hyperbolas(record, unit), "Steps against tokens",
      "Each colour is one loss, each mark a run that reached it: small batches on the upper left (few tokens, many steps), large ones "
      "on the lower right. The lines are (S/S_min − 1)(E/E_min − 1) = 1, their asymptotes dotted. At B_crit a run takes twice of both.",
    ),
    draw(
      "batch_critical", plots_batch.against_loss(record, unit, kaplan=kaplan), "Critical batch size against loss",
      "B_crit of every target and size with its 95 % interval; where it follows the loss alone, the sizes lie on one line."
      + (" Kaplan's line is for another text and tokenizer." if kaplan else "")
      + (" Crosses: the noise scale of the gradients, average over average, in windows of each run." if record["noise_scale"] else ""),
    ),
  ]  # fmt: skip
  first = Part("", "", notices=record["notes"], text=[_runs_text(record)], figures=figures)
  fits = Part("Fits at each target", "batch-fits", tables=[_fit_table(record)])
  laws = Part(
    "What the critical batch size follows", "batch-laws", text=[_comparison_text(record)], tables=[_law_table(record)]
  )
  return Section("Critical batch size", "batch", [first, fits, laws, _forms_part(record)])


def lines(record: Record) -> str:
  """B_crit by target, the laws and their errors in plain text, for the terminal."""
  shown = ["critical batch size in tokens [95 % interval]:"]
  for found in record["fits"]:
    known = found["intervals"]["B_crit"]
    value = f"{short(found['parameters']['B_crit'])}"
    value += "" if known["low"] is None else f" [{short(known['low'])}, {short(known['high'])}]"
    value += "" if known["identified"] else f"  not identified: {known['why']}"
    shown.append(
      f"  loss {found['target']:.3f}  N {short(found['N'])}  {found['n_batches']} batch sizes  B_crit {value}"
    )
  law = record["laws"]["L"]
  if law is not None:
    parameters = "  ".join(f"{name} {value:.3g}" for name, value in law["parameters"].items())
    shown.append(f"  {law['equation']}: {parameters}")
  shown.append(f"  {_comparison_text(record)}")
  return "\n".join(shown)


def _runs_text(record: Record) -> str:
  sizes = "; ".join(
    f"N {short(float(size))}: {len(batches)} batch sizes, {short(batches[0])} to {short(batches[-1])} tokens"
    for size, batches in record["batches"].items()
  )
  gone = "".join(f" Left out: {count} ({reason})." for reason, count in record["left_out"].items())
  method = record["method"]
  return (
    f"{record['runs']} runs. {sizes}.{gone} Curves are smoothed by {method['smoothing']} and inverted by {method['inversion']}. Of "
    f"several learning rates at one batch the run that reaches the target first counts. {method['intervals'].capitalize()}."
  )


def _verdict(known: Record) -> str:
  return "yes" if known["identified"] else f"not identified: {known['why']}"


def _fit_table(record: Record) -> Table:
  rows = []
  for found in record["fits"]:
    cells = [f"{found['target']:.4g}", short(found["N"]), f"{found['n_batches']}{' (few)' if found['few'] else ''}"]
    for name in FITTED:
      known = found["intervals"][name]
      cells += [number(found["parameters"][name], 3), interval(known["low"], known["high"], 3)]
    known = found["intervals"]["B_crit"]
    rows.append(
      Row(
        [*cells, document.percent(100 * found["residual_sd"]), _verdict(known)],
        "" if known["identified"] else "dropped",
      )
    )
  header = ("loss", "N", "batch sizes", "B_crit (tokens)", "95 %", "S_min (steps)", "95 %", "E_min (tokens)", "95 %", "scatter",
            "B_crit identified")  # fmt: skip
  note = "S(B) = S_min (1 + B_crit/B), least squares in ln S; E_min = B_crit S_min. Scatter: standard deviation of ln S about the fit."
  return Table("Critical batch size, least steps and least tokens", header, rows, ("B_crit identified",), note)


def _law_table(record: Record) -> Table:
  rows = []
  errors = (record["comparison"] or {"errors": {}, "preferred": None})["errors"]
  for law, equation in LAWS.items():
    found = record["laws"][law]
    off = errors.get(law, {})
    scores = [number(off.get(name), 3) for name in ("target", "size", "mean")]
    mark = "chosen" if record["comparison"] and record["comparison"]["preferred"] == law else ""
    if found is None:
      rows.append(Row([_WORDS[law], equation, "—", "—", "—", "—", *scores, "too few points"], "dropped"))
      continue
    cells = []
    for name in NAMES[law]:
      known = found["intervals"][name]
      cells += [f"{name} = {number(found['parameters'][name], 3)}", interval(known["low"], known["high"], 3)]
    verdict = (
      "; ".join(f"{name}: {known['why']}" for name, known in found["intervals"].items() if known["why"]) or "yes"
    )
    rows.append(Row([_WORDS[law], equation, *cells, *scores, verdict], mark))
  header = (
    "follows",
    "law",
    "constant",
    "95 %",
    "exponent",
    "95 %",
    "target left out",
    "size left out",
    "mean error",
    "identified",
  )
  note = (
    "Errors: mean |ln(predicted B_crit / fitted B_crit)| at the targets, or sizes, left out in turn. D: tokens with which the smallest "
    "batch reaches the target. Kaplan et al. 2020 print B_star = 2×10⁸ tokens and α_B = 0.21 for their text and tokenizer."
  )
  return Table("Power laws of the critical batch size", header, rows, ("follows", "law", "identified"), note)


def _comparison_text(record: Record) -> str:
  found = record["comparison"]
  if found is None:
    return "B_crit is identified nowhere, so nothing is compared"
  if found["preferred"] is None:
    return f"Loss, size and tokens are not compared: {found['why']}"
  share = "" if found["share"] is None else f" (as in {100 * found['share']:.0f} % of the resamples)"
  text = f"B_crit is predicted best by the {_WORDS[found['preferred']]}{share}"
  if found["between_sizes"] is not None and found["between_targets"] is not None:
    sizes, targets = f"{found['between_sizes']:.2f}", f"{found['between_targets']:.2f}"
    text += f"; |ln ratio| between sizes at equal loss {sizes}, between the first and last target {targets}"
  return text


def _forms_part(record: Record) -> Part:
  title, key = "Laws of C_min and S_min", "batch-forms"
  if record["converted"]:
    return Part(title, key, text=[f"No checkpoint was converted: {record['converted']}."])
  forms = [form for form in record["forms"].values() if "parameters" in form]
  text = [
    f"{len(record['checkpoints']['S_min'])} checkpoints were converted by S_min = S/(1 + B_crit/B) and C_min = C/(1 + B/B_crit), with "
    "B_crit of their own smoothed loss. Here C of kaplan_c is C_min, S of kaplan_ns is S_min."
  ]
  text += [f"{name} was not fitted: {form['why']}." for name, form in record["forms"].items() if "why" in form]
  return Part(title, key, text=text, tables=[single_table(forms)] if forms else [])
