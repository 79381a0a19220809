"""Several processes on one machine: the run of one process, whole data shards, one line when one is gone, and resuming."""

import csv
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from ilya_jax import cli
from ilya_jax.errors import Preempted, RunFailed, UserError
from ilya_jax.parallel import distributed
from ilya_jax.parallel.mesh import AXES, batch_sharding
from ilya_jax.train.metrics import read_json, read_rows

ROOT = Path(__file__).parents[1]


def free_port():
  with socket.socket() as opened:
    opened.bind(("127.0.0.1", 0))
    return opened.getsockname()[1]


@pytest.fixture
def launch(text_folder):
  """launch(workdir, processes, devices, *overrides) -> processes that train together (one alone without a coordinator)."""
  started = []

  def make(workdir, processes, devices, *overrides, heartbeat=10, sweep=None):
    work = (
      ["train", "--config", "configs/transformer_lm.py:tiny"] if sweep is None else ["sweep", sweep, "--workers", "1"]
    )
    command = [
      sys.executable, "-m", "ilya_jax.cli", *work, "--workdir", str(workdir),
      "--config.data.name=files", f"--config.data.path={text_folder}", "--config.data.heldout_fraction=0.2",
      "--config.data.context=16", "--config.batch_size=8", "--config.model.n_layers=4",
      *(["--config.model.d_model=16", "--config.schedule.name=constant"] if sweep is None else []),
      "--config.schedule.warmup_steps=4", "--config.eval.tokens=1024", "--config.checkpoint.every=8", "--config.log_every=1",
      "--config.execution.steps_per_dispatch=4", "--config.execution.tensorboard=false", *overrides,
    ]  # fmt: skip
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    environment["ILYA_JAX_CACHE"] = str(text_folder.parent / "processes_cache")
    port, group = free_port(), []
    for index in range(processes):
      several = ["--coordinator", f"127.0.0.1:{port}", "--num-processes", str(processes), "--process-id", str(index)]
      several += ["--heartbeat", str(heartbeat)]
      group.append(
        subprocess.Popen(command + (several if processes > 1 else []), cwd=ROOT, env=environment, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
      )  # fmt: skip
    started.extend(group)
    return group

  yield make
  for process in started:
    if process.poll() is None:
      process.kill()
    process.communicate()


def wait(group, *, code=0):
  """The outputs of processes that end with `code`."""
  outputs = [process.communicate(timeout=240) for process in group]
  assert [process.returncode for process in group] == [code] * len(group), outputs
  return outputs


def saved(folder):
  """Steps of the finished checkpoints."""
  return [int(path.name) for path in folder.glob("checkpoints/*") if path.name.isdigit()]


def wait_for_a_checkpoint(folder):
  deadline = time.monotonic() + 120
  while not saved(folder) and time.monotonic() < deadline:
    time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices", "mesh"), [
  (2, 2, []), (4, 1, ["--config.mesh.fsdp=2"]),
  (2, 2, ["--config.mesh.stage=4", "--config.pipeline.microbatches=4"]),
])  # fmt: skip
def test_several_processes_train_the_run_of_one_and_their_checkpoint_opens_in_one(
  launch, tmp_path, processes, devices, mesh
):
  wait(launch(tmp_path / "one", 1, 4, "--config.steps=24"))
  outputs = wait(launch(tmp_path / "several", processes, devices, "--config.steps=16", *mesh))
  assert sum("done at step 16" in out for out, _ in outputs) == 1  # process 0 alone speaks
  assert all(not err for _, err in outputs[1:])
  wait(launch(tmp_path / "several", 1, 2, "--config.steps=24"))  # longer, in one process, on another mesh
  assert read_json(tmp_path / "several" / "status.json")["id"] == read_json(tmp_path / "one" / "status.json")["id"]
  rows = read_rows(tmp_path / "several" / "metrics.jsonl")
  trained = {row["step"]: row["loss"] for row in rows if row["split"] == "train"}
  expected = {
    row["step"]: row["loss"] for row in read_rows(tmp_path / "one" / "metrics.jsonl") if row["split"] == "train"
  }
  assert list(trained) == list(expected) == list(range(1, 25))
  np.testing.assert_allclose(list(trained.values()), list(expected.values()), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_is_gone_the_others_end_with_one_line_and_a_restart_goes_on(launch, tmp_path, victim):
  group = launch(tmp_path, 2, 1, "--config.steps=100000")
  wait_for_a_checkpoint(tmp_path)
  group[victim].send_signal(signal.SIGKILL)
  began = time.monotonic()
  _, err = group[1 - victim].communicate(timeout=120)
  assert time.monotonic() - began < 120
  assert group[1 - victim].returncode == 1
  said = [line for line in err.splitlines() if not line.startswith("step ")]
  assert len(said) == 1
  assert said[0].startswith("error: another process is gone")
  reached = max(saved(tmp_path))
  logged = len(read_rows(tmp_path / "metrics.jsonl"))
  again = launch(tmp_path, 2, 1, "--config.steps=100000")
  while len(read_rows(tmp_path / "metrics.jsonl")) <= logged and time.monotonic() < began + 300:
    time.sleep(0.2)
  for process in again:
    process.kill()
  steps = [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")]
  assert steps == list(range(1, len(steps) + 1))  # no row missing or doubled
  assert len(steps) > logged >= reached >= 8


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_where_the_others_do_not_come_it_says_so_in_a_line(index):
  start = f"start(coordinator='127.0.0.1:{free_port()}', processes=2, index={index}, heartbeat_s=3)"
  program = f"from ilya_jax.parallel import distributed; distributed._START_S = 3; distributed.{start}"
  alone = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
  assert alone.returncode == 1
  (line,) = alone.stderr.splitlines()
  assert line.startswith("error: the processes did not come together within 3 s")


@pytest.mark.slow
def test_sigterm_to_one_of_them_saves_and_ends_all(launch, tmp_path):
  group = launch(tmp_path, 2, 1, "--config.steps=100000")
  wait_for_a_checkpoint(tmp_path)
  group[1].send_signal(signal.SIGTERM)
  wait(group, code=128 + signal.SIGTERM)
  status = read_json(tmp_path / "status.json")
  assert status["state"] == "preempted"
  assert max(saved(tmp_path)) == status["step"]


SWEEP = """
'Two lengths with a common trunk, and a run that diverges.'
BASE = {"family": "transformer", "config": "configs/transformer_lm.py:tiny"}
def get_sweep(arg=""):
  hot = {"optim.learning_rate": 1e30, "optim.clip_norm": 0.0, "schedule.warmup_steps": 0, "steps": 12}
  return {"name": "test", "groups": [
    {**BASE, "set": {"model.d_model": 8}, "axes": [{"steps": [16, 32]}]}, {**BASE, "set": {**hot, "model.d_model": 8}}
  ], "fit": {"form": "chinchilla", "bootstrap": 0, "starts": 8}}
"""


def final_losses(folder):
  with (folder / "cells.csv").open() as file:
    return {row["cell"]: float(row["loss"]) for row in csv.DictReader(file) if row["final"] == "1"}


@pytest.mark.slow
def test_a_sweep_of_several_processes_gives_the_cells_of_one(launch, tmp_path):
  (tmp_path / "sweep.py").write_text(SWEEP)
  spec = str(tmp_path / "sweep.py")
  group = launch(tmp_path / "several", 2, 1, sweep=spec)
  while not list((tmp_path / "several").glob("cells/*/checkpoints/8")) and group[0].poll() is None:
    time.sleep(0.1)
  group[1].send_signal(signal.SIGTERM)
  wait(group, code=128 + signal.SIGTERM)
  outputs = wait(launch(tmp_path / "several", 2, 1, sweep=spec), code=1)  # a cell fails, the others finish
  assert "1 of 4 cells failed" in outputs[0][1].splitlines()[-1]
  assert "loss is nan at step" in outputs[0][1].splitlines()[-1]
  assert not outputs[1][1]
  wait(launch(tmp_path / "one", 1, 2, sweep=spec), code=1)
  found, expected = final_losses(tmp_path / "several"), final_losses(tmp_path / "one")
  assert len(found) == 2
  assert found == pytest.approx(expected, rel=1e-4)
  assert (tmp_path / "several" / "report" / "report.html").exists()


@pytest.mark.parametrize("shape", [(8, 1, 1, 1), (2, 2, 2, 1), (1, 4, 1, 2), (1, 1, 4, 2)])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_shards_of_processes_are_whole_and_equal_within_a_data_shard(shape, processes, monkeypatch):
  mesh = jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 4)
  sharding = batch_sharding(mesh)
  everything = sharding.devices_indices_map((16,))
  seen = set()
  for index in range(processes):
    own = {d: rows for d, rows in everything.items() if d.id * processes // 8 == index}

    class Local:
      def addressable_devices_indices_map(self, shape, own=own):
        return own

    rows = distributed.own_rows(Local(), (16,), axis=0)
    held = {r for part in own.values() for r in range(*part[0].indices(16))}
    assert held == set(range(16)[rows])  # nothing more is read than its devices hold
    seen |= held
  assert seen == set(range(16))


@pytest.mark.parametrize(("error", "ends"), [
  (ValueError("a bug\nof one"), True), (OSError(28, "No space left on device"), True),
  (UserError("a", "b", "c"), False), (RunFailed("loss is nan"), False), (Preempted(signal.SIGTERM), False),
])  # fmt: skip
@pytest.mark.parametrize("several", [False, True])
def test_an_error_of_one_process_ends_it_at_once_and_one_of_all_passes(error, ends, several, monkeypatch):
  said = []
  monkeypatch.setattr(distributed, "several", lambda: several)
  monkeypatch.setattr(distributed, "end_with", lambda line, code: said.append((line, code)))
  if ends and several:
    with distributed.ending_together():
      raise error
    ((line, code),) = said
    assert line == f"error: {type(error).__name__}: {' '.join(str(error).split())}"
    assert code == 1
  else:
    with pytest.raises(type(error)), distributed.ending_together():
      raise error
    assert not said


@pytest.mark.parametrize("flags", [
  ["--coordinator", "127.0.0.1:1"], ["--num-processes", "2"], ["--process-id", "0"],
  ["--coordinator", "here", "--num-processes", "2", "--process-id", "0"],
  ["--coordinator", "127.0.0.1:1", "--num-processes", "2", "--process-id", "2"],
])  # fmt: skip
def test_flags_that_do_not_go_together_are_refused(flags, tmp_path, capsys):
  arguments = ["train", "--config", "configs/transformer_lm.py:tiny", "--workdir", str(tmp_path / "x"), *flags]
  assert cli.main(arguments) == 2
  assert len(capsys.readouterr().err.splitlines()) == 1
  assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(("environment", "several"), [
  ({}, False), ({"SLURM_NTASKS": "4", "SLURM_JOB_ID": "1"}, False), ({"SLURM_STEP_NUM_TASKS": "4"}, True),
  ({"SLURM_STEP_NUM_TASKS": "1"}, False), ({"OMPI_COMM_WORLD_SIZE": "2"}, True), ({"TPU_WORKER_HOSTNAMES": "a"}, False),
  ({"TPU_WORKER_HOSTNAMES": "a,b"}, True), ({"JAX_COORDINATOR_ADDRESS": "a:1"}, True),
])  # fmt: skip
def test_the_environment_says_whether_there_are_several(environment, several):
  assert distributed.wanted(environment) == several
