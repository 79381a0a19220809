"""`ilya-jax sample`, `--average`, and translations in `ilya-jax eval`, on runs of a second."""

import jax
import numpy as np
import pytest

from ilya_jax import cli
from ilya_jax.config import load_config
from ilya_jax.train.checkpoint import Checkpoints, load_checkpoint
from ilya_jax.train.load import load_run
from ilya_jax.train.loop import train


@pytest.fixture(scope="module")
def written(small_run, tmp_path_factory):
  """Workdirs of a Transformer (with three checkpoints), of an LSTM and of a copier."""
  folder = tmp_path_factory.mktemp("runs")
  train(small_run(**{"checkpoint.every": 8, "checkpoint.keep": 3}), folder / "transformer")
  train(small_run("configs/lstm_lm.py:tiny"), folder / "lstm")
  changes = {"data.name": "copy", "data.longest": 6, "eval.examples": 8, "eval.extra": 0, "batch_size": 4, "steps": 4,
             "mesh.data": 1, "execution.tensorboard": False, "log_every": 1, "execution.steps_per_dispatch": 4}  # fmt: skip
  train(load_config("configs/transformer.py:tiny", changes), folder / "copier")
  return folder


def run(capsys, *arguments):
  code = cli.main([str(argument) for argument in arguments])
  printed = capsys.readouterr()
  return code, printed.out, printed.err


@pytest.mark.parametrize("name", ["transformer", "lstm"])
def test_samples_begin_with_the_prompt_and_depend_on_the_seed(written, capsys, name):
  def sample(*options):
    code, out, err = run(capsys, "sample", "--workdir", written / name, "--prompt", "the quick", *options)
    assert (code, err) == (0, "")
    assert out.startswith("the quick")
    return out

  one = sample("--length", 40)  # beyond the context of 16
  assert sample("--length", 40) == one
  assert sample("--length", 40, "--seed", 1) != one
  likeliest = sample("--length", 5, "--temperature", 0)
  assert sample("--length", 5, "--top-k", 1) == likeliest


def test_a_sample_without_a_prompt_begins_a_document(written, capsys):
  code, out, _ = run(capsys, "sample", "--workdir", written / "lstm", "--length", 3)
  assert code == 0
  assert len(out) >= 1


def test_a_copier_translates_and_is_scored(written, capsys):
  code, out, _ = run(capsys, "sample", "--workdir", written / "copier", "--prompt", "1 2 3")
  assert code == 0
  assert all(symbol.isdigit() for symbol in out.split())
  code, out, _ = run(capsys, "eval", "--workdir", written / "copier", "--config.eval.beams=2")
  assert code == 0
  assert "nll" in out
  assert "exact 0." in out


@pytest.mark.parametrize(("name", "options", "words"), [
  ("transformer", ["--length", "0"], "--length 0"), ("transformer", ["--temperature", "-1"], "--temperature"),
  ("transformer", ["--top-k", "257"], "--top-k 257; 0 to 256"), ("transformer", ["--seed", "-1"], "--seed"),
  ("transformer", ["--average", "0"], "--average 0"), ("transformer", ["--average", "9"], "has 3 good checkpoints"),
  ("transformer", ["--length", "many"], "invalid int value"), ("nothing", [], "no run in"),
  ("copier", ["--prompt", "x"], "--prompt"), ("copier", ["--prompt", "1", "--top-k", "3"], "--top-k"),
])  # fmt: skip
def test_bad_input_is_one_line(written, capsys, name, options, words):
  code, out, err = run(capsys, "sample", "--workdir", written / name, *options)
  assert (code, out) == (2, "")
  assert err.startswith("error: ")
  assert err.count("\n") == 1
  assert words in err


def test_no_workdir_is_one_line(capsys):
  code, _, err = run(capsys, "sample", "--prompt", "x")
  assert (code, err.count("\n")) == (2, 1)


def test_averaging_is_the_mean_and_of_equal_checkpoints_the_identity(written, tmp_path):
  held = written / "transformer" / "checkpoints"
  last = load_run(written / "transformer")
  states = [
    load_checkpoint(held, step, abstract=last.programs.abstract_state)[0]
    for step in Checkpoints(held, keep=3).steps()[-3:]
  ]
  average = load_run(written / "transformer", average=3)
  assert int(average.state.step) == int(last.state.step) == 20
  for found, *leaves in zip(
    *map(jax.tree.leaves, (average.params, *(state.params for state in states))), strict=True
  ):  # fmt: skip
    np.testing.assert_allclose(found, np.mean(leaves, axis=0), atol=1e-7)
  copies = Checkpoints(written / "copies" / "checkpoints", keep=3)
  (written / "copies").mkdir()
  for step in (1, 2, 3):
    copies.save(step, last.state)
  copies.wait()
  record = (written / "transformer" / "config.json").read_text()
  (written / "copies" / "config.json").write_text(record)
  same = load_run(written / "copies", average=3)
  for one, other in zip(jax.tree.leaves(same.params), jax.tree.leaves(last.params), strict=True):
    np.testing.assert_array_equal(one, other)
