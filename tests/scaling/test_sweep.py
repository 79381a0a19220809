"""Sweeps: expansion of axes, ids, trunks and branches, selection, isolation of failures, and what cells.csv holds."""

import csv
import json

import pytest

from ilya_jax import cli
from ilya_jax.errors import UserError
from ilya_jax.scaling import command, sweep

FILE = '''
"""A sweep for the tests."""
VARIANTS = ("", "broken")
COMMON = {{
  "data.name": "files", "data.path": "{text}", "data.heldout_fraction": 0.2, "data.context": 16, "batch_size": 8,
  "model.n_layers": 1, "schedule.warmup_steps": 4, "eval.tokens": 1024, "log_every": 5, "model.d_model": 8,
  "execution.tensorboard": False, "execution.steps_per_dispatch": 4,
}}
BASE = {{"family": "transformer", "config": "configs/transformer_lm.py:tiny"}}
def get_sweep(arg=""):
  groups = [
    {{**BASE, "set": COMMON, "axes": [
      {{"model.d_model": [8, 12], "optim.learning_rate": [1e-2, 8e-3]}}, [{{"steps": 10}}, {{"steps": 20}}, {{"steps": 40}}]]}},
    {{**BASE, "set": {{**COMMON, "steps": 20, "optim.learning_rate": 1e-2}}, "seeds": [0, 1, 2]}},
    {{**BASE, "role": "held_out", "set": {{**COMMON, "model.d_model": 16, "steps": 60}}}},
  ]
  if arg:
    hot = {{"optim.learning_rate": 1e30, "optim.clip_norm": 0.0, "schedule.warmup_steps": 0, "steps": 12}}
    groups.append({{**BASE, "set": {{**COMMON, **hot}}}})
  return {{"name": "test" + arg, "groups": groups, "fit": {{"form": "chinchilla", "bootstrap": 20, "starts": 8}}}}
'''


@pytest.fixture(scope="module")
def file(tmp_path_factory, text_folder):
  path = tmp_path_factory.mktemp("sweep") / "sweep.py"
  path.write_text(FILE.format(text=text_folder))
  return str(path)


def test_axes_multiply_blocks_vary_together_and_duplicates_fall_together(file):
  cells = sweep.load_sweep(file, overrides={}).cells
  own = [cell for cell in cells if cell.role != "trunk"]
  assert len(own) == 2 * 3 + 2 + 1  # seed 0 of the second group is a cell of the first
  assert {(c.config.model.d_model, c.config.optim.learning_rate) for c in own if c.role == "fit"} == {
    (8, 1e-2),
    (12, 8e-3),
  }
  assert len({cell.id for cell in cells}) == len(cells)
  assert [cell.role for cell in own].count("held_out") == 1


def test_lengths_of_one_size_share_a_trunk_that_ends_where_the_longest_cools_down(file):
  cells = sweep.load_sweep(file, overrides={}).cells
  trunks = {cell.id: cell for cell in cells if cell.role == "trunk"}
  assert len(trunks) == 2
  for trunk in trunks.values():
    branches = [cell for cell in cells if cell.trunk == trunk.id and cell.role == "fit"]
    assert sorted(cell.config.steps for cell in branches) == [10, 20, 40]
    assert trunk.config.schedule.name == "constant"
    assert trunk.config.steps == 32
    assert tuple(trunk.config.checkpoint.keep_steps) == (8, 16, 32)
    own = sweep.own_flops(trunk) + sum(sweep.own_flops(cell) for cell in branches)
    per_step = trunk.counts.flops_per_unit * trunk.counts.units_per_step
    assert own == pytest.approx((32 + 0.2 * 70) * per_step)  # instead of 70 steps
  alone = [cell for cell in cells if cell.trunk == cell.id and cell.role != "trunk"]
  assert len(alone) == 3


def test_ids_depend_on_the_config_and_not_on_its_execution(file):
  def ids(**overrides):
    return {cell.id for cell in sweep.load_sweep(file, overrides=overrides).cells}

  assert ids() == ids(log_every=1, **{"mesh.data": 1, "checkpoint.every": 7, "execution.steps_per_dispatch": 2})
  assert not ids() & ids(**{"model.n_layers": 2})


@pytest.mark.parametrize(("pattern", "count"), [
  ("model.d_model=12", 3), ("role=held_out", 1), ("family=transformer,steps=20", 4), ("model.d_model=1*", 4),
])  # fmt: skip
def test_only_selects_by_override(file, pattern, count):
  cells = sweep.load_sweep(file, overrides={}).cells
  assert sum(cell.role != "trunk" for cell in sweep.select(cells, pattern)) == count


def test_only_selects_by_id_and_brings_the_trunk(file):
  cells = sweep.load_sweep(file, overrides={}).cells
  branch = next(cell for cell in cells if cell.role == "fit" and cell.trunk != cell.id)
  assert [cell.id for cell in sweep.select(cells, branch.id[:8])] == [branch.trunk, branch.id]
  with pytest.raises(UserError, match="selects no cell"):
    sweep.select(cells, "zzz")


@pytest.mark.slow
def test_a_sweep_runs_isolates_a_failure_and_goes_on(file, tmp_path, monkeypatch, capfd):
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  workdir = tmp_path / "s"
  arguments = ["sweep", f"{file}:broken", "--workdir", str(workdir), "--workers", "2"]
  assert cli.main(arguments) == 1
  captured = capfd.readouterr()
  assert "1 of 12 cells failed" in captured.err.splitlines()[-1]
  with (workdir / "cells.csv").open() as opened:
    rows = list(csv.DictReader(opened))
  assert tuple(rows[0]) == sweep.COLUMNS
  assert sum(row["final"] == "1" for row in rows) == 9
  for row in rows:
    assert float(row["C_6ND"]) == 6 * float(row["N"]) * float(row["D"])
    assert int(row["D"]) == int(row["step"]) * 8 * 16
  record = json.loads((workdir / "sweep.json").read_text())
  assert len(record["cells"]) == 12
  assert (workdir / "report" / "report.html").stat().st_size > 10_000
  assert command.status(workdir, retry_failed=False) == 0
  assert "1 failed" in capfd.readouterr().out
  assert cli.main(arguments) == 1  # nothing runs again; the failure stands
  assert command.status(workdir, retry_failed=True) == 0
  assert "1 failures cleared" in capfd.readouterr().out


def test_packs_hold_cells_of_one_shape_and_length_and_are_kept(file):
  cells = sweep.load_sweep(file, overrides={}).cells
  packs = sweep.make_packs(cells, size=2)
  assert sorted(cell.id for pack in packs for cell in pack) == sorted(cell.id for cell in cells)
  pairs = [pack for pack in packs if len(pack) > 1]
  assert [sorted(cell.config.seed for cell in pack) for pack in pairs] == [[1, 2]]
  kept = [[cells[0].id, cells[1].id]]
  assert [[cell.id for cell in pack] for pack in sweep.make_packs(cells, size=1, kept=kept)][:1] == kept
  branch = next(cell for cell in cells if cell.trunk != cell.id)
  taken = sweep.needed(packs, [branch, pairs[0][0]])
  assert {cell.id for pack in taken for cell in pack} == {branch.id, branch.trunk, *(cell.id for cell in pairs[0])}


@pytest.mark.slow
def test_a_packed_sweep_gives_the_table_of_an_unpacked_one(file, tmp_path, monkeypatch):
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  tables = []
  for pack in (1, 3):
    workdir = tmp_path / str(pack)
    arguments = ["sweep", file, "--workdir", str(workdir), "--workers", "1", "--pack", str(pack), "--only", "steps=20"]
    assert cli.main([*arguments, "--config.model.d_model=8"]) == 0
    with (workdir / "cells.csv").open() as opened:
      tables.append(list(csv.DictReader(opened)))
  assert [len(pack) for pack in json.loads((tmp_path / "3" / "sweep.json").read_text())["packs"]] == [2, 2, 2, 2, 2]
  alone, packed = ({row["cell"]: float(row["loss"]) for row in rows if row["final"] == "1"} for rows in tables)
  assert set(alone) <= set(packed)
  assert all(packed[cell] == pytest.approx(loss, rel=1e-4) for cell, loss in alone.items())


def test_a_dry_run_starts_and_writes_nothing(file, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr("ilya_jax.scaling.estimate.speeds", lambda cells, *, workers: {"transformer": [_SPEED]})
  assert cli.main(["sweep", file, "--workdir", str(tmp_path / "none"), "--dry-run"]) == 0
  printed = capsys.readouterr().out
  assert len([line for line in printed.splitlines() if "transformer" in line]) == 11
  assert not (tmp_path / "none").exists()


def _speed():
  from ilya_jax.scaling.estimate import Speed

  return Speed(flops=1e6, seconds=1e-3, compile_s=1.0, bytes=1 << 20)


_SPEED = _speed()
