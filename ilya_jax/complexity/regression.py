"""Linear regression with k coefficients and unknown variance: AIC, BIC, renormalised NML and Bayes, in nats.

Grünwald 2004, "A Tutorial Introduction to the Minimum Description Length Principle", https://arxiv.org/abs/math/0406077,
sections 1.3 and 2.7; renormalised NML: Rissanen 2000, "MDL denoising". Polynomials are in Legendre's basis on [-1, 1].

Axes: B data sets, n points, K coefficients (k = 1 … K, models nested).
"""

from typing import NamedTuple

import numpy as np
from scipy import special, stats

from ilya_jax.errors import UserError

Array = np.ndarray


class Prior(NamedTuple):
  """σ² inverse gamma (shape, scale), coefficients normal with mean 0 and variance σ² / precision each."""

  precision: float = 1.0
  shape: float = 1.0
  scale: float = 1.0


UNIT = Prior()


def legendre(x: Array, coefficients: int) -> Array:
  """Legendre's polynomials of degree 0 … K-1 at x: [..., n] -> [..., n, K]."""
  return np.polynomial.legendre.legvander(x, coefficients - 1)


def explained(design: Array, y: Array) -> tuple[Array, Array]:
  """Residual and explained sums of squares of the models of the first 1 … K columns, each [B, K]; design [B, n, K], y [B, n].

  Raises UserError unless there are more points than coefficients.
  """
  n, coefficients = design.shape[-2:]
  if n <= coefficients:
    raise UserError(f"{coefficients} coefficients for {n} points", "more points than coefficients", "design")
  basis, _ = np.linalg.qr(design)
  projections = np.einsum("bnk,bn->bk", basis, y)
  inside = np.cumsum(projections**2, axis=-1)
  residuals = y[:, None, :] - np.cumsum(basis * projections[:, None, :], axis=-1).swapaxes(1, 2)  # [B, K, n]
  return (residuals**2).sum(-1), inside


def criteria(design: Array, y: Array) -> dict[str, Array]:
  """AIC, BIC and RNML of the nested models, nats, [B, K] each; constants that do not depend on k are dropped.

  RNML: ((n - k) / 2) ln RSS + (k / 2) ln ||ŷ||² - ln Γ((n - k) / 2) - ln Γ(k / 2).
  """
  rss, inside = explained(design, y)
  n, k = design.shape[-2], np.arange(1.0, design.shape[-1] + 1)
  fit = n / 2 * np.log(rss / n)
  rnml = (n - k) / 2 * np.log(rss) + k / 2 * np.log(inside) - special.gammaln((n - k) / 2) - special.gammaln(k / 2)
  return {"AIC": fit + k, "BIC": fit + k / 2 * np.log(n), "RNML": rnml}


def marginal_length(design: Array, y: Array, prior: Prior = UNIT) -> float:
  """-ln of the marginal likelihood of y [n] under the conjugate prior, nats; design [n, k].

  y is Student t with 2 a degrees of freedom, mean 0 and scale matrix (b / a) (I + X Xᵀ / precision).
  """
  spread = prior.scale / prior.shape * (np.eye(len(y)) + design @ design.T / prior.precision)
  return -float(stats.multivariate_t(shape=spread, df=2 * prior.shape).logpdf(y))


def bayes_lengths(design: Array, y: Array, prior: Prior = UNIT) -> Array:
  """`marginal_length` of the nested models of each data set, [B, K]: of design [B, n, K] and y [B, n].

  -ln p = (n / 2) ln 2π + (ln det Λ_n - k ln Λ_0) / 2 + a_n ln b_n - a_0 ln b_0 + ln Γ(a_0) - ln Γ(a_n).
  """
  n, coefficients = design.shape[-2:]
  after = prior.shape + n / 2
  found = []
  for k in range(1, coefficients + 1):
    part = design[..., :k]
    precision = part.swapaxes(1, 2) @ part + prior.precision * np.eye(k)
    moment = np.einsum("bnk,bn->bk", part, y)
    mean = np.linalg.solve(precision, moment[..., None])[..., 0]
    scale = prior.scale + ((y**2).sum(-1) - (mean * moment).sum(-1)) / 2
    volume = (np.linalg.slogdet(precision)[1] - k * np.log(prior.precision)) / 2
    constant = n / 2 * np.log(2 * np.pi) - prior.shape * np.log(prior.scale) + special.gammaln(prior.shape)
    found.append(constant + volume + after * np.log(scale) - special.gammaln(after))
  return np.stack(found, axis=-1)


def prequential_lengths(design: Array, y: Array, prior: Prior = UNIT) -> Array:
  """-ln of each y given those before it, nats [n]: a Student t whose parameters are updated after each; design [n, k], y [n].

  Their sum is `marginal_length`, whatever the order of the data.
  """
  k = design.shape[-1]
  covariance, moment = np.eye(k) / prior.precision, np.zeros(k)  # of the coefficients, over σ²; Xᵀ y
  shape, scale = prior.shape, prior.scale
  losses = np.empty(len(y))
  for i, (row, value) in enumerate(zip(design, y, strict=True)):
    direction = covariance @ row
    spread, error = 1 + row @ direction, value - direction @ moment
    losses[i] = -stats.t(2 * shape, 0.0, np.sqrt(scale / shape * spread)).logpdf(error)
    covariance = covariance - np.outer(direction, direction) / spread
    moment = moment + row * value
    shape, scale = shape + 0.5, scale + error**2 / (2 * spread)
  return losses
