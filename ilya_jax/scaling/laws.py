"""Scaling laws as a table: for each form its equation, its source, and one pure function with its gradient.

Kaplan et al. 2020, https://arxiv.org/abs/2001.08361, eqs. 1.1, 1.2, 1.3/3.3 and 1.5; Hoffmann et al. 2022,
https://arxiv.org/abs/2203.15556, eq. 10 (fitted in approach 3); Gadre et al. 2024, https://arxiv.org/abs/2403.08540, eq. 4;
Videau et al. 2026 (the coupled form). Losses are nats per token or per byte, N parameters, D tokens, C training FLOP; every
form falls in all of its variables and all of its parameters are positive.

A form's function works in internal coordinates `theta`, one per parameter, which are near 1 and nearly uncorrelated
where the printed constants are neither (N_c is an extrapolation to a loss of one nat). With x the logarithm of a
variable minus its mean over the table (the centre):

| kind of parameter | example | internal coordinate |
|---|---|---|
| floor | E | E |
| coefficient of X^-e | A | ln of its term at the centre, ln A - alpha * mean(ln N) |
| scale of (X_c/X)^e | N_c | ln of its term at the centre, alpha_N * (ln N_c - mean(ln N)) |
| exponent | alpha | alpha |

`encode` and `decode` convert; with a centre of zero the same functions evaluate a law at printed constants. A form whose
paper prints other constants than these says how they follow from each other (`Reprint`).

Axis letters: S parameter vectors, n rows of the table, P parameters.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray
Logs = Mapping[str, Array]  # variable -> [n], natural logarithm minus the centre

LARGEST_LOGARITHM = 700.0  # exp of more overflows float64: a scale such as N_c is cut here, and is not identified then


class Parameter(NamedTuple):
  """One printed constant of a law: `kind` is floor, coefficient, scale or exponent (table above).

  variable and exponent: for a coefficient or scale, the variable of its term and the name of the term's exponent.
  """

  name: str
  kind: str
  variable: str = ""
  exponent: str = ""


class Reprint(NamedTuple):
  """Constants that a paper prints in place of those of the table above: their names, one for each parameter in its order,
  what makes them of the latter, and back."""

  names: tuple[str, ...]
  make: Callable[[Mapping[str, Any]], dict[str, Any]]
  back: Callable[[Mapping[str, Any]], dict[str, Any]]


class Form(NamedTuple):
  """A law: how it is written, where it is from, and what it computes.

  variables: which of N, D, C it takes. parameters: the printed constants, in the order of `theta`.
  log_loss: (theta [S, P], logs {variable: [n]}) -> (ln L [S, n], its derivative with respect to theta [S, P, n]).
  outer: name of the exponent applied to the whole bracket (Kaplan's alpha_D), "" where the terms just add.
  reprint: the constants to print, where they are others.
  """

  name: str
  equation: str
  source: str
  variables: tuple[str, ...]
  parameters: tuple[Parameter, ...]
  log_loss: Callable[[Array, Logs], tuple[Array, Array]]
  outer: str = ""
  reprint: Reprint | None = None

  @property
  def names(self) -> tuple[str, ...]:
    """The printed names of the parameters, in the order of `theta`."""
    return self.reprint.names if self.reprint else tuple(parameter.name for parameter in self.parameters)

  @property
  def exponents(self) -> tuple[str, ...]:
    """The printed names of those that are exponents."""
    return tuple(name for name, own in zip(self.names, self.parameters, strict=True) if own.kind == "exponent")

  def column(self, name: str) -> int:
    """The column of `theta` that holds the parameter of this name in `parameters`."""
    return [parameter.name for parameter in self.parameters].index(name)

  def decode(self, theta: Array, centre: Mapping[str, float]) -> dict[str, Array]:
    """Printed constants from internal coordinates.

    theta: [..., P]. centre: variable -> mean of its natural logarithm. Returns name -> [...].
    """
    values = {}
    for k, parameter in enumerate(self.parameters):
      value = theta[..., k]
      if parameter.kind in ("coefficient", "scale"):
        exponent = theta[..., self.column(parameter.exponent)]
        shift = centre[parameter.variable]
        value = value + exponent * shift if parameter.kind == "coefficient" else shift + value / exponent
        value = np.exp(np.clip(value, -LARGEST_LOGARITHM, LARGEST_LOGARITHM))
      values[parameter.name] = value
    return self.reprint.make(values) if self.reprint else values

  def encode(self, values: Mapping[str, Any], centre: Mapping[str, float]) -> Array:
    """Internal coordinates [..., P] from printed constants (name -> number or array): the inverse of `decode`."""
    columns = []
    values = self.reprint.back(values) if self.reprint else values
    for parameter in self.parameters:
      value = np.asarray(values[parameter.name], np.float64)
      if parameter.kind in ("coefficient", "scale"):
        exponent = np.asarray(values[parameter.exponent], np.float64)
        shift = centre[parameter.variable]
        value = (
          np.log(value) - exponent * shift if parameter.kind == "coefficient" else (np.log(value) - shift) * exponent
        )
      columns.append(value)
    return np.stack(np.broadcast_arrays(*columns), axis=-1)

  def loss(self, values: Mapping[str, Any], /, *, N: Any = None, D: Any = None, C: Any = None) -> Array:
    """The law at printed constants, as they stand in a paper or in the `parameters` of fit.json.

    values: name -> number. N, D, C: whichever the form takes (parameters, tokens, FLOP), numbers or arrays that
    broadcast. Returns the loss in the units of the table that was fitted. Example: Kaplan's eq. 1.1 at 1e9 parameters:

    >>> round(float(FORMS["kaplan_n"].loss({"N_c": 8.8e13, "alpha_N": 0.076}, N=1e9)), 4)
    2.3756
    """
    given = {"N": N, "D": D, "C": C}
    arrays = np.broadcast_arrays(*[np.asarray(given[v], np.float64) for v in self.variables])
    logs = {v: np.log(a).reshape(-1) for v, a in zip(self.variables, arrays, strict=True)}
    theta = self.encode(values, dict.fromkeys(self.variables, 0.0)).reshape(1, -1)
    return np.exp(self.log_loss(theta, logs)[0][0]).reshape(arrays[0].shape)


def _with_floor(floor: Array, log_reducible: Array, jacobian: Array) -> tuple[Array, Array]:
  """ln(E + e^g) and its derivative [S, P, n], from E [S, 1], g [S, n] and dg [S, P-1, n] (the floor comes first)."""
  reducible = np.exp(log_reducible)
  loss = floor + reducible
  scaled = jacobian * (reducible / loss)[:, None]
  return np.log(loss), np.concatenate([(1.0 / loss)[:, None], scaled], axis=1)


def _power_law(variable: str) -> Callable[[Array, Logs], tuple[Array, Array]]:
  """ln L of (X_c/X)^a, linear in theta = (ln of the term at the centre, a)."""

  def log_loss(theta: Array, logs: Logs) -> tuple[Array, Array]:
    x = logs[variable]
    jacobian = np.broadcast_to(np.stack([np.ones_like(x), -x]), (len(theta), 2, len(x)))
    return theta[:, :1] - theta[:, 1:] * x, jacobian

  return log_loss


def _power_floor(theta: Array, logs: Logs) -> tuple[Array, Array]:
  """ln L of E + (N_c/N)^a, theta = (E, ln of the term at the centre, a)."""
  return _with_floor(theta[:, :1], *_power_law("N")(theta[:, 1:], logs))


def _chinchilla(theta: Array, logs: Logs) -> tuple[Array, Array]:
  """ln L of E + A/N^alpha + B/D^beta, theta = (E, ln of the N term, ln of the D term, alpha, beta)."""
  n, d = logs["N"], logs["D"]
  floor, a, b, alpha, beta = (theta[:, k, None] for k in range(5))
  term_n, term_d = np.exp(a - alpha * n), np.exp(b - beta * d)
  loss = floor + term_n + term_d
  share_n, share_d = term_n / loss, term_d / loss
  return np.log(loss), np.stack([1.0 / loss, share_n, share_d, -n * share_n, -d * share_d], axis=1)


def _tied(theta: Array, logs: Logs) -> tuple[Array, Array]:
  """ln L of E + A/N^alpha + B/D^alpha, theta = (E, ln of the N term, ln of the D term, alpha)."""
  log_loss, jacobian = _chinchilla(theta[:, [0, 1, 2, 3, 3]], logs)
  return log_loss, np.concatenate([jacobian[:, :3], jacobian[:, 3:].sum(1, keepdims=True)], axis=1)


def _coupled(theta: Array, logs: Logs) -> tuple[Array, Array]:
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


def _gadre(values: Mapping[str, Any]) -> dict[str, Any]:
  """Constants in compute C = 6 N D and tokens per parameter M = D/N, of those of the tied form."""
  eta = values["alpha"] / 2
  return {"E": values["E"], "a": values["A"] * 6.0**eta, "b": values["B"] * 6.0**eta, "eta": eta}


def _from_gadre(values: Mapping[str, Any]) -> dict[str, Any]:
  eta = np.asarray(values["eta"], np.float64)
  return {"E": values["E"], "A": values["a"] / 6.0**eta, "B": values["b"] / 6.0**eta, "alpha": 2 * eta}


def _videau(values: Mapping[str, Any]) -> dict[str, Any]:
  """Constants of the bracket, of the two terms A N^-alpha and B D^-beta that it makes where the other one is nothing."""
  k = values["k"]
  with np.errstate(over="ignore", under="ignore"):
    ratio = np.exp(np.clip((np.log(values["B"]) - np.log(values["A"])) / k, -LARGEST_LOGARITHM, LARGEST_LOGARITHM))
  return {"E": values["E"], "A": values["A"], "R": ratio, "a": values["alpha"] / k, "b": values["beta"] / k, "k": k}


def _from_videau(values: Mapping[str, Any]) -> dict[str, Any]:
  A, R, k = (np.asarray(values[name], np.float64) for name in ("A", "R", "k"))
  return {"E": values["E"], "A": A, "B": A * R**k, "alpha": values["a"] * k, "beta": values["b"] * k, "k": k}


def _kaplan_nd(theta: Array, logs: Logs) -> tuple[Array, Array]:
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


def _kaplan_nd_floor(theta: Array, logs: Logs) -> tuple[Array, Array]:
  """ln L of E + [(N_c/N)^(alpha_N/alpha_D) + D_c/D]^alpha_D, theta = (E, then as for the law without floor)."""
  return _with_floor(theta[:, :1], *_kaplan_nd(theta[:, 1:], logs))


def _kaplan_parameters(variable: str) -> tuple[Parameter, ...]:
  """X_c and alpha_X of a Kaplan power law in one variable."""
  exponent = f"alpha_{variable}"
  return (Parameter(f"{variable}_c", "scale", variable, exponent), Parameter(exponent, "exponent"))


_FLOOR = Parameter("E", "floor")
_JOINT = (
  Parameter("N_c", "scale", "N", "alpha_N"),
  Parameter("D_c", "scale", "D", "alpha_D"),
  Parameter("alpha_N", "exponent"),
  Parameter("alpha_D", "exponent"),
)
_TWO_TERMS = (
  _FLOOR,
  Parameter("A", "coefficient", "N", "alpha"),
  Parameter("B", "coefficient", "D", "beta"),
  Parameter("alpha", "exponent"),
  Parameter("beta", "exponent"),
)
_ONE_EXPONENT = (
  _FLOOR,
  Parameter("A", "coefficient", "N", "alpha"),
  Parameter("B", "coefficient", "D", "alpha"),
  Parameter("alpha", "exponent"),
)

FORMS: Mapping[str, Form] = {
  form.name: form
  for form in (
    Form(
      "kaplan_n",
      "L(N) = (N_c/N)^alpha_N",
      "Kaplan et al. 2020, eq. 1.1",
      ("N",),
      _kaplan_parameters("N"),
      _power_law("N"),
    ),
    Form(
      "kaplan_d",
      "L(D) = (D_c/D)^alpha_D",
      "Kaplan et al. 2020, eq. 1.2",
      ("D",),
      _kaplan_parameters("D"),
      _power_law("D"),
    ),
    Form(
      "kaplan_c",
      "L(C) = (C_c/C)^alpha_C",
      "Kaplan et al. 2020, eqs. 1.3 and 3.3",
      ("C",),
      _kaplan_parameters("C"),
      _power_law("C"),
    ),
    Form(
      "kaplan_nd",
      "L(N, D) = [(N_c/N)^(alpha_N/alpha_D) + D_c/D]^alpha_D",
      "Kaplan et al. 2020, eq. 1.5",
      ("N", "D"),
      _JOINT,
      _kaplan_nd,
      "alpha_D",
    ),
    Form(
      "kaplan_nd_floor",
      "L(N, D) = E + [(N_c/N)^(alpha_N/alpha_D) + D_c/D]^alpha_D",
      "Kaplan et al. 2020, eq. 1.5, with an irreducible loss E",
      ("N", "D"),
      (_FLOOR, *_JOINT),
      _kaplan_nd_floor,
      "alpha_D",
    ),
    Form(
      "chinchilla",
      "L(N, D) = E + A/N^alpha + B/D^beta",
      "Hoffmann et al. 2022, eq. 10",
      ("N", "D"),
      _TWO_TERMS,
      _chinchilla,
    ),
    Form(
      "chinchilla_tied",
      "L(N, D) = E + A/N^alpha + B/D^alpha",
      "Hoffmann et al. 2022, eq. 10, with equal exponents",
      ("N", "D"),
      _ONE_EXPONENT,
      _tied,
    ),
    Form(
      "coupled",
      "L(N, D) = E + A [N^-a + R D^-b]^k",
      "Videau et al. 2026; k = 1 is Chinchilla, b = 1 Kaplan et al. 2020, eq. 1.5, with a floor",
      ("N", "D"),
      (*_TWO_TERMS, Parameter("k", "exponent")),
      _coupled,
      "k",
      Reprint(("E", "A", "R", "a", "b", "k"), _videau, _from_videau),
    ),
    Form(
      "overtraining",
      "L(N, D) = E + (a M^eta + b M^-eta) C^-eta, M = D/N, C = 6 N D",
      "Gadre et al. 2024, eq. 4: the tied form in other variables",
      ("N", "D"),
      _ONE_EXPONENT,
      _tied,
      reprint=Reprint(("E", "a", "b", "eta"), _gadre, _from_gadre),
    ),
    Form(
      "power_floor",
      "L(N) = E + (N_c/N)^alpha_N",
      "Kaplan et al. 2020, eq. 1.1, with an irreducible loss E",
      ("N",),
      (_FLOOR, *_kaplan_parameters("N")),
      _power_floor,
    ),
  )
}
