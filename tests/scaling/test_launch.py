"""The order of a sweep's packs, what runs again and what fails, on a fake engine and with a fake Slurm."""

import os
import signal
from types import SimpleNamespace

import pytest

from ilya_jax import cli
from ilya_jax.errors import Preempted, UserError
from ilya_jax.scaling import launch, launch_slurm
from ilya_jax.scaling.launch_slurm import Listed, SlurmTasks, Task, watch
from ilya_jax.scaling.sweep import Cell, cell_folder
from ilya_jax.train.metrics import read_json, write_json

SWEEP = "configs/sweeps/lm_tiny.py"


def make_cell(name, *, trunk=None, cost=1.0):
  config = SimpleNamespace(steps=10, schedule=None)
  counts = SimpleNamespace(units_per_step=1, flops_per_unit=cost)
  return Cell(name, "f", "spec", {}, "fit", trunk or name, config, counts, 1.0, name)


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
  monkeypatch.setattr(launch, "own_flops", lambda cell: cell.counts.flops_per_unit)


def put_status(sweep_dir, name, **status):
  cell_folder(sweep_dir, name).mkdir(parents=True, exist_ok=True)
  write_json(cell_folder(sweep_dir, name) / "status.json", status)


class Fake:
  """An engine of one place on which `ends(cell, time)` says how a cell ends the n-th time; `log` is the order of starts."""

  def __init__(self, ends, adopted=()):
    self.ends, self.log, self.pack, self.adopted, self.closed = ends, [], (), list(adopted), False

  @property
  def busy(self):
    return bool(self.pack)

  def adopt(self, packs):
    taken = [pack for pack in packs if pack[0].id in self.adopted]
    self.pack = taken[0] if taken else ()
    return taken

  def free(self):
    return {} if self.pack else {0: ""}

  def start(self, place, pack, jobs):
    assert [job["workdir"].name for job in jobs] == [cell.id for cell in pack]
    self.pack = pack
    self.log += [cell.id for cell in pack]

  def running(self):
    return list(self.pack)

  def finished(self, *, timeout_s):
    pack, self.pack = self.pack, ()
    return [(pack, [self.ends(cell.id, self.log.count(cell.id)) for cell in pack])]

  def stop(self):
    pass

  def close(self):
    self.closed = True


def run(packs, folder, ends, **more):
  engine, lines = Fake(ends, **more), []
  outcome = launch.run_packs(packs, folder, engine=engine, report=lines.append)
  assert engine.closed
  return outcome, engine, [line for line in lines if "GFLOP/s" not in line]


def test_trunks_go_first_the_costliest_chain_first_of_all(tmp_path):
  cells = [make_cell("b", trunk="t"), make_cell("a", cost=2), make_cell("t", cost=5), make_cell("c", cost=9)]
  outcome, engine, _ = run([[cell] for cell in cells], tmp_path, lambda name, time: ("done", ""))
  assert engine.log == ["c", "t", "a", "b"]
  assert sorted(outcome.done) == ["a", "b", "c", "t"]


def test_a_failed_trunk_fails_its_branches_and_nothing_else(tmp_path):
  cells = [make_cell("t"), make_cell("b", trunk="t"), make_cell("a")]
  ends = {"t": ("failed", "loss is nan"), "a": ("done", "")}
  outcome, engine, _ = run([[cell] for cell in cells], tmp_path, lambda name, time: ends[name])
  assert outcome.done == ["a"]
  assert outcome.failed == {"t": "loss is nan", "b": "its trunk t failed"}
  assert read_json(cell_folder(tmp_path, "t") / "status.json")["state"] == "failed"


@pytest.mark.parametrize("kills", [1, 3, 4])
def test_a_killed_cell_runs_again_three_times(tmp_path, kills):
  ends = lambda name, time: ("killed", "node lost") if time <= kills else ("done", "")  # noqa: E731
  outcome, engine, lines = run([[make_cell("a")], [make_cell("b", cost=0)]], tmp_path, ends)
  assert engine.log.count("a") == min(kills + 1, 4)
  assert outcome.failed == ({} if kills <= 3 else {"a": "node lost", "b": "node lost"})
  assert lines[0] == "cell a was killed (node lost); it goes on from its last checkpoint"


@pytest.mark.parametrize(("further", "starts"), [(True, 10), (False, 4)])
def test_a_preempted_cell_runs_again_as_long_as_it_comes_further(tmp_path, further, starts):
  def ends(name, time):
    put_status(tmp_path, name, state="preempted", step=time if further else 5)
    return ("preempted", "10") if time < 10 else ("done", "")

  outcome, engine, _ = run([[make_cell("a")]], tmp_path, ends)
  # Without progress the first one counts as progress, since it came from 0 to 5.
  assert engine.log.count("a") == (starts if further else starts + 1)
  assert (outcome.done == ["a"]) == further


def test_what_is_adopted_is_not_started(tmp_path):
  outcome, engine, _ = run(
    [[make_cell("a")], [make_cell("b")]], tmp_path, lambda name, time: ("done", ""), adopted=["a"]
  )
  assert engine.log == ["b"]
  assert sorted(outcome.done) == ["a", "b"]


def test_what_is_killed_while_stopping_has_not_failed(tmp_path):
  def ends(name, time):
    os.kill(os.getpid(), signal.SIGTERM)
    return "killed", "too slow"

  with pytest.raises(Preempted):
    run([[make_cell("a")], [make_cell("b")]], tmp_path, ends)
  assert not cell_folder(tmp_path, "a").exists()


@pytest.mark.parametrize(("arguments", "words"), [
  (["--launcher", "slrm"], "did you mean slurm?"), (["--launcher-option", "workers"], "KEY=VALUE"),
  (["--launcher-option", "num_cpus=1"], "none (local)"),
])  # fmt: skip
def test_bad_launchers_and_options_are_one_line_and_write_nothing(arguments, words, tmp_path, capsys):
  assert cli.main(["sweep", SWEEP, "--workdir", str(tmp_path / "new"), *arguments]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert words in line
  assert "--launcher" in line
  assert not (tmp_path / "new").exists()


# --- Slurm


def ending(task, *states):
  write_json(task.ended, {"endings": [[state, "10"] for state in states]})


def listed(state):
  return None if state is None else Listed(state, "name", "Resources")


@pytest.fixture
def task(tmp_path):
  return Task([make_cell("a")], tmp_path / "ended_0.json")


def look(task, state, *, now=0.0, answered=True, seen_done=True):
  return watch(task, listed=listed(state), answered=answered, now=now, lag_s=60.0, seen_done=seen_done)


@pytest.mark.parametrize("state", ["done", "failed"])
@pytest.mark.parametrize("answered", [True, False])
def test_a_task_that_says_it_is_over_is_over_whatever_slurm_says(task, state, answered):
  ending(task, state)
  assert look(task, "RUNNING", answered=answered) == [(state, "10")]


def test_done_waits_until_the_status_can_be_seen(task):
  ending(task, "done")
  assert look(task, None, seen_done=False) is None
  assert look(task, None, seen_done=False, now=10.0) is None
  assert look(task, None, seen_done=False, now=61.0) == [("done", "10")]


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "COMPLETING", "REQUEUED", "SUSPENDED", "CONFIGURING"])
def test_a_saved_task_that_slurm_may_run_again_is_not_submitted_again(task, state):
  ending(task, "preempted")
  for now in range(0, 1000, 10):
    assert look(task, state, now=now) is None


def test_a_saved_task_counts_once_it_is_seen_twice_to_have_left_the_queue(task):
  ending(task, "preempted")
  assert look(task, None) is None
  assert look(task, "PENDING", now=1.0) is None  # put back after all
  assert look(task, "TIMEOUT", now=2.0) is None
  assert look(task, None, now=3.0) == [("preempted", "10")]


@pytest.mark.parametrize("state", [None, "OUT_OF_MEMORY", "NODE_FAIL", "CANCELLED", "TIMEOUT"])
def test_a_silent_task_counts_as_killed_after_the_lag(task, state):
  if state == "CANCELLED":
    ending(task, "preempted")  # somebody wanted it gone: not an endless supply of new ones
  assert [look(task, state, now=now) for now in (100.0, 130.0, 159.0)] == [None] * 3
  ((kind, line),) = look(task, state, now=161.0)
  assert kind == "killed"
  assert (state or "gone") in line


def test_nothing_is_concluded_while_squeue_does_not_answer(task):
  ending(task, "preempted")
  for now in range(0, 10_000, 100):
    assert look(task, None, now=float(now), answered=False) is None


class FakeSlurm:
  """squeue, sbatch and scancel: tasks stay pending until told otherwise."""

  def __init__(self, monkeypatch):
    self.queue, self.now, self.arrays, self.fail, self.cancelled = {}, 0.0, 0, None, []
    monkeypatch.setattr(launch_slurm, "read_queue", lambda: None if self.queue is None else dict(self.queue))
    monkeypatch.setattr(launch_slurm, "submit", self.submit)
    monkeypatch.setattr(launch_slurm, "cancel", lambda ids, *options: self.cancelled.append((list(ids), options)))
    monkeypatch.setattr(launch_slurm.time, "sleep", self.sleep)

  def sleep(self, seconds):
    self.now += seconds

  def submit(self, folder, work, *, name, options):
    if self.fail and not self.fail.startswith("lost"):
      raise RuntimeError(self.fail)
    self.arrays += 1
    ids = [f"{self.arrays}_{index}" for index in range(len(work))]
    self.queue |= {job: Listed("PENDING", name, "Resources") for job in ids}
    if self.fail:
      raise RuntimeError(self.fail)
    return ids

  def engine(self, folder, lines, **more):
    return SlurmTasks(folder, queue=dict(self.queue), options={}, at_once=more.pop("at_once", 100), lag_s=60.0, poll_s=10.0,
                      report=lines.append, clock=lambda: self.now, **more)  # fmt: skip


@pytest.fixture
def slurm(monkeypatch):
  return FakeSlurm(monkeypatch)


def rounds(engine, count=1):
  return [ended for _ in range(count) for ended in engine.finished(timeout_s=5.0)]


def test_what_starts_together_is_one_array_and_a_later_start_takes_it_over(slurm, tmp_path):
  packs, lines = [[make_cell("a")], [make_cell("b"), make_cell("c")], [make_cell("d")]], []
  engine = slurm.engine(tmp_path, lines, at_once=3)
  assert len(engine.free()) == 3
  for place, pack in enumerate(packs[:2]):
    engine.start(place, pack, [{}] * len(pack))
  assert rounds(engine, 3) == []
  assert slurm.arrays == 1
  assert len(engine.free()) == 1
  again = slurm.engine(tmp_path, lines)
  assert again.adopt(packs) == packs[:2]
  write_json(tmp_path / "slurm" / "0" / "ended_1.json", {"endings": [["done", ""], ["failed", "nan"]]})
  for name in "bc":
    put_status(tmp_path, name, state="done")
  assert rounds(again) == [(packs[1], [("done", ""), ("failed", "nan")])]
  del slurm.queue["1_0"]
  assert rounds(again, 20) == [(packs[0], [("killed", f"Slurm: gone; see {tmp_path / 'slurm' / '0'}")])]
  assert not again.busy
  assert slurm.engine(tmp_path / "other", lines).adopt(packs) == []  # another sweep's tasks are not its own


def test_two_tasks_of_a_pack_are_reduced_to_one(slurm, tmp_path):
  pack, lines = [make_cell("a")], []
  for _ in range(2):
    engine = slurm.engine(tmp_path, lines)
    engine.start(0, pack, [{}])
    rounds(engine)
  assert slurm.engine(tmp_path, lines).adopt([pack]) == [pack]
  assert slurm.cancelled == [(["2_0"], ())]


def test_sbatch_that_fails_for_now_is_asked_again_unless_it_took_the_array(slurm, tmp_path):
  engine, lines = slurm.engine(tmp_path, []), []
  slurm.fail = "sbatch: error: Unable to contact slurm controller"
  engine.start(0, [make_cell("a")], [{}])
  assert rounds(engine, 5) == []
  assert slurm.arrays == 0
  slurm.fail = "lost: Socket timed out on send/recv operation"
  rounds(engine, 10)
  assert slurm.arrays == 1  # found by its name, and not submitted twice
  slurm.fail = "sbatch: error: Invalid account"
  engine.start(1, [make_cell("b")], [{}])
  with pytest.raises(UserError, match="sbatch: Invalid account"):
    rounds(engine, 5)
  assert not lines


def test_a_stop_cancels_what_waits_signals_what_runs_and_ends_it_in_time(slurm, tmp_path):
  lines, pack = [], [make_cell("a")]
  engine = slurm.engine(tmp_path, lines)
  engine.start(0, pack, [{}])
  rounds(engine, 3)
  slurm.queue["1_0"] = Listed("RUNNING", "x", "None")
  for _ in range(70):
    engine.stop()
    assert rounds(engine) == []
  assert slurm.cancelled[:2] == [(["1_0"], ("--state=PENDING",)), (["1_0"], ("--signal=USR1",))]
  assert slurm.cancelled[-1] == (["1_0"], ())  # 5 minutes were enough
  assert engine.free() == {}
  slurm.queue["1_0"] = Listed("CANCELLED", "x", "None")
  assert [state for _, ((state, _),) in rounds(engine, 3)] == ["killed"]
  assert not engine.busy


@pytest.mark.parametrize(("option", "words"), [
  ("cpus_per_tsk=1", "did you mean cpus_per_task?"), ("nodes=2", "one of account"), ("cpus_per_task=0", "a whole number"),
  ("lag_s=never", "a number of seconds"), ("poll_s=0", "a number of seconds"),
])  # fmt: skip
def test_slurm_options_are_checked(option, words):
  pytest.importorskip("submitit", reason="submitit is not installed (pip install 'ilya-jax[slurm]')")
  with pytest.raises(UserError) as caught:
    launch_slurm.read_slurm_options(launch.read_options([option]))
  assert words in str(caught.value)
  assert "--launcher-option" in str(caught.value)


def test_cpus_reach_srun_and_slurms_own_defaults_hold(tmp_path):
  pytest.importorskip("submitit", reason="submitit is not installed (pip install 'ilya-jax[slurm]')")
  given, own = launch_slurm.read_slurm_options(
    {"cpus_per_task": "4", "partition": "a", "lag_s": "5", "setup": "module load x"}
  )
  assert own == {"lag_s": 5.0, "poll_s": 10.0}
  if launch_slurm.shutil.which("srun") is None:
    pytest.skip("srun is not installed (Slurm)")
  text = launch_slurm._executor(tmp_path, name="n", options=given)._make_submission_file_text("run", "")
  assert "#SBATCH --cpus-per-task=4" in text
  assert "--cpus-per-task=4" in text.rpartition("srun")[2]
  assert "module load x" in text
  assert "--time" not in text
  assert "wckey" not in text


@pytest.mark.parametrize(("launcher", "package"), [("slurm", "submitit"), ("ray", "ray")])
def test_a_missing_extra_says_what_to_install(launcher, package, tmp_path, monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, package, None)
  with pytest.raises(UserError, match=rf"pip install 'ilya-jax\[{launcher}\]'"):
    launch.open_engine(launcher, {}, sweep_dir=tmp_path, workers=0, report=print)


def test_what_a_run_noted_is_passed_on_once(tmp_path):
  put_status(tmp_path, "a", state="running", notes=["known"])

  def ends(name, time):
    notes = ["known", "checkpoint of step 5 is damaged"][: time + 1]
    put_status(tmp_path, name, state="preempted" if time == 1 else "done", step=5 * time, notes=notes)
    return ("preempted", "10") if time == 1 else ("done", "")

  _, _, lines = run([[make_cell("a")]], tmp_path, ends)
  assert [line for line in lines if "damaged" in line or "known" in line] == ["cell a: checkpoint of step 5 is damaged"]
