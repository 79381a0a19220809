"""Tiny claims in two processes: each is measured once, in the order of the list, whatever becomes of the other process."""

import pytest

from ilya_jax import cli

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
