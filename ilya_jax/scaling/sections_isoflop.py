"""The section of a report about the isoFLOP analysis, and what it prints: figures, exponents side by side, budgets, caveats."""

from collections.abc import Mapping
from typing import Any

from ilya_jax.scaling import document, plots_isoflop
from ilya_jax.scaling.document import Part, Row, Section, Table, interval, loss_text, number
from ilya_jax.scaling.plots_isoflop import LOOKS
from ilya_jax.scaling.sections import Draw

Record = Mapping[str, Any]

# Kaplan et al. 2020, Table 6; Hoffmann et al. 2022, Table 2: name -> (a, b) as printed.
_PRINTED = {
  "Kaplan et al. 2020, Table 6": ("0.73", "0.27"),
  "Hoffmann et al. 2022, approach 1 (envelope)": ("0.50", "0.50"),
  "Hoffmann et al. 2022, approach 2 (isoFLOP)": ("0.49", "0.51"),
  "Hoffmann et al. 2022, approach 3 (law)": ("0.46", "0.54"),
}


def isoflop_section(record: Record, *, unit: str, draw: Draw) -> Section:
  """The section of a record of `isoflop.analyse`; unit: of the losses."""
  law = (record["surface"] or {}).get("form")
  figures = [
    draw(
      "isoflop_valleys", plots_isoflop.valleys(record, unit), "isoFLOP valleys",
      "Each colour is one compute; dots are the mean losses of its sizes"
      + (f", the line is what the law {law} gives there" if law else "")
      + ". Hollow marks are the minima that each method finds; only those with two sizes on each side are drawn. Where the marks of "
      "one budget lie apart, the answer depends on the method.",
    ),
    draw(
      "isoflop_optima", plots_isoflop.optima(record), "Best size and tokens against compute",
      "N* and D* by every method with 95 % bars (marks of one budget are set side by side) and their power laws, the law's band, "
      "and the rules that Kaplan and Hoffmann printed, in their own counts of N and C. The slopes are the exponents a and b below.",
    ),
  ]  # fmt: skip
  exponents = Part("Exponents", "isoflop-exponents", text=_exponent_text(record), tables=_exponent_tables(record))
  budgets = Part("Minima of the budgets", "isoflop-budgets", tables=[_budget_table(record)], facts=_facts(record))
  envelope = Part("Envelope of the trainings", "isoflop-envelope", text=_envelope_text(record))
  first = Part("", "", notices=record["warnings"], figures=figures)
  return Section("isoFLOP analysis", "isoflop", [first, exponents, budgets, envelope])


def lines(record: Record) -> str:
  """The exponents of every method in plain text, for the terminal."""
  shown = []
  for method, found in record["exponents"].items():
    a = found["a"]
    bias = ((record["bias"] or {}).get(method) or {}).get("a", {}).get("bias")
    text = "not identified" if a["value"] is None else f"{a['value']:.3f}"
    text += "" if a["low"] is None else f" [{a['low']:.3f}, {a['high']:.3f}]"
    text += "" if a["identified"] or a["value"] is None else " not identified"
    text += "" if bias is None else f", bias by the law {bias:+.3f}"
    shown.append(f"  {LOOKS[method][0]:<16} a = {text} ({found['budgets']} of {len(record['budgets'])} budgets)")
  return "\n".join(["isoFLOP, N* ~ C^a [95 % interval]:", *shown])


def _exponent_tables(record: Record) -> list[Table]:
  """The exponents by method with their biases and the printed ones, then by definition of N and C."""
  rows = []
  for method, found in record["exponents"].items():
    bias = ((record["bias"] or {}).get(method) or {}) if method != "surface" else {}
    cells = [LOOKS[method][0], f"{found['budgets']} of {len(record['budgets'])}"]
    for name in ("a", "b"):
      off = (bias.get(name) or {}).get("bias")
      signed = "—" if off is None else f"{off:+.3f}".replace("-", "−")
      cells += [number(found[name]["value"], 3), interval(found[name]["low"], found[name]["high"], 3), signed]
    rows.append(Row([*cells, _verdict(found["a"])]))
  envelope = record["envelope"]
  if not envelope["refused"]:
    cells = [f"envelope{'' if envelope['valid'] else ' (decaying rates)'}", "—"]
    for name in ("a", "b"):
      cells += [number(envelope[name]["value"], 3), interval(envelope[name]["low"], envelope[name]["high"], 3), "—"]
    rows.append(Row([*cells, _verdict(envelope["a"])]))
  rows += [Row([name, "—", a, "—", "—", b, "—", "—", "as printed"], "dropped") for name, (a, b) in _PRINTED.items()]
  header = ("method", "budgets", "a", "95 %", "bias of a", "b", "95 %", "bias of b", "identified")
  note = (
    "N* ∝ C^a and D* ∝ C^b by least squares in logarithms. Bias: what the method makes of the fitted law's own losses on this grid, "
    "minus that law's exponent. It is right as far as the law is."
  )
  tables = [Table("Exponents by method", header, rows, ("method", "identified"), note)]
  if len(record["definitions"]) > 1:
    tables.append(_definition_table(record))
  return tables


def _verdict(exponent: Record) -> str:
  return ("yes" if exponent["identified"] else "not identified") + (f": {exponent['why']}" if exponent["why"] else "")


def _definition_table(record: Record) -> Table:
  """The exponent a of N* for every count of size and compute."""
  methods = list(record["exponents"])
  rows = []
  for each in record["definitions"]:
    cells = [f"{each['size']}, C = {'as in the table' if each['compute'] == 'C' else each['compute']}"]
    for method in methods:
      a = (each["exponents"].get(method) or {"a": {"value": None, "low": None, "high": None}})["a"]
      cells.append(f"{number(a['value'], 3)} {interval(a['low'], a['high'], 3)}")
    rows.append(Row([*cells, "—" if not each["moved"] else f"{each['moved']:.2f}"]))
  difference = record["difference"]
  if difference is not None:
    cells = ["a of N minus a of N_total, both with 6 N D"]
    cells += [
      f"{number(d['value'], 3)} {interval(d['low'], d['high'], 3)}" if (d := difference.get(method)) else "—"
      for method in methods
    ]
    rows.append(Row([*cells, "—"], "chosen"))
  header = ("counts", *(LOOKS[method][0] for method in methods), "moved")
  note = (
    "The same budgets with other counts of parameters and FLOP. Moved: over how much of ln C a budget spreads in that count; the law "
    "brings its losses to one compute."
  )
  return Table("The exponent a by what N and C count", header, rows, ("counts",), note)


def _exponent_text(record: Record) -> list[str]:
  noise, resampling = record["noise"], record["resampling"]
  texts = []
  if resampling["count"]:
    texts.append(
      f"Intervals are 95 % of {resampling['count']} residual resamples with noise of {document.percent(100 * noise['sd'])} of the loss "
      f"({noise['source']}, {noise['dof']} degrees of freedom): {resampling['why']}. Those of the fitted law come from its own fit."
    )
  else:
    texts.append(f"There are no intervals: {resampling['why']}.")
  bias = record["bias"]
  if bias is not None:
    skew = [value for value in bias["skew"] if value is not None]
    if skew:
      mean = sum(skew) / len(skew)
      texts.append(
        f"By the law the valleys have a skew f‴/f″ of {number(mean, 2)} at their minimum (β − α for a sum of two power laws; 0 is "
        f"symmetric), and the grid's centre grows as the optimum's power of compute {_signed(bias['grid_drift'])}: together they "
        "bias a parabola."
      )
  return texts


def _signed(value: float | None) -> str:
  return "plus an unknown amount" if value is None else f"{'plus' if value >= 0 else 'minus'} {abs(value):.3f}"


def _budget_table(record: Record) -> Table:
  """Every budget and method: N*, D*, loss, and whether it is usable."""
  rows = []
  for budget in record["budgets"]:
    for k, (method, found) in enumerate(budget["methods"].items()):
      verdict = "yes" if found["usable"] else f"refused: {found['reason']}"
      if method == "surface" and found["reason"]:
        verdict += f" ({found['reason']})"
      cells = [number(budget["C"], 3), str(len(budget["points"]))] if k == 0 else ["", ""]
      cells += [
        LOOKS[method][0],
        number(found["N"], 3),
        interval(found["N_low"], found["N_high"], 3),
        number(found["D"], 3),
      ]
      cells += [interval(found["D_low"], found["D_high"], 3), loss_text(found["loss"]), verdict]
      rows.append(Row(cells, "" if found["usable"] else "dropped"))
  header = ("C (FLOP)", "sizes", "method", "N*", "95 %", "D* (tokens)", "95 %", "loss", "usable")
  note = (
    "A minimum counts where it lies inside the sizes with two of them on each side; the fitted law needs no bracket."
  )
  return Table("Minima by budget and method", header, rows, ("method", "usable"), note)


def _facts(record: Record) -> list[tuple[str, str]]:
  grouping = record["grouping"]
  wide = len(grouping["too_wide"])
  found = f"{len(record['budgets'])} budgets, the widest {grouping['widest']:.3f} in ln C; {wide} groups too wide, "
  return [
    ("Budgets", f"{grouping['rule']}. By {'C of the table' if grouping['compute'] == 'C' else '6 N D'}."),
    ("Found", f"{found}{grouping['rows_of_one_size']} rows of one size alone"),
    ("Tokens", f"D* = {record['tokens']}"),
  ]


def _envelope_text(record: Record) -> list[str]:
  envelope = record["envelope"]
  if envelope["refused"]:
    return [f"Refused: {envelope['refused']}. {envelope['caveat']}"]
  a, b = envelope["a"], envelope["b"]
  return [
    f"{envelope['trainings']} {'constant-rate ' if envelope['valid'] else ''}trainings of {envelope['sizes']} sizes "
    f"({envelope['losses']}): a = {number(a['value'], 3)} {interval(a['low'], a['high'], 3)}, b = {number(b['value'], 3)} "
    f"{interval(b['low'], b['high'], 3)}, jackknifed over sizes. {envelope['caveat']}"
  ]
