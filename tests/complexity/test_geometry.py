"""The two laws of psychophysics: volumes by a double integral and finite differences, fits by scipy, draws by their density."""

import numpy as np
import pytest
from scipy import integrate, optimize, stats

from ilya_jax.complexity import geometry

POINTS = np.arange(1.0, 11.0)


def test_volumes_of_the_card():
  assert geometry.log_volume(geometry.STEVENS, POINTS, sigma=1) == pytest.approx(12.740393, abs=1e-6)
  assert geometry.log_volume(geometry.FECHNER, POINTS, sigma=1) == pytest.approx(4.301722, abs=1e-6)
  narrow = geometry.STEVENS._replace(box=(10.0, 2.0))
  assert geometry.log_volume(narrow, POINTS, sigma=1) == pytest.approx(8.800600, abs=1e-6)


@pytest.mark.parametrize("law", geometry.LAWS, ids=lambda law: law.name)
def test_volume_is_the_double_integral_of_the_information(law):
  sigma, step = 0.7, 1e-6

  def root(b, a):
    gradient = np.stack([
      law.curve(POINTS, b),
      a * (law.curve(POINTS, b + step) - law.curve(POINTS, b - step)) / (2 * step),
    ])  # fmt: skip
    return np.sqrt(max(np.linalg.det(gradient @ gradient.T / len(POINTS) / sigma**2), 0.0))

  box = law._replace(box=(2.0, 1.5))
  expected, _ = integrate.dblquad(root, 0, 2.0, 0, 1.5, epsabs=0, epsrel=1e-5)
  assert geometry.log_volume(box, POINTS, sigma=sigma) == pytest.approx(np.log(expected), abs=1e-4)


@pytest.mark.parametrize("law", geometry.LAWS, ids=lambda law: law.name)
def test_fits_are_at_least_as_good_as_those_of_scipy(law):
  rng = np.random.default_rng(0)
  for truth in geometry.LAWS:
    a, b = rng.uniform(1, 4, 8), rng.uniform(0.3, 1.2, 8)
    y = a[:, None] * truth.curve(POINTS, b[:, None]) + 0.5 * rng.standard_normal((8, 10))
    found = geometry.best_fit(law, y, POINTS)
    for row, value in zip(y, found, strict=True):
      best = min(
        2 * optimize.least_squares(
          lambda p, row=row: p[0] * law.curve(POINTS, p[1]) - row, start, bounds=([0, 0], law.box), xtol=1e-12, ftol=1e-12
        ).cost
        for start in ([1.0, 0.5], [4.0, 0.2], [2.0, 2.5])
      )  # fmt: skip
      assert value <= best * (1 + 1e-7)
      assert value >= best * (1 - 1e-3)  # and not by leaving the box


def test_draws_from_jeffreys_prior_have_its_density():
  law = geometry.FECHNER
  a, b = geometry.jeffreys_sample(law, POINTS, count=20_000, rng=np.random.default_rng(0))
  assert stats.kstest(a, lambda v: (v / law.box[0]) ** 2).pvalue > 1e-3
  whole, _ = integrate.quad(lambda v: float(geometry.density(law, np.array(v), POINTS)), 0, law.box[1])
  for low, high in ((0, 0.5), (0.5, 3), (3, 10)):
    part, _ = integrate.quad(lambda v: float(geometry.density(law, np.array(v), POINTS)), low, high)
    inside = ((b >= low) & (b < high)).mean()
    assert abs(inside - part / whole) < 4 * np.sqrt(part / whole * (1 - part / whole) / 20_000)
