"""Scaling laws as a table: for each form its equation, its source, and one pure function with its gradient.

Kaplan et al. 2020, https://arxiv.org/abs/2001.08361, eqs. 1.1, 1.2, 1.3/3.3 and 1.5; Hoffmann et al. 2022,
https://arxiv.org/abs/2203.15556, eq. 10 (fitted in approach 3); Gadre et al. 2024, https://arxiv.org/abs/2403.08540, eq. 4;
Videau et al. 2026 (the coupled form); Muennighoff et al. 2023, https://arxiv.org/abs/2305.16264, eqs. 5-7 (repeated data).
Losses are nats per token or per byte, N parameters, D tokens, D_unique different tokens, C training FLOP, S optimizer steps;
every form falls in N, D, C and S and all of its parameters are positive.

A form's function works in internal coordinates `theta`, one per parameter, which are near 1 and nearly uncorrelated
where the printed constants are neither (N_c is an extrapolation to a loss of one nat). With x the logarithm of a
variable minus its mean over the table (the centre):

| kind of parameter | example | internal coordinate |
|---|---|---|
| floor | E | E |
| coefficient of X^-e | A | ln of its term at the centre, ln A - alpha * mean(ln N) |
| scale of (X_c/X)^e | N_c | ln of its term at the centre, alpha_N * (ln N_c - mean(ln N)) |
| exponent | alpha | alpha |
| constant | R_D | ln R_D |

`encode` and `decode` convert; with a centre of zero the same functions evaluate a law at printed constants. A form whose
paper prints other constants than these says how they follow from each other (`Reprint`).

Axis letters: S parameter vectors, n rows of the table, P parameters.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from ilya_jax.scaling import equations
from ilya_jax.scaling.equations import LARGEST_LOGARITHM, Logs

Array = np.ndarray

VARIABLES = ("N", "D", "C", "S", "D_unique")  # parameters, tokens, FLOP, optimizer steps, different tokens


class Parameter(NamedTuple):
  """One printed constant of a law: `kind` is floor, coefficient, scale, exponent or constant (table above).

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

  variables: which of VARIABLES it takes. parameters: the printed constants, in the order of `theta`.
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
      if parameter.kind in ("coefficient", "scale", "constant"):
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
      elif parameter.kind == "constant":
        value = np.log(value)
      columns.append(value)
    return np.stack(np.broadcast_arrays(*columns), axis=-1)

  def loss(self, values: Mapping[str, Any], /, **variables: Any) -> Array:
    """The law at printed constants, as they stand in a paper or in the `parameters` of fit.json.

    values: name -> number. variables: those that the form takes of N, D, C, S, D_unique, numbers or arrays that broadcast;
    others are ignored. Returns the loss in the units of the table that was fitted. Kaplan's eq. 1.1 at 1e9 parameters:

    >>> round(float(FORMS["kaplan_n"].loss({"N_c": 8.8e13, "alpha_N": 0.076}, N=1e9)), 4)
    2.3756
    """
    arrays = np.broadcast_arrays(*[np.asarray(variables[v], np.float64) for v in self.variables])
    logs = {v: np.log(a).reshape(-1) for v, a in zip(self.variables, arrays, strict=True)}
    theta = self.encode(values, dict.fromkeys(self.variables, 0.0)).reshape(1, -1)
    return np.exp(self.log_loss(theta, logs)[0][0]).reshape(arrays[0].shape)


def _kaplan_parameters(variable: str) -> tuple[Parameter, ...]:
  """X_c and alpha_X of a Kaplan power law in one variable."""
  exponent = f"alpha_{variable}"
  return (Parameter(f"{variable}_c", "scale", variable, exponent), Parameter(exponent, "exponent"))


def _of_one(name: str, x: str, *, source: str, floor: bool = False) -> Form:
  """A power law in one variable, in Kaplan's notation, with or without an irreducible loss."""
  equation, parameters = f"L({x}) = ({x}_c/{x})^alpha_{x}", _kaplan_parameters(x)
  if floor:
    return Form(
      name, equation.replace("= ", "= E + "), f"{source}, with an irreducible loss E", (x,), (_FLOOR, *parameters),
      equations.power_floor(x),
    )  # fmt: skip
  return Form(name, equation, source, (x,), parameters, equations.power_law(x))


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

_KAPLAN = {
  "N": "Kaplan et al. 2020, eq. 1.1",
  "D": "Kaplan et al. 2020, eq. 1.2",
  "C": "Kaplan et al. 2020, eqs. 1.3 and 3.3",
}
# The power laws by the variable that a table has: `power` is Kaplan's law under the name that other fields use.
_POWER = {
  "N": {"power": "power", "power_floor": "power_floor"},
  "D": {"power": "power_d", "power_floor": "power_floor_d"},
  "C": {"power": "power_c", "power_floor": "power_floor_c"},
}

FORMS: Mapping[str, Form] = {
  form.name: form
  for form in (
    *(_of_one(f"kaplan_{x.lower()}", x, source=source) for x, source in _KAPLAN.items()),
    Form(
      "kaplan_nd",
      "L(N, D) = [(N_c/N)^(alpha_N/alpha_D) + D_c/D]^alpha_D",
      "Kaplan et al. 2020, eq. 1.5",
      ("N", "D"),
      _JOINT,
      equations.kaplan_nd,
      "alpha_D",
    ),
    Form(
      "kaplan_nd_floor",
      "L(N, D) = E + [(N_c/N)^(alpha_N/alpha_D) + D_c/D]^alpha_D",
      "Kaplan et al. 2020, eq. 1.5, with an irreducible loss E",
      ("N", "D"),
      (_FLOOR, *_JOINT),
      equations.kaplan_nd_floor,
      "alpha_D",
    ),
    Form(
      "chinchilla",
      "L(N, D) = E + A/N^alpha + B/D^beta",
      "Hoffmann et al. 2022, eq. 10",
      ("N", "D"),
      _TWO_TERMS,
      equations.chinchilla,
    ),
    Form(
      "chinchilla_tied",
      "L(N, D) = E + A/N^alpha + B/D^alpha",
      "Hoffmann et al. 2022, eq. 10, with equal exponents",
      ("N", "D"),
      _ONE_EXPONENT,
      equations.tied,
    ),
    Form(
      "coupled",
      "L(N, D) = E + A [N^-a + R D^-b]^k",
      "Videau et al. 2026; k = 1 is Chinchilla, b = 1 Kaplan et al. 2020, eq. 1.5, with a floor",
      ("N", "D"),
      (*_TWO_TERMS, Parameter("k", "exponent")),
      equations.coupled,
      "k",
      Reprint(("E", "A", "R", "a", "b", "k"), equations.videau, equations.from_videau),
    ),
    Form(
      "overtraining",
      "L(N, D) = E + (a M^eta + b M^-eta) C^-eta, M = D/N, C = 6 N D",
      "Gadre et al. 2024, eq. 4: the tied form in other variables",
      ("N", "D"),
      _ONE_EXPONENT,
      equations.tied,
      reprint=Reprint(("E", "a", "b", "eta"), equations.gadre, equations.from_gadre),
    ),
    Form(
      "kaplan_ns",
      "L(N, S) = (N_c/N)^alpha_N + (S_c/S)^alpha_S",
      "Kaplan et al. 2020, eq. 1.6; S: steps at a batch far above the critical one (S_min)",
      ("N", "S"),
      (
        Parameter("N_c", "scale", "N", "alpha_N"),
        Parameter("S_c", "scale", "S", "alpha_S"),
        Parameter("alpha_N", "exponent"),
        Parameter("alpha_S", "exponent"),
      ),
      equations.kaplan_ns,
    ),
    Form(
      "data_constrained",
      "L(N, D, U) = E + A/N'^alpha + B/D'^beta, N' and D' with repeats worth less by R_N and R_D",
      "Muennighoff et al. 2023, eqs. 5-7; U: different tokens (D_unique)",
      ("N", "D", "D_unique"),
      (*_TWO_TERMS, Parameter("R_N", "constant"), Parameter("R_D", "constant")),
      equations.data_constrained,
    ),
    *(_of_one(names["power"], x, source=_KAPLAN[x]) for x, names in _POWER.items()),
    *(_of_one(names["power_floor"], x, source=_KAPLAN[x], floor=True) for x, names in _POWER.items()),
  )
}


def for_variables(name: str, have: Collection[str]) -> str:
  """The form meant by `name` where these variables are known: `power` and `power_floor` take the first of N, D, C that is."""
  return next((names[name] for x, names in _POWER.items() if name in names and x in have), name)
