"""The claims on the MDL tutorial: tiny scale holds, rules judge as their words say, the network sees a prefix alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, optimize, special, stats

from experiments import mdl_tutorial, mdl_tutorial_figures
from experiments import mdl_tutorial_network as network
from ilya_jax.claims.measuring import measure
from ilya_jax.errors import UserError
from ilya_jax.scaling.drawing import image

CLAIMS = {claim.id: claim for claim in mdl_tutorial.CLAIMS}


@pytest.mark.parametrize("name", CLAIMS)
def test_the_necessary_conditions_hold(name, tmp_path):
  record, _ = measure(CLAIMS[name], scale="tiny", seeds=None, folder=tmp_path, command="")
  assert record["verdict"] == "holds"
  assert record["finding"]


def order_rows(**changes):
  """Rows of a small measurement that holds, with (code, n, order) -> what differs."""
  rows = []
  for n in (100, 300, 1000):
    for order in range(4):
      for code in mdl_tutorial.SELECTORS:
        hit = {"AIC": 0.8, "BIC": 0.3 if n == 100 and order > 1 else 0.99}.get(code, 0.5 if n == 100 else 0.98)
        over = 0.15 if code == "AIC" else 0.01
        row = {
          "seed": 0,
          "code": code,
          "index": "uniform",
          "n": n,
          "order": order,
          "hit": hit,
          "over": over,
          "under": 0.0,
        }
        rows.append({**row, **changes.get(f"{code}_{n}_{order}", {})})
  return rows


def test_rules_of_the_order():
  judge = CLAIMS["markov_order"].judge
  assert judge(order_rows(), "small").verdict == "holds"
  for bad in (
    {"KT_300_2": {"hit": 0.7}}, {"fNML_1000_0": {"hit": 0.9}}, {"AIC_1000_1": {"over": 0.09}}, {"fNML_100_3": {"hit": 0.39}},
  ):  # fmt: skip
    assert judge(order_rows(**bad), "small").verdict == "does not hold"


def test_rules_of_the_degree():
  judge = CLAIMS["polynomial_degree"].judge

  def rows(**hits):
    table = {
      "AIC": (0.4, 0.7, 0.8),
      "BIC": (0.6, 0.9, 0.98),
      "RNML": (0.7, 0.97, 0.99),
      "Bayes": (0.7, 0.9, 0.9),
      **hits,
    }
    return [
      {"seed": 0, "criterion": name, "n": n, "hit": hit}
      for name, values in table.items()
      for n, hit in zip((20, 50, 200), values, strict=True)
    ]

  assert judge(rows(), "small").verdict == "holds"
  assert judge(rows(RNML=(0.59, 0.97, 0.99)), "small").verdict == "does not hold"
  assert judge(rows(AIC=(0.4, 0.7, 0.91)), "small").verdict == "does not hold"


def law_rows(fechner, stevens, *, fechner_length=0.0, stevens_length=0.0):
  return [
    {"seed": 0, "data_of": name, "sigma": sigma, "wrong_by_fit": wrong, "wrong_by_length": by_length}
    for sigma in mdl_tutorial.SIGMAS
    for name, wrong, by_length in (("Fechner", fechner, fechner_length), ("Stevens", stevens, stevens_length))
  ]


def test_rules_of_the_laws():
  judge = CLAIMS["equal_parameters"].judge
  assert judge(law_rows(0.3, 0.1, stevens_length=0.6), "small").verdict == "holds"
  assert judge(law_rows(0.3, 0.25), "small").verdict == "does not hold"
  assert judge(law_rows(0.3, 0.1, fechner_length=0.03), "small").verdict == "does not hold"
  judge = CLAIMS["jeffreys_recovery"].judge
  assert judge(law_rows(0.3, 0.1, fechner_length=0.1, stevens_length=0.1), "small").verdict == "holds"
  assert judge(law_rows(0.3, 0.1, stevens_length=0.11), "small").verdict == "does not hold"


def test_rules_of_the_network():
  judge = CLAIMS["prequential_network"].judge

  def row(labels="teacher", **changes):
    lengths = {"uniform": 1000.0, "variational": 800.0, "prequential": 600.0, "two_part": 4000.0}
    return {"seed": 0, "labels": labels, "examples": 100, **lengths, **changes}

  assert judge([row()], "small").verdict == "holds"
  assert judge([row(), row(prequential=700.0)], "small").verdict == "does not hold"
  assert judge([row(two_part=3000.0)], "small").verdict == "does not hold"
  paper = [row("mnist", uniform=199_000.0, variational=22_000.0, prequential=9_000.0), row("cifar10")]
  assert judge(paper, "paper").verdict == "holds"
  assert judge([{**paper[0], "prequential": 11_000.0}, paper[1]], "paper").verdict == "does not hold"
  assert judge([paper[0], row("cifar10", variational=500.0)], "paper").verdict == "does not hold"


SIZE = network.Size(0, 1500)


def linear_teacher():
  return network.teacher(0, examples=64, inputs=3, hidden=0, classes=4)


def test_a_fit_sees_the_labels_of_its_prefix_alone():
  data = linear_teacher()
  changed = data._replace(labels=np.concatenate([data.labels[:16], (data.labels[16:] + 1) % 4]))
  one, other = (network.fitted(each, 16, size=SIZE, seed=0) for each in (data, changed))
  jax.tree.map(np.testing.assert_array_equal, one, other)
  assert (np.asarray(network.fitted(changed, 17, size=SIZE, seed=0)[0][0]) != np.asarray(one[0][0])).any()


def test_a_logistic_fit_is_the_most_probable_one():
  """The objective is convex: scipy's minimum in float64 against Adam's."""
  data = linear_teacher()

  def objective(flat):
    logits = data.x @ flat[:12].reshape(3, 4) / np.sqrt(3) + flat[12:]
    log_chances = logits - special.logsumexp(logits, axis=1, keepdims=True)
    return -log_chances[np.arange(64), data.labels].sum() + (flat**2).sum() / 2

  ((kernel, bias),) = network.fitted(data, 64, size=SIZE, seed=0)
  reached = objective(np.concatenate([np.asarray(kernel).ravel(), np.asarray(bias)]).astype(np.float64))
  best = optimize.minimize(objective, np.zeros(16)).fun
  assert best <= reached < best * 1.005


def test_the_network_by_hand():
  data = linear_teacher()
  params = network.init(jax.random.key(1), inputs=3, hidden=5, classes=4)
  (w1, b1), (w2, b2) = jax.tree.map(np.asarray, params)
  logits = np.tanh(data.x @ w1 / np.sqrt(3) + b1) @ w2 / np.sqrt(5) + b2
  expected = logits - special.logsumexp(logits, axis=1, keepdims=True)
  np.testing.assert_allclose(network.log_chances(params, jnp.asarray(data.x)), expected, atol=1e-5)


def test_the_divergence_is_that_of_normal_distributions():
  means, deviations = (
    [(jnp.array([[0.5, -1.0]]), jnp.array([2.0]))],
    [(jnp.log(jnp.array([[0.3, 1.0]])), jnp.log(jnp.array([0.1])))],
  )
  expected = 0.0
  for mean, deviation in ((0.5, 0.3), (-1.0, 1.0), (2.0, 0.1)):
    normal = stats.norm(mean, deviation)
    z = np.linspace(mean - 9 * deviation, mean + 9 * deviation, 2001)
    expected += integrate.simpson(normal.pdf(z) * (normal.logpdf(z) - stats.norm.logpdf(z)), x=z)
  assert float(network.divergence((means, deviations))) == pytest.approx(expected, rel=1e-5)


def test_draws_have_the_means_and_deviations_of_the_posterior():
  means, deviations = (
    [(jnp.full((200, 100), 0.5), jnp.zeros(100))],
    [(jnp.full((200, 100), np.log(0.3)), jnp.zeros(100))],
  )
  ((kernel, bias),) = network.draw((means, deviations), jax.random.key(0))
  assert float(kernel.mean()) == pytest.approx(0.5, abs=0.01)
  assert float(kernel.std()) == pytest.approx(0.3, rel=0.02)
  assert float(bias.std()) == pytest.approx(1.0, abs=0.3)


def test_a_variational_code_of_noise_is_no_better_than_uniform():
  data = linear_teacher()
  noise = data._replace(labels=np.random.default_rng(0).integers(0, 4, 64).astype(np.int32))
  assert network.variational_bits(noise, size=SIZE, seed=0) > 64 * 2


@pytest.mark.slow
def test_images_come_from_tfds(tmp_path, monkeypatch):
  import tensorflow_datasets as tfds

  with tfds.testing.mock_data(num_examples=6):
    data = network.load_images("mnist")
  assert data.x.shape == (6, 784)
  assert data.x.mean() == pytest.approx(0, abs=1e-4)
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  with pytest.raises(UserError, match="tfds build nowhere"):
    network.load_images("nowhere")


@pytest.mark.slow
def test_figures_draw():
  rows = [{"seed": 0, "labels": "teacher", "examples": 64, "uniform": 128.0}]
  degree = [
    {"seed": 0, "criterion": name, "n": n, "hit": 0.5} for name in ("AIC", "BIC", "RNML", "Bayes") for n in (20, 50)
  ]
  x, y = mdl_tutorial.polynomial_data(20, count=1, seed=0)
  drawn = (
    mdl_tutorial_figures.draw_examples(), mdl_tutorial_figures.draw_hits(order_rows(), range(4)),
    mdl_tutorial_figures.draw_polynomials(x[0], y[0], mdl_tutorial.TARGET), mdl_tutorial_figures.draw_degree(degree),
    mdl_tutorial_figures.draw_regret(), mdl_tutorial_figures.draw_complexity(),
    mdl_tutorial_figures.draw_laws(law_rows(0.3, 0.1)),
    mdl_tutorial_figures.draw_prequential(rows, {("teacher", 0): np.array([2.0, 1.5, 1.0])}),
  )  # fmt: skip
  for figure in drawn:
    assert image(figure, kind="png", dots_per_inch=30).startswith(b"\x89PNG")
