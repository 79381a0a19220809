"""Coverage of the fits' 95 % intervals: tables drawn from known laws, each fitted and resampled as `ilya-jax fit` does.

    python experiments/coverage.py [--tables 800] [--only FORM,…]     about an hour on one core; goes on where it stopped

Fixed before measuring: the laws, their grids and noise (`CONDITIONS`), 800 tables each, B = 199, the objective Huber 1e-3, and
the criterion that every parameter's nominal 95 % interval covers the truth in 90 to 98 % of the tables where runs are
independent. Tables of trunks (noise half shared by the lengths of a size, resampled whole) are reported beside them.
Writes experiments/results/coverage.json.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ilya_jax.scaling import fit, uncertainty
from ilya_jax.scaling.laws import FORMS

Array = np.ndarray

RESULT = Path(__file__).parent / "results" / "coverage.json"
RESAMPLES, STARTS, NOISE = 199, 24, 0.005  # NOISE: standard deviation of ln(loss), between the demo's .003 and .012
LOW, HIGH = 90.0, 98.0  # per cent of the tables: the criterion
TRUTH = {
  "chinchilla": {"E": 1.2, "A": 12.0, "B": 56.0, "alpha": 0.30, "beta": 0.35},
  "kaplan_nd": {"N_c": 6e6, "D_c": 6e7, "alpha_N": 0.15, "alpha_D": 0.30},
  "kaplan_n": {"N_c": 1e9, "alpha_N": 0.1},
  "power_floor": {"E": 1.2, "N_c": 2e5, "alpha_N": 0.35},
}


class Condition(NamedTuple):
  """A law, its table (sizes x lengths; one length for a law of N), and whether the lengths of a size share a trunk."""

  form: str
  sizes: int
  lengths: int = 1
  trunks: bool = False

  @property
  def name(self) -> str:
    """Such as `chinchilla 4 x 4, trunks`."""
    return f"{self.form} {self.sizes} x {self.lengths}" + (", trunks" if self.trunks else "")


CONDITIONS = (
  Condition("kaplan_n", 9), Condition("power_floor", 9), Condition("power_floor", 16), Condition("power_floor", 40),
  Condition("chinchilla", 4, 4), Condition("chinchilla", 8, 5), Condition("kaplan_nd", 4, 4), Condition("kaplan_nd", 8, 5),
  Condition("chinchilla", 4, 4, True), Condition("chinchilla", 8, 5, True),
  Condition("kaplan_nd", 4, 4, True), Condition("kaplan_nd", 8, 5, True),
)  # fmt: skip


def draw_table(condition: Condition, rng: np.random.Generator) -> tuple[dict[str, Array], Array, Array]:
  """N (and D) [n], losses [n] with noise, and the cluster of each row [n]."""
  N, D = (x.ravel() for x in np.meshgrid(np.geomspace(6144, 393_216, condition.sizes),
                                         np.geomspace(5e5, 1.6e7, condition.lengths), indexing="ij"))  # fmt: skip
  variables = {name: {"N": N, "D": D}[name] for name in FORMS[condition.form].variables}
  own = rng.standard_normal(len(N))
  clusters = np.arange(len(N))
  if condition.trunks:
    clusters = np.unique(N, return_inverse=True)[1]
    own = np.sqrt(0.5) * (own + rng.standard_normal(condition.sizes)[clusters])
  return variables, FORMS[condition.form].loss(TRUTH[condition.form], **variables) * np.exp(NOISE * own), clusters


def one_table(condition: Condition, number: int) -> dict[str, list[float]]:
  """Per parameter [truth below, inside, above] its interval (one of them 1), and the relative error of the estimate."""
  rng = np.random.default_rng([number, condition.sizes, condition.lengths, condition.trunks])
  variables, loss, clusters = draw_table(condition, rng)
  fitted = fit.fit_law(condition.form, loss, **variables, start_count=STARTS, seed=number)
  draws = uncertainty.resample(fitted, clusters=clusters, count=RESAMPLES, seed=number)
  found = {}
  for name, truth in TRUTH[condition.form].items():
    low, high = uncertainty.interval(draws.parameters[name])
    error = fitted.parameters[name] / truth - 1
    found[name] = [float(truth < low), float(low <= truth <= high), float(truth > high), error]
  return found


def summary(condition: Condition, tables: list[dict[str, list[float]]]) -> dict[str, Any]:
  """Coverage of each parameter in per cent, on which side it fails, and the median error of its estimate."""
  parameters = {}
  for name in TRUTH[condition.form]:
    values = np.array([table[name] for table in tables])
    below, inside, above = 100 * values[:, :3].mean(0)
    parameters[name] = {
      "covered": round(inside, 2), "truth_below": round(below, 2), "truth_above": round(above, 2),
      "median_error": float(np.median(values[:, 3])),
    }  # fmt: skip
  holds = all(LOW <= each["covered"] <= HIGH for each in parameters.values())
  return {
    "condition": condition.name, "clusters": condition.sizes if condition.trunks else condition.sizes * condition.lengths,
    "tables": len(tables), "resamples": RESAMPLES, "noise": NOISE, "parameters": parameters,
    "criterion": f"{LOW:g} to {HIGH:g} %" if not condition.trunks else "reported only", "holds": holds,
  }  # fmt: skip


def main() -> None:
  """Measures what is not yet recorded."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--tables", type=int, default=800)
  parser.add_argument("--only", default="", metavar="FORM,…")
  arguments = parser.parse_args()
  records = {each["condition"]: each for each in json.loads(RESULT.read_text())} if RESULT.is_file() else {}
  for condition in CONDITIONS:
    if arguments.only and condition.form not in arguments.only.split(","):
      continue
    if records.get(condition.name, {}).get("tables", 0) >= arguments.tables:
      continue
    began = time.monotonic()
    tables = [one_table(condition, number) for number in range(arguments.tables)]
    records[condition.name] = {**summary(condition, tables), "wall_s": round(time.monotonic() - began, 1)}
    shown = {name: each["covered"] for name, each in records[condition.name]["parameters"].items()}
    print(f"{condition.name}: {shown}", flush=True)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(list(records.values()), indent=1) + "\n")


if __name__ == "__main__":
  main()
