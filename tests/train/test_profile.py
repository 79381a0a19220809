"""The trace of some steps: which dispatches it covers, that a run writes it, and that a run goes on in the middle of one."""

import signal

import pytest

from ilya_jax.config import profile_range
from ilya_jax.errors import Preempted, UserError
from ilya_jax.train import profile
from ilya_jax.train.loop import Stop, train
from ilya_jax.train.metrics import read_json


def written(workdir):
  """Sizes of the traces of a run."""
  return [path.stat().st_size for path in workdir.glob("profile/**/*.xplane.pb")]


@pytest.mark.parametrize(("steps", "first", "dispatches"), [
  (range(8, 16), 0, [8, 12]),
  (range(6, 14), 0, [8, 12]),  # from the first that begins at or after START to the one that reaches STOP
  (range(5, 7), 0, [8]),  # no dispatch begins between them
  (range(8, 16), 12, [12]),  # resumed in the middle
  (range(8, 16), 16, []),  # resumed after it
  (range(0), 0, []),
  (range(16, 99), 0, [16]),
])  # fmt: skip
def test_the_dispatches_that_a_trace_covers(steps, first, dispatches, monkeypatch, tmp_path):
  running, covered = [False], []
  monkeypatch.setattr(profile.jax.profiler, "start_trace", lambda folder: running.__setitem__(0, True))
  monkeypatch.setattr(profile.jax.profiler, "stop_trace", lambda: running.__setitem__(0, False))
  trace = profile.Trace(steps, tmp_path)
  for step in range(first, 20, 4):
    trace.before(step, None)
    if running[0]:
      covered.append(step)
    trace.after(step + 4, None)
  trace.finish()
  assert covered == dispatches
  assert not running[0]


@pytest.mark.slow
def test_a_run_writes_its_trace_and_is_the_run_it_would_be_without(small_run, tmp_path):
  plain = train(small_run(), tmp_path / "plain")
  traced = train(small_run(profile="4:12"), tmp_path / "traced")
  assert traced == plain  # id, losses and digest
  (size,) = written(tmp_path / "traced")
  assert size > 1_000
  assert not written(tmp_path / "plain")


@pytest.mark.slow
def test_a_run_stopped_while_it_is_traced_writes_what_there_is_and_goes_on(small_run, tmp_path):
  config, stop = small_run(profile="0:20"), Stop()
  stop.signum = signal.SIGTERM
  with pytest.raises(Preempted):
    train(config, tmp_path, stop=stop)
  assert read_json(tmp_path / "status.json")["step"] == 4
  assert len(written(tmp_path)) == 1
  assert train(config, tmp_path).step == 20
  assert all(size > 0 for size in written(tmp_path))


@pytest.mark.parametrize("text", ["5", "5:", ":5", "5:5", "6:5", "a:b", "-1:5", "1:2:3", "20:30", "1.5:3"])
def test_what_is_no_range_of_steps_is_refused(text, small_run):
  with pytest.raises(UserError, match="config.profile"):
    small_run(profile=text)


def test_ranges_of_steps(small_run):
  assert profile_range(small_run(profile="3:7")) == range(3, 7)
  assert profile_range(small_run(profile="3:700")) == range(3, 700)
  assert not profile_range(small_run())
