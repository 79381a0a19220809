"""The command line on bad input: exit code 2, one line, no traceback, nothing written; and what help and status say."""

import errno
import json
import subprocess
import sys

import pytest

from ilya_jax import cli
from ilya_jax.train.workdir import locked

LM = "configs/transformer_lm.py:tiny"
SWEEP = "configs/sweeps/lm_tiny.py"


def snapshot(folder):
  return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture
def folder(tmp_path, text_folder):
  """A folder with things a bad command might harm: tables, a config that raises, a run of another config."""
  (tmp_path / "good.csv").write_text(
    "cell,N,D,C,loss\n" + "".join(f"c{n}{d},{n},{d},{6 * n * d},{2 + 300 / n**0.5 + 300 / d**0.5}\n"
                                  for n in (1e4, 1e5, 1e6) for d in (1e6, 1e7, 1e8))
  )  # fmt: skip
  (tmp_path / "empty.csv").write_text("N,D,C,loss\n")
  (tmp_path / "nan.csv").write_text("N,D,loss\n1e4,1e6,3.0\n1e5,nan,2.5\n")
  (tmp_path / "text.csv").write_text("N,D,loss\n1e4,1e6,3.0\n1e5,many,2.5\n")
  (tmp_path / "negative.csv").write_text("N,D,loss\n1e4,1e6,3.0\n-1e5,1e6,2.5\n")
  (tmp_path / "lacks.csv").write_text("N,D\n1e4,1e6\n")
  (tmp_path / "few.csv").write_text("N,D,loss\n1e4,1e6,3.0\n1e5,1e6,2.5\n1e5,1e7,2.3\n")
  (tmp_path / "one_size.csv").write_text(
    "N,D,loss\n" + "".join(f"1e4,{d},{2 + 1e3 / d}\n" for d in range(1000, 9000, 800))
  )
  (tmp_path / "raises.py").write_text("VARIANTS = ('',)\ndef get_config(arg=''):\n  return 1 / 0\n")
  (tmp_path / "no_function.py").write_text("x = 1\n")
  (tmp_path / "syntax.py").write_text("def get_config(:\n")
  (tmp_path / "other").mkdir()
  (tmp_path / "other" / "config.json").write_text(json.dumps({"id": "0" * 12, "format": 1, "config": {"steps": 1}}))
  (tmp_path / "newer").mkdir()
  (tmp_path / "newer" / "config.json").write_text(json.dumps({"id": "0" * 12, "format": 99, "config": {}}))
  (tmp_path / "file").write_text("not a folder")
  return tmp_path


def train(*more, config=LM, workdir="{0}/new"):
  return ["train", "--config", config, "--workdir", workdir, "--config.data.name=files", "--config.data.path={1}",
          "--config.data.context=16", "--config.batch_size=8", "--config.data.heldout_fraction=0.2", *more]  # fmt: skip


def fit(table, *more):
  return ["fit", f"{{0}}/{table}", "--out", "{0}/fit", *more]


BAD = {
  "no command": ([], "no command"),
  "unknown command": (["tran"], "did you mean train"),
  "no config": (["train", "--workdir", "{0}/new"], "--config"),
  "no workdir": (["train", "--config", LM], "--workdir"),
  "unknown flag": (train("--wrokdir=x"), "--wrokdir"),
  "no config file": (train(config="configs/transformer_ml.py"), "did you mean configs/transformer_lm.py"),
  "unknown variant": (train(config="configs/transformer_lm.py:tniy"), "did you mean tiny"),
  "config raises": (train(config="{0}/raises.py"), "ZeroDivisionError"),
  "config without function": (train(config="{0}/no_function.py"), "get_config"),
  "config with a syntax error": (train(config="{0}/syntax.py"), "SyntaxError"),
  "unknown field": (train("--config.optim.learningrate=1"), "did you mean config.optim.learning_rate"),
  "a section for a field": (train("--config.optim=1"), "unknown field"),
  "field without value": (train("--config.steps"), "without a value"),
  "wrong type": (train("--config.steps=many"), "a whole number"),
  "fraction for a whole number": (train("--config.steps=1.5"), "a whole number"),
  "wrong boolean": (train("--config.execution.tensorboard=perhaps"), "true or false"),
  "out of range": (train("--config.steps=0"), "at least 1"),
  "negative rate": (train("--config.optim.learning_rate=-1"), "positive"),
  "unknown task": (train("--config.task=langage"), "config.task"),
  "unknown model": (train("--config.model.name=rnn"), "config.model.name"),
  "unknown form": (train("--config.model.form=gpt5"), "config.model.form"),
  "unknown optimizer": (train("--config.optim.name=adamz"), "config.optim.name"),
  "unknown schedule": (train("--config.schedule.name=triangle"), "config.schedule.name"),
  "unknown dtype": (train("--config.dtype=float12"), "config.dtype"),
  "heads do not divide the width": (train("--config.model.n_heads=3"), "config.model.n_heads"),
  "batch not divisible": (train("--config.batch_size=9", "--config.mesh.data=2"), "config.batch_size"),
  "accumulation not dividing": (train("--config.accumulate=3"), "config.accumulate"),
  "mesh too large": (train("--config.mesh.data=4", "--config.mesh.fsdp=4"), "at most the"),
  "two free axes": (train("--config.mesh.fsdp=-1"), "at most one axis"),
  "unknown corpus": (train("--config.data.name=wikipedia", "--config.data.path="), "config.data.name"),
  "corpus not fetched": (train("--config.data.name=shakespeare", "--config.data.path="), "scripts/fetch_data shakespeare"),
  "no text there": (train("--config.data.path={0}/nothing"), "nothing"),
  "unknown tokenizer": (train("--config.data.tokenizer=words"), "config.data.tokenizer"),
  "workdir of another config": (train(workdir="{0}/other"), "holds run"),
  "workdir of a newer format": (train(workdir="{0}/newer"), "format 99"),
  "workdir is a file": (train(workdir="{0}/file"), "--workdir"),
  "warm start from nothing": (train("--config.init_from={0}/nothing"), "config.init_from"),
  "sweep without workdir": (["sweep", SWEEP], "--workdir"),
  "no sweep file": (["sweep", "configs/sweeps/lm_tini.py", "--workdir", "{0}/new"], "did you mean"),
  "a config for a sweep": (["sweep", "configs/transformer_lm.py", "--workdir", "{0}/new"], "get_sweep"),
  "unknown launcher": (["sweep", SWEEP, "--workdir", "{0}/new", "--launcher", "pbs"], "--launcher"),
  "only nothing": (["sweep", SWEEP, "--workdir", "{0}/new", "--only", "family=gru"], "selects no cell"),
  "sweep field": (["sweep", SWEEP, "--workdir", "{0}/new", "--config.modle.d_model=1"], "did you mean"),
  "status of nothing": (["status", "{0}/nothing"], "no run and no sweep"),
  "fit without out": (["fit", "{0}/good.csv"], "--out"),
  "no table": (fit("absent.csv"), "absent.csv"),
  "empty table": (fit("empty.csv"), "no rows"),
  "NaN in a table": (fit("nan.csv"), "row 2"),
  "text in a table": (fit("text.csv"), "row 2"),
  "negative in a table": (fit("negative.csv"), "row 2"),
  "missing column": (fit("lacks.csv"), "loss"),
  "mapped column missing": (fit("good.csv", "--columns", "N=Model Size"), "Model Size"),
  "too few points": (fit("few.csv", "--form", "chinchilla"), "5 parameters"),
  "a single size": (fit("one_size.csv", "--form", "chinchilla"), "1 distinct value of N"),
  "unknown law": (fit("good.csv", "--form", "chinchila"), "did you mean chinchilla"),
  "unknown objective": (fit("good.csv", "--objective", "l3"), "objective"),
  "bad filter": (fit("good.csv", "--where", "C~1e21"), "--where"),
  "bad prediction": (fit("good.csv", "--predict", "N=1e9"), "--predict"),
  "bad hold-out": (fit("good.csv", "--hold-out", "some"), "--hold-out"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_code_2(case, folder, text_folder, capfd, monkeypatch):
  arguments, expected = BAD[case]
  arguments = [argument.replace("{0}", str(folder)).replace("{1}", str(text_folder)) for argument in arguments]
  before = snapshot(folder)
  monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "8")  # as the tests have: the command is not to choose
  assert cli.main(arguments) == 2
  captured = capfd.readouterr()
  lines = captured.err.splitlines()
  assert len(lines) == 1, captured.err
  assert lines[0].startswith("error: ")
  assert lines[0].count("; ") >= 2
  assert expected in lines[0]
  assert captured.out == ""
  assert snapshot(folder) == before


def test_a_workdir_in_use_is_refused_and_left_alone(folder, text_folder, capfd, monkeypatch):
  monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "8")
  with locked(folder / "busy"):
    before = snapshot(folder)
    arguments = [a.replace("{0}/new", str(folder / "busy")).replace("{1}", str(text_folder)) for a in train()]
    assert cli.main(arguments) == 2
    assert snapshot(folder) == before
  assert "in use" in capfd.readouterr().err


def test_an_unwritable_workdir_is_refused(text_folder, capfd, monkeypatch):
  monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "8")
  arguments = [a.replace("{0}/new", "/proc/nothing/new").replace("{1}", str(text_folder)) for a in train()]
  assert cli.main(arguments) == 2
  assert "--workdir" in capfd.readouterr().err


@pytest.mark.parametrize(
  "command", [[], ["train"], ["sweep"], ["status"], ["fit"]], ids=lambda words: "-".join(words) or "top"
)
def test_help_fits_a_screen_and_shows_an_example(command, capsys):
  with pytest.raises(SystemExit) as ended:
    cli.main([*command, "--help"])
  assert ended.value.code == 0
  text = capsys.readouterr().out
  assert len(text.splitlines()) <= 40
  assert "example:\n  ilya-jax" in text


def test_the_console_script_ends_with_the_exit_code_and_no_traceback(tmp_path):
  command = [sys.executable, "-m", "ilya_jax.cli", "train", "--config", "nowhere.py", "--workdir", str(tmp_path / "w")]
  ended = subprocess.run(command, capture_output=True, text=True, check=False)
  assert ended.returncode == 2
  assert ended.stderr.startswith("error: no file nowhere.py")
  assert len(ended.stderr.splitlines()) == 1


def test_tracebacks_are_for_developers(monkeypatch):
  from ilya_jax.errors import UserError

  monkeypatch.setenv("ILYA_JAX_TRACEBACK", "1")
  with pytest.raises(UserError):
    cli.main(["tran"])


def test_a_failed_command_does_not_wait_for_threads_that_never_end():
  script = (
    "import threading, time; from ilya_jax import cli\n"
    "threading.Thread(target=time.sleep, args=(600,)).start()\n"
    "cli.main = lambda: 1\n"
    "cli.run()"
  )
  assert subprocess.run([sys.executable, "-c", script], timeout=60, check=False).returncode == 1


def test_a_disk_that_fills_up_under_a_command_is_a_failure_and_no_bug(monkeypatch, capsys):
  def fill(arguments):
    raise OSError(errno.ENOSPC, "No space left on device", "x.json")

  monkeypatch.setattr(cli, "_status", fill)
  assert cli.main(["status", "x"]) == 1
  assert capsys.readouterr().err == "error: [Errno 28] No space left on device: 'x.json'\n"
