"""The claims of `experiments/lstm.py`: rules on made-up rows, gradients against closed forms, the path from runs to figures."""

from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments import lstm, lstm_1997, lstm_figures, lstm_gradients
from experiments.lstm_runs import job
from ilya_jax import cli
from ilya_jax.claims import Setting
from ilya_jax.config import load_config
from ilya_jax.data.long_lag import adding
from ilya_jax.models.recurrent_cells import Recurrent
from ilya_jax.scaling.drawing import image

ROOT = Path(__file__).parents[2]
SEEDS = (0, 1, 2)


def test_gradient_of_an_rnn_is_the_product_of_its_jacobians_and_never_above_the_norms():
  params = lstm_gradients.initial("rnn", width=6, seed=3)
  inputs = lstm_gradients.adding_inputs(0)[:4, :7]
  w, u, b = (params[part][leaf][..., 0, :].astype(np.float64)
             for part, leaf in (("input", "kernel"), ("recurrent", "kernel"), ("input", "bias")))  # fmt: skip
  hidden = [np.zeros((4, 6))]
  for t in range(7):
    hidden.append(np.tanh(inputs[:, t] @ w + b + hidden[-1] @ u))
  expected = []
  for lag in range(7):
    norms = []
    for row in range(4):
      jacobian = np.diag(1 - hidden[7][row] ** 2)
      for t in range(6, 6 - lag, -1):
        jacobian = jacobian @ u.T @ np.diag(1 - hidden[t][row] ** 2)
      norms.append(np.linalg.norm(jacobian @ w.T))
      assert norms[-1] <= np.linalg.norm(w) * np.linalg.norm(u, 2) ** lag
    expected.append(np.mean(norms))
  np.testing.assert_allclose(lstm_gradients.by_lag("rnn", params, inputs=inputs), expected, rtol=1e-10)


def test_gates_that_see_nothing_pass_on_exactly_their_bias():
  inputs = lstm_gradients.adding_inputs(0)
  nets = lstm_gradients.nets_of("tiny", 0)
  for bias in (1, 5):
    gate = 1 / (1 + np.exp(-bias))
    params = nets[f"gates alone, forget bias {bias}", "lstm"]
    norms = lstm_gradients.by_lag("lstm", params, inputs=inputs)
    assert lstm_gradients.falling(norms)["factor"] == pytest.approx(
      gate, rel=1e-4
    )  # g' of the inputs is all that varies
    direct = lstm_gradients.direct_by_lag(params, inputs=inputs)
    np.testing.assert_allclose(direct, 4 * gate ** np.arange(100), rtol=1e-4)  # of 16 cells
    assert lstm_gradients.near(gate, bias)
    assert not lstm_gradients.near(gate**1.2, bias)


def test_gates_along_a_sequence_are_those_of_the_layer():
  params, inputs = (
    lstm_gradients.initial("lstm", width=5, seed=1, forget_bias=1.0),
    lstm_gradients.adding_inputs(1)[:3, :9],
  )
  gates, states = lstm_gradients.traced(params, inputs)
  _, final = jax.jit(Recurrent("lstm", 5).apply)({"params": params}, np.swapaxes(inputs, 0, 1))
  np.testing.assert_allclose(states[-1], np.asarray(final.cell), atol=1e-6)
  before = np.concatenate([np.zeros((1, 3, 5)), states[:-1]])
  np.testing.assert_allclose(gates[:, :, 1] * before + gates[:, :, 0] * gates[:, :, 2], states, atol=1e-6)


def rows_of(name, values, **condition):
  return [{"seed": seed, **condition, name: value} for seed, value in enumerate(values)]


def errors(**by_length):
  """Rows of squared errors: cell_length -> one for each seed."""
  rows = []
  for name, values in by_length.items():
    cell, _, length = name.partition("_")
    rows += rows_of("squared_error", values, cell=cell, length=int(length))
  return rows


def test_rule_of_long_lags():
  def judge(rnn, lstm_errors):
    return lstm.judge_lags(errors(rnn_60=rnn, lstm_60=lstm_errors, gru_60=(0.5, 0.5, 0.5)), "small").verdict

  assert judge((0.16, 0.15, 0.11), (0.003, 0.019, 0.001)) == "holds"
  assert judge((0.16, 0.15, 0.09), (0.003, 0.019, 0.001)) == "does not hold"
  assert judge((0.16, 0.15, 0.11), (0.003, 0.021, 0.001)) == "does not hold"
  assert judge((0.16, None, 0.11), (0.003, 0.001, 0.001)) == "does not hold"


def test_rule_of_longer_lags():
  good = {f"{cell}_{length}": (value,) * 3 for cell, value in (("rnn", 0.16), ("lstm", 0.005), ("gru", 0.5))
          for length in (20, 100, 200)}  # fmt: skip

  def judge(scale="small", **changed):
    return lstm.judge_longer(errors(**{**good, **changed}), scale).verdict

  assert judge() == judge("paper") == "holds"
  assert judge(rnn_20=(0.01, 0.01, 0.01)) == "holds"
  assert judge("paper", lstm_200=(0.005, 0.011, 0.005)) == "does not hold"
  assert judge(lstm_100=(0.005, 0.03, 0.005)) == judge(lstm_20=(None, 0.0, 0.0)) == "does not hold"
  assert judge(rnn_100=(0.16, 0.16, 0.14)) == "does not hold"


def test_rule_of_200_steps():
  good = {f"{cell}_200": (0.16,) * 3 for cell in ("rnn", "lstm")}
  judged = lstm.judge_longest(errors(**good), "small")
  assert judged.verdict == "holds"
  assert "RNN 0.1600, LSTM 0.1600" in judged.finding
  assert lstm.judge_longest(errors(**{**good, "rnn_200": (0.16, 0.16, 0.14)}), "small").verdict == "does not hold"


def gradient_rows(**changed):
  found = {"RNN": 0.55, "RNN, spectral radius 0.9": 0.85, "LSTM, forget bias 1": 0.8, "LSTM, forget bias 5": 1.1,
           "gates alone, forget bias 1": 0.731, "gates alone, forget bias 5": 0.9933}  # fmt: skip
  rows = [row for net, value in {**found, **changed}.items() if net not in ("rnn", "lstm")
          for row in rows_of("factor", (value,) * 3, net=net, when="before")]  # fmt: skip
  for net, cell, value in (("RNN", "rnn", 0.9), ("LSTM", "lstm", 0.97)):
    rows += rows_of("factor", (changed.get(cell, value),) * 3, net=net, when="after")
  return rows


@pytest.mark.parametrize(("changed", "expected"), [
  ({}, "holds"), ({"gates alone, forget bias 1": 0.76}, "does not hold"), ({"RNN": 0.91}, "does not hold"),
  ({"LSTM, forget bias 1": 0.70}, "does not hold"), ({"rnn": 0.98}, "does not hold"), ({"lstm": 0.94}, "does not hold"),
])  # fmt: skip
def test_rule_of_gradients(changed, expected):
  assert lstm.judge_gradient(gradient_rows(**changed), "small").verdict == expected


def test_rule_of_the_open_gate():
  def judge(whole):
    rows = rows_of("factor", (0.9933,) * 3, net="gates alone, forget bias 5") + rows_of(
      "factor", whole, net="LSTM, forget bias 5"
    )
    return [lstm.judge_open_gate(rows, scale).verdict for scale in ("small", "tiny")]

  assert judge((0.99, 1.0, 1.019)) == ["holds", "holds"]
  assert judge((0.99, 1.0, 1.021)) == ["does not hold", "holds"]


def test_rule_of_the_variants():
  def judge(rnn_right, rnn_updates, **right):
    rows = []
    for cell in lstm.VARIANTS:
      values = right.get(cell, (0.99, 0.98, 1.0)) if cell != "rnn" else (rnn_right,) * 3
      updates = 1000.0 if cell != "rnn" else rnn_updates
      rows += [{**row, "updates": updates} for row in rows_of("right", values, cell=cell)]
    return lstm.judge_variants(rows, "small").verdict

  assert judge(0.5, None) == "holds"
  assert judge(0.99, 2100.0) == "holds"
  assert judge(0.99, 1900.0) == "does not hold"
  assert judge(0.5, None, gru=(0.99, 0.94, 1.0)) == "does not hold"
  assert judge(0.5, None, lstm_no_forget=(0.5, 0.5, 0.5)) == "holds"


def test_rule_of_the_forget_bias():
  def judge(zero, one, three):
    rows = [row for bias, own in ((0.0, zero), (1.0, one), (3.0, three)) for row in rows_of("updates", own, bias=bias)]
    return lstm.judge_bias(rows, "small").verdict

  assert judge((3000, None, 2500), (1500, 1600, 1700), (900, 800, 2400)) == "holds"
  assert judge((3000, None, 2500), (1500, 1600, 1700), (900, 800, 2600)) == "inconclusive"
  assert judge((1000, None, 2500), (1500, 1600, 2700), (900, None, 2600)) == "does not hold"


def test_rule_of_the_nets_of_1997():
  def judge(*sequences):
    rows = [row for k, own in enumerate(sequences) for row in rows_of("sequences", own, net=f"net {k}")]
    return lstm_1997.judge([{**row, "of_published": 1.0, "fewest_wrong": 2} for row in rows], "small").verdict

  assert judge((74_000.0, 30_000.0, 149_000.0), (1.0, 2.0, 3.0)) == "holds"
  assert judge((74_000.0, 30_000.0, 149_000.0), (1.0, None, 3.0)) == "does not hold"


def test_runs_of_1997_are_as_long_as_their_criteria_say_and_of_the_task_that_is_named():
  assert [net.steps for net in lstm_1997.ADDING_500.values()] == [210_000]
  nets = {**lstm_1997.ADDING, **lstm_1997.ADDING_PAPER, **lstm_1997.ORDER}
  assert [net.steps for net in nets.values()] == [222_000, 630_000, 2_560_000, 95_000, 1_715_000]
  for name, net in nets.items():
    config = load_config(*job(net.variant, steps=net.steps, eval__every=net.every, **net.changes))
    assert config.batch_size == 1
    assert name.endswith(f"{config.data.length:,}") == name.startswith("adding")
    assert config.model.blocks == net.blocks == len(config.model.input_gate_bias)
    assert lstm_1997.count(net) == net.weights


class MadeUp:
  """A run with given curves, whose cells are untrained."""

  def __init__(self, spec, overrides):
    self.cell, self.bias = overrides.get("model.cell", ""), overrides.get("model.forget_bias", 1.0)
    learns = self.cell != "rnn"
    self.last = {"loss": 0.003 if learns else 0.16, "right": 1.0 if learns else 0.3}

  def evaluation(self, name, metric="loss"):
    return self.last[metric]

  def curve(self, metric="loss", *, split="train", name=""):
    assert (split, name) == ("eval", "heldout")
    first = {"loss": 0.17, "right": 0.2}[metric]
    steps = np.arange(100, 4100, 100)
    half = 2000 if self.bias == 0 else 1500
    return steps.tolist(), np.where(steps < half, first, self.last[metric]).tolist()

  def load(self):
    problem = adding(60, 0)
    source = SimpleNamespace(batch=lambda step, *, split: problem.draw(jax.random.key(step), 32))
    return SimpleNamespace(params={"cells": lstm_gradients.initial(self.cell, width=64, seed=0)}, source=source)


@pytest.mark.parametrize("claim", [c for c in lstm.CLAIMS if c.id != "open_gate"], ids=lambda claim: claim.id)
def test_from_runs_to_rows_figures_and_verdict(claim, tmp_path):
  """At small scale, with made-up runs of the requested configs in place of trained ones."""

  def train(jobs):
    return {name: MadeUp(*request) for name, request in jobs.items()}

  seeds = SEEDS[:1] if claim.id == "gradient_by_lag" else SEEDS  # its gradients take seconds a seed
  measured = claim.measure(Setting("small", seeds, tmp_path, train, print))
  judged = claim.judge(measured.rows, "small")
  expected = "does not hold" if claim.id == "gradient_by_lag" else "holds"  # these cells are not trained
  assert judged.verdict == expected, judged.finding
  assert {row["seed"] for row in measured.rows} == set(seeds)
  for figure in measured.figures.values():
    assert image(figure, kind="svg").startswith(b"<?xml")


def test_modules_name_every_layer_of_their_cell():
  """The drawn boxes are as many as the cells' layers with weights."""
  layers = {name: len(module["layers"]) for name, module in lstm_figures.MODULES.items()}
  assert layers == {"Plain RNN": 1, "LSTM": 4, "Peepholes": 4, "Coupled gates": 3, "GRU": 3}


@pytest.mark.slow
def test_every_tiny_claim_holds_by_the_command(monkeypatch, capsys):
  monkeypatch.chdir(ROOT)
  assert cli.main(["reproduce", "lstm"]) == 0
  assert capsys.readouterr().out.count("verdict    holds") == len(lstm.CLAIMS)
