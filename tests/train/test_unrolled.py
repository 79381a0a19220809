"""Steps of a dispatch written out: the same values as one at a time, resumed to the same bits, in packs and on devices too."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from ilya_jax.config import with_defaults
from ilya_jax.errors import Preempted
from ilya_jax.task import Counts, Source, Task
from ilya_jax.train import loop, programs
from ilya_jax.train.loop import Job, train, train_pack
from ilya_jax.train.metrics import read_rows
from ilya_jax.train.unrolled import Unrolled
from tests.train.stopping import StopAt

ROWS, WIDTH = 8, 5


def make_source(config):
  """Random regressions, drawn on the host or inside the step."""

  def draw(step, *, split, rows=slice(None)):
    x = np.random.default_rng([config.seed, step, split == "train"]).normal(size=(ROWS, WIDTH + 1))
    return {"x": x[rows].astype(np.float32)}

  def draw_inside(step, *, split):
    return {"x": jax.random.normal(jax.random.fold_in(jax.random.key(config.seed), step), (ROWS, WIDTH + 1))}

  traced = config.data.traced
  info = {"fingerprint": f"regressions {traced}"}
  return Source(draw_inside if traced else draw, {"heldout": 2}, info, traced)


def make_task(config, source):
  """A nonlinear regression with a running mean in its model state."""

  def init(rng, batch):
    return {"params": {"kernel": 0.3 * jax.random.normal(rng, (WIDTH,))}, "stats": {"mean": jnp.zeros(WIDTH)}}

  def loss(params, model_state, batch, rng, *, train):
    x, y = batch["x"][:, :-1], batch["x"][:, -1]
    noise = 0.1 * jax.random.normal(rng, y.shape) if train else 0.0
    error = jnp.square(jnp.tanh(x @ params["kernel"]) + noise - y)
    mean = 0.9 * model_state["stats"]["mean"] + 0.1 * x.mean(0) if train else model_state["stats"]["mean"]
    return error.mean(), ({"loss": (error.sum(), jnp.float32(y.size))}, {"stats": {"mean": mean}})

  return Task(init, loss, Counts(WIDTH, WIDTH, 6.0 * WIDTH, ROWS, unit="examples"))


@pytest.fixture(autouse=True)
def _tiny_task(monkeypatch):
  """Programs that compile in a fraction of a second."""
  monkeypatch.setattr(loop, "find_task", lambda config: SimpleNamespace(make_source=make_source, make_task=make_task))


def config_of(**overrides):
  """Ten steps in chunks of 4, 4 and 2, written out."""
  config = with_defaults(
    ConfigDict({
      "task": "regressions", "steps": 10, "batch_size": ROWS, "log_every": 1, "data": {"traced": False}, "model": {},
      "optim": {"name": "sgd", "learning_rate": 0.1, "clip_norm": 1.0, "options": {"momentum": 0.9}},
      "execution": {"steps_per_dispatch": 4, "unroll_steps": True, "tensorboard": False}, "mesh": {"data": 1},
      "eval": {"every": 5},
    })
  )  # fmt: skip
  for name, value in overrides.items():
    section, _, field = name.rpartition(".")
    (config[section] if section else config)[field] = value
  return config


def rows_of(workdir):
  """The metric rows without wall times."""
  return [{k: v for k, v in row.items() if k != "wall_s"} for row in read_rows(workdir / "metrics.jsonl")]


def losses_of(workdir):
  return [row["loss"] for row in rows_of(workdir)]


@pytest.mark.parametrize("traced", [False, True])
def test_the_values_are_those_of_one_step_at_a_time(tmp_path, traced):
  runs = {
    name: train(config_of(**{"data.traced": traced}, **overrides), tmp_path / name)
    for name, overrides in (
      ("written", {}),
      ("single", {"execution.steps_per_dispatch": 1}),
      ("rolled", {"execution.unroll_steps": False}),
    )
  }
  assert len({result.run for result in runs.values()}) == 1  # how a run is executed is not what it is
  assert [row["step"] for row in rows_of(tmp_path / "written")] == [1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10, 10]
  for name in ("single", "rolled"):
    np.testing.assert_allclose(losses_of(tmp_path / "written"), losses_of(tmp_path / name), rtol=1e-6)
  assert runs["written"].params_digest == runs["single"].params_digest


def test_the_same_chunks_give_the_same_bits(tmp_path, monkeypatch):
  first = train(config_of(), tmp_path / "first")
  monkeypatch.setattr(programs, "_programs", {})  # compiled anew
  assert train(config_of(), tmp_path / "again").params_digest == first.params_digest
  assert rows_of(tmp_path / "again") == rows_of(tmp_path / "first")


@pytest.mark.parametrize("calls", [0, 1, 2])
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, calls):
  whole = train(config_of(), tmp_path / "whole")
  with pytest.raises(Preempted):
    train(config_of(), tmp_path / "parts", stop=StopAt(calls))
  assert train(config_of(), tmp_path / "parts").params_digest == whole.params_digest
  assert rows_of(tmp_path / "parts") == rows_of(tmp_path / "whole")


@pytest.mark.parametrize("overrides", [{"mesh.data": 2}, {"accumulate": 2}, {"accumulate": 2, "mesh.data": 4}])
def test_devices_and_accumulation(tmp_path, overrides):
  for name, unroll in (("rolled", False), ("written", True)):
    train(config_of(**overrides, **{"execution.unroll_steps": unroll}), tmp_path / name)
  np.testing.assert_allclose(losses_of(tmp_path / "written"), losses_of(tmp_path / "rolled"), rtol=1e-6)


def test_a_pack_is_written_out_too(tmp_path):
  train_pack([Job(config_of(seed=seed), tmp_path / f"packed {seed}") for seed in (0, 1)])
  for seed in (0, 1):
    train(config_of(seed=seed), tmp_path / f"alone {seed}")
    np.testing.assert_allclose(losses_of(tmp_path / f"packed {seed}"), losses_of(tmp_path / f"alone {seed}"), rtol=1e-6)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_full_dispatch_has_no_loop_and_a_part_of_one_runs_single_steps(accumulate):
  config, ran = config_of(accumulate=accumulate), []
  task, source, _ = loop.prepare(config)

  def loss(params, model_state, batch, rng, *, train):  # without random numbers, which are made in a loop of their own
    return task.loss(params, model_state, batch, rng, train=False)

  made = programs.make_programs(config, task=task._replace(loss=loss), source=source, devices=jax.devices()[:1])
  assert isinstance(made.steps, Unrolled)
  steps = made.steps._replace(
    whole=lambda *arguments: ran.append("whole") or made.steps.whole(*arguments),
    single=lambda *arguments: ran.append(int(arguments[4])) or made.steps.single(*arguments),
  )
  batches, rates = loop.next_chunk(config, source, np.full(10, 1e-2, np.float32), step=0, end=4)
  state = made.init(jnp.uint32(0))
  assert "stablehlo.while" not in made.steps.lower(state, batches, rates, np.int32(4)).as_text()
  state, metrics = steps(state, batches, rates, np.int32(4))
  assert int(state.step) == 4
  assert (np.asarray(metrics["loss"][1]) > 0).all()
  state, metrics = steps(state, batches, rates, np.int32(2))
  assert int(state.step) == 6
  assert (np.asarray(metrics["loss"][1]) > 0).tolist() == [True, True, False, False]
  assert ran == ["whole", 0, 1]
