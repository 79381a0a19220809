"""Critical batch size and C_min from runs at several batch sizes: the key `critical_batch` of fit.json.

Kaplan et al. 2020, https://arxiv.org/abs/2001.08361, section 5: steps-to-target (`steps_to_loss`) against batch size give B_crit, S_min
and E_min at each loss and size (`hyperbola`, eqs. 5.1-5.2); B_crit is compared as a power law of L, N and D (`batch_laws`, eq. 1.4);
with B_crit(L) of its own smoothed loss every checkpoint becomes S_min = S/(1 + B_crit/B), C_min = C/(1 + B/B_crit) (eqs. 5.4,
5.5), to which L(C_min) (eq. 1.3) and L(N, S_min) (eq. 1.6) are fitted. B is in tokens per step, E and D in tokens.

The runs should differ in their batch alone, at a constant rate tuned for each batch (several rates of one batch may be there: the
first to reach a target counts), with a warm-up that is short against the steps to the highest target.

`analyse` gives:
  method: sentences.  runs, left_out: how many.  batches: size -> batch sizes.  targets: losses
  fits: for each target and size: target, N, n_runs, n_batches, few (under five batch sizes), points (B, S, E, seed), parameters
    (B_crit, S_min, E_min), intervals, residual_sd (of ln S), D_reached (tokens to the target at the smallest batch)
  laws: L, N, D: `batch_laws.fit`.  comparison: `batch_laws.compare`
  checkpoints: columns N, B, S, D, C, loss, smoothed, B_crit, S_min, C_min.  converted: "" or why there are none
  forms: kaplan_c, kaplan_ns: elements as in `forms` of fit.json, with rows; or {"why"}
  noise_scale: `noise_scale.of_sweeps`, where logged.  notes: sentences.  unit: of the losses, as far as the table tells.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ilya_jax.errors import UserError
from ilya_jax.scaling import batch_laws, hyperbola, noise_scale, steps_to_loss
from ilya_jax.scaling.fitting import FittedTable, fit_table, plain
from ilya_jax.scaling.rows import Options, rows_of_form
from ilya_jax.scaling.steps_to_loss import Tuned
from ilya_jax.scaling.table import Table

Array = np.ndarray

_TARGETS = 6
_METHOD = {
  "smoothing": "isotonic regression of ln(loss) in order of the steps, for each run",
  "inversion": "monotone cubic of ln(steps) in ln(loss) through the pools' means; no extrapolation",
  "fit": "least squares of ln S = ln S_min + ln(1 + B_crit/B)",
  "rates": "of several learning rates at one size, batch and seed, the run that reaches the target first",
  "intervals": "runs resampled within their size; tails expanded for few runs (Hesterberg 2015)",
}


class Found(NamedTuple):
  """The runs of a table and the losses at which their steps are compared."""

  runs: list[Tuned]
  targets: Array
  left_out: dict[str, int]
  curves: int


def find(table: Table, rows: Array, *, targets: Sequence[float] = ()) -> Found:
  """The runs among `rows` [n] and their targets, by default those that all batch sizes reach.

  Raises UserError where no size has three batch sizes that reach a target.
  """
  curves, left_out = steps_to_loss.find_curves(table, rows)
  runs = steps_to_loss.tuned(curves)
  sizes = {run.N: len({round(float(np.log(own.B)), 2) for own in runs if own.N == run.N}) for run in runs}
  if max(sizes.values(), default=0) < hyperbola.FEWEST:
    raise UserError(
      f"runs at {max(sizes.values(), default=0)} batch sizes", f"at least {hyperbola.FEWEST} of one size N, with checkpoints",
      "leave out --critical-batch",
    )  # fmt: skip
  enough = [run for run in runs if sizes[run.N] >= hyperbola.FEWEST]
  chosen = (
    np.array(sorted(targets, reverse=True)) if len(targets) else steps_to_loss.common_targets(enough, count=_TARGETS)
  )
  reached = [_groups(runs, np.array([target])) for target in chosen]
  if not any(reached):
    low, high = (pick(pick(np.exp(c.knots_loss)) for run in enough for c in run.curves) for pick in (min, max))
    raise UserError(
      f"targets {', '.join(f'{t:g}' for t in chosen) or 'none in common'} that under {hyperbola.FEWEST} batch sizes reach",
      f"losses between {low:.4g} and {high:.4g} that they do reach", "--batch-targets",
    )  # fmt: skip
  return Found(runs, chosen, left_out, len(curves))


def _groups(runs: Sequence[Tuned], target: Array) -> dict[float, tuple[list[int], Array]]:
  """Size -> the runs (indices) that reach the target [1] and their steps, where at least three batch sizes do."""
  groups = {}
  for size in sorted({run.N for run in runs}):
    own = [k for k, run in enumerate(runs) if run.N == size]
    steps = np.array([runs[k].steps_to(target)[0] for k in own])
    there = np.isfinite(steps)
    if len({round(float(np.log(runs[k].B)), 2) for k, yes in zip(own, there, strict=True) if yes}) >= hyperbola.FEWEST:
      groups[size] = ([k for k, yes in zip(own, there, strict=True) if yes], steps[there])
  return groups


def of_fit(
  fit: FittedTable, table: Table, *, options: Options, targets: Sequence[float] = (), inputs: Sequence[Path] = ()
) -> dict[str, Any]:
  """`analyse` of the rows that entered the fits, with what the runs of sweep folders among `inputs` logged of their gradients."""
  rows = fit.part == "fit"
  known = {}
  if "cell" in table.columns and "N" in table.values:
    B = steps_to_loss.tokens_per_step(table, steps_to_loss.steps_of(table))
    known = {str(table.columns["cell"][k]): {"N": table.values["N"][k], "B": B[k]} for k in np.flatnonzero(rows)}
  return analyse(table, rows, options=options, targets=targets, noise=noise_scale.of_sweeps(inputs, known))


def analyse(
  table: Table, rows: Array, *, options: Options, targets: Sequence[float] = (), noise: Sequence[Any] = ()
) -> dict[str, Any]:
  """The analysis of the rows where `rows` [n] holds; module docstring: what it gives. Raises UserError as `find` does.

  options: bootstrap, seed, and how the forms are fitted to the converted checkpoints.
  """
  found = find(table, rows, targets=targets)
  runs = found.runs
  rng = np.random.default_rng(options.seed)
  weights = hyperbola.case_weights(np.array([run.N for run in runs]), rng, count=options.bootstrap)
  records, drawn = [], []
  for target in found.targets:
    for size, (own, steps) in _groups(runs, np.array([target])).items():
      B = np.array([runs[k].B for k in own])
      made = hyperbola.fit(B, steps, weights[:, own])
      records.append(_fit_record(made, [runs[k] for k in own], steps, target=float(target), size=size))
      drawn.append(made.log_B_crit)
  points = _points(records, drawn)
  laws = {law: batch_laws.fit(points, law) if points is not None else None for law in batch_laws.LAWS}
  checkpoints, why = _converted(table, runs, laws["L"])
  sizes = sorted({run.N for run in runs})
  return plain({
    "method": _METHOD,
    "runs": found.curves,
    "left_out": found.left_out,
    "batches": {f"{size:g}": sorted({run.B for run in runs if run.N == size}) for size in sizes},
    "targets": list(found.targets),
    "fits": records,
    "laws": laws,
    "comparison": None if points is None else batch_laws.compare(points),
    "checkpoints": None if checkpoints is None else {name: list(c) for name, c in checkpoints.columns.items()},
    "converted": why,
    "forms": {} if checkpoints is None else _forms(checkpoints.table, options),
    "noise_scale": list(noise),
    "unit": _unit(table),
    "notes": _notes(table, runs, records),
  })  # fmt: skip


def _fit_record(
  made: hyperbola.Hyperbola, runs: Sequence[Tuned], steps: Array, *, target: float, size: float
) -> dict[str, Any]:
  B = np.array([run.B for run in runs])
  freedom = max(len(runs) - 2, 1)
  return {
    "target": target,
    "N": size,
    "n_runs": len(runs),
    "n_batches": made.used,
    "few": made.used < hyperbola.ENOUGH,
    "points": [
      {"B": run.B, "S": float(s), "E": run.B * float(s), "seed": run.seed} for run, s in zip(runs, steps, strict=True)
    ],
    "parameters": {name: float(value[0]) for name, value in made.values().items()},
    "intervals": hyperbola.intervals(made, B),
    "residual_sd": float(np.sqrt(np.square(made.residuals).sum() / freedom)),
    "D_reached": float(B.min() * steps[B == B.min()].mean()),
  }


def _points(records: Sequence[dict[str, Any]], drawn: Sequence[Array]) -> batch_laws.Points | None:
  """The points (target, size) whose B_crit is identified; None where there is none."""
  kept = [k for k, record in enumerate(records) if record["intervals"]["B_crit"]["identified"]]
  if not kept:
    return None
  columns = {name: np.array([records[k][name] for k in kept]) for name in ("target", "N", "D_reached")}
  x = {law: np.log(columns[name]) for law, name in (("L", "target"), ("N", "N"), ("D", "D_reached"))}
  return batch_laws.Points(x, np.stack([drawn[k] for k in kept], axis=1), columns["target"], columns["N"])


class Converted(NamedTuple):
  """Checkpoints as columns for the record, and as a table whose S and C are S_min and C_min."""

  columns: dict[str, Array]
  table: Table


def s_min(S: Array, *, B: Array, B_crit: Array) -> Array:
  """Eq. 5.4: the steps that a batch far above B_crit would take."""
  return S / (1 + B_crit / B)


def c_min(C: Array, *, B: Array, B_crit: Array) -> Array:
  """Eq. 5.5: the compute that a batch far below B_crit would take."""
  return C / (1 + B / B_crit)


def _converted(table: Table, runs: Sequence[Tuned], law: dict[str, Any] | None) -> tuple[Converted | None, str]:
  """Every checkpoint of the run that ends lowest of each size, batch and seed, with B_crit of its own smoothed loss."""
  if law is None:
    return None, "B_crit is identified at fewer than three points, or at one loss alone"
  star, alpha = law["parameters"]["B_star"], law["parameters"]["alpha_B"]
  best = [run.best for run in runs]
  rows = np.concatenate([curve.rows for curve in best])
  S, smoothed = (np.concatenate([getattr(curve, name) for curve in best]) for name in ("steps", "loss"))
  B = np.concatenate([np.full(len(curve.rows), curve.B) for curve in best])
  B_crit = np.exp(np.log(star) - np.log(smoothed) / alpha)
  keep = np.zeros(table.n_rows, bool)
  keep[rows] = True
  order = np.argsort(rows)
  S, smoothed, B, B_crit = (column[order] for column in (S, smoothed, B, B_crit))
  taken = table.take(keep)
  columns = {"N": taken.values["N"], "B": B, "S": S, "D": B * S, "loss": taken.values["loss"], "smoothed": smoothed}
  columns |= {"B_crit": B_crit, "S_min": s_min(S, B=B, B_crit=B_crit)}
  values = {name: taken.values[name] for name in ("N", "loss")} | {"D": columns["D"], "S": columns["S_min"]}
  if "C" in taken.values:
    columns |= {"C": taken.values["C"], "C_min": c_min(taken.values["C"], B=B, B_crit=B_crit)}
    values |= {"C": columns["C_min"]}
  return Converted(columns, taken._replace(values=values)), ""


def _forms(table: Table, options: Options) -> dict[str, Any]:
  """kaplan_c on the lowest losses by C_min, kaplan_ns on all checkpoints (N, S_min); or why one cannot be fitted."""
  made: dict[str, Any] = {}
  own = options._replace(hold_out="none", predict=(), target_compute=(), drop_shortest=False)
  for name in ("kaplan_c", "kaplan_ns"):
    frontier = name == "kaplan_c" and "C" in table.values
    kept = table.take(rows_of_form(table, np.ones(table.n_rows, bool), name)) if frontier else table
    try:
      made[name] = {**fit_table(kept, own._replace(form=name)).result["forms"][0], "sensitivity": []}
      made[name]["rows"] = "lowest loss so far by C_min" if frontier else "all converted checkpoints"
    except UserError as error:
      made[name] = {"why": str(error).partition(";")[0]}
  return made


def _unit(table: Table) -> str:
  """Nats per byte or per token where the table has bits per byte beside the loss."""
  if "bits_per_byte" not in table.columns:
    return "as in the table"
  try:
    bits = table.columns["bits_per_byte"].astype(float)
  except ValueError:
    return "nats per token"
  return "nats per byte" if np.allclose(bits, table.values["loss"] / np.log(2), rtol=1e-3) else "nats per token"


def _notes(table: Table, runs: Sequence[Tuned], records: Sequence[dict[str, Any]]) -> list[str]:
  """What a reader must know before the numbers."""
  notes = []
  schedules = sorted(set(table.columns["schedule"])) if "schedule" in table.columns else []
  if schedules and schedules != ["constant"]:
    falls = "where the rate falls in the course of a run, its steps to a loss depend on its length"
    notes.append(f"Schedules in the table: {', '.join(schedules)}; {falls}.")
  if any(record["few"] for record in records):
    notes.append(f"Some targets are reached by fewer than {hyperbola.ENOUGH} batch sizes.")
  if "lr" in table.columns and all(len(run.curves) == 1 for run in runs) and len(set(table.columns["lr"])) == 1:
    notes.append("One learning rate for all batch sizes: too low a rate for a large batch looks like a small B_crit.")
  unknown = sum(not record["intervals"]["B_crit"]["identified"] for record in records)
  if unknown:
    notes.append(f"At {unknown} of {len(records)} targets and sizes B_crit is not identified; the laws leave them out.")
  return notes
