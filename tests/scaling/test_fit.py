"""Oracles of the fit: planted parameters, scipy's minimisers, invariances, robust objectives, two planted optima."""

import numpy as np
import pytest
from scipy import optimize

from ilya_jax.errors import UserError
from ilya_jax.scaling import search
from ilya_jax.scaling.fit import aicc, fit_law
from ilya_jax.scaling.laws import FORMS
from ilya_jax.scaling.objectives import centred, problem
from tests.scaling.test_laws import PRINTED

TRUTH = {"E": 1.2, "A": 12.0, "B": 56.0, "alpha": 0.30, "beta": 0.35}


def _grid():
  N, D = (x.ravel() for x in np.meshgrid(np.geomspace(1e6, 1e9, 7), np.geomspace(1e8, 1e11, 6)))
  unique = np.tile([3e8, 1e10], len(N) // 2)  # some of the tokens are seen again
  return {"N": N, "D": D, "C": 6 * N * D, "S": D / 2.0**19, "D_unique": unique}


def _card_table(seed, *, sigma=0.005, form="chinchilla", values=None):
  """The 42 cells of the card, N = 6144 x 2^(0..6), D/N 1 to 300, with log-noise."""
  N = np.repeat(6144 * 2.0 ** np.arange(7), 6)
  D = N * np.tile([1.0, 3.0, 10.0, 30.0, 100.0, 300.0], 7)
  noise = np.random.default_rng(seed).normal(size=len(N)) * sigma
  return N, D, FORMS[form].loss(values or TRUTH, N=N, D=D) * np.exp(noise)


@pytest.mark.parametrize("objective", ["huber", "lad", "lsq_log", "lsq"])
@pytest.mark.parametrize("name", FORMS)
def test_noise_free_tables_give_their_parameters_back(name, objective):
  grid = _grid()
  loss = FORMS[name].loss(PRINTED[name], **{v: grid[v] for v in FORMS[name].variables})
  found = fit_law(name, loss, **grid, objective=objective, start_count=16)
  for key, value in PRINTED[name].items():
    assert found.parameters[key] == pytest.approx(value, rel=1e-5)
  assert found.share_at_best > 0.5
  assert np.abs(found.residuals).max() < 1e-7


def _scipy_best(form, points, *, objective, delta, seed, count):
  task = problem(form, points, weights=np.ones((1, len(points))), objective=objective, delta=delta)
  rng, best = np.random.default_rng(seed), np.inf
  zero = np.zeros(1, int)
  low = np.array([0.0 if n == "E" else 1e-3 if n.startswith("al") or n == "beta" else -20.0 for n in form.names])
  for _ in range(count):
    start = np.array([rng.uniform(0, 1.5) if n == "E" else rng.uniform(0.05, 1.5) if n.startswith("al") or n == "beta"
                      else rng.uniform(-2, 1) for n in form.names])  # fmt: skip
    found = optimize.minimize(
      lambda t: (task.value(t[None], zero)[0], task.derivatives(t[None], zero).gradient[0]), start, jac=True,
      method="L-BFGS-B", bounds=list(zip(low, [10.0] * len(low), strict=True)),
      options={"maxiter": 3000, "ftol": 1e-15, "gtol": 1e-10},
    )  # fmt: skip
    best = min(best, float(found.fun))
  return best * task.unit


@pytest.mark.parametrize("name", ["chinchilla", "kaplan_nd", "kaplan_nd_floor"])
def test_optimum_is_at_least_as_good_as_the_best_of_scipy(name):
  N, D, loss = _card_table(3, sigma=0.01)
  loss[[4, 17]] *= 1.1
  found = fit_law(name, loss, N=N, D=D)
  other = _scipy_best(FORMS[name], found.points, objective="huber", delta=1e-3, seed=0, count=12)
  assert found.value <= other * (1 + 1e-9)


def test_value_is_the_sum_of_huber_of_log_residuals():
  N, D, loss = _card_table(1)
  found = fit_law("chinchilla", loss, N=N, D=D, start_count=16)
  r = np.abs(np.log(found.predict(N=N, D=D)) - np.log(loss))
  assert found.value == pytest.approx(np.where(r <= 1e-3, r * r / 2, 1e-3 * (r - 5e-4)).sum(), rel=1e-10)
  for objective, expected in (("lad", lambda r, raw: np.abs(r).sum()), ("lsq_log", lambda r, raw: (r**2).sum()),
                              ("lsq", lambda r, raw: (raw**2).sum())):  # fmt: skip
    found = fit_law("chinchilla", loss, N=N, D=D, objective=objective, start_count=16)
    predicted = found.predict(N=N, D=D)
    assert found.value == pytest.approx(expected(np.log(predicted / loss), predicted - loss), rel=1e-8)


def test_logarithmic_power_law_is_linear_least_squares():
  rng = np.random.default_rng(0)
  N = np.geomspace(1e5, 1e9, 15)
  loss = 3.0 * (1e7 / N) ** 0.08 * np.exp(0.01 * rng.normal(size=15))
  found = fit_law("kaplan_n", loss, N=N, objective="lsq_log", start_count=8)
  slope, intercept = np.polyfit(np.log(N), np.log(loss), 1)
  assert found.parameters["alpha_N"] == pytest.approx(-slope, rel=1e-9)
  assert np.log(found.parameters["N_c"]) == pytest.approx(intercept / -slope, rel=1e-9)


def test_lad_power_law_is_the_linear_program():
  rng = np.random.default_rng(1)
  N = np.geomspace(1e5, 1e9, 21)
  loss = 3.0 * (1e7 / N) ** 0.08 * np.exp(0.01 * rng.standard_t(2, size=21))
  found = fit_law("kaplan_n", loss, N=N, objective="lad", start_count=16)
  design = np.stack([np.ones(21), -np.log(N)], axis=1)
  rows = np.block([[design, -np.eye(21)], [-design, -np.eye(21)]])
  limits = np.concatenate([np.log(loss), -np.log(loss)])
  program = optimize.linprog(
    np.r_[0, 0, np.ones(21)], A_ub=rows, b_ub=limits, bounds=[(None, None)] * 2 + [(0, None)] * 21
  )
  assert found.value == pytest.approx(program.fun, rel=1e-8)


def test_exponents_do_not_depend_on_order_or_units():
  N, D, loss = _card_table(2)
  first = fit_law("chinchilla", loss, N=N, D=D, start_count=24)
  order = np.random.default_rng(0).permutation(len(N))
  for other in (
    fit_law("chinchilla", loss[order], N=N[order], D=D[order], start_count=24),
    fit_law("chinchilla", loss, N=N / 1e6, D=D, start_count=24),
    fit_law("chinchilla", loss / np.log(2), N=N, D=D, start_count=24),
    fit_law("chinchilla", loss, N=N, D=D, weights=np.full(len(N), 1.0 / len(N)), start_count=24),  # the mean
  ):
    for name in ("alpha", "beta"):
      assert other.parameters[name] == pytest.approx(first.parameters[name], rel=1e-6)


def test_weights_count_rows_as_repetitions_do():
  N, D, loss = _card_table(4)
  weights = np.random.default_rng(0).integers(0, 3, len(N))
  weighted = fit_law("chinchilla", loss, N=N, D=D, weights=weights, start_count=24)
  again = np.repeat(np.arange(len(N)), weights)
  repeated = fit_law("chinchilla", loss[again], N=N[again], D=D[again], start_count=24)
  assert weighted.value == pytest.approx(repeated.value, rel=1e-9)


def test_huber_moves_less_than_squares_under_outliers():
  moved = {objective: [] for objective in ("huber", "lsq_log")}
  clean = {}
  N, D, loss = _card_table(0)
  for draw in range(10):
    rows = np.random.default_rng(draw).choice(len(N), 3, replace=False)
    spoiled = loss.copy()
    spoiled[rows] *= 1.1
    for objective, moves in moved.items():
      if objective not in clean:
        clean[objective] = fit_law("chinchilla", loss, N=N, D=D, objective=objective, start_count=8)
      found = fit_law("chinchilla", spoiled, N=N, D=D, objective=objective, start_count=8)
      moves.append(abs(found.parameters["alpha"] - clean[objective].parameters["alpha"]))
  medians = {objective: np.median(moves) for objective, moves in moved.items()}
  assert medians["huber"] < medians["lsq_log"] / 3


def test_two_planted_optima_are_both_reported():
  # Half of the sizes follow one exponent and half another: a two-parameter law that must choose, nearly evenly.
  N = np.concatenate([np.geomspace(1e5, 1e9, 11)] * 2)
  loss = 3.0 * (1e7 / N) ** np.where(np.arange(22) < 11, 0.05, 0.15)
  form = FORMS["kaplan_nd"]  # its two terms can take either part
  D = np.concatenate([np.full(11, 1e9), np.full(11, 1.1e9)])
  found = fit_law("kaplan_nd", loss, N=N, D=D, start_count=64)
  assert found.second_optimum is not None
  assert found.second_optimum.value > found.value
  theta = form.encode(found.second_optimum.parameters, found.points.centre)
  assert np.isfinite(theta).all()


def test_refits_reach_the_optimum_of_full_searches():
  N, D, loss = _card_table(5)
  found = fit_law("chinchilla", loss, N=N, D=D)
  rng = np.random.default_rng(0)
  weights = rng.multinomial(len(N), np.full(len(N), 1 / len(N)), size=6).astype(float)
  refits = search.follow(
    FORMS["chinchilla"], found.points, theta=np.repeat(found.theta[None], 6, axis=0), weights=weights
  )
  for value, counts in zip(refits.value, weights, strict=True):
    full = fit_law("chinchilla", loss, N=N, D=D, weights=counts, start_count=32)
    assert value == pytest.approx(full.value, rel=1e-6)


def test_floor_at_zero_is_a_bound():
  grid = _grid()
  loss = FORMS["kaplan_nd"].loss(PRINTED["kaplan_nd"], N=grid["N"], D=grid["D"])
  found = fit_law("kaplan_nd_floor", loss, N=grid["N"], D=grid["D"], objective="lsq_log", start_count=24)
  assert found.parameters["E"] < 1e-4
  assert found.parameters["alpha_N"] == pytest.approx(0.076, rel=1e-3)


def test_aicc_of_squares_is_the_gaussian_one():
  value, n, p = 0.02, 30, 5
  expected = n * (np.log(2 * np.pi * value / n) + 1) + 2 * 6 + 2 * 6 * 7 / (n - 7)
  assert aicc(value, points=n, parameters=p, objective="lsq_log", delta=1e-3) == pytest.approx(expected)
  assert aicc(value, points=7, parameters=p, objective="lsq_log", delta=1e-3) == np.inf


def test_aicc_of_huber_tends_to_that_of_absolute_deviations():
  lad = aicc(0.3, points=40, parameters=4, objective="lad", delta=1e-3)
  assert aicc(0.3e-6, points=40, parameters=4, objective="huber", delta=1e-6) == pytest.approx(lad, rel=1e-3)


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"form": "chinchila"}, "chinchilla"),
    ({"objective": "l1"}, "objective"),
    ({"delta": 0.0}, "delta"),
    ({"start_count": 0}, "starts"),
    ({"rows": 5}, "more rows"),
    ({"N": 1e6}, "distinct value of N"),
    ({"ratio": 20.0}, "one line"),
    ({"bad": np.nan}, "row 3"),
    ({"bad": -1.0}, "row 3"),
  ],
)
def test_bad_input_is_refused(change, words):
  N, D, loss = _card_table(0)
  if "N" in change:
    N = np.full_like(N, change["N"])
  if "ratio" in change:
    D = N * change["ratio"]
  if "bad" in change:
    loss[2] = change["bad"]
  rows = slice(change.get("rows"))
  options = {k: v for k, v in change.items() if k in ("objective", "delta", "start_count")}
  with pytest.raises(UserError, match=words):
    fit_law(change.get("form", "chinchilla"), loss[rows], N=N[rows], D=D[rows], **options)


@pytest.mark.slow
def test_least_squares_estimates_follow_the_fisher_information():
  # Card: standard errors E .023, alpha .0151, beta .0033 at sigma .005 on these 42 cells.
  fisher = {"E": 0.023, "alpha": 0.0151, "beta": 0.0033}
  fits = [fit_law("chinchilla", loss, N=N, D=D, objective="lsq_log", start_count=8)
          for N, D, loss in (_card_table(seed) for seed in range(100))]  # fmt: skip
  for name, error in fisher.items():
    values = np.array([found.parameters[name] for found in fits])
    assert (np.abs(values - TRUTH[name]) < 3 * error).mean() >= 0.95
    assert values.std() == pytest.approx(error, rel=0.25)


def test_jacobian_gives_the_fisher_errors_of_the_card():
  N, D, loss = _card_table(0, sigma=0.0)
  form = FORMS["chinchilla"]
  points = centred(form, loss, {"N": N, "D": D})
  jacobian = form.log_loss(form.encode(TRUTH, points.centre)[None], points.logs)[1][0]
  errors = 0.005 * np.sqrt(np.diag(np.linalg.inv(jacobian @ jacobian.T)))
  for name, expected in {"E": 0.023, "alpha": 0.0151, "beta": 0.0033}.items():
    assert errors[form.column(name)] == pytest.approx(expected, rel=0.02)
