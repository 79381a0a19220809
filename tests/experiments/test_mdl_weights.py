"""The claims on noisy weights: tiny scale holds, rules judge as their words say, data and rivals are what they are said to be."""

import numpy as np
import pytest

from experiments import mdl_weights, mdl_weights_figures
from experiments import mdl_weights_runs as runs
from ilya_jax.claims.measuring import measure
from ilya_jax.scaling.drawing import image

CLAIMS = {claim.id: claim for claim in mdl_weights.CLAIMS}
TINY = runs.SIZES["tiny"]


@pytest.mark.parametrize("name", CLAIMS)
def test_the_necessary_conditions_hold(name, tmp_path):
  record, _ = measure(CLAIMS[name], scale="tiny", seeds=None, folder=tmp_path, command="")
  assert record["verdict"] == "holds"
  assert record["finding"]


def test_the_rule_of_over_fitting():
  def rows(*ratios):
    return [
      {"seed": k, "teacher": "linear", "noisy": 0.3, "plain": 0.4, "ratio": ratio} for k, ratio in enumerate(ratios)
    ]

  judge = CLAIMS["overfit"].judge
  assert judge(rows(0.8, 0.9, 0.8), "small").verdict == "holds"
  assert judge(rows(0.8, 0.9, 0.85), "small").verdict == "does not hold"
  assert judge(rows(0.8, float("nan")), "small").verdict == "does not hold"
  assert judge(rows(0.99), "tiny").verdict == "holds"


def run_rows(annealed, at_once, *, weights=1.0, totals=(50.0, 1.0), collapsed=1):
  return [
    {"seed": seed, "teacher": "linear", "price": way, "start": 0, "error": error, "total": total, "weights": weights,
     "collapsed": gone}
    for way, errors, total, gone in (("annealed", annealed, totals[0], 0), ("at once", at_once, totals[1], collapsed))
    for seed, error in enumerate(errors)
  ]  # fmt: skip


def test_the_rule_of_annealing():
  judge = CLAIMS["annealing"].judge
  assert judge(run_rows([0.5, 0.7, 0.9], [0.95, 1.0, 0.4]), "small").verdict == "holds"
  assert judge(run_rows([0.5, 0.81, 0.9], [0.95, 1.0, 0.4]), "small").verdict == "does not hold"
  assert judge(run_rows([0.5, 0.7, 0.9], [0.85, 1.0, 0.4]), "small").verdict == "does not hold"
  assert judge(run_rows([0.5], [1.0], weights=6.0), "tiny").verdict == "does not hold"


def test_the_rule_of_the_collapsed_solution():
  judge = CLAIMS["collapsed"].judge
  five = ([0.5] * 5, [1.0] * 5)
  assert judge(run_rows(*five), "small").verdict == "holds"
  assert judge(run_rows(*five, totals=(1.0, 1.0)), "small").verdict == "does not hold"
  assert judge(run_rows([0.5] * 4, [1.0] * 4), "small").verdict == "inconclusive"
  assert judge(run_rows(*five, collapsed=0), "small").verdict == "inconclusive"
  mixed = run_rows(*five)
  mixed[-1]["total"] = 60.0
  assert judge(mixed, "small").verdict == "does not hold"


def rival_rows(*noisy):
  rest = {"decay": 0.4, "decay_by_test": 0.35, "ridge": 0.3, "ridge_by_test": 0.3, "plain": 0.8, "linear": 30.0}
  return [{"seed": k, "teacher": "linear", "noisy": each, **rest} for k, each in enumerate(noisy)]


def test_the_rule_of_rivals():
  judge = CLAIMS["against_decay"].judge
  assert judge(rival_rows(0.4, 0.3, 0.5), "small").verdict == "holds"
  assert judge(rival_rows(0.4, 0.41), "small").verdict == "does not hold"
  assert judge(rival_rows(0.4), "tiny").verdict == "holds"


def test_the_rule_of_bits_back():
  judge = CLAIMS["bits_back"].judge
  one = {"of": "one Gaussian", "sampled": 0.363, "error": 0.001, "exact": 0.366}
  mixed = {"of": "a mixture", "which": 1.0, "weight": 2.0, "back": 0.5, "bound": 2.5, "divergence": 2.4}
  assert judge([one, mixed], "small").verdict == "holds"
  assert judge([{**one, "exact": 0.368}, mixed], "small").verdict == "does not hold"
  assert judge([one, {**mixed, "back": 0.6}], "small").verdict == "does not hold"
  assert judge([one, {**mixed, "divergence": 2.6}], "small").verdict == "does not hold"


def test_cases_are_standardised_by_training_alone():
  cases = runs.draw_cases(TINY, "tanh", 3)
  assert cases.x.shape == (30, 32)
  assert cases.test_y.shape == (120, 1)
  np.testing.assert_allclose(cases.x.mean(0), 0, atol=1e-12)
  np.testing.assert_allclose(cases.x.std(0), 1, rtol=1e-12)
  assert np.abs(cases.test_x.mean(0)).max() > 0.05
  again = runs.draw_cases.__wrapped__(TINY, "tanh", 3)
  np.testing.assert_array_equal(again.y, cases.y)
  assert (runs.draw_cases(TINY, "tanh", 4).y != cases.y).any()


def test_the_relative_error_of_the_mean_is_one():
  y = np.random.default_rng(0).standard_normal((40, 1))
  assert runs.relative_error(np.full_like(y, y.mean()), y) == pytest.approx(1, rel=1e-12)
  assert runs.relative_error(y, y) == 0


def test_strong_decay_leaves_the_mean_and_ridge_beats_least_squares():
  test, _, _ = runs.train_plain(TINY, "linear", 0, weights=0, decay=1e5)
  test_y = runs.draw_cases(TINY, "linear", 0).test_y
  assert test == pytest.approx(runs.relative_error(np.zeros_like(test_y), test_y), rel=1e-2)
  found = runs.linear_errors(runs.draw_cases(TINY, "linear", 0))
  assert found["ridge_by_test"] <= found["ridge"]
  assert found["ridge_by_test"] < found["linear"]


def test_ridge_equals_the_normal_equations():
  cases = runs.draw_cases(TINY, "linear", 1)
  errors = []
  for coefficient in runs.RIDGES:
    x = cases.x - cases.x.mean(0)
    w = np.linalg.solve(x.T @ x + coefficient * np.eye(x.shape[1]), x.T @ (cases.y - cases.y.mean()))
    predicted = cases.y.mean() + (cases.test_x - cases.x.mean(0)) @ w
    errors.append(runs.relative_error(predicted, cases.test_y))
  assert runs.linear_errors(cases)["ridge_by_test"] == pytest.approx(min(errors), rel=1e-9)


def test_the_best_run_is_the_cheapest_that_has_not_collapsed():
  def run(total, train_error):
    return runs.Noisy(None, (runs.Stage(1.0, total, 0.0, 0.5, train_error, 0, 1),))

  cheap, alive, dear = run(-10.0, 1.0), run(20.0, 0.1), run(30.0, 0.1)
  assert runs.best_of([cheap, dear, alive]) is alive
  assert runs.best_of([cheap, run(-5.0, 0.95)]) is cheap


def test_figures_draw():
  run = runs.train_noisy(TINY, "linear", 0, weights=0, annealed=True)
  rows = run_rows([0.5, 0.7], [1.0, 1.0])
  for figure in (
    mdl_weights_figures.draw_weights(run.network.means), mdl_weights_figures.draw_prior(run.network),
    mdl_weights_figures.draw_course([run]), mdl_weights_figures.draw_annealing(rows),
    mdl_weights_figures.draw_totals(rows), mdl_weights_figures.draw_rivals(rival_rows(0.3, 0.4)),
  ):  # fmt: skip
    assert image(figure, kind="png", dots_per_inch=30).startswith(b"\x89PNG")
