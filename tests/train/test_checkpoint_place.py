"""Checkpoints in another place than the workdir: resumed, extended, branched and started from there; places that cannot be."""

import os
import types

import pytest

from ilya_jax import config as configs
from ilya_jax.errors import UserError
from ilya_jax.train import checkpoint
from ilya_jax.train.loop import Trunk, train
from ilya_jax.train.metrics import read_rows


def places(folder):
  """Folder of a run -> the steps that it holds."""
  return {path.name: sorted(int(step.name) for step in path.iterdir()) for path in folder.iterdir()}


@pytest.mark.slow
def test_a_run_keeps_them_elsewhere_and_goes_on_from_there(small_run, tmp_path):
  here = train(small_run(steps=20, **{"schedule.name": "constant"}), tmp_path / "here")
  elsewhere = {"schedule.name": "constant", "checkpoint.dir": str(tmp_path / "shared")}
  short = train(small_run(steps=8, **elsewhere), tmp_path / "a")
  longer = train(small_run(steps=20, **elsewhere), tmp_path / "a")  # another id, the same place
  assert (longer.run, longer.params_digest) == (here.run, here.params_digest)
  assert not (tmp_path / "a" / "checkpoints").exists()
  ((name, steps),) = places(tmp_path / "shared").items()
  assert name.startswith(short.run)
  assert steps == [8, 20]
  assert [row["step"] for row in read_rows(tmp_path / "a" / "metrics.jsonl") if row["split"] == "train"] == [
    *range(1, 21)
  ]


@pytest.mark.slow
def test_runs_of_one_config_do_not_meet_and_others_find_them(small_run, tmp_path):
  elsewhere = {"checkpoint.dir": str(tmp_path / "shared")}
  first = train(small_run(**elsewhere), tmp_path / "a")
  assert train(small_run(**elsewhere), tmp_path / "b") == first
  assert len(places(tmp_path / "shared")) == 2
  warm = train(small_run(init_from=str(tmp_path / "a"), steps=1, **{"schedule.warmup_steps": 0}), tmp_path / "warm")
  cold = train(small_run(steps=1, **{"schedule.warmup_steps": 0}), tmp_path / "cold")
  assert warm.evaluations["heldout"]["loss"] < cold.evaluations["heldout"]["loss"]


@pytest.mark.slow
def test_a_branch_finds_its_trunk(small_run, tmp_path):
  elsewhere = {"checkpoint.dir": str(tmp_path / "shared")}
  whole = train(small_run(), tmp_path / "whole")
  trunk = train(small_run(steps=16, **{"schedule.name": "constant"}, **elsewhere), tmp_path / "trunk")
  branch = train(small_run(**elsewhere), tmp_path / "branch", trunk=Trunk(tmp_path / "trunk", trunk.run))
  assert branch == whole


@pytest.mark.slow
def test_a_run_that_has_begun_stays_where_it_is(small_run, tmp_path):
  train(small_run(steps=8), tmp_path / "a")
  record = (tmp_path / "a" / "config.json").read_bytes()
  with pytest.raises(UserError, match=r"has its checkpoints in .*/a/checkpoints.*--config\.checkpoint\.dir"):
    train(small_run(steps=8, **{"checkpoint.dir": str(tmp_path / "shared")}), tmp_path / "a")
  assert (tmp_path / "a" / "config.json").read_bytes() == record
  assert not (tmp_path / "shared").exists()


@pytest.mark.parametrize(("place", "packages", "said"), [
  ("s3://bucket/runs", ("gcsfs", "s3fs"), "gs://BUCKET/FOLDER"),  # Orbax 0.12.8 takes it for a relative path
  ("ftp://host/runs", (), "gs://BUCKET/FOLDER"),
  ("gs://bucket/runs", (), r"pip install 'ilya-jax\[gs\]'"),
])  # fmt: skip
def test_places_that_cannot_be_are_refused_before_anything_is_made(place, packages, said, small_run, monkeypatch):
  found = types.SimpleNamespace(util=types.SimpleNamespace(find_spec=lambda name: name in packages or None))
  monkeypatch.setattr(configs, "importlib", found)
  with pytest.raises(UserError, match=said):
    small_run(**{"checkpoint.dir": place})


def test_a_place_that_is_a_file_is_refused(small_run, tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(UserError, match="not a folder"):
    train(small_run(**{"checkpoint.dir": str(tmp_path / "file")}), tmp_path / "a")
  assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_urls_stay_what_they_are():
  assert str(checkpoint._absolute("gs://bucket/runs/a")) == "gs://bucket/runs/a"
  assert str(checkpoint._absolute("runs")) == os.path.abspath("runs")


def test_an_old_workdir_has_them_inside(tmp_path):
  (tmp_path / "config.json").write_text("{}")
  assert checkpoint.held_directory(tmp_path) == tmp_path / "checkpoints"
