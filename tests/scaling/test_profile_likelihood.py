"""Profile-likelihood intervals: against the closed form of a straight line, their coverage, and where they are open."""

import numpy as np
import pytest
from scipy import stats

from ilya_jax.scaling import fit, profile
from ilya_jax.scaling.laws import FORMS

FLOOR = {"E": 1.2, "N_c": 2e5, "alpha_N": 0.35}


def noisy(form, truth, rng, *, count=16, sigma=0.005):
  sizes = np.geomspace(6e3, 1.5e6, count)
  return sizes, FORMS[form].loss(truth, N=sizes) * np.exp(sigma * rng.standard_normal(count))


def test_interval_of_a_straight_line_is_the_closed_form():
  sizes, loss = noisy("kaplan_n", {"N_c": 1e9, "alpha_N": 0.1}, np.random.default_rng(0))
  found = fit.fit_law("kaplan_n", loss, N=sizes, objective="lsq_log")
  x = np.log(sizes)
  rise = np.exp(stats.chi2.ppf(0.95, 1) / len(x)) - 1  # of the sum of squares, at the ends
  reach = np.sqrt((found.residuals**2).sum() * rise / ((x - x.mean()) ** 2).sum())
  low, high = profile.interval(found, "alpha_N")
  np.testing.assert_allclose(
    [low, high], [found.parameters["alpha_N"] - reach, found.parameters["alpha_N"] + reach], rtol=1e-5
  )


def test_ends_are_where_a_constrained_minimum_by_scipy_crosses_the_threshold():
  from scipy import optimize

  sizes, loss = noisy("power_floor", FLOOR, np.random.default_rng(3))
  found = fit.fit_law("power_floor", loss, N=sizes, objective="lsq_log")
  for end in profile.interval(found, "E"):

    def squares(rest, floor=end):
      return float((np.log(floor + np.exp(rest[0] - rest[1] * np.log(sizes))) - np.log(loss)).__pow__(2).sum())

    best = optimize.minimize(
      squares, [4.0, 0.35], method="Nelder-Mead", options={"xatol": 1e-10, "fatol": 1e-16, "maxiter": 4000}
    )
    assert 16 * np.log(best.fun / found.value) == pytest.approx(stats.chi2.ppf(0.95, 1), rel=1e-3)


def test_intervals_of_a_floor_cover_it():
  inside = 0
  for seed in range(40):
    sizes, loss = noisy("power_floor", FLOOR, np.random.default_rng(seed))
    low, high = profile.interval(fit.fit_law("power_floor", loss, N=sizes, objective="lsq_log", start_count=16), "E")
    inside += (low or 0.0) <= FLOOR["E"] <= high
  assert inside >= 34


def test_floor_that_is_not_there_is_open_below_and_bounded_above():
  sizes, loss = noisy("kaplan_n", {"N_c": 1e9, "alpha_N": 0.1}, np.random.default_rng(1))
  found = fit.fit_law("power_floor", loss, N=sizes, objective="lsq_log")
  low, high = profile.interval(found, "E")
  assert low is None
  assert 0 < high < loss.min()


def test_wanted_are_parameters_at_a_bound_or_all_beside_a_second_optimum():
  sizes, loss = noisy("kaplan_n", {"N_c": 1e9, "alpha_N": 0.1}, np.random.default_rng(1))
  found = fit.fit_law("power_floor", loss, N=sizes, objective="lsq_log")
  clear = found._replace(at_bound=(), second_optimum=None)
  assert profile.wanted(clear) == []
  assert profile.wanted(clear._replace(at_bound=("E",))) == ["E"]
  near = fit.Optimum(found.value * 1.01, found.parameters, 0.1)
  assert profile.wanted(clear._replace(second_optimum=near)) == ["E", "alpha_N"]
  assert profile.wanted(clear._replace(second_optimum=near._replace(value=2 * found.value))) == []


def test_scales_and_reprinted_constants_are_refused():
  sizes, loss = noisy("kaplan_n", {"N_c": 1e9, "alpha_N": 0.1}, np.random.default_rng(1))
  found = fit.fit_law("kaplan_n", loss, N=sizes)
  with pytest.raises(ValueError, match="N_c"):
    profile.interval(found, "N_c")
  assert not profile.can("coupled", "k")
