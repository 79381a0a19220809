"""An event simulator of pipeline schedules: who works when, the idle share, and how many activations are held at once.

Sources: GPipe (Huang et al. 2018, https://arxiv.org/abs/1811.06965); 1F1B and interleaved (Narayanan et al. 2021,
https://arxiv.org/abs/2104.04473); zero bubble (Qi et al. 2023, https://arxiv.org/abs/2401.10241). `circular` is what
`ilya_jax.parallel.pipeline` runs: all forward rounds, then their mirror image.
Times are in units of the caller: F forward, B backward for the input, W backward for the weights of one cell and
micro-batch; schedules that do not split the backward pass run B and W as one piece.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ilya_jax.errors import UserError

SCHEDULES = ("gpipe", "circular", "1f1b", "interleaved", "zb_h1", "zb_h2")


class Work(NamedTuple):
  """A piece of work: kind "F", "B" (with W unless the schedule splits them) or "W", micro-batch, cell of the list."""

  kind: str
  micro: int
  cell: int


class Event(NamedTuple):
  """A piece of work on a stage, from start to end."""

  stage: int
  start: float
  end: float
  work: Work


class Simulation(NamedTuple):
  """events in order of their start; K stages."""

  events: tuple[Event, ...]
  stages: int

  @property
  def makespan(self) -> float:
    """From the first start to the last end."""
    return max(event.end for event in self.events)

  @property
  def idle_share(self) -> float:
    """The share of all stages' time, over the makespan, in which they do nothing."""
    busy = sum(event.end - event.start for event in self.events)
    return 1 - busy / (self.stages * self.makespan)

  @property
  def bubble(self) -> float:
    """The longest time that a stage waits between its own first and last piece of work."""
    own = [[event for event in self.events if event.stage == stage] for stage in range(self.stages)]
    return max(each[-1].end - each[0].start - sum(event.end - event.start for event in each) for each in own)

  def peak(self, stage: int) -> int:
    """The most (micro-batch, cell) pairs whose activations the stage holds at once: from F to the end of the backward."""
    last: dict[tuple[int, int], float] = {}
    first: dict[tuple[int, int], float] = {}
    for event in self.events:
      if event.stage == stage:
        key = (event.work.micro, event.work.cell)
        first.setdefault(key, event.start)
        last[key] = max(last.get(key, 0.0), event.end)
    return max(sum(first[k] <= start < last[k] for k in first) for start in first.values())


def simulate(
  schedule: str, *, stages: int, micro: int, virtual: int = 1, forward: float = 1.0, backward: float = 1.0,
  weights: float = 1.0, costs: Sequence[float] | None = None,
) -> Simulation:  # fmt: skip
  """Runs a schedule with K = `stages`, M = `micro`, V = `virtual` cells a stage.

  forward, backward, weights: F, B and W of a cell of cost 1. costs [V K]: the cost of each cell (default 1 each).
  Raises UserError on an unknown schedule, or sizes that it cannot take.
  """
  if schedule not in SCHEDULES:
    raise UserError(f"schedule {schedule!r}", f"one of {', '.join(SCHEDULES)}", "schedule")
  if virtual > 1 and schedule not in ("circular", "interleaved"):
    raise UserError(f"{schedule} with {virtual} virtual stages", "circular or interleaved", "virtual")
  if schedule == "interleaved" and micro % stages or (schedule == "circular" and virtual > 1 and micro < stages):
    raise UserError(f"{micro} micro-batches on {stages} stages", "a multiple (circular: at least as many)", "micro")
  costs = list(costs) if costs is not None else [1.0] * (stages * virtual)
  split = schedule.startswith("zb")
  durations = {"F": forward, "B": backward if split else backward + weights, "W": weights}
  if split:
    return _with_weights_apart(stages, micro, durations, costs, factor=1 if schedule == "zb_h1" else 2)
  orders = [list(_order(schedule, stage, stages=stages, micro=micro, virtual=virtual)) for stage in range(stages)]
  return _in_order(orders, durations, costs)


def _order(schedule: str, stage: int, *, stages: int, micro: int, virtual: int) -> Iterator[Work]:
  """What a stage does, in order."""
  if schedule in ("gpipe", "circular"):
    forwards = [Work("F", m, turn * stages + stage) for turn in range(virtual) for m in range(micro)]
    backwards = [work._replace(kind="B") for work in reversed(forwards)]
    ahead = len(forwards)
  else:
    cells = [(i // stages) % virtual for i in range(micro * virtual)]
    micros = [i // (stages * virtual) * stages + i % stages for i in range(micro * virtual)]
    if virtual == 1:
      micros = list(range(micro))
    forwards = [Work("F", m, turn * stages + stage) for m, turn in zip(micros, cells, strict=True)]
    backwards = [Work("B", m, (virtual - 1 - turn) * stages + stage) for m, turn in zip(micros, cells, strict=True)]
    ahead = stages - 1 - stage if virtual == 1 else 2 * (stages - 1 - stage) + (virtual - 1) * stages
  yield from _in_turn(forwards, backwards, ahead=ahead)


def _in_turn(forwards: Sequence[Work], backwards: Sequence[Work], *, ahead: int) -> Iterator[Work]:
  """`ahead` forwards (at most all), then a forward, while there are any, and a backward in turn."""
  yield from forwards[:ahead]
  for index, work in enumerate(backwards):
    yield from forwards[ahead + index : ahead + index + 1]
    yield work


def _needs(work: Work, last_cell: int) -> tuple[Work, ...]:
  """The work that must be done before."""
  if work.kind == "F":
    return (work._replace(cell=work.cell - 1),) if work.cell else ()
  if work.kind == "W":
    return (work._replace(kind="B"),)
  own = (work._replace(kind="F"),)
  return own if work.cell == last_cell else (*own, work._replace(cell=work.cell + 1))


def _in_order(orders: list[list[Work]], durations: dict[str, float], costs: Sequence[float]) -> Simulation:
  """Every stage does its list in order, each piece as soon as what it needs is done."""
  ends: dict[Work, float] = {}
  free, at, events = [0.0] * len(orders), [0] * len(orders), []
  while any(at[stage] < len(order) for stage, order in enumerate(orders)):
    moved = False
    for stage, order in enumerate(orders):
      while at[stage] < len(order) and all(need in ends for need in _needs(order[at[stage]], len(costs) - 1)):
        work = order[at[stage]]
        start = max([free[stage], *(ends[need] for need in _needs(work, len(costs) - 1))])
        ends[work] = free[stage] = start + durations[work.kind] * costs[work.cell]
        events.append(Event(stage, start, ends[work], work))
        at[stage] += 1
        moved = True
    assert moved, "a schedule whose work waits in a circle"
  return Simulation(tuple(sorted(events, key=lambda event: (event.start, event.stage))), len(orders))


def _with_weights_apart(
  stages: int, micro: int, durations: dict[str, float], costs: Sequence[float], *, factor: int
) -> Simulation:
  """Zero-bubble schedules: F and B in the order of 1F1B with factor 1 (ZB-H1) or 2 (ZB-H2) times its warm-up, W between.

  A stage does a W where it has to wait, where it holds too much (K, or 2 K - 1, micro-batches whose W is to come), and
  else as soon as more than k (2 k) wait; those are kept for the end, where they fill the time between the last Bs.
  """
  most = factor * stages - (factor - 1)
  orders = [
    list(_in_turn(*([Work(kind, m, k) for m in range(micro)] for kind in "FB"), ahead=factor * (stages - 1 - k)))
    for k in range(stages)
  ]
  ends: dict[Work, float] = {}
  done = [dict.fromkeys("FBW", 0) for _ in range(stages)]
  free: list[float] = [0.0] * stages
  events: list[Event] = []

  def choices(stage: int) -> Iterator[tuple[float, int, Work]]:
    """(earliest start, rank, work) of what the stage could do next."""
    counts = done[stage]
    blocked = counts["F"] - counts["W"] >= most
    at = counts["F"] + counts["B"]
    if at < len(orders[stage]):
      work = orders[stage][at]
      needs = _needs(work, stages - 1)
      blocked = blocked and work.kind == "F"
      if all(need in ends for need in needs) and not blocked:
        yield max([free[stage], *(ends[need] for need in needs)]), 0, work
    if counts["W"] < counts["B"] and (blocked or counts["B"] - counts["W"] > factor * stage or counts["F"] == micro):
      yield free[stage], 1, Work("W", counts["W"], stage)

  while len(events) < 3 * micro * stages:
    start, _, stage, work = min((t, rank, stage, work) for stage in range(stages) for t, rank, work in choices(stage))
    ends[work] = free[stage] = start + durations[work.kind] * costs[work.cell]
    done[stage][work.kind] += 1
    events.append(Event(stage, start, ends[work], work))
  return Simulation(tuple(sorted(events, key=lambda event: (event.start, event.stage))), stages)
