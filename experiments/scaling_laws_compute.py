"""How the best size grows with compute, by three methods and two counts of size: the claim `compute_exponents` of `scaling_laws.py`.

Hoffmann et al. 2022, https://arxiv.org/abs/2203.15556, section 3 (envelope, equal compute, surface); Pearce & Song 2024,
https://arxiv.org/abs/2406.12907 (what leaving out embeddings does to the exponent).

Deviations: Pearce & Song's local slope is for models of one aspect ratio, whose embeddings grow as N^(1/3). Those of a ladder of one
depth grow as N^(1/2), the power that `allocation.embeddings_of` finds; on losses made by a known law of N_total, the budgets below
then find the exponent of N within .02 (parabolas) or .005 (cubics), where the formula for one aspect ratio is off by .1 to .2.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments import scaling_laws_figures as figures
from experiments import scaling_laws_runs as runs
from experiments.scaling_laws_runs import Cell
from experiments.scaling_laws_tables import arrays, learns, try_fit
from ilya_jax.claims import Judged, Measured, Setting
from ilya_jax.claims.claim import Row, column, select, verdict
from ilya_jax.claims.trainings import Trained
from ilya_jax.scaling import allocation, curves, envelope, isoflop, optimal, uncertainty
from ilya_jax.scaling.fit import Fit
from ilya_jax.scaling.fitted import FittedLaw
from ilya_jax.scaling.rows import Options

Array = np.ndarray

BUDGETS = {  # 6 N D in FLOP -> widths, two layers each
  2e11: (8, 12, 16, 24, 34), 4e11: (12, 16, 24, 34, 48), 8e11: (16, 24, 34, 48, 68),
}  # fmt: skip
RESAMPLES = 300


def measure_compute(setting: Setting) -> Measured:
  """Exponents of N and of N_total from sizes at equal 6 N D, from laws fitted to each, and from the envelope of trainings."""
  if setting.scale == "tiny":
    return Measured([tiny_exponents(setting, seed) for seed in setting.seeds])
  jobs: runs.Jobs = {}
  for budget, widths in BUDGETS.items():
    for width in widths:
      steps = round(budget / (6 * runs.size_of(width) * runs.TOKENS_PER_STEP))
      warmup = max(min(200, steps // 10), 10)
      for seed in setting.seeds:
        jobs[f"{budget:g} {width} {seed}"] = runs.transformer(
          setting, width, steps, seed=seed, schedule__warmup_steps=warmup
        )
  made = setting.train(jobs)
  cells = {name: counted(runs.cell_of(run)) for name, run in made.items()}
  trunks = {
    name: constant_part(made[name], cell) for name, cell in cells.items() if name.startswith(f"{max(BUDGETS):g} ")
  }
  rows: list[dict[str, Any]] = []
  for seed in setting.seeds:
    own = [cell for cell in cells.values() if cell.seed == seed]
    trainings = [trunk for name, trunk in trunks.items() if cells[name].seed == seed]
    rows.append({"seed": seed, "data": "one seed", **exponents(setting, own, trainings, name=f"seed {seed}")})
  everything = exponents(setting, list(cells.values()), list(trunks.values()), name="all")
  rows.append({"data": "all seeds", **everything})
  return Measured(rows, {"compute": figures.draw_valleys(list(cells.values()))})


def counted(cell: Cell) -> Cell:
  """The cell with C = 6 N D, as the paper counts."""
  return cell._replace(C=optimal.FLOP_PER_PARAMETER_AND_TOKEN * cell.N * cell.D)


def constant_part(run: Trained, cell: Cell) -> envelope.Training:
  """The smoothed training losses of a run before its cooldown, at a constant rate."""
  steps, losses = run.curve()
  kept = np.array(steps) <= 0.8 * run.config.steps
  at, smooth = curves.smoothed(np.array(steps)[kept], np.array(losses)[kept])
  share = at / run.config.steps
  return envelope.Training(cell.N, share * cell.C, share * cell.D, smooth, True, "training losses, smoothed")


def exponents(
  setting: Setting, cells: Sequence[Cell], trainings: Sequence[envelope.Training], *, name: str
) -> dict[str, float]:
  """Exponents a of N ~ C^a under both counts, and what the local slope makes of the law fitted to N_total."""
  values = arrays(cells)
  found = {"loss": float(values["loss"].max())}
  by_n, by_total = (try_fit("chinchilla", values["loss"], N=values[size], D=values["D"]) for size in ("N", "N_total"))
  if by_n is None or by_total is None:
    return found
  clusters = range(len(cells))
  record = isoflop.analyse(
    runs.write_table(setting, f"isoflop {name}", listed(cells)), np.full(len(cells), "fit"),
    law=FittedLaw(by_n, uncertainty.resample(by_n, clusters=clusters, count=RESAMPLES)),
    options=Options(bootstrap=RESAMPLES), trainings=trainings,
  )  # fmt: skip
  best = [number(budget["methods"]["cubic"]["N"]) for budget in record["budgets"]]
  draws = uncertainty.resample(by_total, clusters=clusters, count=RESAMPLES).parameters
  embeddings = allocation.embeddings_of(values["N"], values["N_total"])
  slope = functools.partial(allocation.slope_between, embeddings=embeddings, first=min(best), last=max(best))
  predicted = slope(by_total.parameters["alpha"], by_total.parameters["beta"])
  drawn = [slope(a, b) for a, b in zip(draws["alpha"], draws["beta"], strict=True)]
  a_total, of_total = slope_of(by_total), draws["beta"] / (draws["alpha"] + draws["beta"])
  low, high = uncertainty.interval(np.array(drawn) - of_total)
  measured = {method: each["a"] for method, each in record["exponents"].items()}
  at_c = np.unique(np.round(np.log(values["C"]), 1))
  lowest = [int(np.where(np.round(np.log(values["C"]), 1) == c, values["loss"], np.inf).argmin()) for c in at_c]
  power = try_fit("kaplan_c", values["loss"][lowest], C=values["C"][lowest])
  return {
    **found, "a_N": number(measured["cubic"]["value"]), "a_N_low": number(measured["cubic"]["low"]),
    "a_N_high": number(measured["cubic"]["high"]), "a_N_parabola": number(measured["parabola"]["value"]),
    "a_N_surface": slope_of(by_n), "a_N_envelope": number((record["envelope"].get("a") or {}).get("value")),
    "a_N_total": a_total, "difference": number(measured["cubic"]["value"]) - a_total, "predicted": predicted - a_total,
    "predicted_low": low, "predicted_high": high, "alpha_C": power.parameters["alpha_C"] if power else math.nan,
  }  # fmt: skip


def listed(cells: Sequence[Cell]) -> list[dict[str, Any]]:
  """The cells as rows of a table of finished runs."""
  return [{"cell": k, "final": 1, "lr": 1, **cell._asdict()} for k, cell in enumerate(cells)]


def number(value: Any) -> float:
  """nan for None."""
  return math.nan if value is None else float(value)


def slope_of(law: Fit) -> float:
  """The exponent of N* by a law of two terms at C = 6 N D."""
  found = optimal.exponents(law.form, law.parameters)
  assert found is not None
  return float(found[0])


def tiny_exponents(setting: Setting, seed: int) -> dict[str, Any]:
  """At tiny scale Kaplan's law of N and D stands in, which two sizes determine."""
  values = arrays([cell for cell in runs.grid(setting) if cell.seed == seed])
  laws = {size: try_fit("kaplan_nd", values["loss"], N=values[size], D=values["D"]) for size in ("N", "N_total")}
  made = {f"a_{size}": slope_of(law) if law else math.nan for size, law in laws.items()}
  return {"seed": seed, "data": "one seed", "loss": float(values["loss"].max()), **made}


def judge_compute(rows: Sequence[Row], scale: str) -> Judged:
  """The rule of `compute_exponents`."""
  own = [as_numbers(row) for row in select(rows, data="one seed")]
  shown = f"N ~ C^{np.mean(column(own, 'a_N')):.2f}, N_total ~ C^{np.mean(column(own, 'a_N_total')):.2f}"
  if scale == "tiny":
    return learns(own, shown)
  (pooled,) = (as_numbers(row) for row in select(rows, data="all seeds"))
  larger = all(row["a_N"] > row["a_N_total"] for row in own)
  low, high = (pooled[f"a_N_{end}"] - pooled["a_N_total"] for end in ("low", "high"))
  overlap = low <= pooled["predicted_high"] and high >= pooled["predicted_low"]
  finding = (
    f"{shown} (N by parabolas {pooled['a_N_parabola']:.2f}, surface {pooled['a_N_surface']:.2f}, envelope "
    f"{pooled['a_N_envelope']:.2f}); difference {pooled['difference']:.3f} [{low:.3f}, {high:.3f}], predicted "
    f"{pooled['predicted']:.3f} [{pooled['predicted_low']:.3f}, {pooled['predicted_high']:.3f}]; L ~ C^-{pooled['alpha_C']:.3f}"
  )
  return Judged(verdict(bool(larger and overlap)), finding)


def as_numbers(row: Mapping[str, Any]) -> dict[str, Any]:
  """A row with nan for what is missing."""
  return {name: math.nan if value is None else value for name, value in row.items()}
