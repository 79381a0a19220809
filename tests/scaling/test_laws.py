"""Oracles of the laws: published values, limits, gradients against central differences, conversion of parameters."""

import numpy as np
import pytest

from ilya_jax.scaling.laws import FORMS, for_variables

PRINTED = {  # constants that are all identified on the table below
  "kaplan_n": {"N_c": 8.8e13, "alpha_N": 0.076},
  "kaplan_d": {"D_c": 5.4e13, "alpha_D": 0.095},
  "kaplan_c": {"C_c": 3.1e8 * 8.64e19, "alpha_C": 0.050},
  "kaplan_nd": {"N_c": 6.4e13, "D_c": 1.8e13, "alpha_N": 0.076, "alpha_D": 0.103},
  "kaplan_nd_floor": {"E": 1.2, "N_c": 6.4e11, "D_c": 1.8e11, "alpha_N": 0.2, "alpha_D": 0.3},
  "chinchilla": {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28},
  "chinchilla_tied": {"E": 1.69, "A": 406.4, "B": 1410.7, "alpha": 0.31},
  "coupled": {"E": 1.4, "A": 90.0, "R": 3.0, "a": 0.33, "b": 0.36, "k": 0.8},
  "overtraining": {"E": 1.69, "a": 260.0, "b": 520.0, "eta": 0.14},
  "kaplan_ns": {"N_c": 6.5e13, "S_c": 2.1e3, "alpha_N": 0.077, "alpha_S": 0.76},
  "data_constrained": {"E": 1.87, "A": 521.0, "B": 1488.0, "alpha": 0.35, "beta": 0.35, "R_N": 5.3, "R_D": 15.4},
  "power": {"N_c": 8.8e13, "alpha_N": 0.076},
  "power_d": {"D_c": 5.4e13, "alpha_D": 0.095},
  "power_c": {"C_c": 3.1e8 * 8.64e19, "alpha_C": 0.050},
  "power_floor": {"E": 1.5, "N_c": 1e9, "alpha_N": 0.3},
  "power_floor_d": {"E": 1.5, "D_c": 1e11, "alpha_D": 0.3},
  "power_floor_c": {"E": 1.5, "C_c": 1e21, "alpha_C": 0.2},
}
CENTRE = {"N": 18.0, "D": 22.0, "C": 42.0, "S": 9.0, "D_unique": 22.0}


def _logs(rng, form):
  return {v: rng.uniform(-3.0, 3.0, 12) for v in form.variables}


def test_every_form_is_tried():
  assert set(PRINTED) == set(FORMS)


@pytest.mark.parametrize(
  ("form", "at", "expected"),
  [
    ("kaplan_n", {"N": [1e6, 1e9]}, [4.0159, 2.3756]),
    ("kaplan_d", {"D": [1e8]}, [3.5041]),
    ("kaplan_nd", {"N": [1e8], "D": [1e9]}, [2.95673]),
  ],
)
def test_published_values(form, at, expected):
  loss = FORMS[form].loss(PRINTED[form], **{v: np.array(x) for v, x in at.items()})
  np.testing.assert_allclose(loss, expected, rtol=2e-5)


@pytest.mark.parametrize("name", FORMS)
def test_gradient_equals_central_differences(name):
  form, rng = FORMS[name], np.random.default_rng(0)
  logs = _logs(rng, form)
  theta = form.encode(PRINTED[name], CENTRE)[None] * rng.uniform(0.9, 1.1, (5, len(form.parameters)))
  jacobian = form.log_loss(theta, logs)[1]
  h = 1e-5
  for k in range(theta.shape[1]):
    step = np.zeros(theta.shape[1])
    step[k] = h
    difference = (form.log_loss(theta + step, logs)[0] - form.log_loss(theta - step, logs)[0]) / (2 * h)
    np.testing.assert_allclose(jacobian[:, k], difference, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", FORMS)
def test_decode_inverts_encode_at_any_centre(name):
  form = FORMS[name]
  theta = form.encode(PRINTED[name], CENTRE)
  decoded = form.decode(theta, CENTRE)
  for key, value in PRINTED[name].items():
    np.testing.assert_allclose(decoded[key], value, rtol=1e-12)
  logs = {v: np.array([1.5]) for v in form.variables}
  natural = {v: np.exp(1.5 + CENTRE[v]) for v in form.variables}
  centred = np.exp(form.log_loss(theta[None], logs)[0][0, 0])
  np.testing.assert_allclose(form.loss(PRINTED[name], **natural), centred, rtol=1e-12)


def test_written_formulas():
  N, D = np.array([3e6, 2e9]), np.array([5e8, 7e10])
  p = PRINTED["chinchilla"]
  np.testing.assert_allclose(
    FORMS["chinchilla"].loss(p, N=N, D=D), p["E"] + p["A"] / N ** p["alpha"] + p["B"] / D ** p["beta"], rtol=1e-12
  )
  p = PRINTED["kaplan_nd_floor"]
  bracket = (p["N_c"] / N) ** (p["alpha_N"] / p["alpha_D"]) + p["D_c"] / D
  np.testing.assert_allclose(FORMS["kaplan_nd_floor"].loss(p, N=N, D=D), p["E"] + bracket ** p["alpha_D"], rtol=1e-12)


def test_forms_that_contain_each_other_agree():
  N, D = np.array([3e6, 2e9]), np.array([5e8, 7e10])
  p = PRINTED["chinchilla"]
  ratio = p["B"] / p["A"]
  coupled = {"E": p["E"], "A": p["A"], "R": ratio, "a": p["alpha"], "b": p["beta"], "k": 1.0}
  np.testing.assert_allclose(
    FORMS["coupled"].loss(coupled, N=N, D=D), FORMS["chinchilla"].loss(p, N=N, D=D), rtol=1e-12
  )
  p = PRINTED["kaplan_nd_floor"]
  a = p["alpha_N"] / p["alpha_D"]
  A, R = p["N_c"] ** p["alpha_N"], p["D_c"] * p["N_c"] ** -a
  coupled = {"E": p["E"], "A": A, "R": R, "a": a, "b": 1.0, "k": p["alpha_D"]}
  kaplan = FORMS["kaplan_nd_floor"].loss(p, N=N, D=D)
  np.testing.assert_allclose(FORMS["coupled"].loss(coupled, N=N, D=D), kaplan, rtol=1e-12)
  p = PRINTED["chinchilla_tied"]
  free = FORMS["chinchilla"].loss({**p, "beta": p["alpha"]}, N=N, D=D)
  np.testing.assert_allclose(FORMS["chinchilla_tied"].loss(p, N=N, D=D), free, rtol=1e-12)
  p = PRINTED["overtraining"]
  C, M = 6 * N * D, D / N
  written = p["E"] + (p["a"] * M ** p["eta"] + p["b"] * M ** -p["eta"]) * C ** -p["eta"]
  np.testing.assert_allclose(FORMS["overtraining"].loss(p, N=N, D=D), written, rtol=1e-12)
  p = PRINTED["coupled"]
  written = p["E"] + p["A"] * (N ** -p["a"] + p["R"] * D ** -p["b"]) ** p["k"]
  np.testing.assert_allclose(FORMS["coupled"].loss(p, N=N, D=D), written, rtol=1e-12)


def test_kaplan_joint_law_tends_to_its_one_variable_laws():
  p = PRINTED["kaplan_nd"]
  N = np.array([1e6, 1e9])
  limit = FORMS["kaplan_n"].loss({"N_c": p["N_c"], "alpha_N": p["alpha_N"]}, N=N)
  np.testing.assert_allclose(FORMS["kaplan_nd"].loss(p, N=N, D=1e40), limit, rtol=1e-12)
  limit = FORMS["kaplan_d"].loss({"D_c": p["D_c"], "alpha_D": p["alpha_D"]}, D=N)
  np.testing.assert_allclose(FORMS["kaplan_nd"].loss(p, N=1e60, D=N), limit, rtol=1e-12)


@pytest.mark.parametrize("name", FORMS)
def test_laws_fall_in_all_of_their_variables(name):
  form = FORMS[name]
  for v in form.variables:
    at = {u: np.full(9, np.exp(CENTRE[u])) for u in form.variables}
    at[v] = at[v] * np.geomspace(1e-3, 1e3, 9)
    falls = np.diff(form.loss(PRINTED[name], **at))
    if v == "D_unique":  # as many tokens as are trained on are enough
      assert (falls[:4] < 0).all()
      assert (falls[4:] == 0).all()
    else:
      assert (falls < 0).all()


def test_repeated_tokens_are_worth_less_until_they_are_worth_nothing():
  p = PRINTED["data_constrained"]
  law, chinchilla = FORMS["data_constrained"], {name: p[name] for name in ("E", "A", "B", "alpha", "beta")}
  N, U = 1e8, 4e9
  fresh = law.loss(p, N=N, D=[2.5e9, 4e9], D_unique=U)
  np.testing.assert_allclose(fresh, FORMS["chinchilla"].loss(chinchilla, N=N, D=[2.5e9, 4e9]), rtol=1e-12)
  worth = U + U * p["R_D"] * (1 - np.exp(-3 / p["R_D"]))  # of four epochs, written out
  np.testing.assert_allclose(
    law.loss(p, N=N, D=4 * U, D_unique=U), FORMS["chinchilla"].loss(chinchilla, N=N, D=worth), rtol=1e-12
  )
  for_ever = FORMS["chinchilla"].loss(chinchilla, N=N, D=U * (1 + p["R_D"]))
  np.testing.assert_allclose(law.loss(p, N=N, D=1e6 * U, D_unique=U), for_ever, rtol=1e-12)
  g = (p["alpha"] * p["A"] / (p["beta"] * p["B"])) ** (1 / (p["alpha"] + p["beta"]))
  best = g * (g * U) ** (p["beta"] / p["alpha"])
  worth = best + best * p["R_N"] * (1 - np.exp(-9 / p["R_N"]))
  np.testing.assert_allclose(
    law.loss(p, N=10 * best, D=U, D_unique=U), FORMS["chinchilla"].loss(chinchilla, N=worth, D=U), rtol=1e-12
  )


@pytest.mark.parametrize(("have", "power", "floor"), [
  ("NDC", "power", "power_floor"), ("DC", "power_d", "power_floor_d"), ("C", "power_c", "power_floor_c"),
])  # fmt: skip
def test_power_laws_take_the_variable_that_is_there(have, power, floor):
  assert for_variables("power", have) == power
  assert for_variables("power_floor", have) == floor
  assert for_variables("chinchilla", have) == "chinchilla"
  assert FORMS[floor].variables == (have[0],)
