"""Claims of `scaling_laws.py` that are laws of size, length and compute: measured on tables of losses by the fit toolkit.

All fits minimise the toolkit's default, the sum of Huber(1e-3) of log residuals, from 64 starts. A fit that the rows cannot determine
leaves its numbers empty.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import interpolate, stats

from experiments import scaling_laws_figures as figures
from experiments import scaling_laws_runs as runs
from experiments.scaling_laws_runs import Cell
from ilya_jax.claims import Judged, Measured, Setting
from ilya_jax.claims.claim import Row, column, verdict
from ilya_jax.data.tokens import load_corpus
from ilya_jax.errors import UserError
from ilya_jax.scaling.fit import Fit, fit_law

Array = np.ndarray

FALLS = 1.0  # nats below a uniform guess that a tiny run must end


def try_fit(form: str, loss: Array, **variables: Array) -> Fit | None:
  """The fit, None where the rows cannot determine the form."""
  try:
    return fit_law(form, loss, **variables)
  except UserError:
    return None


def off(predicted: Any, measured: float) -> float:
  """Relative error of a prediction, with its sign; nan without one."""
  return float("nan") if predicted is None else float(predicted) / measured - 1


def learns(rows: Sequence[Row], finding: str) -> Judged:
  """The rule of tiny scale: every run ends at least a nat below a uniform guess; fits are finite or stand as empty."""
  losses = column(rows, "loss")
  return Judged(
    verdict(bool(losses) and max(losses) < runs.UNIFORM - FALLS), f"losses up to {max(losses):.2f}; {finding}"
  )


def arrays(cells: Sequence[Cell]) -> dict[str, Array]:
  """Columns of cells: N, N_total, D, C, loss [n]."""
  return {name: np.array([getattr(cell, name) for cell in cells]) for name in ("N", "N_total", "D", "C", "loss")}


def in_percent(value: float) -> str:
  """A relative error as -0.5 %, "not identified" where there is none."""
  return f"{100 * value:+.2f} %" if math.isfinite(value) else "not identified"


# L(N)

FITTED, HELD_OUT, LENGTH = (
  {"tiny": (8,), "small": (16, 32, 64, 96)},
  {"tiny": 16, "small": 128},
  {"tiny": 50, "small": 4096},
)


def ladders(setting: Setting) -> dict[int, list[Cell]]:
  """Seed -> cells of rising size at one length, the last of which is predicted: of the sweep what it has, the rest trained now.

  At paper scale the longest training of each size of the sweep.
  """
  if setting.scale == "paper":
    cells = runs.grid(setting)
    longest = max(cell.D for cell in cells)
    return {
      seed: sorted((cell for cell in cells if (cell.seed, cell.D) == (seed, longest)), key=lambda cell: cell.N)
      for seed in setting.seeds
    }
  widths, steps = (*FITTED[setting.scale], HELD_OUT[setting.scale]), LENGTH[setting.scale]
  known = {} if setting.scale == "tiny" else {(cell.seed, cell.N, cell.D): cell for cell in runs.grid(setting)}

  def place(width: int, seed: int) -> tuple[int, float, float]:
    return seed, float(runs.size_of(width)), float(steps * runs.TOKENS_PER_STEP)

  missing = [(width, steps, seed) for seed in setting.seeds for width in widths if place(width, seed) not in known]
  trained = runs.trained_cells(setting, missing)
  return {
    seed: [trained.get((w, steps, seed)) or known[place(w, seed)] for w in widths] for seed in setting.seeds
  }  # fmt: skip


def measure_sizes(setting: Setting) -> Measured:
  """Losses of the sizes at one length; the law fitted to all but the largest predicts that one."""
  rows, points = [], {}
  for seed, cells in ladders(setting).items():
    table, last = arrays(cells[:-1]), cells[-1]
    floor, plain = (try_fit(form, table["loss"], N=table["N"]) for form in ("power_floor", "kaplan_n"))
    points[seed] = cells, floor
    rows.append({
      "seed": seed, "loss": last.loss, "off": off(floor and floor.predict(N=last.N), last.loss),
      "off_plain": off(plain and plain.predict(N=last.N), last.loss), "off_same": off(cells[-2].loss, last.loss),
      "E": floor.parameters["E"] if floor else math.nan, "alpha_N": floor.parameters["alpha_N"] if floor else math.nan,
      "alpha_N_plain": plain.parameters["alpha_N"] if plain else math.nan,
    })  # fmt: skip
  return Measured(rows, {} if setting.scale == "tiny" else {"sizes": figures.draw_slice(points, of="N")})


def judge_sizes(rows: Sequence[Row], scale: str) -> Judged:
  """The rule of `power_law_n`."""
  with_floor, plain, same = (column(rows, name) for name in ("off", "off_plain", "off_same"))
  if scale == "tiny":
    return learns(rows, f"held out {in_percent(with_floor[0])}")
  holds = all(abs(a) < 0.03 and abs(a) < abs(b) for a, b in zip(with_floor, same, strict=True))
  if scale == "paper":
    holds = holds and all(0.05 < exponent < 0.1 for exponent in column(rows, "alpha_N_plain"))
  finding = (
    f"held out {', '.join(map(in_percent, with_floor))} (without E {', '.join(map(in_percent, plain))}; no law "
    f"{in_percent(float(np.mean(same)))}); alpha_N {np.mean(column(rows, 'alpha_N')):.3f} with E, "
    f"{np.mean(column(rows, 'alpha_N_plain')):.3f} without"
  )
  return Judged(verdict(holds), finding)


# L(D)

# Tokens of the subsets and updates on each, 1024 tokens an update.
SUBSETS = tuple(
  (2**22 >> k, steps) for k, steps in zip(range(6, -1, -1), (1536, 2048, 3072, 3072, 3072, 3072, 4096), strict=True)
)
TINY_SUBSETS = (8_192, 16_384)


def measure_data(setting: Setting) -> Measured:
  """Early-stopped losses on subsets of the text; the law fitted to all but the largest predicts that one."""
  if setting.scale == "tiny":
    return measure_subsets(setting)
  config = runs.load_config(*runs.job(setting, runs.TRANSFORMER))
  jobs = {}
  for seed in setting.seeds:
    for tokens, steps in SUBSETS:
      folder = runs.subset_folder(setting, config, tokens=tokens, seed=seed)
      jobs[f"{tokens} {seed}"] = runs.transformer(
        setting, 48, steps, seed=seed, data__name="files", data__path=str(folder), schedule__name="constant", eval__every=128,
        eval__tokens=65_536,
      )  # fmt: skip
  made = setting.train(jobs)
  rows, points = [], {}
  for seed in setting.seeds:
    losses = [min(made[f"{tokens} {seed}"].curve(split="eval", name="heldout")[1]) for tokens, _ in SUBSETS]
    tokens = np.array([float(tokens) for tokens, _ in SUBSETS])
    floor, plain = (try_fit(form, np.array(losses[:-1]), D=tokens[:-1]) for form in ("power_floor", "kaplan_d"))
    points[seed] = [Cell(seed, 0, 0, d, 0, loss) for d, loss in zip(tokens, losses, strict=True)], floor
    rows.append({
      "seed": seed, "loss": losses[-1], "smallest": losses[0], "off": off(floor and floor.predict(D=tokens[-1]), losses[-1]),
      "off_plain": off(plain and plain.predict(D=tokens[-1]), losses[-1]), "off_same": off(losses[-2], losses[-1]),
      "alpha_D": floor.parameters["alpha_D"] if floor else math.nan,
      "alpha_D_plain": plain.parameters["alpha_D"] if plain else math.nan,
    })  # fmt: skip
  return Measured(rows, {"data": figures.draw_slice(points, of="D")})


def measure_subsets(setting: Setting) -> Measured:
  """What the subsets hold: bytes to train on, and whether their held-out text is that of the whole."""
  config = runs.load_config(*runs.job(setting, runs.TRANSFORMER))
  whole = load_corpus(config.data)
  rows = []
  for seed in setting.seeds:
    for tokens in TINY_SUBSETS:
      folder = runs.subset_folder(setting, config, tokens=tokens, seed=seed)
      part = load_corpus(runs.load_config(*runs.job(setting, runs.TRANSFORMER, data__path=str(folder))).data)
      same = int(np.array_equal(part.heldout, whole.heldout))
      rows.append({"seed": seed, "tokens": tokens, "found": part.train_bytes, "same_heldout": same})
  return Measured(rows)


def judge_data(rows: Sequence[Row], scale: str) -> Judged:
  """The rule of `power_law_d`."""
  if scale == "tiny":
    holds = all(row["found"] == row["tokens"] and row["same_heldout"] for row in rows)
    return Judged(verdict(holds), f"subsets of {', '.join(str(row['found']) for row in rows)} bytes")
  with_floor, plain = column(rows, "off"), column(rows, "off_plain")
  finding = (
    f"held out {', '.join(map(in_percent, with_floor))} (without E {', '.join(map(in_percent, plain))}; no law "
    f"{in_percent(float(np.mean(column(rows, 'off_same'))))}); alpha_D {np.mean(column(rows, 'alpha_D')):.3f} with E, "
    f"{np.mean(column(rows, 'alpha_D_plain')):.3f} without"
  )
  return Judged(verdict(all(abs(each) < 0.03 for each in with_floor)), finding)


# L(N, D)

FORMS = ("kaplan_nd", "kaplan_nd_floor", "chinchilla", "chinchilla_tied", "coupled")


def measure_joint(setting: Setting) -> Measured:
  """Errors of the laws of N and D at rows left out: the largest size, then the longest training."""
  cells = runs.grid(setting)
  rows: list[dict[str, Any]] = []
  shown = {}
  for seed in setting.seeds:
    own = [cell for cell in cells if cell.seed == seed]
    table = arrays(own)
    for left_out, gone in (
      ("largest N", table["N"] == table["N"].max()),
      ("largest D", table["D"] == table["D"].max()),
    ):
      fitted = {name: values[~gone] for name, values in table.items()}
      for form in FORMS:
        law = try_fit(form, fitted["loss"], N=fitted["N"], D=fitted["D"])
        predicted = law.predict(N=table["N"][gone], D=table["D"][gone]) if law else np.full(gone.sum(), np.nan)
        error = float(np.abs(predicted / table["loss"][gone] - 1).mean())
        rows.append(
          {"seed": seed, "form": form, "left_out": left_out, "error": error, "loss": float(table["loss"].max())}
        )
    shown[seed] = table, try_fit("kaplan_nd", table["loss"], N=table["N"], D=table["D"])
  return Measured(rows, {} if setting.scale == "tiny" else {"joint": figures.draw_joint(shown[setting.seeds[0]], rows)})


def mean_errors(rows: Sequence[Row]) -> dict[str, float]:
  """Form -> its mean error over what was left out and the seeds."""
  return {form: float(np.mean(column(rows, "error", form=form))) for form in FORMS}


def judge_joint(rows: Sequence[Row], scale: str) -> Judged:
  """The rule of `joint_law`."""
  errors = mean_errors(rows)
  if scale == "tiny":
    return learns(rows, ", ".join(f"{form} {in_percent(error)}" for form, error in errors.items()))
  best = min(errors, key=lambda form: errors[form] if math.isfinite(errors[form]) else math.inf)
  finding = f"best {best}; mean error " + ", ".join(f"{form} {100 * error:.2f} %" for form, error in errors.items())
  return Judged(verdict(errors["kaplan_nd"] <= 1.25 * errors[best]), finding)


# Overfitting against N^q / D

POWERS = np.round(np.arange(0.0, 1.401, 0.02), 2)


def scatter(N: Array, D: Array, excess: Array, power: float) -> float:
  """Residual standard deviation of a parabola of ln(excess) in ln(N^q / D); of a line where that takes two values only."""
  x = power * np.log(N) - np.log(D)
  x = x - x.mean()
  degree = min(2, len(np.unique(x.round(9))) - 1)
  return float(np.std(np.log(excess) - np.polyval(np.polyfit(x, np.log(excess), degree), x)))


def measure_overfit(setting: Setting) -> Measured:
  """q of least scatter of L(N, D)/L(N, longest) - 1 against N^q/D, and Spearman's rank correlation there."""
  cells = runs.grid(setting)
  rows, points = [], {}
  for seed in setting.seeds:
    table = arrays([cell for cell in cells if cell.seed == seed])
    longest = {n: table["loss"][(table["N"] == n)][table["D"][table["N"] == n].argmax()] for n in np.unique(table["N"])}
    excess = table["loss"] / np.array([longest[n] for n in table["N"]]) - 1
    kept = (table["D"] < table["D"].max()) & (excess > 0)
    N, D, excess = table["N"][kept], table["D"][kept], excess[kept]
    by_power = {float(q): scatter(N, D, excess, float(q)) for q in POWERS}
    best = min(by_power, key=lambda q: by_power[q])
    correlation = float(stats.spearmanr(N**best / D, excess).statistic)
    points[seed] = N, D, excess, best
    rows.append({
      "seed": seed, "power": best, "scatter": by_power[best], "scatter_at_074": by_power[0.74],
      "rank_correlation": correlation, "rank_correlation_at_074": float(stats.spearmanr(N**0.74 / D, excess).statistic),
      "loss": float(table["loss"].max()),
    })  # fmt: skip
  return Measured(rows, {} if setting.scale == "tiny" else {"overfit": figures.draw_overfit(points)})


def judge_overfit(rows: Sequence[Row], scale: str) -> Judged:
  """The rule of `overfitting`."""
  powers, ranks = column(rows, "power"), column(rows, "rank_correlation")
  finding = (
    f"q {', '.join(f'{q:.2f}' for q in powers)}, rank correlation {', '.join(f'{r:.3f}' for r in ranks)}; at q = .74 "
    f"{', '.join(f'{r:.3f}' for r in column(rows, 'rank_correlation_at_074'))}"
  )
  if scale == "tiny":
    return learns(rows, finding)
  return Judged(verdict(all(0.4 < q < 1.1 and r > 0.9 for q, r in zip(powers, ranks, strict=True))), finding)


# Sample efficiency


def tokens_to(D: Array, loss: Array, target: float) -> float:
  """Tokens at which ln D against the loss reaches the target: at most the shortest training where that is below it already."""
  order = np.argsort(D)
  falling = np.minimum.accumulate(loss[order])
  kept = np.concatenate([[True], np.diff(falling) < 0])
  x, y = -falling[kept], np.log(D[order][kept])
  if -target <= x[0]:
    return float(D.min())
  if -target > x[-1] or len(x) < 2:
    return math.inf
  return float(np.exp(interpolate.PchipInterpolator(x, y)(-target)))


def measure_efficiency(setting: Setting) -> Measured:
  """For each size the tokens that the next larger one takes to the loss that it ends with."""
  cells = runs.grid(setting)
  rows: list[dict[str, Any]] = []
  for seed in setting.seeds:
    table = arrays([cell for cell in cells if cell.seed == seed])
    sizes = np.unique(table["N"])
    for small, large in zip(sizes[:-1], sizes[1:], strict=True):
      own, other = table["N"] == small, table["N"] == large
      target, tokens = float(table["loss"][own].min()), float(table["D"][own].max())
      needed = tokens_to(table["D"][other], table["loss"][other], target)
      rows.append({"seed": seed, "N": small, "larger": large, "target": target, "tokens": tokens, "needed": needed,
                   "share": needed / tokens, "loss": float(table["loss"].max())})  # fmt: skip
  drawn = {} if setting.scale == "tiny" else {"efficiency": figures.draw_lengths(cells)}
  return Measured(rows, drawn)


def judge_efficiency(rows: Sequence[Row], scale: str) -> Judged:
  """The rule of `sample_efficiency`."""
  shares = [math.inf if math.isnan(share) else share for share in column(rows, "share")]
  finding = f"the next larger size takes {100 * min(shares):.0f} to {100 * max(shares):.0f} % of the tokens"
  if scale == "tiny":
    return learns(rows, finding)
  return Judged(verdict(max(shares) < 1), finding)
