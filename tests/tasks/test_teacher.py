"""The teacher's examples and the perceptron: against NumPy and torch, and a sweep of them through the runner and the fits."""

import json

import jax
import numpy as np
import pytest

from ilya_jax import cli
from ilya_jax.config import load_config
from ilya_jax.data.teacher import teacher, teacher_source
from ilya_jax.errors import UserError
from ilya_jax.models.mlp import Mlp
from ilya_jax.tasks import regression


def source(**changes):
  return teacher_source(**{"number": 3, "features": 5, "batch_size": 64, "seed": 0, "eval_examples": 4096, **changes})


def test_answers_are_those_of_the_network_standardised():
  made = source(batch_size=4096)
  batch = made.batch(7, split="train")
  first, second, last = (array.astype(np.float64) for array in teacher(3, features=5))
  raw = np.tanh(np.tanh(np.asarray(batch["x"], np.float64) @ first) @ second) @ last
  slope, intercept = np.polyfit(raw, np.asarray(batch["y"]), 1)
  np.testing.assert_allclose(slope * raw + intercept, batch["y"], atol=2e-5)
  held_out = np.concatenate([made.batch(k, split="heldout")["y"] for k in range(made.eval_batches["heldout"])])
  assert abs(held_out.mean()) < 4 / np.sqrt(len(held_out))
  assert held_out.var() == pytest.approx(1, rel=0.1)


def test_batches_are_functions_of_seed_split_and_step():
  one, other = source(), source(seed=1)
  np.testing.assert_array_equal(one.batch(2, split="train")["x"], source().batch(2, split="train")["x"])
  assert not np.array_equal(one.batch(2, split="train")["x"], one.batch(3, split="train")["x"])
  assert not np.array_equal(one.batch(2, split="train")["x"], other.batch(2, split="train")["x"])
  np.testing.assert_array_equal(one.batch(0, split="heldout")["x"], other.batch(0, split="heldout")["x"])
  assert one.info["fingerprint"] != source(number=4).info["fingerprint"]


@pytest.mark.parametrize("changes", [{"number": -1}, {"features": 0}, {"batch_size": 0}, {"eval_examples": 0}], ids=str)
def test_bad_sizes_are_refused(changes):
  with pytest.raises(UserError):
    source(**changes)


def test_the_perceptron_is_torchs():
  torch = pytest.importorskip("torch", reason="torch is not installed (pip install 'ilya-jax[parity]')")
  model = Mlp(width=7, layers=2)
  x = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)
  variables = model.init(jax.random.key(1), x)
  modules = [torch.nn.Linear(5, 7), torch.nn.ReLU(), torch.nn.Linear(7, 7), torch.nn.ReLU(), torch.nn.Linear(7, 1)]
  for module, name in zip(modules[::2], ("hidden_0", "hidden_1", "output"), strict=True):
    own = variables["params"][name]
    module.weight.data = torch.from_numpy(np.asarray(own["kernel"]).T.copy())
    module.bias.data = torch.from_numpy(np.asarray(own["bias"]).copy())
  expected = torch.nn.Sequential(*modules)(torch.from_numpy(x)).detach().numpy()[:, 0]
  np.testing.assert_allclose(model.apply(variables, x), expected, atol=1e-6)


def test_the_loss_is_the_mean_squared_error():
  config = load_config("configs/teacher.py:tiny")
  made = regression.make_source(config)
  task = regression.make_task(config, made)
  batch = made.batch(0, split="train")
  params = task.init(jax.random.key(0), batch)["params"]
  loss, (metrics, _) = task.loss(params, {}, batch, jax.random.key(0), train=True)
  expected = np.square(np.asarray(task.predict(params, {}, batch), np.float64) - batch["y"]).mean()
  assert float(loss) == pytest.approx(expected, rel=1e-5)
  assert float(metrics["loss"][1]) == config.batch_size


def test_a_sweep_that_is_not_about_language_is_fitted(tmp_path, capsys):
  assert cli.main(["sweep", "configs/sweeps/students.py:tiny", "--workdir", str(tmp_path / "s"), "--workers", "1"]) == 0
  fit = json.loads((tmp_path / "s" / "report" / "fit.json").read_text())
  assert fit["forms"]
  assert "loss per example" in (tmp_path / "s" / "report" / "report.html").read_text()
  assert "mlp" in capsys.readouterr().out
