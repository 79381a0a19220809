"""The rules of the claims in `experiments/scaling_laws.py`, on made-up rows: each side of every threshold."""

import numpy as np
import pytest

from experiments import scaling_laws_compute, scaling_laws_models, scaling_laws_runs, scaling_laws_tables
from ilya_jax.claims import Setting
from ilya_jax.config import load_config
from ilya_jax.scaling.sweep import load_sweep

SEEDS = (0, 1, 2)


def rows_of(*columns, **values):
  """One row for each seed, of name -> a value for each."""
  return [
    {"seed": seed, **{name: each[seed] for name, each in values.items()}}
    for seed in range(len(next(iter(values.values()))))
  ]


def test_the_rule_of_sizes():
  def judge(off, same, *, plain=(0.12,) * 3, scale="small"):
    rows = rows_of(off=off, off_same=same, off_plain=off, alpha_N=(0.3,) * 3, alpha_N_plain=plain, loss=(1.5,) * 3)
    return scaling_laws_tables.judge_sizes(rows, scale).verdict

  assert judge((0.01, -0.029, 0.0), (0.05, 0.05, 0.05)) == "holds"
  assert judge((0.01, -0.031, 0.0), (0.05, 0.05, 0.05)) == "does not hold"
  assert judge((0.01, 0.02, 0.0), (0.05, 0.015, 0.05)) == "does not hold"
  assert judge((0.01, None, 0.0), (0.05, 0.05, 0.05)) == "does not hold"
  good = (0.01,) * 3, (0.05,) * 3
  assert judge(*good, plain=(0.07, 0.08, 0.09), scale="paper") == "holds"
  assert judge(*good, scale="paper") == "does not hold"


def test_the_rule_of_data():
  def judge(off):
    rows = rows_of(off=off, off_plain=off, off_same=off, alpha_D=(0.3,) * 3, alpha_D_plain=(0.1,) * 3, loss=(1.5,) * 3)
    return scaling_laws_tables.judge_data(rows, "small").verdict

  assert judge((0.01, -0.029, 0.02)) == "holds"
  assert judge((0.01, -0.029, 0.031)) == "does not hold"
  tiny = {"tokens": 100, "found": 100, "same_heldout": 1}
  assert scaling_laws_tables.judge_data([tiny], "tiny").verdict == "holds"
  assert scaling_laws_tables.judge_data([{**tiny, "found": 101}], "tiny").verdict == "does not hold"
  assert scaling_laws_tables.judge_data([{**tiny, "same_heldout": 0}], "tiny").verdict == "does not hold"


def test_the_rule_of_the_joint_law():
  def judge(**errors):
    table = {**dict.fromkeys(scaling_laws_tables.FORMS, 0.02), **errors}
    rows = [
      {"seed": 0, "form": form, "left_out": "largest N", "error": error, "loss": 1.0} for form, error in table.items()
    ]
    return scaling_laws_tables.judge_joint(rows, "small")

  assert judge(chinchilla=0.017).verdict == "holds"
  assert judge(chinchilla=0.015).verdict == "does not hold"
  assert judge(chinchilla=0.015).finding.startswith("best chinchilla")
  assert judge(coupled=None).verdict == "holds"


def test_the_rule_of_shape_and_heads():
  def judge(shapes=scaling_laws_models.SHAPES, **losses):
    rows = [
      {"seed": 0, "shape": scaling_laws_models.shape_name(shape), "loss": losses.get("x".join(map(str, shape)), 1.5)}
      for shape in shapes["small"]
    ]
    return scaling_laws_models.judge_shape(rows, "small").verdict

  assert judge() == judge(**{"32x16x2": 3.0}) == judge(**{"8x32x2": 1.54}) == "holds"
  assert judge(**{"8x32x2": 1.55}) == judge(**{"2x64x2": 1.45}) == "does not hold"
  assert judge(scaling_laws_models.HEADS, **{"2x64x8": 1.54}) == "holds"
  assert judge(scaling_laws_models.HEADS, **{"2x64x8": 1.4}) == "does not hold"


def test_the_rule_of_late_tokens():
  def judge(early, late):
    rows = [{"seed": k, "width": 64, "early_gap": a, "late_gap": b, "transformer": 1.0, "lstm": 1.1}
            for k, (a, b) in enumerate(zip(early, late, strict=True))]  # fmt: skip
    return scaling_laws_models.judge_lstm([{**rows[0], "width": 32, "late_gap": -1.0}, *rows], "small").verdict

  assert judge((0.0, -0.1, 0.1), (0.1, 0.0, 0.2)) == "holds"
  assert judge((0.0, -0.1, 0.3), (0.1, 0.0, 0.2)) == "does not hold"


def test_the_rule_of_positions():
  def judge(power, p):
    rows = rows_of(power_error=power, logarithm_error=(0.02,) * 3, p=p, E_T=(1.0,) * 3, a=(2.0,) * 3, loss=(1.5,) * 3)
    return scaling_laws_models.judge_position(rows, "small").verdict

  assert judge((0.01, 0.01, 0.019), (0.3, 0.5, 1.1)) == "holds"
  assert judge((0.01, 0.01, 0.021), (0.3, 0.5, 1.1)) == "does not hold"
  assert judge((0.01, 0.01, 0.01), (0.3, 0.5, 1.3)) == "does not hold"
  assert judge((0.01, None, 0.01), (0.3, None, 0.5)) == "does not hold"


def test_the_rule_of_compute():
  def judge(low, high, a=(0.7, 0.7, 0.7)):
    own = [{**row, "data": "one seed"} for row in rows_of(a_N=a, a_N_total=(0.6,) * 3)]
    pooled = {
      "data": "all seeds", "a_N_low": low, "a_N_high": high, "a_N_total": 0.6, "difference": 0.1, "predicted": 0.1,
      "predicted_low": 0.05, "predicted_high": 0.2, "alpha_C": 0.1,
      **dict.fromkeys(("a_N_parabola", "a_N_surface", "a_N_envelope")),
    }  # fmt: skip
    return scaling_laws_compute.judge_compute([*own, pooled], "small").verdict

  assert judge(0.6, 0.66) == judge(0.79, 0.9) == "holds"
  assert (
    judge(0.6, 0.64) == judge(0.81, 0.9) == judge(None, None) == judge(0.6, 0.7, a=(0.7, 0.6, 0.7)) == "does not hold"
  )


def test_the_rule_of_the_critical_batch():
  def judge(*, between, along):
    rows = [
      {"seed": seed, "width": width, "target": target, "B_crit": 1000 * between ** (width == 64) * along ** (target == 1.8)}
      for seed in SEEDS for width in (32, 64) for target in (2.2, 2.0, 1.8)
    ]  # fmt: skip
    return scaling_laws_models.judge_batch(rows, "small").verdict

  assert judge(between=1.5, along=3.0) == "holds"
  assert judge(between=2.1, along=3.0) == "does not hold"
  assert judge(between=1.5, along=1.4) == "does not hold"


def test_the_rule_of_overfitting():
  def judge(power, rank):
    rows = rows_of(power=power, rank_correlation=rank, rank_correlation_at_074=rank)
    return scaling_laws_tables.judge_overfit(rows, "small").verdict

  assert judge((0.5, 0.74, 1.0), (0.95, 0.99, 0.91)) == "holds"
  assert judge((0.5, 0.74, 1.2), (0.95, 0.99, 0.91)) == judge((0.5, 0.74, 1.0), (0.95, 0.99, 0.89)) == "does not hold"


def test_the_scatter_is_least_at_the_power_that_made_the_excess():
  N, D = (axis.ravel() for axis in np.meshgrid([1e4, 1e5, 1e6], [1e6, 2e6, 4e6]))
  excess = (N**0.74 / D) ** 0.5
  by_power = {q: scaling_laws_tables.scatter(N, D, excess, q) for q in scaling_laws_tables.POWERS}
  assert min(by_power, key=by_power.__getitem__) == 0.74
  assert by_power[0.74] < 1e-9


def test_where_two_lengths_are_left_the_scatter_at_power_0_is_that_about_their_means():
  N, D = np.array([1e4, 1e5, 1e4, 1e5]), np.array([1e6, 1e6, 2e6, 2e6])
  assert scaling_laws_tables.scatter(N, D, np.exp([0.0, 1.0, 2.0, 4.0]), 0.0) == pytest.approx(np.sqrt((0.5 + 2.0) / 4))


def test_the_rule_of_transfer():
  def judge(bend):
    rows = [
      {"seed": 0, "text": "help", "loss": x, "other": 1.3 * x + 0.2 + bend * (k == 3)}
      for k, x in enumerate((1.5, 1.7, 1.9, 2.4))
    ]
    return scaling_laws_models.judge_transfer(rows, "small").verdict

  assert judge(0.0) == judge(0.1) == "holds"
  assert judge(1.0) == "does not hold"


def test_the_rule_of_efficiency():
  def judge(*shares):
    return scaling_laws_tables.judge_efficiency(rows_of(share=shares), "small").verdict

  assert judge(0.5, 0.99) == "holds"
  assert judge(0.5, 1.0) == judge(0.5, None) == "does not hold"


def test_runs_beside_the_sweep_are_configured_as_its_own(tmp_path):
  """Width, length and seed apart, nothing of a run that a claim trains differs from the sweep's, whose table it stands beside."""
  setting = Setting("small", (0,), tmp_path, lambda jobs: {}, print)
  cells = [cell for cell in load_sweep(scaling_laws_runs.SWEEP, overrides={}).cells if cell.role == "fit"]
  assert len(cells) == 102
  for cell in cells:
    model, steps, seed = cell.config.model, cell.config.steps, cell.config.seed
    own = load_config(*scaling_laws_runs.transformer(setting, model.d_model, steps, seed=seed))
    assert own.to_dict() == cell.config.to_dict()
