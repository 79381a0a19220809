"""Tiny claims in two processes: each is measured once, in the order of the list, whatever becomes of the other process."""

import threading
import time

import pytest

from ilya_jax import cli
from ilya_jax.claims.trainings import train_all
from ilya_jax.scaling.sweep import cell_folder, cell_state, make_cell
from ilya_jax.train.workdir import locked

EXPERIMENT = '''
import multiprocessing, os, pathlib, time
from ilya_jax.claims import Claim, Judged, Measured
from ilya_jax.errors import Preempted, UserError

FOLDER = pathlib.Path(__file__).parent

def meet(own, other):
  """Goes on once both claims are being measured, which one process alone cannot do."""
  def measure(setting):
    (FOLDER / own).touch()
    while not (FOLDER / other).exists():
      time.sleep(0.05)
    return Measured([{"seed": seed, "apart": int(multiprocessing.parent_process() is not None)} for seed in setting.seeds])
  return measure

def end(setting):
  (FOLDER / "last").touch()
  if multiprocessing.parent_process() is not None:
    ENDING
  return Measured([])

def judge(rows, scale):
  return Judged("holds", f"apart {[row['apart'] for row in rows]}")

def claim(name, measure):
  return Claim(name, "s", "w", "p", {"tiny": "c"}, measure, judge, optional=True)

CLAIMS = (claim("first", meet("first", "last")), claim("last", LAST))
'''


@pytest.fixture
def reproduce(tmp_path, monkeypatch, capsys):
  """Measures the two claims, the last as given; the exit code and what was printed."""
  (tmp_path / "configs").mkdir()
  (tmp_path / "experiments").mkdir()
  monkeypatch.chdir(tmp_path)

  def run(last, ending="pass"):
    written = EXPERIMENT.replace("LAST", last).replace("ENDING", ending)
    (tmp_path / "experiments" / "lstm.py").write_text(written)
    code = cli.main(["reproduce", "lstm"])
    return code, capsys.readouterr()

  return run


def test_two_claims_are_measured_side_by_side(reproduce):
  code, printed = reproduce('meet("last", "first")')
  assert code == 0
  first, last = (line.split()[0] for line in printed.out.splitlines() if not line.startswith(" "))
  assert (first, last) == ("first", "last")
  assert printed.out.index("apart [0]") < printed.out.index("apart [1]")


@pytest.mark.parametrize(
  ("ending", "code", "said"),
  [
    ("os._exit(3)", 1, "error: the process that measured last died"),
    (
      "raise UserError('no set', 'a set', 'scripts/fetch_data')",
      0,
      "last is optional and was left out: no set; a set;",
    ),
    ("raise Preempted(15)", 143, "stopped by SIGTERM"),
    ("raise ValueError('odd')", 1, "ValueError: odd"),
  ],
)
def test_how_the_other_process_ends_is_told(reproduce, ending, code, said):
  ended, printed = reproduce("end", ending)
  assert ended == code
  assert said in printed.err
  assert "apart [0]" in printed.out


def test_a_run_that_another_process_trains_is_waited_for_last(text_folder, tmp_path):
  """Two claims want the same runs: each process trains what the other does not hold, and takes the rest when it is done."""
  overrides = {
    "data.name": "files", "data.path": str(text_folder), "data.heldout_fraction": 0.2, "data.context": 16, "mesh.data": 1,
    "batch_size": 8, "model.d_model": 16, "model.n_layers": 1, "eval.tokens": 1024, "execution.tensorboard": False,
    "schedule.warmup_steps": 2,
  }  # fmt: skip
  jobs = {f"{steps}": ("configs/lstm_lm.py:tiny", {**overrides, "steps": steps}) for steps in (4, 6, 8)}
  costliest = make_cell(*jobs["8"], family="claim", role="fit")
  release, states = threading.Event(), []

  def hold():
    with locked(cell_folder(tmp_path, costliest)):
      release.wait(60)

  def say(line):
    states.append([cell_state(tmp_path, make_cell(*job, family="claim", role="fit"))["state"] for job in jobs.values()])
    release.set()

  holder = threading.Thread(target=hold)
  holder.start()
  while not cell_folder(tmp_path, costliest).exists():
    time.sleep(0.01)
  trained = train_all(jobs, tmp_path, apart=False, say=say)
  holder.join()
  assert states[0].count("done") == 1
  assert states[0][2] != "done"
  assert all(run.evaluation("heldout") > 0 for run in trained.values())
