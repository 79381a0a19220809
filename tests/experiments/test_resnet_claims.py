"""The claims on residual networks: tiny scale holds, rules judge as their words say, responses are those of the layers."""

import os

import numpy as np
import pytest

from experiments import resnet, resnet_figures
from ilya_jax.claims.measuring import measure
from ilya_jax.config import load_config
from ilya_jax.scaling.drawing import image

CLAIMS = {claim.id: claim for claim in resnet.CLAIMS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """One folder for all claims, which share runs."""
  return tmp_path_factory.mktemp("resnet")


@pytest.mark.parametrize("name", CLAIMS)
def test_the_necessary_conditions_hold(name, folder):
  record, _ = measure(CLAIMS[name], scale="tiny", seeds=None, folder=folder, command="")
  assert record["verdict"] == "holds"
  assert record["finding"]


def test_every_job_is_a_config_that_loads():
  for scale, depths in resnet.DEPTHS.items():
    for depth in depths:
      spec, changes = resnet.job(scale, net="plain", depth=depth, seed=1)
      config = load_config(spec, changes)
      assert (config.model.shortcut, config.model.depth, config.seed) == ("none", depth, 1)
  assert load_config(*resnet.imagenet_job(net="C", depth=34, seed=0)).model.shortcut == "C"


def row(net, depth=20, seed=0, **values):
  return {"seed": seed, "net": net, "depth": depth, **values}


def test_rules_of_degradation():
  judge = CLAIMS["degradation"].judge
  good = {("plain", 20): 0.7, ("plain", 56): 2.1, ("residual", 20): 0.2, ("residual", 56): 0.25}

  def rows(changes=()):
    values = {**good, **dict(changes)}
    return [row(n, d, s, train_loss=v + 0.01 * s) for (n, d), v in values.items() for s in range(3)]

  assert judge(rows(), "small").verdict == "holds"
  for bad in (
    {("plain", 56): 1.15}, {("residual", 56): 1.2}, {("plain", 20): 0.15}, {("residual", 56): 0.41},
  ):  # fmt: skip
    assert judge(rows(bad), "small").verdict == "does not hold"
  one_seed_off = [*rows()[:-1], row("residual", 56, 2, train_loss=2.0)]
  assert judge(one_seed_off, "small").verdict == "holds"  # medians


def test_rules_of_degradation_at_paper_scale():
  judge = CLAIMS["degradation"].judge
  train = {("plain", 20): 0.02, ("plain", 56): 0.1, ("plain", 110): 0.7, ("residual", 20): 0.01, ("residual", 56): 0.001,
           ("residual", 110): 0.001}  # fmt: skip
  test = {("residual", 20): 0.0875, ("residual", 110): 0.0643}

  def rows(change=None, value=None):
    made = {**train, **({change: value} if change else {})}
    return [row(n, d, train_error=v, test_error=test.get((n, d), 0.5)) for (n, d), v in made.items()]

  assert judge(rows(), "paper").verdict == "holds"
  for change, value in ((("plain", 56), 0.01), (("residual", 56), 0.02), (("plain", 110), 0.59)):
    assert judge(rows(change, value), "paper").verdict == "does not hold"


def test_rules_of_the_options():
  judge = CLAIMS["shortcut_options"].judge

  def rows(a, b, c):
    return [
      row(n, seed=s, test_error=v) for n, values in zip("ABC", (a, b, c), strict=True) for s, v in enumerate(values)
    ]

  near = (0.02, 0.021, 0.022)
  assert judge(rows(near, near, (0.03, 0.029, 0.031)), "small").verdict == "holds"
  assert judge(rows(near, near, (0.032, 0.033, 0.034)), "small").verdict == "does not hold"
  assert judge(rows(near, near, (0.0, 0.05, 0.06)), "small").verdict == "inconclusive"


def test_rules_of_the_responses():
  judge = CLAIMS["responses"].judge

  def rows(**changes):
    values = {"plain 20": 1.0, "plain 56": 0.9, "residual 20": 0.8, "residual 56": 0.7, **changes}
    return [
      row(*(name.split()[0], int(name.split()[1]), s), unit_response=v if isinstance(v, float) else v[s])
      for name, v in values.items()
      for s in range(3)
    ]

  assert judge(rows(), "small").verdict == "holds"
  for bad in ({"residual 56": 0.81}, {"plain 20": 0.79}, {"plain 56": 0.69}):
    assert judge(rows(**bad), "small").verdict == "does not hold"
  assert judge(rows(**{"residual 56": (0.7, 0.7, 0.81)}), "small").verdict == "inconclusive"


def test_rules_of_convergence():
  judge = CLAIMS["convergence"].judge

  def rows(early, errors):
    return [
      row(net, 8, s, early_loss=e, test_error=t)
      for net, es, ts in zip(resnet.NETS, early, errors, strict=True)
      for s, (e, t) in enumerate(zip(es, ts, strict=True))
    ]

  equal = ((0.02, 0.021, 0.022), (0.025, 0.02, 0.021))
  assert judge(rows(((2.0, 2.0, 2.0), (1.5, 1.6, 1.9)), equal), "small").verdict == "holds"
  assert judge(rows(((2.0, 2.0, 2.0), (1.5, 1.6, 2.1)), equal), "small").verdict == "inconclusive"
  assert judge(rows(((2.0, 2.0, 2.0), (2.5, 1.9, 2.1)), equal), "small").verdict == "does not hold"
  apart = ((0.02, 0.021, 0.022), (0.05, 0.051, 0.052))
  assert judge(rows(((2.0, 2.0, 2.0), (1.5, 1.6, 1.9)), apart), "small").verdict == "does not hold"


def test_responses_are_the_deviations_of_the_norms_in_order(folder):
  """Against the net run by hand, layer after layer."""
  import jax.numpy as jnp
  from flax import linen as nn

  from ilya_jax.claims.trainings import train_all
  from ilya_jax.data.images import standardise
  from ilya_jax.nn.convolution import convolve

  run = train_all({"one": resnet.job("tiny", net="residual", depth=8, seed=0)}, folder, apart=False, say=print)["one"]
  found = resnet.responses(run)
  assert list(found) == ["stem/norm1", *(f"stage{s}_unit1/norm{k}" for s in (1, 2, 3) for k in (1, 2))]

  loaded = run.load()
  batches = [loaded.source.batch(k, split="test")["image"] for k in range(loaded.source.eval_batches["test"])]
  x = standardise(jnp.concatenate(batches), mean=loaded.source.info["mean"], std=loaded.source.info["std"])

  def layer(x, member, k, stride=1):
    own, stats = loaded.params[member], loaded.model_state["batch_stats"][member][f"norm{k}"]
    y = convolve(x, own[f"conv{k}"]["kernel"], stride=stride, padding=1)
    y = (y - stats["mean"][None, None, None]) / jnp.sqrt(stats["var"] + 1e-5)[None, None, None]
    return y * own[f"norm{k}"]["scale"][None, None, None] + own[f"norm{k}"]["bias"][None, None, None]

  y = layer(x, "stem", 1)
  wanted = [float(y.std())]
  x = nn.relu(y)
  for stage, stride in ((1, 1), (2, 2), (3, 2)):
    y = layer(x, f"stage{stage}_unit1", 1, stride)
    z = layer(nn.relu(y), f"stage{stage}_unit1", 2)
    wanted += [float(y.std()), float(z.std())]
    x = x[:, ::stride, ::stride]
    x = nn.relu(z + jnp.pad(x, ((0, 0),) * 3 + ((0, z.shape[-1] - x.shape[-1]),)))
  np.testing.assert_allclose(list(found.values()), wanted, rtol=1e-4)


class FakeRun:
  """A run's curves."""

  def curve(self, metric, *, split="train", name=""):
    steps = np.arange(1, 301) if split == "train" else np.arange(20, 301, 20)
    return steps.tolist(), np.exp(-steps / 100).tolist()


def test_figures_are_drawn(tmp_path):
  runs = {resnet.name_of(n, d, s): FakeRun() for n in (*resnet.NETS, "A", "B", "C") for d in (20, 56) for s in range(3)}
  rows = [row(n, d, s) for n in resnet.NETS for d in (20, 56) for s in range(3)]
  options = [row(n, 20, s, test_error=0.02 + 0.001 * s) for n in "ABC" for s in range(3)]
  rng = np.random.default_rng(0)
  curves = {name: rng.uniform(0.2, 1, int(name.split()[1]) - 1).tolist() for name in runs}
  made = {
    "curves": resnet_figures.draw_curves(runs, rows), "options": resnet_figures.draw_options(runs, options),
    "responses": resnet_figures.draw_responses(curves, rows),
  }  # fmt: skip
  for name, figure in made.items():
    content = image(figure, kind="png", dots_per_inch=70)
    assert len(content) > 5000
    if folder := os.environ.get("ILYA_JAX_FIGURES"):
      (tmp_path.__class__(folder) / f"{name}.png").write_bytes(content)
