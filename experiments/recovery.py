"""Recovery of known laws: for every form, tables drawn from it with noise, fitted, and the error of each estimate.

    python experiments/recovery.py [--tables 200] [--only FORM,…]     some minutes; goes on where it stopped

Fixed before measuring: the laws below, tables of 7 sizes x 6 lengths (42 points; 42 sizes for laws of one variable; repeated data: up
to 60 epochs on three sizes of corpus), noise of .005 in ln(loss), 200 tables, the default objective (Huber 1e-3). Writes the
median error and the spread of the estimates to experiments/results/recovery.json.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from ilya_jax.scaling import fit
from ilya_jax.scaling.laws import FORMS

Array = np.ndarray

RESULT = Path(__file__).parent / "results" / "recovery.json"
NOISE, STARTS = 0.005, 64
_TWO_TERMS = {"E": 1.2, "A": 12.0, "B": 56.0, "alpha": 0.30, "beta": 0.35}
TRUTH: dict[str, dict[str, float]] = {
  "kaplan_n": {"N_c": 1e9, "alpha_N": 0.1},
  "kaplan_d": {"D_c": 1e11, "alpha_D": 0.12},
  "kaplan_c": {"C_c": 1e17, "alpha_C": 0.06},
  "kaplan_nd": {"N_c": 6e6, "D_c": 6e7, "alpha_N": 0.15, "alpha_D": 0.30},
  "kaplan_nd_floor": {"E": 0.8, "N_c": 6e5, "D_c": 6e6, "alpha_N": 0.25, "alpha_D": 0.40},
  "chinchilla": _TWO_TERMS,
  "chinchilla_tied": {"E": 1.2, "A": 12.0, "B": 30.0, "alpha": 0.30},
  "coupled": {"E": 1.2, "A": 12.0, "R": 12.0, "a": 0.45, "b": 0.55, "k": 0.65},
  "overtraining": {"E": 1.2, "a": 20.0, "b": 45.0, "eta": 0.15},
  "kaplan_ns": {"N_c": 6e6, "S_c": 3e2, "alpha_N": 0.15, "alpha_S": 0.70},
  "data_constrained": {**_TWO_TERMS, "R_N": 5.3, "R_D": 15.4},
  "power_floor": {"E": 1.2, "N_c": 2e5, "alpha_N": 0.35},
  "power_floor_d": {"E": 1.2, "D_c": 2e7, "alpha_D": 0.35},
  "power_floor_c": {"E": 1.2, "C_c": 1e13, "alpha_C": 0.20},
}


def design(form: str) -> dict[str, Array]:
  """The variables [n] of a form's table."""
  N, D, S = np.geomspace(6144, 393_216, 7), np.geomspace(5e5, 5e7, 6), np.geomspace(2e2, 2e4, 6)
  known = FORMS[form].variables
  if known == ("N", "D", "D_unique"):
    epochs = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 60.0])
    sizes, unique, times = (x.ravel() for x in np.meshgrid(N, np.array([5e5, 5e6, 5e7]), epochs))
    return {"N": sizes, "D": unique * times, "D_unique": unique}
  if len(known) == 2:
    other = known[1]
    sizes, lengths = (x.ravel() for x in np.meshgrid(N, {"D": D, "S": S}[other]))
    return {"N": sizes, other: lengths}
  ranges = {"N": (6144, 393_216), "D": (5e5, 5e7), "C": (1e10, 1e14)}
  return {known[0]: np.geomspace(*ranges[known[0]], 42)}


def measure(form: str, tables: int) -> dict[str, Any]:
  """Per parameter the true value, the median relative error in %, and the central 95 % of the errors in %."""
  law, variables = FORMS[form], design(form)
  exact = law.loss(TRUTH[form], **variables)
  errors: dict[str, list[float]] = {name: [] for name in TRUTH[form]}
  shares = []
  for number in range(tables):
    noise = np.random.default_rng([number, len(exact)]).standard_normal(len(exact))
    found = fit.fit_law(form, exact * np.exp(NOISE * noise), **variables, start_count=STARTS, seed=number)
    shares.append(found.share_at_best)
    for name, truth in TRUTH[form].items():
      errors[name].append(100 * (found.parameters[name] / truth - 1))
  clean = fit.fit_law(form, exact, **variables, start_count=STARTS)
  return {
    "form": form, "points": len(exact), "tables": tables, "noise": NOISE, "share_at_best": float(np.median(shares)),
    "parameters": {
      name: {
        "true": TRUTH[form][name], "median_error_percent": float(np.median(values)),
        "low_percent": float(np.quantile(values, 0.025)), "high_percent": float(np.quantile(values, 0.975)),
        "error_without_noise": float(clean.parameters[name] / TRUTH[form][name] - 1),
      }
      for name, values in errors.items()
    },
  }  # fmt: skip


def main() -> None:
  """Measures what is not yet recorded."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--tables", type=int, default=200)
  parser.add_argument("--only", default="", metavar="FORM,…")
  arguments = parser.parse_args()
  records = {each["form"]: each for each in json.loads(RESULT.read_text())} if RESULT.is_file() else {}
  for form in TRUTH:
    if arguments.only and form not in arguments.only.split(","):
      continue
    if records.get(form, {}).get("tables", 0) >= arguments.tables:
      continue
    began = time.monotonic()
    records[form] = {**measure(form, arguments.tables), "wall_s": round(time.monotonic() - began, 1)}
    shown = {name: round(each["median_error_percent"], 2) for name, each in records[form]["parameters"].items()}
    print(f"{form}: median error in % {shown}", flush=True)
    RESULT.write_text(json.dumps(list(records.values()), indent=1) + "\n")


if __name__ == "__main__":
  main()
