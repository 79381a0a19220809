"""The claims of `experiments/ntm.py`: rules on made-up rows, write locations by hand, the path from runs to figures."""

from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments import ntm, ntm_runs
from ilya_jax import cli
from ilya_jax.claims import Setting
from ilya_jax.config import load_config
from ilya_jax.models.ntm import Shown
from ilya_jax.scaling.drawing import image
from ilya_jax.train.loop import prepare

ROOT = Path(__file__).parents[2]
SEEDS = (0, 1, 2)
NTM, FF, LSTM = ntm_runs.NETS.values()


def rows_of(name, values, **condition):
  return [{"seed": seed, **condition, name: value} for seed, value in enumerate(values)]


def wrong(scale, **by_net):
  """The verdict of the rule of copying on shares of wrong bits: ntm_10 -> one for each seed; the others are right."""
  lengths = ntm.LENGTHS[scale]
  rows = []
  for net, name in ntm_runs.NETS.items():
    for length in lengths:
      default = (0.5,) * 3 if net == "lstm" and length != lengths[0] else (0.001,) * 3
      rows += rows_of("wrong", by_net.get(f"{net}_{length}", default), net=name, length=length)
  return ntm.judge_copy(rows, scale).verdict


def test_rule_of_copying():
  assert wrong("small") == wrong("paper") == "holds"
  assert wrong("small", ntm_10=(0.0, 0.1, 0.05), ntm_15=(0.5, 0.5, 0.5), ff_10=(0.5, 0.5, 0.5)) == "holds"
  assert wrong("small", ntm_10=(0.0, 0.11, 0.05)) == "does not hold"
  assert wrong("small", ntm_10=(0.0, None, 0.05)) == "does not hold"
  assert wrong("small", lstm_10=(0.5, 0.34, 0.5)) == "does not hold"
  assert wrong("paper", ntm_120=(0.1, 0.1, 0.1)) == "holds"
  assert wrong("paper", ff_50=(0.0, 0.0, 0.02)) == wrong("paper", lstm_30=(0.5, 0.2, 0.5)) == "does not hold"


def test_rule_of_the_sum_of_weights():
  row = {"seed": 0, "before": 6.0, "after": 5.0, "sum_off": 1e-6, "shape": "1 x 7 x 3"}
  assert ntm.judge_copy([row], "tiny").verdict == "holds"
  for change in ({"after": 6.0}, {"sum_off": 1e-4}, {"shape": "1 x 7 x 2"}):
    assert ntm.judge_copy([{**row, **change}], "tiny").verdict == "does not hold"


def sequences(scale, machine, lstm, ff=(10.0, 10.0, 10.0)):
  rows = [
    row for net, values in ((NTM, machine), (FF, ff), (LSTM, lstm)) for row in rows_of("thousands", values, net=net)
  ]
  return ntm.judge_sequences(rows, scale)


def test_rule_of_sequences():
  judged = sequences("small", (40, 50, 60), (80.0, None, 61))
  assert judged.verdict == "holds"
  assert "ratio 2, never, 1.02" in judged.finding
  assert sequences("small", (40, None, 60), (80, None, 70)).verdict == "inconclusive"
  assert sequences("small", (90, None, 60), (80, 70, 50)).verdict == "does not hold"
  assert sequences("small", (90, 60, 60), (80, 70, 50)).verdict == "inconclusive"
  assert sequences("paper", (100, 100, 90), (500, None, 600)).verdict == "holds"
  assert sequences("paper", (100, 100, 90), (499, None, 600)).verdict == "does not hold"
  assert sequences("paper", (100, 100, 90), (500, None, 600), ff=(10, None, 10)).verdict == "does not hold"


def test_rule_of_recall():
  def judge(scale, **by_net):
    rows = []
    for net, name in ntm_runs.NETS.items():
      for count in ntm.ITEMS[scale]:
        values = by_net.get(f"{net}_{count}", (12.0,) * 3 if net == "lstm" else (1.0,) * 3)
        rows += rows_of("bits", values, net=name, item_count=count)
    return ntm.judge_recall(rows, scale).verdict

  assert judge("small") == judge("paper") == judge("small", ntm_8=(30, 30, 30)) == "holds"
  assert judge("small", ntm_6=(1, 6, 1)) == judge("small", ntm_6=(1, None, 1)) == "does not hold"
  assert judge("paper", ff_15=(1, 2, 1)) == judge("paper", ntm_10=(4, 1, 1)) == "does not hold"
  assert judge("paper", ff_20=(20, 20, 20)) == "holds"


def test_rule_of_ngrams():
  def judge(scale, machine, lstm, ff=(0.5, 0.5, 0.5)):
    rows = [
      row for net, values in ((NTM, machine), (FF, ff), (LSTM, lstm)) for row in rows_of("above_best", values, net=net)
    ]
    return ntm.judge_ngrams([{**row, "best": 25.85} for row in rows], scale).verdict

  assert judge("small", (0.3, 0.4, 0.9), (0.4, 0.4, 0.5)) == "holds"
  assert judge("small", (0.3, 0.5, 0.9), (0.4, 0.4, 0.5)) == "does not hold"
  assert judge("small", (-0.2, 0.3, 0.3), (0.4, 0.4, 0.5)) == "does not hold"
  assert judge("paper", (0.6, 1, 2.5), (3, 3, 3)) == "holds"
  assert judge("paper", (0.6, 1, 2.6), (3, 3, 3)) == judge("paper", (0.6, 3, 2), (3, 3, 3)) == "does not hold"


def test_rule_of_locations():
  def judge(*linear):
    rows = [{**row, "bits": 20.0} for net in (NTM, FF) for row in rows_of("r_squared", linear, net=net)]
    return ntm.judge_sort([*rows, {"seed": 0, "net": LSTM, "bits": 60.0}], "paper").verdict

  assert judge(0.91, 0.95, 0.99) == "holds"
  assert judge(0.91, 0.9, 0.99) == "does not hold"


def test_locations_linear_in_the_priority_are_found_in_the_head_that_has_them():
  rng = np.random.default_rng(0)
  priorities = rng.uniform(-1, 1, (20, 4))
  weights = np.zeros((37, 4, 5, 64))  # two read heads, three write heads
  rows = np.round(30 + 20 * priorities).astype(int)
  for step in range(20):
    for b in range(4):
      weights[step, b, [0, 1, 2], rng.integers(0, 64, 3)] = 1
      weights[step, b, 3, rows[step, b]] = 1
      weights[step, b, 4, 7] = 1
  shown = Shown(*[np.zeros(1)] * 2, weights, *[np.zeros(1)] * 2)
  head, squared, slope, intercept = ntm_runs.locations_by_priority(priorities, ntm_runs.write_locations(shown, 2, 20))
  assert head == 1
  assert squared > 0.999
  assert slope == pytest.approx(20, abs=0.3)
  assert intercept == pytest.approx(30, abs=0.2)


def test_sequences_below_a_cost():
  assert ntm_runs.sequences_below(([1.0, 2.0, 3.0], [5.0, 0.9, 1.5]), 1.0) == 2.0
  assert ntm_runs.sequences_below(([1.0, 2.0], [5.0, 1.0]), 1.0) == float("inf")


class MadeUp:
  """A run with given curves, whose weights are not trained."""

  def __init__(self, spec, overrides):
    self.spec, self.overrides = spec, {**overrides, "eval.examples": 3}
    self.lstm = spec.endswith("_lstm")
    self.config = load_config(f"{ROOT}/{spec}", self.overrides)

  def evaluation(self, name, metric="loss"):
    known = {"wrong": (0.01, 0.5), "bits": (2.0, 12.0)}[metric]
    if self.config.data.name == "ngrams":
      known = (90.0, 95.0)  # above what the best predictor costs on any three sequences
    return known[self.lstm and name not in ("length=5", "item_count=4")]

  def curve(self, metric="loss", *, split="train", name=""):
    assert (metric, split, name) == ("bits", "eval", "heldout")
    steps = list(range(200, 8200, 200))
    return steps, [10.0 if step < (6000 if self.lstm else 2000) else 0.5 for step in steps]

  def load(self):
    small = {"model.rows": 9, "model.width": 6} if not self.lstm else {"model.width": 6}
    config = load_config(f"{ROOT}/{self.spec}", {**self.overrides, **small, "data.vectors": 6, "data.answered": 4})
    task, source, _ = prepare(config)
    shapes = jax.eval_shape(lambda: task.init(jax.random.key(0), source.batch(0, split="heldout")))["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.uniform(-0.5, 0.5, leaf.shape).astype(np.float32), shapes)
    return SimpleNamespace(task=task, source=source, config=config, params=params)


@pytest.mark.parametrize(("claim", "scale"), [
  ("copy_generalises", "small"), ("copy_sequences", "small"), ("recall", "small"), ("ngrams", "small"), ("sort_locations", "paper"),
])  # fmt: skip
def test_from_runs_to_rows_figures_and_verdict(claim, scale, tmp_path):
  """With made-up runs of the requested configs in place of trained ones."""
  (claim,) = [each for each in ntm.CLAIMS if each.id == claim]
  seen = []

  def train(jobs):
    seen.extend(jobs.values())
    return {name: MadeUp(*request) for name, request in jobs.items()}

  measured = claim.measure(Setting(scale, SEEDS[: 1 if claim.id == "sort_locations" else 3], tmp_path, train, print))
  judged = claim.judge(measured.rows, scale)
  assert judged.verdict == ("does not hold" if claim.id == "sort_locations" else "holds"), judged.finding
  assert {changes["seed"] for _, changes in seen} == {row["seed"] for row in measured.rows}
  assert all(("_small_" in spec) == (scale == "small") for spec, _ in seen)
  assert measured.figures
  for figure in measured.figures.values():
    assert image(figure, kind="svg").startswith(b"<?xml")


@pytest.mark.slow
def test_every_tiny_claim_holds_by_the_command(monkeypatch, capsys):
  monkeypatch.chdir(ROOT)
  assert cli.main(["reproduce", "ntm"]) == 0
  assert capsys.readouterr().out.count("verdict    holds") == sum("tiny" in claim.criteria for claim in ntm.CLAIMS)
