"""The claims of `experiments/mpnn.py`: rules on made-up rows, receptive fields, the path from runs to figures, tiny scale."""

from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import mpnn as claims
from ilya_jax import cli
from ilya_jax.claims import Setting
from ilya_jax.config import load_config
from ilya_jax.scaling.drawing import image
from ilya_jax.tasks.graph import make_source

ROOT = Path(__file__).parents[2]
SEEDS = (0, 1, 2)


def rows_of(field, **values):
  """Rows of nets: name with underscores -> a value for each seed."""
  return [{"seed": seed, "net": name.replace("_", " "), field: value}
          for name, own in values.items() for seed, value in enumerate(own)]  # fmt: skip


def test_rule_of_distances():
  def judge(own, alone):
    return claims.judge_distances(rows_of("error", distances=own, bonds_alone=alone), "small").verdict

  assert judge((0.1, 0.1, 0.1), (0.31, 0.4, 0.5)) == "holds"
  assert judge((0.1, 0.1, 0.1), (0.29, 0.4, 0.5)) == "does not hold"
  assert judge((0.1, None, 0.1), (0.3, 0.4, 0.5)) == "does not hold"

  def at_paper(mu, u0):
    return claims.judge_distances(rows_of("error", mu=mu, U0=u0), "paper").verdict

  assert at_paper((0.5, 0.4, 0.3), (0.7, 0.6, 0.5)) == "holds"
  assert at_paper((0.5, 0.4, 0.3), (0.71, 0.6, 0.5)) == "does not hold"

  def at_tiny(after, turned):
    return claims.judge_distances(
      [{"seed": 0, "net": "tiny", "before": 1.0, "after": after, "turned": turned}], "tiny"
    ).verdict

  assert at_tiny(0.5, 1e-6) == "holds"
  assert at_tiny(0.51, 1e-6) == at_tiny(0.1, 2e-5) == "does not hold"


def test_rule_of_long_range():
  def judge(**changed):
    found = {"none": (0.06,) * 3, "virtual_edges": (0.02,) * 3, "master_node": (0.04,) * 3, "set2set": (0.2,) * 3}
    return claims.judge_long_range(rows_of("error", **{**found, **changed}), "small").verdict

  assert judge() == judge(set2set=(0.01,) * 3) == "holds"
  assert judge(master_node=(0.04, 0.07, 0.04)) == judge(virtual_edges=(None, 0.01, 0.01)) == "does not hold"


@pytest.mark.parametrize(("pair", "expected"), [
  ((0.2, 0.2, 0.2), "holds"), ((0.05, 0.2, 0.2), "inconclusive"), ((0.05, 0.05, 0.05), "does not hold"),
])  # fmt: skip
def test_rule_of_the_edge_network(pair, expected):
  assert claims.judge_pair(rows_of("error", edge_network=(0.1,) * 3, pair_message=pair), "small").verdict == expected


def test_rule_of_data():
  def judge(*errors):
    rows = [{"seed": seed, "molecules": size, "error": error} for size, own in zip(claims.SIZES, errors, strict=True)
            for seed, error in enumerate(own)]  # fmt: skip
    return claims.judge_data(rows, "small")

  by_half = [(250**-0.5 * k, 1_000**-0.5 * k, 4_000**-0.5 * k) for k in (9, 10, 11)]
  judged = judge(*zip(*by_half, strict=True))
  assert judged.verdict == "holds"
  assert "slope -0.50" in judged.finding
  assert judge((0.4,) * 3, (0.2,) * 3, (0.05,) * 3).verdict == "does not hold"  # slope -.75
  assert judge((0.4,) * 3, (0.2, 0.2, 0.1), (0.12,) * 3).verdict == "does not hold"  # rises in a seed
  assert judge((0.4,) * 3, (None, 0.2, 0.1), (0.1,) * 3).verdict == "does not hold"


def test_rule_of_towers():
  def judge(errors, times):
    rows = [
      {**row, "step_ms": times[row["net"]]} for row in rows_of("error", **{"4_towers": errors, "1_tower": (0.1,) * 3})
    ]
    return claims.judge_towers(rows, "small").verdict

  assert judge((0.1, 0.08, 0.12), {"4 towers": 8.0, "1 tower": 9.0}) == "holds"
  assert judge((0.1, 0.08, 0.13), {"4 towers": 8.0, "1 tower": 9.0}) == "does not hold"
  assert judge((0.1, 0.08, 0.12), {"4 towers": 9.5, "1 tower": 9.0}) == "does not hold"


@pytest.mark.parametrize("claim", claims.CLAIMS[1:], ids=lambda claim: claim.id)
def test_necessary_conditions_that_need_no_training(claim, tmp_path, monkeypatch):
  """Among them the receptive fields: after 3 rounds nothing is known of what is 5 bonds away, but by the two devices."""
  monkeypatch.chdir(ROOT)

  def train(jobs):
    raise AssertionError("nothing is to be trained")

  measured = claim.measure(Setting("tiny", (0,), tmp_path, train, print))
  judged = claim.judge(measured.rows, "tiny")
  assert judged.verdict == "holds", judged.finding


class MadeUp:
  """A run whose net answers the mean of the training targets."""

  def __init__(self, spec, overrides):
    self.config = load_config(f"{ROOT}/{spec}", overrides)
    self.error = 0.1 if self.config.model.message == "edge" and self.config.model.towers != 1 else 0.2
    self.error *= (4_000 / self.config.data.train_examples) ** 0.5
    if self.config.data.name == "charges" and self.config.model.message == "ggnn":
      self.error = 0.9
    if self.config.model.virtual_edges or self.config.model.master_width:
      self.error = 0.01

  def evaluation(self, name, metric="loss"):
    assert metric == "error_ratio"
    return self.error

  def load(self):
    task = SimpleNamespace(predict=lambda params, state, batch: jnp.zeros((len(batch["mask"]), 1)))
    return SimpleNamespace(task=task, source=make_source(self.config), params={})


@pytest.mark.parametrize("claim", claims.CLAIMS, ids=lambda claim: claim.id)
def test_from_runs_to_rows_figures_and_verdict(claim, tmp_path, monkeypatch):
  """At small scale, with made-up runs of the requested configs in place of trained ones."""

  def train(jobs):
    return {name: MadeUp(*request) for name, request in jobs.items()}

  monkeypatch.setattr(claims, "step_times", lambda jobs: dict(zip(jobs, (1.0, 2.0), strict=True)))
  measured = claim.measure(Setting("small", SEEDS, tmp_path, train, print))
  judged = claim.judge(measured.rows, "small")
  assert judged.verdict == ("does not hold" if claim.id == "edge_network" else "holds"), judged.finding
  assert {row["seed"] for row in measured.rows} == set(SEEDS)
  for name, figure in measured.figures.items():
    assert image(figure, kind="svg").startswith(b"<?xml"), name


def test_the_mean_as_an_answer_errs_as_guessing_says():
  run = MadeUp("configs/mpnn.py:wiener", {})
  diameters, errors = claims.by_diameter(run)
  assert diameters == sorted(diameters)
  assert set(diameters) <= set(range(2, 9))
  assert np.isfinite(errors).all()
  assert 0.7 < claims.guessing("wiener") < 0.95
  assert 0.6 < claims.guessing("charges") < 0.85


@pytest.mark.slow
def test_every_tiny_claim_holds_by_the_command(monkeypatch, capsys):
  monkeypatch.chdir(ROOT)
  assert cli.main(["reproduce", "mpnn"]) == 0
  assert capsys.readouterr().out.count("verdict    holds") == len(claims.CLAIMS)
