"""Regression: prequential sums against marginal likelihoods, RNML against its formula, scale and basis invariance."""

import numpy as np
import pytest
from scipy import special

from ilya_jax.complexity import regression
from ilya_jax.errors import UserError


def data(n=30, k=4, *, seed=0):
  rng = np.random.default_rng(seed)
  x = rng.uniform(-1, 1, n)
  return regression.legendre(x, k), rng.standard_normal(n) + 2 * x


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_predictions_sum_to_the_marginal_likelihood_in_any_order(seed):
  design, y = data()
  prior = regression.Prior(precision=0.3, shape=2.0, scale=0.7)
  order = np.random.default_rng(seed).permutation(len(y))
  found = regression.prequential_lengths(design[order], y[order], prior).sum()
  assert found == pytest.approx(regression.marginal_length(design, y, prior), rel=1e-8)
  nested = regression.bayes_lengths(design[None], y[None], prior)[0]
  for k in range(1, 5):
    assert nested[k - 1] == pytest.approx(regression.marginal_length(design[:, :k], y, prior), rel=1e-10)


def test_sums_of_squares_are_those_of_least_squares():
  design, y = data()
  rss, inside = regression.explained(design[None], y[None])
  for k in range(1, 5):
    fitted, residual, *_ = np.linalg.lstsq(design[:, :k], y, rcond=None)
    assert rss[0, k - 1] == pytest.approx(residual[0], rel=1e-10)
    assert inside[0, k - 1] == pytest.approx(np.square(design[:, :k] @ fitted).sum(), rel=1e-10)


def test_criteria_by_their_formulas():
  design, y = data()
  found = regression.criteria(design[None], y[None])
  rss, inside = (part[0] for part in regression.explained(design[None], y[None]))
  n = len(y)
  for k in range(1, 5):
    fit = n / 2 * np.log(rss[k - 1] / n)
    assert found["AIC"][0, k - 1] == pytest.approx(fit + k, rel=1e-12)
    assert found["BIC"][0, k - 1] == pytest.approx(fit + k / 2 * np.log(n), rel=1e-12)
    rnml = (n - k) / 2 * np.log(rss[k - 1]) + k / 2 * np.log(inside[k - 1])
    rnml -= special.gammaln((n - k) / 2) + special.gammaln(k / 2)
    assert found["RNML"][0, k - 1] == pytest.approx(rnml, rel=1e-12)


def test_neither_the_basis_nor_the_unit_of_y_decides():
  design, y = data()
  mixed = design @ np.triu(np.random.default_rng(3).uniform(1, 2, (4, 4)))
  for name, score in regression.criteria(design[None], y[None]).items():
    np.testing.assert_allclose(regression.criteria(mixed[None], y[None])[name], score, rtol=1e-9)
    scaled = regression.criteria(design[None], 100 * y[None])[name]
    np.testing.assert_allclose(np.diff(scaled), np.diff(score), atol=1e-9)


def test_legendre_polynomials_are_orthogonal():
  x, weights = np.polynomial.legendre.leggauss(12)
  basis = regression.legendre(x, 6)
  np.testing.assert_allclose((basis * weights[:, None]).T @ basis, np.diag(2 / (2 * np.arange(6) + 1)), atol=1e-12)


def test_too_few_points_are_refused():
  with pytest.raises(UserError, match="more points than coefficients"):
    regression.criteria(np.ones((1, 4, 4)), np.ones((1, 4)))
