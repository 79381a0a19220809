"""Fits a scaling law from Python: parameters with intervals, the best allocation, a prediction with its band.

    python docs/fit_a_table.py [TABLE.csv]     columns N, D, loss; without a table, one is made from known constants

`ilya-jax fit` does this, and more, from the command line; here are the pieces that it is made of.
"""

import sys

import numpy as np

from ilya_jax.scaling import fit, optimal, uncertainty
from ilya_jax.scaling.table import read_table

TRUTH = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}  # Hoffmann et al. 2022, as printed


def made_table() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """N, D and losses [40] of the printed law with a noise of .5 %."""
  sizes, lengths = np.geomspace(5e7, 1e10, 8), np.geomspace(1e9, 2e11, 5)
  N, D = (array.ravel() for array in np.meshgrid(sizes, lengths))
  noise = np.exp(0.005 * np.random.default_rng(0).standard_normal(len(N)))
  return N, D, (TRUTH["E"] + TRUTH["A"] / N ** TRUTH["alpha"] + TRUTH["B"] / D ** TRUTH["beta"]) * noise


def main() -> None:
  """Fits, resamples, allocates, predicts."""
  if len(sys.argv) > 1:
    values = read_table([sys.argv[1]]).values
    N, D, loss = values["N"], values["D"], values["loss"]
  else:
    N, D, loss = made_table()
  law = fit.fit_law("chinchilla", loss, N=N, D=D)
  print(f"{law.objective} {law.value:.6g}; {100 * law.share_at_best:.0f} % of {law.starts} starts reached it")
  draws = uncertainty.resample(law, clusters=range(len(loss)), count=1000)
  for name, found in uncertainty.parameter_intervals(law, draws).items():
    note = "" if found["identified"] else f"  not identified: {found['why']}"
    print(f"{name:>6} {law.parameters[name]:10.4g}  [{found['low']:.4g}, {found['high']:.4g}]{note}")
  best = optimal.allocate(law.form, law.parameters, compute=1e23)
  assert best is not None
  print(
    f"at 1e23 FLOP: N* {best.N:.3g}, D* {best.D:.3g}, {best.D / best.N:.0f} tokens per parameter, loss {best.loss:.4f}"
  )
  low, high = uncertainty.prediction_band(law.form, draws, law.points.centre, N=7e10, D=1.4e12)
  print(f"N 7e10, D 1.4e12: loss {float(law.predict(N=7e10, D=1.4e12)):.4f} [{low:.4f}, {high:.4f}]")


if __name__ == "__main__":
  main()
