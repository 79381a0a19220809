"""Noisy weights: code lengths against integrals, the exact expected error against sampled networks, finite differences, counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats

from ilya_jax.complexity import descent, noisy_weights
from ilya_jax.complexity.logistic_moments import moments_quadrature, moments_table
from ilya_jax.complexity.noisy_weights import Prior


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


def small_network(seed=0, *, inputs=6, hidden=3, outputs=2):
  """A network with spread parameters: every term of the expected error matters."""
  rng = np.random.default_rng(seed)
  start = noisy_weights.initial(seed, inputs=inputs, hidden=hidden, outputs=outputs)
  network = jax.tree.map(lambda leaf: leaf + 0.5 * rng.standard_normal(leaf.shape), start)
  network = network._replace(log_variances=jax.tree.map(lambda leaf: leaf + 1.5, network.log_variances))
  return jax.tree.map(jnp.asarray, network)


def small_data(seed=1, *, cases=9, inputs=6, outputs=2):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.standard_normal((cases, inputs))), jnp.asarray(rng.standard_normal((cases, outputs)))


PRIOR = Prior(np.array([-0.4, 0.0, 0.5]), np.log(np.array([0.1, 0.05, 0.4]) ** 2), np.array([0.3, 1.0, -0.2]))


def test_the_divergence_of_gaussians():
  def divergence(*each):
    return float(noisy_weights.divergence(*(jnp.float64(value) for value in each)))

  assert divergence(0.7, -1.0, 0.7, -1.0) == 0
  assert divergence(0.3, 2 * np.log(0.5), 0, 0) == pytest.approx(np.log(2) + (0.25 - 1 + 0.09) / 2, abs=1e-12)
  for m, s, centre, width in ((0.3, 0.5, 0.0, 1.0), (-1.0, 0.1, 0.2, 0.4), (2.0, 3.0, 1.0, 0.5)):
    q, p = stats.norm(m, s), stats.norm(centre, width)

    def gap(w, q=q, p=p):
      return q.pdf(w) * (q.logpdf(w) - p.logpdf(w))

    exact, _ = integrate.quad(gap, m - 12 * s, m + 12 * s, points=[m])
    assert divergence(m, 2 * np.log(s), centre, 2 * np.log(width)) == pytest.approx(exact, rel=1e-8)


def test_the_bound_on_the_mixture():
  rng = np.random.default_rng(0)
  m, v = jnp.asarray(rng.normal(0, 0.5, 40)), jnp.asarray(rng.normal(-4, 1, 40))
  prior = jax.tree.map(jnp.asarray, PRIOR)
  bound = noisy_weights.mixture_cost(m, v, prior)
  costs, r = noisy_weights.component_costs(m, v, prior), noisy_weights.responsibilities(m, v, prior)
  log_shares = jax.nn.log_softmax(prior.logits)
  np.testing.assert_allclose(bound, (r * (costs - log_shares[None] + jnp.log(r))).sum(1), rtol=1e-12)
  shares, widths = np.exp(np.asarray(log_shares)), np.exp(np.asarray(prior.log_variances) / 2)
  for k in range(5):
    q = stats.norm(float(m[k]), float(jnp.exp(v[k] / 2)))

    def gap(w, q=q):
      mixed = (shares * stats.norm.pdf(w, np.asarray(prior.means), widths)).sum()
      return q.pdf(w) * (q.logpdf(w) - np.log(mixed))

    exact, _ = integrate.quad(gap, q.mean() - 12 * q.std(), q.mean() + 12 * q.std(), points=[q.mean()], limit=200)
    assert float(bound[k]) >= exact - 1e-9
  order = jnp.array([2, 0, 1])
  turned = Prior(*(each[order] for each in prior))
  np.testing.assert_allclose(noisy_weights.mixture_cost(m, v, turned), bound, rtol=1e-13)


def test_one_component_is_the_gaussian_prior_and_a_shift_shifts():
  m, v = jnp.array([0.3, -1.0]), jnp.array([-2.0, 0.5])
  one = Prior(jnp.array([0.1]), jnp.array([-1.0]), jnp.array([3.0]))
  expected = noisy_weights.divergence(m, v, jnp.float64(0.1), jnp.float64(-1.0))
  np.testing.assert_allclose(noisy_weights.mixture_cost(m, v, one), expected, rtol=1e-13)
  # Equal components: all G_i the same, whatever the shares.
  same = Prior(jnp.full(4, 0.1), jnp.full(4, -1.0), jnp.array([0.0, 1.0, 2.0, -3.0]))
  np.testing.assert_allclose(noisy_weights.mixture_cost(m, v, same), expected, rtol=1e-12)


def test_the_expected_error_is_that_of_sampled_networks():
  """Equation 12 against 100,000 sampled weight vectors: within 4 standard errors."""
  network = small_network()
  x, y = small_data()
  mean, variance = jax.jit(noisy_weights.expected_outputs)(network, x)
  expected = np.asarray(jnp.square(y - mean) + variance)
  rng = np.random.default_rng(5)
  count = 100_000
  drawn = {
    name: np.asarray(each)
    + np.exp(np.asarray(network.log_variances[name]) / 2) * rng.standard_normal((count, *each.shape))
    for name, each in network.means.items()
  }
  for case in range(3):
    hidden = special.expit(np.einsum("i,sih->sh", np.asarray(x[case]), drawn["inward"]) + drawn["hidden_bias"])
    output = np.einsum("sh,shj->sj", hidden, drawn["outward"]) + drawn["output_bias"]
    squares = np.square(np.asarray(y[case]) - output)
    error = squares.std(axis=0, ddof=1) / np.sqrt(count)
    assert (np.abs(squares.mean(axis=0) - expected[case]) < 4 * error).all()


def test_every_gradient_equals_a_finite_difference():
  """The paper's own check, of every kind of parameter."""
  network = small_network()
  x, y = small_data()

  def cost(tree):
    return noisy_weights.description_length(tree, x, y, 0.7)

  gradient = jax.jit(jax.grad(cost))(network)
  leaves, structure = jax.tree.flatten(network)
  slopes = jax.tree.leaves(gradient)
  rng = np.random.default_rng(0)
  evaluate = jax.jit(cost)
  for k, leaf in enumerate(leaves):
    for place in rng.choice(leaf.size, min(leaf.size, 4), replace=False):
      step = np.zeros(leaf.size)
      step[place] = 1e-5
      ends = [
        float(
          evaluate(
            jax.tree.unflatten(structure, [*leaves[:k], leaf + sign * step.reshape(leaf.shape), *leaves[k + 1 :]])
          )
        )
        for sign in (1, -1)
      ]
      slope = float(slopes[k].ravel()[place])
      assert slope == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6, abs=2e-9)


def test_without_noise_or_price_it_is_the_error_of_the_network():
  network = small_network()
  still = network._replace(log_variances=jax.tree.map(lambda leaf: jnp.full_like(leaf, -40.0), network.log_variances))
  x, y = small_data()
  square = jnp.square(y - noisy_weights.outputs(network.means, x)).mean(axis=0)
  expected = len(y) / 2 * jnp.log(square).sum()
  np.testing.assert_allclose(jax.jit(noisy_weights.description_length)(still, x, y, 0.0), expected, rtol=1e-10)


def test_the_cost_read_from_the_tables():
  """The table stands in for the quadrature: cost and gradient nearly agree."""
  network = small_network()
  x, y = small_data()
  one, other = (
    jax.jit(jax.value_and_grad(lambda tree, m=moments: noisy_weights.description_length(tree, x, y, 1.0, moments=m)))(
      network
    )
    for moments in (moments_quadrature, moments_table)
  )
  assert float(one[0]) == pytest.approx(float(other[0]), abs=2e-3)
  for a, b in zip(jax.tree.leaves(one[1]), jax.tree.leaves(other[1]), strict=True):
    np.testing.assert_allclose(a, b, atol=5e-3)


def _by_quadrature(network, x, y):
  return noisy_weights.description_length(network, x, y, 0.3)


def _by_table(network, x, y):
  return noisy_weights.description_length(network, x, y, 0.3, moments=moments_table)


def test_training_by_the_tables_goes_as_training_by_quadrature():
  start = noisy_weights.initial(3, inputs=6, hidden=3, outputs=1)
  x, y = small_data(cases=30, outputs=1)
  one, other = (descent.minimise(cost, start, (x, y), updates=15) for cost in (_by_quadrature, _by_table))
  begun = float(jax.jit(_by_quadrature)(jax.tree.map(jnp.asarray, start), x, y))
  assert one.value < begun - 5
  assert other.value == pytest.approx(one.value, abs=0.02 * (begun - one.value))
  reached = float(jax.jit(_by_quadrature)(jax.tree.map(jnp.asarray, other.tree), x, y))
  assert reached == pytest.approx(other.value, abs=1e-2)


def test_counts_of_the_paper():
  network = noisy_weights.initial(0, inputs=128, hidden=4, outputs=1)
  weights = sum(leaf.size for leaf in jax.tree.leaves(network.means))
  assert weights == 521
  assert weights + sum(leaf.size for leaf in jax.tree.leaves(network.log_variances)) == 1042
  assert sum(leaf.size for leaf in jax.tree.leaves(network)) == 1057
  np.testing.assert_allclose(network.prior.means, [-0.24, -0.12, 0, 0.12, 0.24], atol=1e-15)
  np.testing.assert_allclose(np.exp(network.prior.log_variances / 2), 0.06, rtol=1e-12)
  np.testing.assert_allclose(np.exp(network.log_variances["inward"] / 2), 0.1, rtol=1e-12)
  assert np.asarray(network.means["inward"]).std() == pytest.approx(0.15, rel=0.1)


def _rosenbrock(tree, stretch):
  return jnp.square(1 - tree["a"]).sum() + stretch * jnp.square(tree["b"] - jnp.square(tree["a"])).sum()


def test_minimise_finds_a_known_minimum():
  found = descent.minimise(_rosenbrock, {"a": np.zeros(2), "b": np.full(2, 3.0)}, (100.0,), updates=200)
  np.testing.assert_allclose(found.tree["a"], 1, atol=1e-7)
  np.testing.assert_allclose(found.tree["b"], 1, atol=1e-7)
  assert found.value < 1e-14
  few = descent.minimise(_rosenbrock, {"a": np.zeros(2), "b": np.full(2, 3.0)}, (100.0,), updates=3)
  assert few.updates == 3
  loose = descent.minimise(_rosenbrock, {"a": np.zeros(2), "b": np.full(2, 3.0)}, (100.0,), updates=200, tolerance=1.0)
  assert loose.updates < found.updates


def _quadratic(x, matrix, target):
  return x @ matrix @ x / 2 - target @ x


def test_minimise_solves_linear_equations():
  rng = np.random.default_rng(0)
  root = rng.standard_normal((6, 6))
  matrix, target = root @ root.T + np.eye(6), rng.standard_normal(6)
  found = descent.minimise(_quadratic, np.zeros(6), (matrix, target), updates=100)
  np.testing.assert_allclose(found.tree, np.linalg.solve(matrix, target), atol=1e-7)
