"""Our fit beside two public packages, on one table made from known constants: how near the optimum of each objective, and seconds.

    scripts/bench fits [--chinchilla PYTHON] [--simple PYTHON] [--rows 240]

The packages want environments of their own: `python -m venv A; A/bin/pip install chinchilla==0.2.0` and, Python 3.12 or newer,
`python3.12 -m venv B; B/bin/pip install simple-scaling-laws==0.2.0`; name A/bin/python and B/bin/python. Each is called as its
documentation does it, on the objective it has: chinchilla on Huber of log residuals (its `log_huber`, delta 1e-3, the grid of
4,500 starts of Hoffmann et al. 2022), simple-scaling-laws on its own squared error with 1,000 draws. Every answer is judged by one
yardstick, computed here in float64: the objective at its parameters, over the lowest that anybody found, minus one. Seconds are
those of the fit (with 1,000 resamples where `resamples` says so), imports left out. The table: Chinchilla's law, N over 2 and D over
3 decades, log noise .01, one row in 12 an outlier of up to 10 %, losses printed with 4 decimals, as published tables are.
"""

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from bench_lm import hardware

from ilya_jax.scaling import fit, uncertainty

TRUTH = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}  # Besiroglu et al. 2024
_CHINCHILLA = """
import json, sys, time, tempfile, numpy as np
from chinchilla import Chinchilla
from chinchilla._metrics import log_huber
N, D, loss = np.loadtxt(sys.argv[1], delimiter=",", skiprows=1, unpack=True)
grid = dict(e=np.linspace(-1, 1, 5), a=np.linspace(0, 25, 6), b=np.linspace(0, 25, 6),
            alpha=np.linspace(0, 2, 5), beta=np.linspace(0, 2, 5))
cc = Chinchilla(tempfile.mkdtemp(), param_grid=grid, seed_ranges=dict(C=(1e18, 1e22), N_to_D=(5, 100)),
                loss_fn=lambda y, p: log_huber(y, p, delta=1e-3), log_level=50)
for n, d, y in zip(N, D, loss):
  cc.database.append(C=6 * n * d, N=n, D=d, loss=y)
began = time.perf_counter()
cc.fit(parallel=True)
print("RESULT" + json.dumps({"seconds": time.perf_counter() - began, "parameters": {k: float(v) for k, v in cc.get_params().items()}}))
"""
_SIMPLE = """
import json, sys, time, numpy as np, polars as pl
from simple_scaling_laws import fit
N, D, loss = np.loadtxt(sys.argv[1], delimiter=",", skiprows=1, unpack=True)
frame = pl.DataFrame({"training_run_id": [str(k) for k in range(len(N))], "model_size__parameters": N,
                      "dataset_size__tokens": D, "test_loss__cross_entropy": loss})
began = time.perf_counter()
model = fit(frame, n_draws=int(sys.argv[2]), seed=0)
seconds = time.perf_counter() - began
p = {k: float(v) for k, v in model.params("test_loss__cross_entropy").items()}
p["A"] *= np.exp(p["alpha"] * np.log(N).mean())  # its terms are those at the geometric mean of the table
p["B"] *= np.exp(p["beta"] * np.log(D).mean())
print("RESULT" + json.dumps({"seconds": seconds, "parameters": p}))
"""


def make_table(rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """N, D and losses [rows]."""
  rng = np.random.default_rng(0)
  N, D = 10 ** rng.uniform(8, 10, rows), 10 ** rng.uniform(9, 12, rows)
  loss = TRUTH["E"] + TRUTH["A"] / N ** TRUTH["alpha"] + TRUTH["B"] / D ** TRUTH["beta"]
  loss *= np.exp(0.01 * rng.standard_normal(rows))
  loss[::12] *= rng.uniform(1.0, 1.1, len(loss[::12]))
  return N, D, np.round(loss, 4)


def objective(name: str, parameters: dict[str, float], N: np.ndarray, D: np.ndarray, loss: np.ndarray) -> float:
  """The sum that `name` stands for, at these parameters."""
  predicted = parameters["E"] + parameters["A"] / N ** parameters["alpha"] + parameters["B"] / D ** parameters["beta"]
  if name == "lsq":
    return float(np.square(predicted - loss).sum())
  r = np.abs(np.log(predicted) - np.log(loss))
  return (
    float(np.square(r).sum()) if name == "lsq_log" else float(np.where(r <= 1e-3, r * r / 2, 1e-3 * (r - 5e-4)).sum())
  )


def outside(python: str, script: str, *arguments: str) -> dict[str, Any]:
  """Runs a script in another environment; what it printed, or the last line of what went wrong."""
  done = subprocess.run([python, "-c", script, *arguments], capture_output=True, text=True, check=False)
  lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
  if not lines:
    return {"failed": (done.stderr.strip().splitlines() or ["no word"])[-1]}
  found: dict[str, Any] = json.loads(lines[-1].removeprefix("RESULT"))
  return found


def main() -> None:
  """Fits by everybody, then judges."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--chinchilla", default="", metavar="PYTHON")
  parser.add_argument("--simple", default="", metavar="PYTHON")
  parser.add_argument("--rows", type=int, default=240)
  options = parser.parse_args()
  N, D, loss = make_table(options.rows)
  answers: list[tuple[str, str, dict[str, Any]]] = []
  for name in ("huber", "lsq", "lsq_log"):
    began = time.perf_counter()
    law = fit.fit_law("chinchilla", loss, N=N, D=D, objective=name)
    seconds = time.perf_counter() - began
    answers.append(
      ("ours", name, {"seconds": seconds, "parameters": law.parameters, "starts at best": law.share_at_best})
    )
    began = time.perf_counter()
    uncertainty.resample(law, clusters=range(len(loss)), count=1000)
    answers[-1][2]["1,000 resamples, seconds"] = time.perf_counter() - began
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "table.csv"
    np.savetxt(path, np.stack([N, D, loss], axis=1), delimiter=",", header="N,D,loss", comments="", fmt="%.17g")
    if options.chinchilla:
      answers.append(("chinchilla 0.2.0", "huber", outside(options.chinchilla, _CHINCHILLA, str(path))))
    if options.simple:
      for draws in ("1", "1000"):
        answers.append(
          (f"simple-scaling-laws 0.2.0, {draws} draws", "lsq", outside(options.simple, _SIMPLE, str(path), draws))
        )
  values = {
    (who, name): objective(name, found["parameters"], N, D, loss)
    for who, name, found in answers
    if "failed" not in found
  }
  for who, name, found in answers:
    row = {"part": "fits", "rows": options.rows, "who": who, "objective": name, **found, **hardware()}
    if (who, name) in values:
      row["above the lowest"] = values[who, name] / min(v for (_, other), v in values.items() if other == name) - 1
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
  main()
