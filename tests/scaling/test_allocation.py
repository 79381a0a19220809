"""Deadweight compute, published rules and the local slope, against brute-force optima and numbers of the papers."""

import numpy as np
import pytest
from scipy import optimize

from ilya_jax.scaling import allocation, optimal
from ilya_jax.scaling.laws import FORMS

HOFFMANN = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}
LAWS = {
  "chinchilla": HOFFMANN,
  "chinchilla_tied": {"E": 1.7, "A": 400.0, "B": 900.0, "alpha": 0.32},
  "coupled": {"E": 1.6, "A": 20.0, "R": 3.0, "a": 0.5, "b": 0.6, "k": 0.7},
  "overtraining": {"E": 1.7, "a": 140.0, "b": 190.0, "eta": 0.17},
  "kaplan_nd": {"N_c": 6.4e13, "D_c": 1.8e13, "alpha_N": 0.076, "alpha_D": 0.103},
  "kaplan_nd_floor": {"E": 1.2, "N_c": 6.4e10, "D_c": 1.8e10, "alpha_N": 0.176, "alpha_D": 0.303},
}


@pytest.mark.parametrize("form", LAWS)
def test_equal_loss_compute_buys_exactly_that_loss(form):
  N, D = np.array([1e8, 1e9, 3e9]), np.array([1e12, 2e10, 1e11])
  equal = allocation.equal_loss_compute(form, LAWS[form], N=N, D=D)
  best = optimal.allocate(form, LAWS[form], compute=equal)
  np.testing.assert_allclose(best.loss, FORMS[form].loss(LAWS[form], N=N, D=D), rtol=1e-10)
  assert (equal < 6 * N * D).all()


def test_the_optimum_wastes_nothing():
  best = optimal.allocate("chinchilla", HOFFMANN, compute=np.array([1e18, 1e24]))
  np.testing.assert_allclose(allocation.deadweight("chinchilla", HOFFMANN, N=best.N, D=best.D), 0.0, atol=1e-9)


def test_laws_without_an_optimum_have_no_deadweight():
  assert allocation.deadweight("kaplan_n", {"N_c": 1e13, "alpha_N": 0.076}, N=np.ones(1), D=np.ones(1)) is None


def test_published_rules_at_one_pf_day_and_1e21():
  assert allocation.published(np.array([8.64e19]))["Kaplan et al. 2020, Table 6"] == pytest.approx(1.3e9)
  rules = allocation.published(np.array([1e21]))
  assert rules["Hoffmann et al. 2022, approach 3"][0] == pytest.approx(1.82422e9, rel=1e-5)
  assert 1e21 / 6 / rules["20 tokens per parameter"][0] ** 2 == pytest.approx(20.0)
  assert set(rules) == set(allocation.PUBLISHED)


def optimum(log_compute, g, law):
  """ln N at the loss that is lowest with 6 N D FLOP, the law being one of N + g N^(1/3)."""

  def loss(log_n):
    n = np.exp(log_n)
    return law["A"] * (n + g * np.cbrt(n)) ** -law["alpha"] + law["B"] * (np.exp(log_compute) / 6 / n) ** -law["beta"]

  grid = np.linspace(0.0, log_compute, 4001)
  k = int(np.argmin(loss(grid)))
  return optimize.minimize_scalar(loss, bounds=(grid[k - 1], grid[k + 1]), method="bounded", options={"xatol": 1e-12}).x


def log_compute_of(n, g):
  """ln C at which n is the optimum, from the condition that the loss is stationary (Pearce & Song 2024)."""
  ratio = HOFFMANN["beta"] * HOFFMANN["B"] / (HOFFMANN["alpha"] * HOFFMANN["A"])
  inner = ratio * (n + g * np.cbrt(n)) ** (1 + HOFFMANN["alpha"]) / (n + g / 3 * np.cbrt(n))
  return np.log(6 * n) + np.log(inner) / HOFFMANN["beta"]


@pytest.mark.parametrize("x", [0.02, 0.33, 3.0, 10.0, 1e3])
def test_local_slope_is_the_difference_of_brute_force_optima(x):
  g = 47491.0
  n = (x * g) ** 1.5
  log_c = log_compute_of(n, g)
  assert optimum(log_c, g, HOFFMANN) == pytest.approx(np.log(n), abs=1e-5)
  slope = (optimum(log_c + 0.05, g, HOFFMANN) - optimum(log_c - 0.05, g, HOFFMANN)) / 0.1
  assert allocation.local_slope(0.34, 0.28, x) == pytest.approx(slope, rel=2e-3)


def test_local_slope_at_the_numbers_of_the_card():
  found = [allocation.local_slope(0.34, 0.28, x) for x in (0.0, 0.33, 3.0, 10.0, 1e9)]
  np.testing.assert_allclose(found, [0.712, 0.988, 0.604, 0.500, 0.4516], atol=1.5e-3)


def test_local_slope_of_a_ladder_of_one_depth_is_the_difference_of_brute_force_optima():
  """Embeddings that grow as the square root of N."""
  h, alpha, beta = 84.1, 0.36, 0.4

  def best(log_c):
    def loss(u):
      return 24 * (np.exp(u) + h * np.exp(u / 2)) ** -alpha + 180 * np.exp(-beta * (log_c - u))

    return optimize.minimize_scalar(loss, bounds=(2, 30), method="bounded", options={"xatol": 1e-11}).x

  for log_c in np.log([1e9, 1e10, 1e12]):
    step = 1e-2
    slope = (best(log_c + step) - best(log_c - step)) / (2 * step)
    assert allocation.local_slope(alpha, beta, np.exp(best(log_c) / 2) / h, power=0.5) == pytest.approx(slope, rel=1e-4)
  assert allocation.local_slope(alpha, beta, 1e12, power=0.5) == pytest.approx(beta / (alpha + beta))


def test_embeddings_are_read_off_the_ladder():
  sizes = np.geomspace(6e3, 4e5, 7)
  assert allocation.embeddings_of(sizes, sizes + 84.1 * sizes**0.5) == pytest.approx((84.1, 0.5, 0.0), abs=1e-9)
  alone = allocation.embeddings_of(sizes[:1], sizes[:1] + 355 * np.cbrt(sizes[:1]))
  # One size says nothing about the power: one shape is taken.
  assert alone == pytest.approx((355, 1 / 3, 0.0), abs=1e-9)


def test_ladder_slope_is_the_slope_between_brute_force_optima_of_its_ends():
  g, law = 355.0, HOFFMANN
  sizes = np.geomspace(6e3, 4e5, 7)
  found = allocation.ladder_slope(law["alpha"], law["beta"], N=sizes, N_total=sizes + g * np.cbrt(sizes))
  assert found.embeddings == pytest.approx((g, 1 / 3, 0.0), abs=1e-9)

  ends = np.array([log_compute_of(n, g) for n in sizes[[0, -1]]])
  reached = [optimum(end, g, law) for end in ends]
  np.testing.assert_allclose(reached, np.log(sizes[[0, -1]]), atol=1e-5)
  slope = (reached[1] - reached[0]) / (ends[1] - ends[0])
  assert found.of_ladder == pytest.approx(slope, rel=2e-3)
  assert found.of_total == pytest.approx(0.28 / 0.62)
