"""Simulated schedules against their closed forms: idle shares, bubbles, held activations, order and exclusivity."""

import pytest

from ilya_jax.errors import UserError
from ilya_jax.parallel.pipeline import Plan, ticks
from ilya_jax.parallel.schedule import SCHEDULES, simulate

SIZES = [(1, 1), (2, 1), (2, 4), (4, 4), (4, 8), (8, 8), (8, 32)]


@pytest.mark.parametrize(("stages", "micro"), SIZES)
@pytest.mark.parametrize("backward", [1.0, 2.0])
def test_gpipe_and_1f1b_idle_and_hold_as_their_formulas_say(stages, micro, backward):
  share = (stages - 1) / (micro + stages - 1)
  times = {"stages": stages, "micro": micro, "backward": backward, "weights": 0.5}
  gpipe, one = simulate("gpipe", **times), simulate("1f1b", **times)
  assert gpipe.idle_share == pytest.approx(share, abs=1e-12)
  assert one.idle_share == pytest.approx(share, abs=1e-12)
  assert [gpipe.peak(k) for k in range(stages)] == [micro] * stages
  assert [one.peak(k) for k in range(stages)] == [min(micro, stages - k) for k in range(stages)]


@pytest.mark.parametrize(("stages", "micro", "virtual"), [(2, 2, 2), (2, 4, 2), (4, 4, 2), (4, 8, 3), (8, 16, 2)])
@pytest.mark.parametrize("schedule", ["circular", "interleaved"])
def test_several_cells_a_stage_shrink_the_bubble(schedule, stages, micro, virtual):
  simulation = simulate(schedule, stages=stages, micro=micro, virtual=virtual)
  assert simulation.idle_share == pytest.approx((stages - 1) / (virtual * micro + stages - 1), abs=1e-12)
  if schedule == "circular":
    assert simulation.peak(0) == virtual * micro
    forward = max(event.end for event in simulation.events if event.work.kind == "F")
    assert forward == ticks(Plan(micro, (1,) * stages * virtual, virtual), stages=stages)
  else:
    assert simulation.peak(0) == min(2 * (stages - 1) + (virtual - 1) * stages + 1, micro * virtual)


@pytest.mark.parametrize(("stages", "micro"), [(2, 4), (4, 8), (4, 16), (8, 24)])
def test_zero_bubble(stages, micro):
  one = simulate("1f1b", stages=stages, micro=micro)
  first = simulate("zb_h1", stages=stages, micro=micro)
  second = simulate("zb_h2", stages=stages, micro=micro)
  assert one.bubble == pytest.approx(3 * (stages - 1))
  assert first.bubble == pytest.approx(stages - 1)  # a third of 1F1B's
  assert second.bubble == pytest.approx(0)
  assert first.peak(0) == stages
  assert second.peak(0) == 2 * stages - 1


@pytest.mark.parametrize(("stages", "micro"), [(3, 3), (4, 5), (8, 8), (8, 14)])
def test_zero_bubble_wants_micro_batches_enough_to_fill_the_way_there_and_back(stages, micro):
  """The first stage's M forwards end at M, and its first backward begins after K forwards and K - 1 backwards."""
  assert simulate("zb_h2", stages=stages, micro=micro).bubble == pytest.approx(2 * stages - 1 - micro)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("stages", "micro"), [(1, 3), (3, 6), (4, 8)])
def test_every_micro_batch_visits_every_cell_once_in_order(schedule, stages, micro):
  virtual = 2 if schedule in ("circular", "interleaved") else 1
  events = simulate(schedule, stages=stages, micro=micro, virtual=virtual).events
  kinds = "FBW" if schedule.startswith("zb") else "FB"
  cells = stages * virtual
  assert len(events) == len({event.work for event in events}) == len(kinds) * micro * cells
  at = {event.work: event for event in events}
  for m in range(micro):
    own = [next(e for w, e in at.items() if w == ("F", m, cell)) for cell in range(cells)]
    own += [next(e for w, e in at.items() if w == ("B", m, cell)) for cell in reversed(range(cells))]
    assert all(a.end <= b.start for a, b in zip(own[:-1], own[1:], strict=True))
  for stage in range(stages):
    mine = [event for event in events if event.stage == stage]
    assert all(a.end <= b.start for a, b in zip(mine[:-1], mine[1:], strict=True))
    assert all(event.work.cell % stages == stage for event in mine)


def test_the_costliest_cell_sets_the_clock():
  costs = [28.0, 30.0, 42.0, 29.0]
  long = simulate("gpipe", stages=4, micro=200, costs=costs, weights=0.0, backward=1e-9)
  assert long.makespan / 200 == pytest.approx(42.0, rel=0.02)


def test_refusals():
  for bad in [("nothing", 2, 2, 1), ("1f1b", 2, 2, 2), ("interleaved", 2, 3, 2), ("circular", 4, 3, 2)]:
    with pytest.raises(UserError):
      simulate(bad[0], stages=bad[1], micro=bad[2], virtual=bad[3])
