"""The estimates of |G|^2 and tr(Sigma): unbiased where both are known, and beside a training that they leave as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from ilya_jax.errors import UserError
from ilya_jax.task import Counts, Source, Task
from ilya_jax.train import programs
from ilya_jax.train.loop import Job, prepare, train, train_pack
from ilya_jax.train.metrics import read_rows

ON = {"execution.noise_scale": True}
NAMES = {"grad_sq_norm", "grad_trace"}
DEVIATIONS, OFFSET = np.array([0.5, 1.0, 2.0], np.float32), np.array([0.3, -0.4, 0.2], np.float32)
UNITS = 5  # of an example


def quadratic(batch_size, fingerprint):
  """Task and source of the mean of |w - x|^2 / 2 at w = 0, x normal: G = -OFFSET, Sigma = diag(DEVIATIONS^2)."""

  def init(rng, batch):
    return {"params": {"w": jnp.zeros(3)}}

  def loss(params, model_state, batch, rng, *, train):
    each = 0.5 * jnp.square(params["w"][None] - batch["x"]).sum(-1)
    total, count = each.sum(), jnp.float32(each.size)
    return total / count, ({"loss": (total, count)}, model_state)

  def batch(step, *, split, rows=slice(None)):
    drawn = jax.random.normal(jax.random.fold_in(jax.random.key(7), step), (batch_size, 3))
    return {"x": jnp.asarray(OFFSET)[None] + jnp.asarray(DEVIATIONS)[None] * drawn}

  info = {"fingerprint": fingerprint}
  return Task(init, loss, Counts(3, 3, 1.0, UNITS * batch_size)), Source(batch, {}, info, traced=True)


@pytest.mark.parametrize(
  "changes", [{"accumulate": 4}, {"accumulate": 2, "mesh.data": 2}, {}, {"mesh.data": 4}, {"mesh.data": 8}], ids=str
)
def test_the_estimates_are_unbiased(small_run, changes):
  config = small_run(**{**ON, **changes, "steps": 4000, "execution.steps_per_dispatch": 4000})
  with config.unlocked():
    config.optim.name, config.optim.options, config.optim.clip_norm = "sgd", ConfigDict(), 0.0
  task, source = quadratic(config.batch_size, f"quadratic {changes}")
  made = programs.make_programs(config, task=task, source=source)
  _, metrics = made.steps(made.init(np.uint32(0)), None, np.zeros(4000, np.float32), np.int32(4000))
  truth = {"grad_sq_norm": (OFFSET**2).sum(), "grad_trace": UNITS * (DEVIATIONS**2).sum()}
  for name, expected in truth.items():
    total, weight = (np.asarray(part, np.float64) for part in metrics[name])
    assert (weight == 1).all()
    error = total.std(ddof=1) / np.sqrt(len(total))
    assert abs(total.mean() - expected) < 4 * error, name
    assert error < 0.1 * expected  # so that the test can fail: the biased |G_b|^2 lies far outside
  biased = (OFFSET**2).sum() + (DEVIATIONS**2).sum() / config.batch_size
  assert biased > 2 * truth["grad_sq_norm"]


def logged(workdir):
  return [row for row in read_rows(workdir / "metrics.jsonl") if row["split"] == "train"]


def without_noise(rows):
  return [{k: v for k, v in row.items() if k not in NAMES | {"wall_s"}} for row in rows]


PIPED = {"mesh.stage": 2, "mesh.data": 2, "pipeline.microbatches": 4, "model.n_layers": 2}
CASES = [
  ("configs/transformer_lm.py:tiny", {}),
  ("configs/transformer_lm.py:tiny", {"accumulate": 4}),
  ("configs/transformer_lm.py:tiny", {"mesh.data": 2}),
  ("configs/transformer_lm.py:tiny", {"accumulate": 2, "mesh.data": 2, "mesh.fsdp": 2}),
  ("configs/transformer_lm.py:tiny", {"execution.steps_per_dispatch": 1}),
  ("configs/transformer_lm.py:tiny", {"mesh.data": 8}),
  ("configs/lstm_lm.py:tiny", {}),
  ("configs/lstm_lm.py:tiny", {"accumulate": 2}),
]


@pytest.mark.parametrize(("spec", "changes"), CASES, ids=str)
def test_training_keeps_its_bits_and_its_id(small_run, tmp_path, spec, changes):
  off = train(small_run(spec, **changes), tmp_path / "off")
  on = train(small_run(spec, **changes, **ON), tmp_path / "on")
  assert (on.run, on.params_digest) == (off.run, off.params_digest)
  assert without_noise(logged(tmp_path / "on")) == without_noise(logged(tmp_path / "off"))
  assert all(set(row) >= NAMES for row in logged(tmp_path / "on"))
  assert not any(NAMES & set(row) for row in logged(tmp_path / "off"))


def test_a_pipeline_has_them_too(small_run, tmp_path):
  changes = {"mesh.stage": 2, "pipeline.microbatches": 2, "model.n_layers": 2}
  off, on = (train(small_run(**changes, **more), tmp_path / f"{len(more)}") for more in ({}, ON))
  assert on.params_digest == off.params_digest
  train(small_run(**{"model.n_layers": 2}, **ON), tmp_path / "one")
  for name in sorted(NAMES):
    piped, one = ([row[name] for row in logged(tmp_path / folder)] for folder in ("1", "one"))
    np.testing.assert_allclose(piped[:3], one[:3], rtol=2e-3)


def test_a_pack_logs_what_its_runs_log_alone(small_run, tmp_path):
  seeds = (0, 1)
  train_pack([Job(small_run(seed=seed, **ON), tmp_path / f"pack{seed}") for seed in seeds])
  for seed in seeds:
    train(small_run(seed=seed, **ON), tmp_path / f"alone{seed}")
    for name in sorted(NAMES):
      pack, alone = ([row[name] for row in logged(tmp_path / f"{kind}{seed}")] for kind in ("pack", "alone"))
      np.testing.assert_allclose(pack[:3], alone[:3], rtol=2e-3)


def test_rows_between_logged_steps_have_none(small_run, tmp_path):
  """The last step is always logged; without accumulation it has the estimates only where `log_every` divides it."""
  train(small_run(log_every=8, **ON), tmp_path)
  rows = logged(tmp_path)
  assert [row["step"] for row in rows] == [8, 16, 20]
  assert [set(row) >= NAMES for row in rows] == [True, True, False]
  assert all(np.isfinite(value) for row in rows for value in row.values() if isinstance(value, float))


def test_the_step_is_traced_once(small_run, tmp_path):
  config = small_run(accumulate=2, **ON)
  task, source, _ = prepare(config)
  traces = []

  def counting(*arguments, **more):
    traces.append(1)
    return task.loss(*arguments, **more)

  counted = source._replace(info={**source.info, "fingerprint": f"counted {id(traces)}"})
  made = programs.make_programs(config, task=task._replace(loss=counting), source=counted)
  state = made.init(np.uint32(0))
  batches = jax.tree.map(lambda leaf: np.stack([leaf] * 4), source.batch(0, split="train"))
  for n in (4, 2, 3):
    state, _ = made.steps(state, batches, np.full(4, 1e-3, np.float32), np.int32(n))
  assert made.steps._cache_size() == 1


@pytest.mark.parametrize("changes", [{"batch_size": 1}, {"batch_size": 3}, PIPED], ids=str)
def test_nothing_to_split_is_refused(small_run, tmp_path, changes):
  with pytest.raises(UserError, match="noise_scale"):
    train(small_run(**{**ON, **changes}), tmp_path / "run")
  assert not (tmp_path / "run").exists()
