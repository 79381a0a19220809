"""The functions of the scaling laws: ln L and its derivative in internal coordinates (see `ilya_jax.scaling.laws`).

Each takes theta [S, P] and logs {variable: [n]} (natural logarithms minus the centre) and returns ln L [S, n] and its derivative
[S, P, n]. Below them: the constants that some papers print in place of those of the table in `laws`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Array = np.ndarray
Logs = Mapping[str, Array]  # variable -> [n]

LARGEST_LOGARITHM = 700.0  # exp of more overflows float64: a scale such as N_c is cut here, and is not identified then


def _with_floor(floor: Array, log_reducible: Array, jacobian: Array) -> tuple[Array, Array]:
  """ln(E + e^g) and its derivative [S, P, n], from E [S, 1], g [S, n] and dg [S, P-1, n] (the floor comes first)."""
  reducible = np.exp(log_reducible)
  loss = floor + reducible
  scaled = jacobian * (reducible / loss)[:, None]
  return np.log(loss), np.concatenate([(1.0 / loss)[:, None], scaled], axis=1)


def power_law(variable: str) -> Callable[[Array, Logs], tuple[Array, Array]]:
  """ln L of (X_c/X)^a, linear in theta = (ln of the term at the centre, a)."""

  def log_loss(theta: Array, logs: Logs) -> tuple[Array, Array]:
    x = logs[variable]
    jacobian = np.broadcast_to(np.stack([np.ones_like(x), -x]), (len(theta), 2, len(x)))
    return theta[:, :1] - theta[:, 1:] * x, jacobian

  return log_loss


def power_floor(variable: str) -> Callable[[Array, Logs], tuple[Array, Array]]:
  """ln L of E + (X_c/X)^a, theta = (E, ln of the term at the centre, a)."""
  power = power_law(variable)

  def log_loss(theta: Array, logs: Logs) -> tuple[Array, Array]:
    return _with_floor(theta[:, :1], *power(theta[:, 1:], logs))

  return log_loss


def chinchilla(theta: Array, logs: Logs) -> tuple[Array, Array]:
  """ln L of E + A/N^alpha + B/D^beta, theta = (E, ln of the N term, ln of the D term, alpha, beta)."""
  n, d = logs["N"], logs["D"]
  floor, a, b, alpha, beta = (theta[:, k, None] for k in range(5))
  term_n, term_d = np.exp(a - alpha * n), np.exp(b - beta * d)
  loss = floor + term_n + term_d
  share_n, share_d = term_n / loss, term_d / loss
  return np.log(loss), np.stack([1.0 / loss, share_n, share_d, -n * share_n, -d * share_d], axis=1)


def kaplan_ns(theta: Array, logs: Logs) -> tuple[Array, Array]:
  """ln L of (N_c/N)^alpha_N + (S_c/S)^alpha_S, theta = (ln of the N term, ln of the S term, alpha_N, alpha_S)."""
  terms = np.concatenate([np.zeros((len(theta), 1)), theta], axis=1)
  log_loss, jacobian = chinchilla(terms, {"N": logs["N"], "D": logs["S"]})
  return log_loss, jacobian[:, 1:]


def _saturating(log_excess: Array, log_constant: Array) -> tuple[Array, Array, Array]:
  """ln of 1 + R (1 - exp(-x/R)), x = e^log_excess - 1 repeats, where x > 0 (else log_excess itself), with R = e^log_constant;
  and its derivatives with respect to both arguments."""
  over = log_excess > 0
  constant = np.exp(log_constant)
  times = np.exp(np.where(over, np.minimum(log_excess, LARGEST_LOGARITHM), 0.0))
  decay = np.exp(-(times - 1) / constant)
  worth = 1 + constant * (1 - decay)
  in_excess = np.where(over, decay * times / worth, 1.0)
  in_constant = np.where(over, (constant * (1 - decay) - (times - 1) * decay) / worth, 0.0)
  return np.where(over, np.log(worth), log_excess), in_excess, in_constant


def data_constrained(theta: Array, logs: Logs) -> tuple[Array, Array]:
  """ln L of E + A/N'^alpha + B/D'^beta; theta = (E, ln of the N term, ln of the D term, alpha, beta, ln R_N, ln R_D).

  D' = U_D + U_D R_D (1 - exp(-(D/U_D - 1)/R_D)) with U_D = min(D, D_unique); N' likewise of U_N = min(N, N_opt), where N_opt =
  G (G U_D)^(beta/alpha) is the size for which U_D tokens are optimal, G = (alpha A/(beta B))^(1/(alpha + beta)).
  The centre of D_unique is that of D, so that ln N_opt less the centre of N is [ln(alpha/beta) + a - b + beta u]/alpha.
  """
  n, d = logs["N"], logs["D"]
  u = np.minimum(d, logs["D_unique"])
  _, a, b, alpha, beta, constant_n, constant_d = (theta[:, k, None] for k in range(7))
  best = (np.log(alpha / beta) + a - b + beta * u) / alpha
  worth_n, excess_n, in_constant_n = _saturating(n - best, constant_n)
  worth_d, _, in_constant_d = _saturating(d - u, constant_d)
  effective = {"N": best + worth_n, "D": u + worth_d}
  # The sizes differ from theta to theta: [S, n].
  log_loss, jacobian = chinchilla(theta[:, :5], effective)
  floor, term_n, term_d, by_alpha, by_beta = (jacobian[:, k] for k in range(5))
  in_best = -alpha * term_n * (1 - excess_n)  # of ln L in ln N_opt, through N'
  columns = [
    floor,
    term_n + in_best / alpha,
    term_d - in_best / alpha,
    by_alpha + in_best * (1 / alpha - best) / alpha,
    by_beta + in_best * (u - 1 / beta) / alpha,
    -alpha * term_n * in_constant_n,
    -beta * term_d * in_constant_d,
  ]
  return log_loss, np.stack(columns, axis=1)


def tied(theta: Array, logs: Logs) -> tuple[Array, Array]:
  """ln L of E + A/N^alpha + B/D^alpha, theta = (E, ln of the N term, ln of the D term, alpha)."""
  log_loss, jacobian = chinchilla(theta[:, [0, 1, 2, 3, 3]], logs)
  return log_loss, np.concatenate([jacobian[:, :3], jacobian[:, 3:].sum(1, keepdims=True)], axis=1)


def coupled(theta: Array, logs: Logs) -> tuple[Array, Array]:
  """ln L of E + A [N^-a + R D^-b]^k; theta = (E, ln of the bracket's part at infinite D, at infinite N, a k, b k, k).

  With alpha = a k and beta = b k the reducible part is [(A^(1/k) N^(-alpha/k)) + (A R^k)^(1/k) D^(-beta/k)]^k.
  """
  n, d = logs["N"], logs["D"]
  log_n, log_d, alpha, beta, k = (theta[:, j, None] for j in range(1, 6))
  z, y = (log_n - alpha * n) / k, (log_d - beta * d) / k
  total = np.logaddexp(z, y)
  share_n, share_d = np.exp(z - total), np.exp(y - total)
  outer = total - share_n * z - share_d * y
  jacobian = np.stack([share_n, share_d, -n * share_n, -d * share_d, outer], axis=1)
  return _with_floor(theta[:, :1], k * total, jacobian)


def gadre(values: Mapping[str, Any]) -> dict[str, Any]:
  """Constants in compute C = 6 N D and tokens per parameter M = D/N, of those of the tied form."""
  eta = values["alpha"] / 2
  return {"E": values["E"], "a": values["A"] * 6.0**eta, "b": values["B"] * 6.0**eta, "eta": eta}


def from_gadre(values: Mapping[str, Any]) -> dict[str, Any]:
  eta = np.asarray(values["eta"], np.float64)
  return {"E": values["E"], "A": values["a"] / 6.0**eta, "B": values["b"] / 6.0**eta, "alpha": 2 * eta}


def videau(values: Mapping[str, Any]) -> dict[str, Any]:
  """Constants of the bracket, of the two terms A N^-alpha and B D^-beta that it makes where the other one is nothing."""
  k = values["k"]
  with np.errstate(over="ignore", under="ignore"):
    ratio = np.exp(np.clip((np.log(values["B"]) - np.log(values["A"])) / k, -LARGEST_LOGARITHM, LARGEST_LOGARITHM))
  return {"E": values["E"], "A": values["A"], "R": ratio, "a": values["alpha"] / k, "b": values["beta"] / k, "k": k}


def from_videau(values: Mapping[str, Any]) -> dict[str, Any]:
  A, R, k = (np.asarray(values[name], np.float64) for name in ("A", "R", "k"))
  return {"E": values["E"], "A": A, "B": A * R**k, "alpha": values["a"] * k, "beta": values["b"] * k, "k": k}


def kaplan_nd(theta: Array, logs: Logs) -> tuple[Array, Array]:
  """ln L of [(N_c/N)^(alpha_N/alpha_D) + D_c/D]^alpha_D.

  theta = (ln of L at infinite D, ln of L at infinite N, both at the centre, alpha_N, alpha_D), so that with
  z = (theta_0 - alpha_N n)/alpha_D and y = theta_1/alpha_D - d the law is ln L = alpha_D ln(e^z + e^y).
  """
  n, d = logs["N"], logs["D"]
  log_n, log_d, alpha_n, alpha_d = (theta[:, k, None] for k in range(4))
  z, y = (log_n - alpha_n * n) / alpha_d, log_d / alpha_d - d
  total = np.logaddexp(z, y)
  share_n, share_d = np.exp(z - total), np.exp(y - total)
  outer = total - share_n * z - share_d * (y + d)
  return alpha_d * total, np.stack([share_n, share_d, -n * share_n, outer], axis=1)


def kaplan_nd_floor(theta: Array, logs: Logs) -> tuple[Array, Array]:
  """ln L of E + [(N_c/N)^(alpha_N/alpha_D) + D_c/D]^alpha_D, theta = (E, then as for the law without floor)."""
  return _with_floor(theta[:, :1], *kaplan_nd(theta[:, 1:], logs))
