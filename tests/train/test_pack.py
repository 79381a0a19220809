"""Packs: runs trained side by side equal the runs alone, fail alone, and resume as the same pack to the same bits."""

import shutil

import numpy as np
import pytest

from ilya_jax.errors import Preempted, RunFailed, UserError
from ilya_jax.train.loop import Job, Stop, Trunk, train, train_pack
from ilya_jax.train.metrics import read_json, read_rows

HOT = {"optim.learning_rate": 1e30}


@pytest.fixture(scope="module")
def members(small_run):
  """The overrides of the three runs of a pack."""
  return [{"seed": 0}, {"seed": 1, "optim.learning_rate": 2e-3}, {"seed": 2}]


@pytest.fixture(scope="module")
def jobs(small_run, members):
  """A function that makes the jobs of the pack in a folder."""

  def make(folder, changes=members, **common):
    return [Job(small_run(**common, **own), folder / str(index)) for index, own in enumerate(changes)]

  return make


@pytest.fixture(scope="module")
def undisturbed(jobs, tmp_path_factory):
  """(folder, results) of the pack left alone."""
  folder = tmp_path_factory.mktemp("pack")
  return folder, train_pack(jobs(folder))


def rows(folder):
  """The run's metric rows without wall times."""
  return [{k: v for k, v in row.items() if k != "wall_s"} for row in read_rows(folder / "metrics.jsonl")]


def losses(folder):
  return np.array([row["loss"] for row in rows(folder)])


class StopAfter(Stop):
  """Asks for an end when the loop looks for the n-th time."""

  def __init__(self, looks):
    self._left = looks

  @property
  def signum(self):
    self._left -= 1
    return 15 if self._left < 0 else None

  @signum.setter
  def signum(self, value):
    pass


@pytest.mark.parametrize("spec", ["configs/transformer_lm.py:tiny", "configs/lstm_lm.py:tiny"])
def test_each_run_of_a_pack_equals_the_run_alone_up_to_rounding(small_run, members, tmp_path, spec):
  together = train_pack([Job(small_run(spec, **own), tmp_path / f"pack{k}") for k, own in enumerate(members)])
  for index, own in enumerate(members):
    alone = train(small_run(spec, **own), tmp_path / f"alone{index}")
    assert together[index].run == alone.run
    np.testing.assert_allclose(losses(tmp_path / f"pack{index}"), losses(tmp_path / f"alone{index}"), rtol=1e-4)
  assert len({result.params_digest for result in together}) == 3


def test_a_pack_of_one_is_the_run(small_run, tmp_path):
  (packed,) = train_pack([Job(small_run(), tmp_path / "pack")])
  assert packed == train(small_run(), tmp_path / "alone")


@pytest.mark.parametrize("looks", [1, 3])
def test_a_stopped_pack_goes_on_to_the_same_bits(jobs, undisturbed, tmp_path, looks):
  folder, results = undisturbed
  with pytest.raises(Preempted):
    train_pack(jobs(tmp_path), stop=StopAfter(looks))
  assert {read_json(tmp_path / str(k) / "status.json")["state"] for k in range(3)} == {"preempted"}
  assert train_pack(jobs(tmp_path)) == results
  assert all(rows(tmp_path / str(k)) == rows(folder / str(k)) for k in range(3))


@pytest.mark.parametrize("lost", ["newest", "all"])
def test_a_pack_goes_on_from_the_newest_checkpoint_that_all_have(jobs, undisturbed, tmp_path, lost):
  folder, results = undisturbed
  with pytest.raises(Preempted):
    train_pack(jobs(tmp_path, **{"checkpoint.every": 4}), stop=StopAfter(2))
  saved = sorted((tmp_path / "1" / "checkpoints").iterdir(), key=lambda path: int(path.name))
  assert len(saved) == 2
  for path in saved[-1:] if lost == "newest" else saved:
    shutil.rmtree(path)
  assert train_pack(jobs(tmp_path, **{"checkpoint.every": 4})) == results
  assert all(rows(tmp_path / str(k)) == rows(folder / str(k)) for k in range(3))


def test_a_run_fails_alone_and_keeps_its_place_as_a_passenger(small_run, jobs, members, undisturbed, tmp_path):
  folder, results = undisturbed
  hot = [members[0], {**members[1], **HOT}, members[2]]
  with pytest.raises(Preempted):
    train_pack(jobs(tmp_path, hot), stop=StopAfter(2))
  assert "loss is" in read_json(tmp_path / "1" / "status.json")["error"]
  resumed = [job._replace(passenger=index == 1) for index, job in enumerate(jobs(tmp_path, hot))]
  first, failed, third = train_pack(resumed)
  assert isinstance(failed, RunFailed)
  assert (first, third) == (results[0], results[2])  # whatever stands beside them
  assert all(rows(tmp_path / str(k)) == rows(folder / str(k)) for k in (0, 2))


def test_finished_runs_keep_their_place(jobs, undisturbed, tmp_path):
  folder, results = undisturbed
  shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
  shutil.rmtree(tmp_path / "2")
  assert train_pack(jobs(tmp_path)) == results


def test_branches_of_different_trunks_go_together(small_run, members, tmp_path):
  for index, own in enumerate(members):
    config = small_run(**own, **{"schedule.name": "constant", "steps": 16, "checkpoint.keep_steps": (16,)})
    train(config, tmp_path / f"trunk{index}")
  pack = [
    Job(small_run(**own), tmp_path / str(k), Trunk(tmp_path / f"trunk{k}", "trunk")) for k, own in enumerate(members)
  ]
  train_pack(pack)
  for index, own in enumerate(members):
    train(small_run(**own), tmp_path / f"alone{index}")
    np.testing.assert_allclose(losses(tmp_path / str(index)), losses(tmp_path / f"alone{index}"), rtol=1e-4)


@pytest.mark.parametrize("change", [{"model.d_model": 8}, {"steps": 24}, {"checkpoint.every": 5}])
def test_runs_of_different_shape_or_pace_are_refused(small_run, tmp_path, change):
  with pytest.raises(UserError, match="different"):
    train_pack([Job(small_run(), tmp_path / "a"), Job(small_run(**change), tmp_path / "b")])
  assert not any(tmp_path.iterdir())
