"""The loop: chunking, accumulation, devices, resuming, warm start, trunks and branches, bad endings."""

import gc
import shutil
import signal

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from ilya_jax.config import run_id
from ilya_jax.errors import Preempted, RunFailed, UserError
from ilya_jax.train import loop, programs
from ilya_jax.train.loop import Trunk, train
from ilya_jax.train.metrics import read_json, read_rows
from ilya_jax.train.optimizer import branch_step, learning_rates, make_schedule
from tests.train.stopping import StopAt


def rows_of(workdir):
  """The metric rows without wall times."""
  return [{k: v for k, v in row.items() if k != "wall_s"} for row in read_rows(workdir / "metrics.jsonl")]


def losses_of(workdir):
  return np.array([row["loss"] for row in rows_of(workdir) if row["split"] == "train"])


@pytest.fixture(scope="module")
def plain(small_run, tmp_path_factory):
  """An undisturbed run: (config, workdir, result)."""
  workdir = tmp_path_factory.mktemp("plain")
  config = small_run()
  return config, workdir, train(config, workdir)


def test_training_lowers_the_loss_and_leaves_the_promised_files(plain):
  config, workdir, result = plain
  losses = losses_of(workdir)
  assert len(losses) == 20
  assert losses[-1] < losses[0] - 0.5
  assert losses[0] == pytest.approx(np.log(256), rel=0.1)
  status, record = read_json(workdir / "status.json"), read_json(workdir / "config.json")
  assert status["state"] == "done"
  assert status["params_digest"] == result.params_digest
  assert status["state_bytes_per_device"] > 0
  assert record["id"] == result.run == run_id(config, record["data"]["fingerprint"])
  assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["20"]
  evaluation = rows_of(workdir)[-1]
  assert evaluation["split"] == "eval"
  assert evaluation["bits_per_byte"] == pytest.approx(evaluation["loss"] / np.log(2), rel=1e-6)


def test_same_seed_same_result_and_other_seed_other_result(plain, small_run, tmp_path):
  _, workdir, result = plain
  again = train(small_run(), tmp_path / "again")
  other = train(small_run(seed=1), tmp_path / "other")
  assert again.params_digest == result.params_digest != other.params_digest
  assert rows_of(tmp_path / "again") == rows_of(workdir)


@pytest.mark.parametrize("chunk", [2, 3, 20])
def test_chunking_changes_no_bit(plain, small_run, tmp_path, chunk):
  """Several steps a dispatch is a loop of dynamic length: the same program whatever the chunk."""
  _, _, result = plain
  assert train(small_run(**{"execution.steps_per_dispatch": chunk}), tmp_path).params_digest == result.params_digest


def test_one_step_at_a_time_is_equal_up_to_rounding(plain, small_run, tmp_path):
  _, workdir, _ = plain
  train(small_run(**{"execution.steps_per_dispatch": 1}), tmp_path)
  np.testing.assert_allclose(losses_of(tmp_path), losses_of(workdir), rtol=1e-5)


@pytest.mark.parametrize(
  "overrides", [{"mesh.data": 8}, {"mesh.data": 2}, {"accumulate": 4}, {"accumulate": 2, "mesh.data": 4}]
)
def test_devices_and_accumulation_do_not_change_the_result(small_run, tmp_path, overrides):
  """Under SGD (Adam turns rounding of near-zero gradients into whole steps) the parameters agree too."""
  sgd = {"optim.name": "sgd", "optim.options": ConfigDict(), "optim.learning_rate": 0.5, "steps": 6}
  finals = []
  for name, more in (("one", {}), ("many", overrides)):
    config = _with_sgd(small_run(**{**more, "steps": 6}), sgd)
    train(config, tmp_path / name)
    finals.append(_final_params(config, tmp_path / name))
  for one, many in zip(jax.tree.leaves(finals[0]), jax.tree.leaves(finals[1]), strict=True):
    np.testing.assert_allclose(one, many, atol=2e-6)
  np.testing.assert_allclose(losses_of(tmp_path / "one"), losses_of(tmp_path / "many"), rtol=1e-5)


def _with_sgd(config, changes):
  with config.unlocked():
    config.optim.name, config.optim.options = changes["optim.name"], changes["optim.options"]
    config.optim.learning_rate = changes["optim.learning_rate"]
  return config


def _final_params(config, workdir):
  task, source, _ = loop.prepare(config)
  abstract = programs.make_programs(config, task=task, source=source).abstract_state
  state, problem = loop.load_checkpoint(workdir / "checkpoints", config.steps, abstract=abstract)
  assert problem is None
  return jax.device_get(state.params)


@pytest.mark.parametrize("calls", [0, 1, 3])
def test_a_stopped_run_goes_on_to_the_same_bits(plain, small_run, tmp_path, calls):
  _, workdir, result = plain
  with pytest.raises(Preempted) as stopped:
    train(small_run(), tmp_path, stop=StopAt(calls))
  assert stopped.value.signum == signal.SIGTERM
  assert read_json(tmp_path / "status.json")["state"] == "preempted"
  resumed = train(small_run(), tmp_path)
  assert resumed.params_digest == result.params_digest
  assert rows_of(tmp_path) == rows_of(workdir)


def test_a_finished_run_is_not_run_again(plain, small_run, monkeypatch):
  config, workdir, result = plain
  monkeypatch.setattr(loop, "_run", None)
  assert train(config, workdir) == result


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete_file", "delete_all"])
def test_a_damaged_newest_checkpoint_falls_back(plain, small_run, tmp_path, capsys, damage):
  _, workdir, result = plain
  with pytest.raises(Preempted):
    train(small_run(**{"checkpoint.every": 4}), tmp_path, stop=StopAt(2))
  newest = max((tmp_path / "checkpoints").iterdir(), key=lambda path: int(path.name))
  data = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: (p.parent.name == "d", p.stat().st_size))
  if damage == "truncate":
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
  elif damage == "flip":
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 0xFF
    data.write_bytes(bytes(content))
  elif damage == "delete_file":
    data.unlink()
  else:
    shutil.rmtree(newest)
  capsys.readouterr()
  resumed = train(small_run(**{"checkpoint.every": 4}), tmp_path)
  gc.collect()  # what the failed read left behind says nothing, now or later
  said = [line for line in capsys.readouterr().err.splitlines() if "damaged" in line]
  assert len(said) == (0 if damage == "delete_all" else 1)
  assert resumed.params_digest == result.params_digest
  assert losses_of(tmp_path).tolist() == losses_of(workdir).tolist()


def test_the_last_few_and_the_best_checkpoints_are_kept(small_run, tmp_path):
  train(
    small_run(**{"checkpoint.every": 4, "eval.every": 4, "optim.learning_rate": 1.0, "schedule.name": "constant"}),
    tmp_path,
  )
  held = {row["step"]: row["loss"] for row in rows_of(tmp_path) if row["split"] == "eval"}
  best = min(held, key=held.get)
  assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == sorted({best, 16, 20})


def test_raising_the_steps_of_a_constant_rate_run_extends_it(small_run, tmp_path):
  constant = {"schedule.name": "constant"}
  train(small_run(**constant, steps=8), tmp_path / "short")
  longer = train(small_run(**constant), tmp_path / "short")
  assert longer.params_digest == train(small_run(**constant), tmp_path / "whole").params_digest
  assert read_json(tmp_path / "short" / "config.json")["id"] == longer.run
  assert losses_of(tmp_path / "short").tolist() == losses_of(tmp_path / "whole").tolist()


def test_any_other_change_of_a_workdir_is_refused(plain, small_run):
  _, workdir, _ = plain
  before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()}
  for change in ({"seed": 3}, {"steps": 24}, {"model.d_model": 32}):
    with pytest.raises(UserError, match="holds run"):
      train(small_run(**change), workdir)
  assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()} == before


def test_a_branch_equals_a_run_from_the_start(plain, small_run, tmp_path):
  config, workdir, result = plain
  start = branch_step(config.schedule, steps=config.steps)
  trunk = small_run(**{"schedule.name": "constant", "steps": start, "checkpoint.keep_steps": (start,)})
  made = train(trunk, tmp_path / "trunk")
  branch = train(small_run(), tmp_path / "branch", trunk=Trunk(tmp_path / "trunk", made.run))
  assert branch == result
  assert rows_of(tmp_path / "branch") == rows_of(workdir)


def test_warm_start_takes_the_parameters_of_another_run(plain, small_run, tmp_path):
  _, workdir, _ = plain
  train(small_run(init_from=str(workdir)), tmp_path / "warm")
  assert losses_of(tmp_path / "warm")[0] == pytest.approx(losses_of(workdir)[-1], abs=0.15)
  with pytest.raises(UserError, match="no good checkpoint"):
    train(small_run(init_from=str(workdir), **{"model.d_model": 32}), tmp_path / "other")


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(small_run, tmp_path):
  hot = {"optim.learning_rate": 1e30, "optim.clip_norm": 0.0, "checkpoint.every": 4, "schedule.warmup_steps": 0}
  with pytest.raises(RunFailed, match=r"loss is (nan|inf) at step \d+; see "):
    train(small_run(**hot), tmp_path)
  status = read_json(tmp_path / "status.json")
  assert status["state"] == "failed"
  assert "at step" in status["error"]


def test_a_workdir_in_use_is_refused(small_run, tmp_path):
  from ilya_jax.train.workdir import locked

  with locked(tmp_path), pytest.raises(UserError, match="in use"):
    train(small_run(), tmp_path)


def test_runs_of_one_shape_share_one_trace(small_run, tmp_path, monkeypatch):
  """Another seed, rate, length or schedule compiles nothing anew."""
  monkeypatch.setattr(programs, "_programs", {})
  module = programs.find_task(small_run())
  traces = []

  def counting_task(config, source):
    task = original(config, source)

    def loss(*args, **kwargs):
      traces.append(kwargs["train"])
      return task.loss(*args, **kwargs)

    return task._replace(loss=loss)

  original = module.make_task
  monkeypatch.setattr(module, "make_task", counting_task)
  train(small_run(), tmp_path / "0")
  first = list(traces)
  train(small_run(seed=5, steps=11, **{"optim.learning_rate": 1e-4, "schedule.name": "cosine"}), tmp_path / "1")
  assert traces == first
  assert first.count(False) == 1


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters(small_run, tmp_path):
  config = small_run(dtype="bfloat16", steps=8)
  train(config, tmp_path)
  assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(_final_params(config, tmp_path)))
  assert losses_of(tmp_path)[-1] < losses_of(tmp_path)[0]


@pytest.mark.parametrize(("name", "options"), [
  ("constant", {}), ("wsd", {}), ("cosine", {}), ("linear", {}),
  ("warmup_cosine_decay_schedule", {"init_value": 0.0, "peak_value": 1.0, "warmup_steps": 5, "decay_steps": 50}),
])  # fmt: skip
def test_schedules(name, options):
  schedule = ConfigDict(
    {"name": name, "warmup_steps": 0, "cooldown_fraction": 0.2, "final_fraction": 0.0, "options": options}
  )
  rates = learning_rates(make_schedule(schedule, learning_rate=2.0, steps=50), first=0, last=50)
  expected = {
    "constant": np.full(50, 2.0),
    "wsd": 2.0 * (1 - np.sqrt(np.clip(np.arange(50) - 40, 0, None) / 10)),  # Hagele et al. 2024
    "cosine": 1 + np.cos(np.pi * np.arange(50) / 50),
    "linear": 2.0 * (1 - np.arange(50) / 50),
  }
  if name in expected:
    np.testing.assert_allclose(rates, expected[name], rtol=1e-5, atol=1e-6)
  else:
    assert rates.max() == pytest.approx(1.0)
    assert rates[0] == 0.0


def test_warmup_multiplies_any_schedule():
  schedule = ConfigDict(
    {"name": "constant", "warmup_steps": 4, "cooldown_fraction": 0.2, "final_fraction": 0.0, "options": {}}
  )
  rates = learning_rates(make_schedule(schedule, learning_rate=1.0, steps=9), first=2, last=6)
  np.testing.assert_allclose(rates, [0.75, 1, 1, 1])
