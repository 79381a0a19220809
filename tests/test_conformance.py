"""What every config promises, enumerated: counts, gradients, traces, seeds, devices, save and restore, learning."""

import functools
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ilya_jax.config import load_config
from ilya_jax.train.loop import prepare, train
from ilya_jax.train.programs import make_programs

ROOT = Path(__file__).parents[1]

_NUMBERS = itertools.count()
# What a run of seconds changes in any config; a config file adds its own as CONFORMANCE.
SHORT = {
  "batch_size": 8, "steps": 12, "log_every": 1, "execution.tensorboard": False, "mesh.data": 1,
  "schedule.name": "constant", "schedule.warmup_steps": 2,
}  # fmt: skip


def members():
  """Every variant of every config whose name ends in tiny."""
  found = []
  for file in sorted((ROOT / "configs").glob("*.py")):
    found += [f"{file.stem}:{name}" for name in scope_of(file)["VARIANTS"] if name.endswith("tiny")]
  return found


@functools.cache
def scope_of(file):
  """What a config file defines."""
  scope = {}
  exec(compile(file.read_text(), str(file), "exec"), scope)
  assert any(name.endswith("tiny") for name in scope["VARIANTS"]), f"{file} has no tiny variant"
  return scope


def spec_of(member):
  name, _, variant = member.partition(":")
  return f"{ROOT}/configs/{name}.py:{variant}", scope_of(ROOT / "configs" / f"{name}.py")


def text_of(scope, folder):
  """What makes a config on text read the small corpus; nothing for the others."""
  reads_text = "data.context" in scope.get("CONFORMANCE", {})
  return {"data.name": "files", "data.path": folder, "data.heldout_fraction": 0.2} if reads_text else {}


@functools.cache
def prepared(member, text_folder, **overrides):
  """(config, task, source) of a member, a text one on the small corpus, at a size that compiles in a second or two."""
  spec, scope = spec_of(member)
  small = {**SHORT, **scope.get("CONFORMANCE", {}), **text_of(scope, text_folder)}
  config = load_config(spec, {**small, **overrides})
  task, source, _ = prepare(config)
  return config, task, source


@pytest.fixture(params=members())
def member(request, text_folder):
  return request.param, str(text_folder)


def values_and_gradients(task, source, *, step=0):
  batch = source.batch(step, split="train")
  variables = dict(task.init(jax.random.key(0), batch))
  params = variables.pop("params")
  grad = jax.jit(jax.value_and_grad(functools.partial(task.loss, train=True), has_aux=True))
  return params, *grad(params, variables, batch, jax.random.key(1))


def test_every_config_loads_in_all_its_variants():
  for file in sorted((ROOT / "configs").glob("*.py")):
    for name in scope_of(file)["VARIANTS"]:
      assert load_config(f"{file}:{name}" if name else str(file)).steps >= 1


def test_every_sweep_loads(monkeypatch):
  monkeypatch.chdir(ROOT)
  for file in sorted((ROOT / "configs" / "sweeps").glob("*.py")):
    scope = {}
    exec(compile(file.read_text(), str(file), "exec"), scope)
    for name in scope["VARIANTS"]:
      for group in scope["get_sweep"](name)["groups"]:
        load_config(group["config"], group["set"])


def test_counts_equal_the_tree_and_the_record(member):
  config, task, source = prepared(*member)
  shapes = jax.eval_shape(task.init, jax.random.key(0), source.batch(0, split="train"))
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == task.counts.n_total
  per_row = {"tokens": config.data.get("context"), "examples": 1}[task.counts.unit]
  assert task.counts.units_per_step == config.batch_size * per_row
  spec, scope = spec_of(member[0])
  task, _, _ = prepare(load_config(spec, text_of(scope, member[1])))
  assert (task.counts.n, task.counts.n_total) == scope["COUNTS"][member[0].partition(":")[2]]


def test_every_gradient_is_finite_and_not_identically_zero(member):
  _, task, source = prepared(*member)
  _, _, grads = values_and_gradients(task, source)
  for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    assert np.isfinite(leaf).all(), name
    assert np.abs(leaf).max() > 0 or name in spec_of(member[0])[1].get("ZERO_GRADIENTS", {}), name


def test_the_loss_starts_at_that_of_a_uniform_guess_and_is_the_metric(member):
  config, task, source = prepared(*member)
  _, (loss, (metrics, _)), _ = values_and_gradients(task, source)
  if config.task == "language":
    assert float(loss) == pytest.approx(np.log(source.info["vocab_size"]), rel=0.15)
  total, weight = metrics["loss"]
  assert float(total / weight) == pytest.approx(float(loss), rel=1e-6)


def test_metrics_are_sums_so_that_batches_of_any_size_add_up(member):
  """Padding a set of rows into batches otherwise divided changes nothing: (total, weight) add."""
  _, task, source = prepared(*member)
  batch = source.batch(0, split="train")
  variables = dict(task.init(jax.random.key(0), batch))
  params = variables.pop("params")

  def totals(rows):
    part = jax.tree.map(lambda leaf: leaf[rows], batch)
    _, (metrics, _) = task.loss(params, variables, part, jax.random.key(0), train=False)
    return {name: np.array(pair, np.float64) for name, pair in metrics.items()}

  whole, parts = totals(slice(0, 8)), [totals(slice(0, 3)), totals(slice(3, 8))]
  for name, pair in whole.items():
    np.testing.assert_allclose(parts[0][name] + parts[1][name], pair, rtol=2e-6)


def test_evaluation_is_deterministic_and_leaves_the_model_state(member):
  _, task, source = prepared(*member)
  batch = source.batch(0, split="train")
  variables = dict(task.init(jax.random.key(0), batch))
  params = variables.pop("params")
  losses = [task.loss(params, variables, batch, jax.random.key(k), train=False) for k in (0, 1)]
  assert float(losses[0][0]) == float(losses[1][0])
  assert_equal_trees(losses[0][1][1], variables)


def with_one_batch(source, batch):
  """The source, giving this batch always, under a name of its own."""
  info = {**source.info, "fingerprint": f"one batch {next(_NUMBERS)}"}
  return source._replace(batch=lambda step, *, split: batch, info=info)


def stacked(programs, source, capacity):
  """The batches of a dispatch that all are the source's first; none where the source is read inside the program."""
  if source.traced:
    return None
  batch = source.batch(0, split="train")
  return jax.device_put(jax.tree.map(lambda leaf: np.stack([leaf] * capacity), batch), programs.batches_sharding)


def assert_equal_trees(one, other):
  assert jax.tree.structure(one) == jax.tree.structure(other)
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    np.testing.assert_array_equal(a, b)


def test_ten_steps_on_one_batch_lower_the_loss_in_one_trace_and_seeds_decide(member):
  config, task, source = prepared(*member)
  traces = []

  def counted(*args, **kwargs):
    traces.append(1)
    return task.loss(*args, **kwargs)

  batch = source.batch(0, split="train")
  fixed = with_one_batch(source, batch)
  programs = make_programs(config, task=task._replace(loss=counted), source=fixed)
  capacity = config.execution.steps_per_dispatch
  batches = stacked(programs, fixed, capacity)
  rates = np.full(capacity, config.optim.learning_rate, np.float32)

  def ten_steps(seed):
    state, losses = programs.init(jnp.uint32(seed)), []
    for n in (4, 4, 2) if capacity > 1 else (1,) * 10:
      state, metrics = programs.steps(state, batches, rates, np.int32(n))
      losses += (np.asarray(metrics["loss"][0]) / np.maximum(np.asarray(metrics["loss"][1]), 1))[:n].tolist()
    return losses

  first = ten_steps(0)
  traced = len(traces)
  assert first[-1] < first[0] - (0.1 if config.task == "language" else 0.0)
  assert ten_steps(0) == first
  assert ten_steps(1) != first
  assert len(traces) == traced


@pytest.mark.parametrize("devices", [8])
def test_one_device_equals_eight(member, devices):
  config, task, source = prepared(*member)
  many, _, _ = prepared(*member, **{"mesh.data": devices})
  batch = source.batch(0, split="train")
  fixed = with_one_batch(source, batch)
  results = []
  for each in (config, many):
    programs = make_programs(each, task=task, source=fixed)
    state = programs.init(jnp.uint32(0))
    capacity = each.execution.steps_per_dispatch
    batches = stacked(programs, fixed, capacity)
    _, metrics = programs.steps(state, batches, np.full(capacity, 1e-3, np.float32), np.int32(1))
    results.append([float(metrics[name][0][0] / metrics[name][1][0]) for name in ("loss", "grad_norm")])
  np.testing.assert_allclose(results[0], results[1], rtol=1e-5)


def test_save_and_restore_equals_uninterrupted(member, tmp_path):
  """A constant-rate run stopped at step 6 and made longer ends with the bits of one that never stopped."""
  name, folder = member
  whole = train(prepared(name, folder)[0], tmp_path / "whole")
  train(prepared(name, folder, steps=6)[0], tmp_path / "parts")
  assert train(prepared(name, folder)[0], tmp_path / "parts").params_digest == whole.params_digest
