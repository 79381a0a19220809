"""Fault injection: kills, signals, full disks and damaged checkpoints, tried on jobs of seconds; all must end with the same bits.

Three jobs: `train`, `sweep` (a trunk with branches, a seed, a held-out run) and `pair` (a train job of two processes).
Each is run undisturbed first; whatever happens to it later, its parameters' digests, its metric rows and its table must be
those of the undisturbed one, and it must say what the interface promises. Exit code 1 where a job does not survive.

  scripts/chaos [--kills 12] [--rounds 1] [--seed 0] [--only kill,train] [--minutes 10] [--record]

Writes experiments/results/faults.json with --record. Times and victims follow from the seed; what a process is doing at that
time does not, so that a failure need not come back with the same seed.
"""

import argparse
import functools
import os
import random
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # as its jobs: it looks for no TPU to name the hardware

import chaos_faults as faults
import chaos_files as files
from chaos_jobs import ROOT, STEPS, Job, make_job, with_reference

from ilya_jax.train.metrics import read_json, write_json
from ilya_jax.train.workdir import git_commit, hardware, versions

JOBS = ("train", "sweep", "pair")
SHARES = {"train": 0.4, "sweep": 0.3, "pair": 0.3}  # of the kills
_KILLS_A_RUN = 4  # at most; then it may end
_ATTEMPTS = 4  # at a trial whose job is done too early
_DAMAGES = ("truncate", "flip-largest", "flip-any", "delete-file", "delete-any", "delete-checkpoint")
_FILE = ROOT / "experiments" / "results" / "faults.json"


class Fault(NamedTuple):
  """A fault: the jobs it is tried on, and the function that tries it."""

  jobs: Sequence[str]
  run: Callable[[faults.Trial], str]


FAULTS = {
  "sigterm": Fault(JOBS, functools.partial(faults.ask_to_stop, signum=signal.SIGTERM)),
  "sigint": Fault(JOBS, functools.partial(faults.ask_to_stop, signum=signal.SIGINT)),
  "sigusr1": Fault(JOBS, functools.partial(faults.ask_to_stop, signum=signal.SIGUSR1)),
  "pause": Fault(JOBS, faults.pause),
  "long-pause": Fault(("pair",), faults.long_pause),
  "twice": Fault(JOBS, faults.twice),
  "full-disk": Fault(JOBS, files.full_disk),
  "read-only": Fault(JOBS, files.read_only_somehow),
  **{how: Fault(JOBS, functools.partial(files.damage, how=how)) for how in _DAMAGES},
  "damaged-trunk": Fault(("sweep",), files.damage_trunk),
}  # "kill" is tried many times on one run, and so apart from these


class Result(NamedTuple):
  """What one trial gave. tried: faults in it, all of which survived or did not (`problem`); skipped: why it was not tried."""

  fault: str
  job: str
  tried: int
  problem: str
  skipped: str
  words: str
  wall_s: float


class Bench:
  """The jobs with what they give undisturbed, each made when it is first needed, and the half-done folders of each."""

  def __init__(self, base: Path, *, seed: int, steps: Mapping[str, int] = STEPS, turns: int = 2):
    self.base, self._seed, self._steps, self._turns = base, seed, steps, turns
    self._jobs: dict[str, Job] = {}
    self._half_done: dict[str, Path] = {}

  def job(self, name: str) -> Job:
    """The job; runs it undisturbed, twice with the same bits, before its first trial."""
    if name not in self._jobs:
      self._jobs[name] = with_reference(make_job(name, self.base, steps=self._steps), self.base, turns=self._turns)
      print(f"{name}: {self._jobs[name].life_s:.1f} s undisturbed", flush=True)
    return self._jobs[name]

  def trial(self, fault: str, job: str, number: int, *, attempt: int = 0) -> faults.Trial:
    """A trial's folder and draws."""
    folder = self.base / "trials" / f"{fault}_{job}_{number}_{attempt}"
    folder.mkdir(parents=True)
    rng = random.Random(f"{self._seed}/{fault}/{job}/{number}/{attempt}")
    return faults.Trial(self.job(job), folder, rng, number, functools.partial(self._half, job))

  def _half(self, name: str) -> Path:
    if name not in self._half_done:
      folder = self.base / "half_done" / name
      rng = random.Random(f"{self._seed}/half/{name}")
      trial = faults.Trial(self.job(name), folder, rng, 0, Path)
      self._half_done[name] = files.make_half_done(trial)
    return self._half_done[name]


def try_once(bench: Bench, fault: str, job: str, *, number: int, kills: int = 0) -> Result:
  """One trial, repeated where the job was done too early. Its folder is removed where the job survives.

  kills: of a trial of the fault `kill`, the most it makes.
  """
  began = time.monotonic()
  for attempt in range(_ATTEMPTS):
    trial = bench.trial(fault, job, number, attempt=attempt)
    tried, problem, skipped, words = 1, "", "", ""
    try:
      if fault == "kill":
        tried, words = faults.kill(trial, kills=kills)
      else:
        words = FAULTS[fault].run(trial)
    except faults.Broken as broken:
      problem = f"{broken}; see {trial.folder}"
    except (faults.Skipped, faults.Missed) as reason:
      tried, skipped = 0, str(reason)
    if not problem:
      shutil.rmtree(trial.folder)
    if problem or tried or (skipped and "mount" in skipped):
      break
  return Result(fault, job, tried, problem, skipped, words, time.monotonic() - began)


def all_trials(bench: Bench, *, kills: int, rounds: int, chosen: Callable[[str, str], bool]) -> Iterator[Result]:
  """Results of all trials that are chosen by fault and job: the kills first, then the rounds of all others."""
  shares = {job: SHARES[job] for job in JOBS if chosen("kill", job)}
  for job, share in shares.items():
    landed, number, wanted = 0, 0, round(kills * share / sum(shares.values()))
    while landed < wanted and number < 2 * wanted:
      result = try_once(bench, "kill", job, number=number, kills=min(_KILLS_A_RUN, wanted - landed))
      landed, number = landed + result.tried, number + 1
      yield result
  for index in range(rounds):
    for name, fault in FAULTS.items():
      for job in fault.jobs:
        # The forms of a read-only folder go by number, and one round should see them all.
        numbers = range(4 * index, 4 * index + _forms(job)) if name == "read-only" else [index]
        for number in numbers if chosen(name, job) else ():
          yield try_once(bench, name, job, number=number)


def _forms(job: str) -> int:
  return {"train": 4, "sweep": 3, "pair": 2}[job]


def choose(names: str) -> Callable[[str, str], bool]:
  """Whether a fault and a job are chosen by names of either, joined by commas; none of a kind: all of it."""
  given = {name.strip() for name in names.split(",") if name.strip()}
  known = {"kill", *FAULTS, *JOBS}
  if given - known:
    raise ValueError(f"--only {sorted(given - known)[0]!r}; expected some of {', '.join([*JOBS, 'kill', *FAULTS])}")
  jobs, names_of_faults = given & set(JOBS), given - set(JOBS)
  return lambda fault, job: (not jobs or job in jobs) and (not names_of_faults or fault in names_of_faults)


def table(results: Sequence[Result]) -> str:
  """Fault by job: how many were tried and how many survived, or why none was."""
  lines = [f"{'fault':<18}" + "".join(f"{job:>14}" for job in JOBS) + "   tried / survived"]
  for fault in dict.fromkeys(result.fault for result in results):
    cells = []
    for job in JOBS:
      own = [result for result in results if (result.fault, result.job) == (fault, job)]
      tried = sum(result.tried for result in own)
      cells.append(f"{tried} / {survived(own)}" if tried else "skipped" if own else "")
    lines.append(f"{fault:<18}" + "".join(f"{cell:>14}" for cell in cells))
  lines += sorted({f"skipped: {result.skipped}" for result in results if result.skipped})
  return "\n".join(lines)


def survived(results: Sequence[Result]) -> int:
  """How many faults were survived."""
  return sum(result.tried for result in results if not result.problem)


def record(results: Sequence[Result], *, base: Path, seed: int, command: str) -> None:
  """Writes what was tried to experiments/results/faults.json; what was recorded of other faults and jobs stays."""
  known: dict[tuple[str, str], Any] = {
    (each["fault"], each["job"]): each for each in (read_json(_FILE) or {}).get("faults", [])
  }
  common = {"seed": seed, "hardware": hardware(), "versions": versions(), "commit": git_commit(), "command": command}
  for fault, job in dict.fromkeys((result.fault, result.job) for result in results):
    own = [result for result in results if (result.fault, result.job) == (fault, job)]
    known[fault, job] = {
      "fault": fault, "job": job, "tried": sum(result.tried for result in own), "survived": survived(own),
      "trials": [result.words for result in own if result.words],
      "skipped": next((result.skipped for result in own if result.skipped), ""),
      "problems": [result.problem.partition("; see ")[0].replace(str(base), "…") for result in own if result.problem],
      "wall_s": round(sum(result.wall_s for result in own), 1), **common,
    }  # fmt: skip
  _FILE.parent.mkdir(parents=True, exist_ok=True)
  write_json(_FILE, {"faults": list(known.values())})


def _arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--kills", type=int, default=12, help="with SIGKILL, over all jobs (default 12)")
  parser.add_argument("--rounds", type=int, default=1, help="of all other faults (default 1)")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--only", default="", metavar="NAME,…", help="faults and jobs")
  parser.add_argument("--minutes", type=float, default=10.0, help="no trial starts later than that (default 10)")
  parser.add_argument("--record", action="store_true", help="write experiments/results/faults.json")
  return parser.parse_args()


def _stop(signum: int, frame: Any) -> None:
  raise KeyboardInterrupt(signal.Signals(signum).name)


def main() -> int:
  """Tries the faults; returns the exit code."""
  arguments = _arguments()
  try:
    chosen = choose(arguments.only)
  except ValueError as error:
    print(f"error: {error}; --only", file=sys.stderr)
    return 2
  signal.signal(signal.SIGTERM, _stop)  # mounts and processes go as it ends
  base = Path(tempfile.mkdtemp(prefix="chaos_"))
  command = shlex.join(["scripts/chaos", *sys.argv[1:]])
  began, results, left_out = time.monotonic(), [], ""
  trials = all_trials(Bench(base, seed=arguments.seed), kills=arguments.kills, rounds=arguments.rounds, chosen=chosen)
  try:
    for result in trials:
      results.append(result)
      outcome = (
        f"FAILED: {result.problem}" if result.problem else f"skipped: {result.skipped}" if result.skipped else "ok"
      )
      line = f"{time.monotonic() - began:6.0f} s  {result.fault} x {result.job}  {result.wall_s:.0f} s  {outcome}"
      print(f"{line}  {result.words}".rstrip(), flush=True)
      if arguments.record:  # at once, as a run of hours may be cut off
        record(results, base=base, seed=arguments.seed, command=command)
      if time.monotonic() - began > 60 * arguments.minutes:
        left_out = f"the rest was left out after {arguments.minutes:g} minutes (--minutes)"
        break
  except KeyboardInterrupt as stopped:
    left_out = f"the rest was left out, stopped by {stopped or 'SIGINT'}"
  print("\n".join(["", table(results), *([left_out] if left_out else [])]))
  problems = [result for result in results if result.problem]
  for result in problems:
    print(f"error: {result.fault} x {result.job}: {result.problem}", file=sys.stderr)
  if not problems:
    shutil.rmtree(base)
  return 1 if problems or "stopped by" in left_out else 0


if __name__ == "__main__":
  sys.exit(main())
