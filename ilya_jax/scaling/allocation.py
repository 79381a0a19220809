"""What an allocation of compute costs against the best one: published rules, deadweight compute, and the local slope of N*.

Sources: Kaplan et al. 2020, https://arxiv.org/abs/2001.08361, Table 6; Hoffmann et al. 2022, https://arxiv.org/abs/2203.15556,
approach 3 as printed; Besiroglu et al. 2024, https://arxiv.org/abs/2404.10102 (their refit of the same runs); Pearce & Song
2024, https://arxiv.org/abs/2406.12907 (why a count without embeddings bends the exponent where models are small).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ilya_jax.scaling import optimal
from ilya_jax.scaling.optimal import FLOP_PER_PARAMETER_AND_TOKEN

Array = np.ndarray

PF_DAY = 8.64e19  # FLOP
_HOFFMANN = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}
_BESIROGLU = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}
TOKENS_PER_PARAMETER = 20.0
PUBLISHED = (
  "Kaplan et al. 2020, Table 6",
  "Hoffmann et al. 2022, approach 3",
  "Besiroglu et al. 2024",
  "20 tokens per parameter",
)


def published(compute: Array) -> dict[str, Array]:
  """N (parameters) that each of the PUBLISHED rules gives `compute` [k] FLOP; D is C/(6 N).

  Kaplan's N counts no embeddings and its C is C_min; the others count all parameters.
  """
  compute = np.asarray(compute, np.float64)
  sizes = [1.3e9 * (compute / PF_DAY) ** 0.73]
  for constants in (_HOFFMANN, _BESIROGLU):
    best = optimal.allocate("chinchilla", constants, compute=compute)
    assert best is not None
    sizes.append(best.N)
  sizes.append(np.sqrt(compute / FLOP_PER_PARAMETER_AND_TOKEN / TOKENS_PER_PARAMETER))
  return dict(zip(PUBLISHED, sizes, strict=True))


def equal_loss_compute(form: str, parameters: Mapping[str, Any], *, N: Array, D: Array) -> Array | None:
  """The least compute [k] (FLOP) with which the law reaches the loss that it gives N and D, [k] each; None without an optimum.

  With X = A N^-alpha + B D^-beta and K = A G^-alpha + B G^beta: C_eq = 6 (K/X)^((alpha + beta)/(alpha beta)).
  """
  terms = optimal.terms(form, parameters)
  if terms is None:
    return None
  alpha, log_a, beta, log_b = terms
  log_g = (np.log(alpha) + log_a - np.log(beta) - log_b) / (alpha + beta)
  log_k = np.logaddexp(log_a - alpha * log_g, log_b + beta * log_g)
  log_x = np.logaddexp(log_a - alpha * np.log(N), log_b - beta * np.log(D))
  return FLOP_PER_PARAMETER_AND_TOKEN * np.exp((log_k - log_x) * (alpha + beta) / (alpha * beta))


def deadweight(form: str, parameters: Mapping[str, Any], *, N: Array, D: Array) -> Array | None:
  """The share [k] of the compute 6 N D that buys nothing, 1 - C_eq/C, by the law; None without an optimum."""
  equal = equal_loss_compute(form, parameters, N=N, D=D)
  return None if equal is None else 1.0 - equal / (FLOP_PER_PARAMETER_AND_TOKEN * np.asarray(N) * np.asarray(D))


class Embeddings(NamedTuple):
  """N_total = g N^power + N of a ladder of models; error: the largest relative one of that N_total."""

  g: float
  power: float
  error: float


def embeddings_of(N: Array, N_total: Array) -> Embeddings:
  """The `Embeddings` of models [n], by least squares in logarithms, the power in [0, .95]; 1/3 where there is one size only.

  Models of one shape have power 1/3 and g = V (r/12)^(1/3), for a vocabulary of V (and positions) and r = d_model/n_layers
  (Pearce & Song); those of one depth have power 1/2.
  """
  N, N_total = np.asarray(N, np.float64), np.asarray(N_total, np.float64)
  log_n, log_rest = np.log(N), np.log(N_total - N)
  x = log_n - log_n.mean()
  spread = float(x @ x)
  power = float(np.clip(x @ log_rest / spread, 0.0, 0.95)) if spread > 1e-12 else 1.0 / 3.0
  g = float(np.exp((log_rest - power * log_n).mean()))
  return Embeddings(g, power, float(np.abs((N + g * N**power) / N_total - 1.0).max()))


def local_slope(alpha: Any, beta: Any, x: Any, power: float = 1.0 / 3.0) -> Any:
  """d ln N*/d ln C where the loss is Chinchilla's in N_T = N + g N^power, but N and C = 6 N D are counted without embeddings.

  x = N^(1 - power)/g, the size of the model without embeddings over that of its embeddings. From beta/(beta + power alpha) at
  x = 0 to beta/(alpha + beta), not monotone: with power 1/3 and alpha near beta it is close to 1 in between (x about 1/3).
  Pearce & Song's formula is that with power 1/3; any other follows from the same condition, D^beta ~ N_T^(1 + alpha)/(dN_T/dlnN).
  """
  bend = (1.0 + alpha) * (x + power) / (x + 1.0) - (x + power**2) / (x + power)
  return 1.0 / (1.0 + bend / beta)


def slope_between(alpha: float, beta: float, embeddings: Embeddings, *, first: float, last: float) -> float:
  """The exponent of N* in C from the size `first` to `last`: d ln C = d ln N / slope on the way, so a harmonic mean."""
  sizes = np.geomspace(first, last, 200) if last > first else np.array([first])
  x = sizes ** (1.0 - embeddings.power) / embeddings.g
  return float(1.0 / np.mean(1.0 / local_slope(alpha, beta, x, embeddings.power)))


class Slope(NamedTuple):
  """How a count without embeddings bends a ladder: its `Embeddings`, alpha and beta of the fit in N_total, each size N [k] with its
  x and local slope, the exponent of N_total, and that of N over the ladder (from its smallest to largest size)."""

  embeddings: Embeddings
  alpha: float
  beta: float
  N: Array
  x: Array
  slope: Array
  of_total: float
  of_ladder: float


def ladder_slope(alpha: float, beta: float, *, N: Array, N_total: Array) -> Slope:
  """The `Slope` of sizes N, N_total [n] under a Chinchilla law in N_total with these exponents."""
  embeddings = embeddings_of(N, N_total)
  sizes = np.unique(np.asarray(N, np.float64))
  x = sizes ** (1.0 - embeddings.power) / embeddings.g
  of_ladder = slope_between(alpha, beta, embeddings, first=sizes[0], last=sizes[-1])
  slopes = local_slope(alpha, beta, x, embeddings.power)
  return Slope(embeddings, alpha, beta, sizes, x, slopes, beta / (alpha + beta), of_ladder)
