"""Sweeps in a Ray cluster: requests that fit or not, and a real cluster of this machine whose processes are killed."""

import csv
import importlib.util
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from ilya_jax import cli
from ilya_jax.errors import RunFailed, UserError
from ilya_jax.scaling import launch_ray
from ilya_jax.train.metrics import read_json

ROOT = Path(__file__).parents[2]
NODES = [{"CPU": 8.0, "GPU": 1.0, "memory": 1e10, "accelerator_type:A100": 1.0}, {"CPU": 3.0, "memory": 1e10}]


@pytest.mark.parametrize(("options", "places"), [
  ({}, 11), ({"num_cpus": "2"}, 5), ({"num_gpus": "0.5"}, 2), ({"num_cpus": "3", "num_gpus": "1"}, 1),
  ({"memory": "6e9"}, 2), ({"accelerator_type": "A100"}, 8),
])  # fmt: skip
def test_as_many_places_as_the_nodes_have_room_for_each_on_one_node(options, places):
  assert launch_ray.check_fits(launch_ray.read_request(options), NODES) == places


@pytest.mark.parametrize("options", [
  {"num_cpus": "9"}, {"num_cpus": "8", "memory": "2e10"}, {"num_gpus": "2"}, {"resources.TPU": "4"},
  {"accelerator_type": "H100"}, {"num_cpus": "11"},  # 11 cores in all, on no node
])  # fmt: skip
def test_a_request_that_no_node_satisfies_is_refused_with_what_there_is(options):
  request = launch_ray.read_request(options)
  with pytest.raises(UserError, match="no node of the Ray cluster has") as caught:
    launch_ray.check_fits(request, NODES)
  assert str(request) in str(caught.value)


@pytest.mark.parametrize("options", [
  {"num_cpu": "1"}, {"num_cpus": "0"}, {"num_cpus": "many"}, {"num_gpus": "-1"}, {"memory": "nan"}, {"pending_s": "inf"},
])  # fmt: skip
def test_bad_options_name_the_option(options):
  with pytest.raises(UserError, match=f"{next(iter(options))}.*--launcher-option"):
    launch_ray.read_request(options)


FILE = '''
"""A trunk with two branches, and a run of its own."""
COMMON = {{
  "data.name": "files", "data.path": "{text}", "data.heldout_fraction": 0.2, "data.context": 16, "batch_size": 8,
  "model.n_layers": 1, "model.d_model": 8, "schedule.warmup_steps": 4, "eval.tokens": 1024, "log_every": 5,
  "execution.tensorboard": False, "execution.steps_per_dispatch": 4, "checkpoint.every": 20,
}}
BASE = {{"family": "transformer", "config": "configs/transformer_lm.py:tiny", "set": COMMON}}
def get_sweep(arg=""):
  return {{"name": "test", "groups": [
    {{**BASE, "axes": [{{"steps": [400, 800]}}]}}, {{**BASE, "axes": [{{"model.d_model": [12], "steps": [1200]}}]}}
  ], "fit": {{"form": "chinchilla", "bootstrap": 0, "starts": 8}}}}
'''


@pytest.fixture
def start(tmp_path, text_folder):
  """start(name, *arguments) -> the process of a sweep in the folder `name`."""
  (tmp_path / "sweep.py").write_text(FILE.format(text=text_folder))
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "ILYA_JAX_CACHE": str(tmp_path / "cache")}
  environment.pop("RAY_ADDRESS", None)
  started = []

  def make(name, *arguments):
    command = [sys.executable, "-m", "ilya_jax.cli", "sweep", str(tmp_path / "sweep.py"), "--workdir"]
    command += [str(tmp_path / name), *arguments]
    started.append(
      subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    )
    return started[-1]

  yield make
  for process in started:
    if process.poll() is None:
      process.kill()
    process.communicate()


def descendants(pid):
  """pid -> command line of every process below one."""
  children, lines = {}, {}
  for folder in Path("/proc").glob("[0-9]*"):
    try:
      parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
      lines[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (OSError, ValueError):
      continue
    children.setdefault(parent, []).append(int(folder.name))
  found, pending = {}, [pid]
  while pending:
    below = children.get(pending.pop(), [])
    pending += below
    found |= {child: lines[child] for child in below}
  return found


def digests(folder):
  return {path.parent.name: read_json(path).get("params_digest") for path in folder.glob("cells/*/status.json")}


def table(folder):
  with (folder / "cells.csv").open() as file:
    return [{name: value for name, value in row.items() if name != "wall_s"} for row in csv.DictReader(file)]


def until(holds, *, process, seconds=300):
  deadline = time.monotonic() + seconds
  while not holds():
    assert process.poll() is None, process.communicate()
    assert time.monotonic() < deadline
    time.sleep(0.1)


def kill(process, pattern):
  """Kills one process below the sweep's whose command line has the pattern."""
  until(lambda: any(pattern in line for line in descendants(process.pid).values()), process=process)
  victim = next(pid for pid, line in descendants(process.pid).items() if pattern in line)
  os.kill(victim, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.skipif(
  importlib.util.find_spec("ray") is None, reason="ray is not installed (pip install 'ilya-jax[ray]')"
)
def test_killed_actors_and_workers_and_a_stop_change_no_bit(start, tmp_path):
  local = start("local", "--workers", str(len(os.sched_getaffinity(0))))
  ray = start("ray", "--launcher", "ray", "--launcher-option", "num_cpus=1")
  until(lambda: list((tmp_path / "ray").glob("cells/*/checkpoints/20")), process=ray)
  kill(ray, "ray::_Actor")
  until(lambda: list((tmp_path / "ray").glob("cells/*/checkpoints/100")), process=ray)
  kill(ray, "multiprocessing.spawn")
  until(lambda: list((tmp_path / "ray").glob("cells/*/checkpoints/2[04]0")), process=ray)
  ray.send_signal(signal.SIGINT)
  out, err = ray.communicate(timeout=120)
  assert ray.returncode == 128 + signal.SIGINT, err
  assert err.count("was killed (Ray: ActorDiedError); it goes on from its last checkpoint") == 1, err
  assert err.count("was killed (exit code -9); it goes on from its last checkpoint") == 1, err
  lines = [line for line in err.splitlines() if "GFLOP/s" not in line and "was killed" not in line]
  assert len(lines) == 1, err  # Ray itself says nothing
  states = {read_json(path)["state"] for path in (tmp_path / "ray").glob("cells/*/status.json")}
  assert "preempted" in states
  assert states <= {"preempted", "done"}
  again = start("ray", "--launcher", "ray")
  _, err = again.communicate(timeout=300)
  assert again.returncode == 0, err
  local.communicate(timeout=300)
  assert digests(tmp_path / "ray") == digests(tmp_path / "local")
  assert None not in digests(tmp_path / "local").values()
  assert table(tmp_path / "ray") == table(tmp_path / "local")
  record = read_json(tmp_path / "ray" / "sweep.json")
  assert record["execution"] == {"launcher": "ray", "options": {"num_cpus": "1"}}
  assert {**record, "execution": 0, "workers": 0} == {
    **read_json(tmp_path / "local" / "sweep.json"),
    "execution": 0,
    "workers": 0,
  }


@pytest.mark.slow
@pytest.mark.skipif(
  importlib.util.find_spec("ray") is None, reason="ray is not installed (pip install 'ilya-jax[ray]')"
)
def test_an_address_where_no_cluster_answers_is_one_line(tmp_path, text_folder, monkeypatch, capfd):
  (tmp_path / "sweep.py").write_text(FILE.format(text=text_folder))
  arguments = ["sweep", str(tmp_path / "sweep.py"), "--workdir", str(tmp_path / "new"), "--launcher", "ray"]
  monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
  assert cli.main(arguments) == 2
  (line,) = capfd.readouterr().err.splitlines()
  assert "no Ray cluster at RAY_ADDRESS=127.0.0.1:1" in line
  assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("failures", [1, 3])
def test_a_cluster_that_starts_too_slowly_is_started_again(monkeypatch, failures):
  """Ray gives up on its daemons after 30 seconds with an exception of no class of its own."""
  calls = []

  def init(**options):
    calls.append(options)
    if len(calls) <= failures:
      raise Exception("The current node timed out during startup. This could happen because …")

  monkeypatch.setitem(sys.modules, "ray", types.SimpleNamespace(init=init, shutdown=lambda: None))
  if failures == 3:
    with pytest.raises(RunFailed, match="3 times"):
      launch_ray._start_here({})
  else:
    launch_ray._start_here({})
  assert len(calls) == min(failures + 1, 3)
