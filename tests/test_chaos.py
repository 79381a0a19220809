"""The fault injection of scripts/chaos: a trial of the cheap kinds, and that what differs is seen; it must not rot unseen."""

import importlib
import random
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture(scope="module")
def chaos():
  """The script as a module; its parts are imported by it from its own folder."""
  sys.path.insert(0, str(SCRIPTS))
  try:
    yield importlib.import_module("chaos")
  finally:
    sys.path.remove(str(SCRIPTS))


def run(*, digest="a", losses=(3.0, 2.0), state="done", step=2):
  rows = [{"step": index + 1, "split": "train", "loss": loss} for index, loss in enumerate(losses)]
  return {"the run": {"state": state, "step": step, "params_digest": digest, "rows": rows}}


@pytest.mark.parametrize(("other", "words"), [
  (run(), ""), (run(digest="b"), "params_digest b"), (run(state="failed"), "state failed"), (run(step=1), "step 1"),
  (run(losses=(3.0,)), "1 rows, expected 2; [(2, 'train')]"), (run(losses=(3.0, 2.0000000000000004)), "step 2 differs"),
  ({}, "missing"), ({**run(), "cells.csv": []}, "should not be there"),
])  # fmt: skip
def test_whatever_differs_is_named(chaos, other, words):
  found = importlib.import_module("chaos_jobs").difference(run(), other)
  assert (words in found) if words else not found


def test_doubled_rows_are_named(chaos):
  doubled = run()
  doubled["the run"]["rows"].append(doubled["the run"]["rows"][-1])
  assert "doubled" in importlib.import_module("chaos_jobs").difference(run(), doubled)


@pytest.mark.parametrize(
  "how", ["truncate", "flip-largest", "flip-any", "delete-file", "delete-any", "delete-checkpoint"]
)
def test_harm_is_done(chaos, tmp_path, how):
  checkpoint = tmp_path / "40"
  (checkpoint / "d").mkdir(parents=True)
  (checkpoint / "small").write_bytes(b"ab")
  (checkpoint / "d" / "large").write_bytes(bytes(100))
  before = {path: path.read_bytes() for path in checkpoint.rglob("*") if path.is_file()}
  assert importlib.import_module("chaos_files").harm(checkpoint, how=how, rng=random.Random(0))
  assert {path: path.read_bytes() for path in checkpoint.rglob("*") if path.is_file()} != before


def test_names_choose_faults_and_jobs(chaos):
  chosen = chaos.choose("kill,twice,train")
  assert chosen("kill", "train")
  assert not chosen("kill", "sweep")
  assert not chosen("full-disk", "train")
  assert chaos.choose("")("full-disk", "sweep")
  with pytest.raises(ValueError, match="expected some of train, sweep, pair, kill"):
    chaos.choose("kil")


def test_one_that_did_not_survive_is_counted_as_tried(chaos):
  results = [chaos.Result("kill", "train", 3, "", "", "", 1.0), chaos.Result("kill", "train", 1, "broke", "", "", 1.0),
             chaos.Result("full-disk", "pair", 0, "", "cannot mount", "", 0.0)]  # fmt: skip
  text = chaos.table(results)
  assert "4 / 3" in text
  assert "skipped: cannot mount" in text


@pytest.mark.slow
def test_a_train_job_survives_one_of_each_cheap_fault(chaos, tmp_path):
  bench = chaos.Bench(tmp_path, seed=0, steps={"train": 200}, turns=1)
  tried = [("kill", 1), ("delete-file", 0)]
  results = [chaos.try_once(bench, fault, "train", number=0, kills=kills) for fault, kills in tried]
  assert [result.problem for result in results] == [""] * len(tried)
  assert [result.tried for result in results] == [1] * len(tried)
