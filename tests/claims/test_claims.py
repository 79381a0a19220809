"""Claims: what is recorded of a measurement, what the command refuses, and that finished runs are not trained again."""

import json
import math

import pytest

from ilya_jax import cli
from ilya_jax.claims import Claim, Judged, Measured, evidence, measuring, pages, trainings
from ilya_jax.claims.claim import column, select, verdict
from ilya_jax.claims.readings import READINGS, find_reading
from ilya_jax.claims.trainings import train_all
from ilya_jax.errors import RunFailed

EXPERIMENT = '''
"""Two claims: one on a number that is computed, one that is trained."""
from ilya_jax.claims import Claim, Judged, Measured
from ilya_jax.claims.claim import column, verdict

def measure(setting):
  return Measured([{"seed": s, "form": "a", "error": BASE + s} for s in setting.seeds or (0,)], remarks=["seen"])

def judge(rows, scale):
  worst = max(column(rows, "error"))
  return Judged(verdict(worst < 5), f"error {worst:g} at most")

CLAIMS = (
  Claim("small_error", "The error | is small.", "Table 1", "3", {"tiny": "below 5", "small": "below 5"}, measure, judge),
  Claim("exactly", "It is exact.", "eq. 2", "0", {"tiny": "below 5"}, measure, judge, exact=True),
)
'''


@pytest.fixture
def checkout(tmp_path, monkeypatch):
  """A checkout with one reading that has claims."""
  (tmp_path / "configs").mkdir()
  (tmp_path / "experiments").mkdir()
  (tmp_path / "README.md").write_text(f"# x\n\n{pages.BEGIN}\n{pages.END}\n\nrest\n")
  write(tmp_path, base=0.5)
  monkeypatch.chdir(tmp_path)
  return tmp_path


def write(root, *, base):
  (root / "experiments" / "lstm.py").write_text(EXPERIMENT.replace("BASE", str(base)))


def run(*arguments):
  return cli.main(["reproduce", *arguments])


def test_evidence_is_kept_and_the_pages_follow(checkout, capsys):
  assert run("lstm", "--scale", "small", "--record") == 0
  assert "error 2.5 at most" in capsys.readouterr().out
  assert run("lstm", "--record") == 0
  records = json.loads((checkout / "experiments" / "results" / "lstm.json").read_text())
  assert [(each["claim"], each["scale"]) for each in records] == [
    ("small_error", "tiny"), ("small_error", "small"), ("exactly", "tiny"),
  ]  # fmt: skip
  small = records[1]
  assert small["seeds"] == [0, 1, 2]
  assert records[2]["seeds"] == []
  assert small["values"] == [{"seed": seed, "form": "a", "error": 0.5 + seed} for seed in (0, 1, 2)]
  (row,) = small["summary"]
  half = 4.302652729911275 / math.sqrt(3)  # Student's t of 2 degrees of freedom; the standard deviation is 1
  assert row["form"] == "a"
  assert row["error"] == {
    "mean": 1.5, "low": pytest.approx(1.5 - half), "high": pytest.approx(1.5 + half), "n": 3,
  }  # fmt: skip
  for key in ("statement", "where", "published", "criterion", "wall_s", "hardware", "versions", "commit", "command"):
    assert key in small
  assert small["command"] == "ilya-jax reproduce lstm --scale small --record"
  table = (checkout / "README.md").read_text()
  assert "| The error \\| is small. | 3 | error 2.5 at most | small | holds |" in table
  assert table.endswith("\n\nrest\n")
  page = (checkout / "experiments" / "results" / "lstm.md").read_text()
  assert "| a | 1.5 [-0.9841, 3.984] |" in page
  assert "seen" in page


def test_measured_again_a_record_takes_the_place_of_the_old_one(checkout):
  assert run("lstm", "--scale", "small", "--record") == 0
  write(checkout, base=7)
  assert run("lstm", "--scale", "small", "--record") == 0  # a claim that does not hold is a result
  (record,) = json.loads((checkout / "experiments" / "results" / "lstm.json").read_text())
  assert record["verdict"] == "does not hold"
  assert "**does not hold**" in (checkout / "README.md").read_text()


def test_a_necessary_condition_that_breaks_is_a_failure(checkout, capsys):
  write(checkout, base=7)
  assert run("lstm") == 1
  assert "small_error, exactly does not hold at tiny scale" in capsys.readouterr().err
  assert not (checkout / "experiments" / "results").exists()


@pytest.mark.parametrize(("arguments", "words"), [
  (["lstn"], "did you mean lstm?"),
  (["ntm"], "no claims yet"),
  (["lstm", "--claim", "exact"], "did you mean exactly?"),
  (["lstm", "--claim", "exactly", "--scale", "small"], "no small form of exactly"),
  (["lstm", "--scale", "smal"], "did you mean small?"),
  (["lstm", "--seeds", "0,a"], "whole numbers"),
  (["lstm", "--seeds", "0,0"], "whole numbers"),
  (["lstm", "--scale", "small", "--seeds", "0", "--record"], "at least 3"),
], ids=str)  # fmt: skip
def test_bad_input_is_one_line(checkout, capsys, arguments, words):
  assert run(*arguments) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert words in line


def test_outside_a_checkout_it_says_so(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  assert cli.main(["list"]) == 2
  assert "checkout" in capsys.readouterr().err


def test_an_optional_claim_that_lacks_something_is_left_out(checkout, capsys):
  text = (checkout / "experiments" / "lstm.py").read_text()
  lacking = 'def lacking(setting):\n  raise UserError("no soundfile", "pip install x", "y")\n'
  text = text.replace(
    "CLAIMS = (",
    f"{lacking}\nCLAIMS = (\n  Claim('opt', 's', 'w', 'p', {{'tiny': 'c'}}, lacking, judge, optional=True),",
  )
  (checkout / "experiments" / "lstm.py").write_text("from ilya_jax.errors import UserError\n" + text)
  assert run("lstm") == 0
  assert "opt is optional and was left out: no soundfile" in capsys.readouterr().err
  assert run("lstm", "--claim", "opt") == 2


def test_list_names_all_readings(checkout, capsys):
  run("lstm", "--record")
  capsys.readouterr()
  assert cli.main(["list", "--json"]) == 0
  listed = json.loads(capsys.readouterr().out)
  assert [each["id"] for each in listed] == [reading.id for reading in READINGS]
  assert len(listed) == 26
  (lstm,) = (each for each in listed if each["id"] == "lstm")
  assert lstm["claims"][0] == {
    "id": "small_error", "scales": ["tiny", "small"], "optional": False, "verdict": {"tiny": "holds", "small": None},
  }  # fmt: skip
  assert lstm["status"] == "1 of 2 claims measured"
  assert cli.main(["list"]) == 0
  assert len(capsys.readouterr().out.splitlines()) == 28


def test_what_is_not_finite_is_kept_as_missing():
  (row,) = evidence.summarise([{"seed": 0, "x": math.inf}, {"seed": 1, "x": 1.0}], by=())
  assert row["x"] == {"mean": None, "low": None, "high": None, "n": 2}


def test_numbers_that_are_conditions_are_named():
  rows = [{"seed": seed, "length": length, "x": float(length)} for length in (5, 10) for seed in (0, 1)]
  assert [row["length"] for row in evidence.summarise(rows, by=("length",))] == [5, 10]
  assert column(rows, "x", length=10) == [10.0, 10.0]
  assert len(select(rows, seed=1)) == 2
  with pytest.raises(KeyError):
    column(rows, "y")


def test_a_verdict_that_is_none_is_a_bug(tmp_path):
  claim = Claim("a", "s", "w", "p", {"tiny": "c"}, lambda s: Measured([]), lambda rows, scale: Judged("maybe", ""))
  with pytest.raises(ValueError, match="maybe"):
    measuring.measure(claim, scale="tiny", seeds=None, folder=tmp_path, command="")
  assert verdict(True) == "holds"
  assert find_reading("lstm").year == 2015


def test_runs_are_trained_once_and_read_back(small_run, tmp_path, text_folder, monkeypatch):
  overrides = {
    "data.name": "files", "data.path": str(text_folder), "data.heldout_fraction": 0.2, "data.context": 16, "mesh.data": 1,
    "batch_size": 8, "steps": 6, "model.d_model": 16, "model.n_layers": 1, "eval.tokens": 1024, "log_every": 2,
    "execution.tensorboard": False, "schedule.warmup_steps": 2,
  }  # fmt: skip
  jobs = {"a": ("configs/lstm_lm.py:tiny", overrides), "same": ("configs/lstm_lm.py:tiny", overrides)}
  trained = train_all(jobs, tmp_path, apart=False, say=print)
  assert trained["a"].workdir == trained["same"].workdir
  before = (trained["a"].workdir / "status.json").stat().st_mtime_ns
  said = []
  again = train_all(jobs, tmp_path, apart=False, say=said.append)["a"]
  assert not any("other commits" in line for line in said)
  monkeypatch.setattr(trainings, "git_commit", lambda: "0" * 40)
  train_all(jobs, tmp_path, apart=False, say=said.append)
  assert any(
    line.startswith("1 of 1 runs were trained by other commits") and again.workdir.name in line for line in said
  )
  assert (again.workdir / "status.json").stat().st_mtime_ns == before
  assert again.curve()[0] == [2, 4, 6]
  assert again.seconds() == trained["a"].seconds() > 0
  split = next(iter(again.load().source.eval_batches))
  assert again.load().evaluate(split)["loss"] == pytest.approx(again.evaluation(split), rel=1e-6)
  diverging = {"b": ("configs/lstm_lm.py:tiny", {**overrides, "optim.learning_rate": 1e30, "optim.clip_norm": 0.0})}
  failed = train_all(diverging, tmp_path, apart=False, say=print, may_fail=True)["b"]
  assert "loss is" in failed.failed
  with pytest.raises(RunFailed):
    train_all(diverging, tmp_path, apart=False, say=print)
