"""Kills at random moments: a run, and a sweep, killed with SIGKILL and started again end with the bits of one left alone.

ILYA_JAX_KILLS (default 2) is the number of kills of the run and of the sweep each; `scripts/chaos --only kill` has killed more
(experiments/results/faults.json).
"""

import csv
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ilya_jax.train.metrics import read_json, read_rows

KILLS = int(os.environ.get("ILYA_JAX_KILLS", "2"))
ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow

SWEEP = '''
"""A sweep of a few seconds: two trunks with branches, a seed, a held-out run."""
VARIANTS = ("",)
COMMON = {{
  "data.name": "files", "data.path": "{text}", "data.heldout_fraction": 0.2, "data.context": 16, "batch_size": 8,
  "model.n_layers": 1, "schedule.warmup_steps": 4, "eval.tokens": 1024, "log_every": 5, "checkpoint.every": 16,
  "execution.tensorboard": False, "execution.steps_per_dispatch": 4, "model.d_model": 8,
}}
def get_sweep(arg=""):
  base = {{"family": "transformer", "config": "configs/transformer_lm.py:tiny"}}
  return {{
    "name": "kill",
    "groups": [
      {{**base, "set": COMMON, "axes": [{{"optim.learning_rate": [1e-2, 2e-2]}}, {{"steps": [60, 120, 240]}}]}},
      {{**base, "set": {{**COMMON, "optim.learning_rate": 1e-2, "steps": 120}}, "seeds": [1]}},
    ],
    "fit": {{"form": "chinchilla", "bootstrap": 20, "starts": 8}},
  }}
'''


def environment(text_folder):
  return {**os.environ, "JAX_PLATFORMS": "cpu", "ILYA_JAX_CACHE": str(text_folder.parent / "kill_cache")}


def run_killed(command, *, kills, seed, ready, text_folder, rng_span):
  """Runs a command, killing its process group at random moments after `ready()`, `kills` times or until it is done.

  Returns how many kills landed; the command is run to its end.
  """
  rng = random.Random(seed)
  landed = 0
  while landed < kills:
    process = subprocess.Popen(command, cwd=ROOT, env=environment(text_folder), start_new_session=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    began = time.monotonic()
    while not ready(began) and process.poll() is None:
      time.sleep(0.02)
    time.sleep(rng.uniform(0, rng_span))
    if process.poll() is not None:
      break
    os.killpg(process.pid, signal.SIGKILL)
    landed += 1
    process.wait()
  ended = subprocess.run(command, cwd=ROOT, env=environment(text_folder), capture_output=True, text=True, check=False)
  assert ended.returncode == 0, ended.stderr
  return landed


def rows_without_wall(path):
  return [{k: v for k, v in row.items() if k != "wall_s"} for row in read_rows(path)]


def started(status):
  """A function that tells whether `status` was written after a moment."""
  return lambda began: status.exists() and time.time() - status.stat().st_mtime < time.monotonic() - began


def test_a_run_killed_at_random_moments_ends_with_the_same_bits(text_folder, tmp_path):
  def command(workdir):
    return [
      sys.executable, "-m", "ilya_jax.cli", "train", "--config", "configs/transformer_lm.py:tiny", "--workdir", str(workdir),
      "--config.data.name=files", f"--config.data.path={text_folder}", "--config.data.heldout_fraction=0.2",
      "--config.data.context=16", "--config.batch_size=8", "--config.model.d_model=16", "--config.model.n_layers=1",
      "--config.steps=2000", "--config.schedule.warmup_steps=4", "--config.eval.tokens=1024", "--config.checkpoint.every=40",
      "--config.eval.every=200", "--config.log_every=1", "--config.execution.steps_per_dispatch=8",
      "--config.execution.tensorboard=false",
    ]  # fmt: skip

  alone, landed, turns = tmp_path / "alone", 0, 0
  subprocess.run(command(alone), cwd=ROOT, env=environment(text_folder), check=True, capture_output=True)
  while landed < KILLS:  # a run that ends before the last kill is followed by another one
    killed, turns = tmp_path / f"killed{turns}", turns + 1
    landed += run_killed(command(killed), kills=KILLS - landed, seed=turns, ready=started(killed / "status.json"),
                         text_folder=text_folder, rng_span=2.0)  # fmt: skip
    assert read_json(killed / "status.json")["params_digest"] == read_json(alone / "status.json")["params_digest"]
    assert rows_without_wall(killed / "metrics.jsonl") == rows_without_wall(alone / "metrics.jsonl")
  print(f"{landed} kills of {turns} runs landed")


def test_a_sweep_killed_at_random_moments_gives_the_same_table(text_folder, tmp_path):
  file = tmp_path / "kill.py"
  file.write_text(SWEEP.format(text=text_folder))

  def command(workdir):
    return [sys.executable, "-m", "ilya_jax.cli", "sweep", str(file), "--workdir", str(workdir), "--workers", "2"]

  alone, landed, turns = tmp_path / "alone", 0, 0
  ended = subprocess.run(
    command(alone), cwd=ROOT, env=environment(text_folder), capture_output=True, text=True, check=False
  )
  assert ended.returncode == 0, ended.stderr
  while landed < KILLS:
    killed, turns = tmp_path / f"killed{turns}", turns + 1
    landed += run_killed(command(killed), kills=KILLS - landed, seed=100 + turns, ready=started(killed / "sweep.json"),
                         text_folder=text_folder, rng_span=12.0)  # fmt: skip
    assert table(killed) == table(alone)
    for cell in (alone / "cells").iterdir():
      digests = [read_json(folder / "cells" / cell.name / "status.json")["params_digest"] for folder in (alone, killed)]
      assert digests[0] == digests[1]
  print(f"{landed} kills of {turns} sweeps landed")


def table(folder):
  """cells.csv without wall times."""
  with (folder / "cells.csv").open() as opened:
    return [{k: v for k, v in row.items() if k != "wall_s"} for row in csv.DictReader(opened)]
