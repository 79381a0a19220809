"""The claims on the coffee automaton: tiny scale holds, rules judge as their words say, figures draw."""

import numpy as np
import pytest

from experiments import coffee_automaton, coffee_automaton_figures
from ilya_jax.claims.measuring import measure
from ilya_jax.complexity import automaton
from ilya_jax.scaling.drawing import image

CLAIMS = {claim.id: claim for claim in coffee_automaton.CLAIMS}


@pytest.mark.parametrize("name", CLAIMS)
def test_the_necessary_conditions_hold(name, tmp_path):
  record, _ = measure(CLAIMS[name], scale="tiny", seeds=None, folder=tmp_path, command="")
  assert record["verdict"] == "holds"
  assert record["finding"]


def rise(**changes):
  return {"seed": 0, "start": 40, "peak": 400, "end": 40, **changes}


def test_rules_of_rise_and_fall():
  judge = CLAIMS["rise_and_fall"].judge
  good = [rise(model="interacting"), rise(model="independent", end=200)]
  assert judge(good, "small").verdict == "holds"
  for bad in (
    rise(model="interacting", end=81),
    rise(model="interacting", peak=319),
    rise(model="independent", end=201),
  ):
    assert judge([*good, bad], "small").verdict == "does not hold"


def test_rules_of_the_erratum():
  judge = CLAIMS["erratum"].judge

  def rows(**peaks):
    made = {("interacting", 20): 46, ("independent", 20): 64, ("interacting", 30): 44, ("independent", 30): 44}
    return [
      rise(model=model, grain=grain, peak=peaks.get(f"{model}_{grain}", peak), mean_picture=peaks.get("mean", 40))
      for (model, grain), peak in made.items()
    ]

  assert judge(rows(), "small").verdict == "holds"
  for bad in (
    {"interacting_20": 47},
    {"independent_20": 65},
    {"interacting_30": 45},
    {"independent_30": 45},
    {"mean": 35},
  ):
    assert judge(rows(**bad), "small").verdict == "does not hold"


def test_rules_of_stirring_and_of_the_tendril():
  assert CLAIMS["stirred"].judge([rise(peak=600), rise(peak=600)], "small").verdict == "holds"
  for bad in (rise(peak=599), rise(peak=600, end=41)):
    assert CLAIMS["stirred"].judge([rise(peak=600), bad], "small").verdict == "does not hold"
  assert CLAIMS["tendril"].judge([rise(peak=200)], "small").verdict == "holds"
  assert CLAIMS["tendril"].judge([rise(peak=199)], "small").verdict == "does not hold"


def test_rules_of_the_entropy():
  judge = CLAIMS["entropy"].judge
  sizes = [
    {"seed": 0, "n": n, "start": 30, "peak": 1700, "plateau": plateau, "largest_drop": 0.02}
    for n, plateau in ((80, 1100), (100, 1690))
  ]
  law = {"seed": 0, "law": "a", "r_squared": 0.9995, "log_log_slope": 1.8}
  assert judge([*sizes, law], "small").verdict == "holds"
  assert judge([*sizes, {**law, "r_squared": 0.998}], "small").verdict == "does not hold"
  assert judge([sizes[0], {**sizes[1], "plateau": 1600}, law], "small").verdict == "does not hold"
  assert judge([{**sizes[0], "largest_drop": 0.04}, sizes[1], law], "small").verdict == "does not hold"


def test_rules_of_the_laws_depend_on_the_grain():
  judge = CLAIMS["peak_height"].judge

  def rows(fixed, scaled):
    return [
      {"seed": 0, "model": model, "grain": grain, "exponent": exponent}
      for model in coffee_automaton.MODELS
      for grain, exponent in (("10 cells", fixed), ("n / 10", scaled))
    ]

  assert judge(rows(1.1, 0.9), "small").verdict == "holds"
  assert judge(rows(1.5, 1.0), "small").verdict == "inconclusive"
  assert judge(rows(1.5, 1.3), "small").verdict == "does not hold"


def test_exponents_are_those_of_a_power_and_of_the_wide_cups():
  sides = np.array([20, 30, 40, 60, 80, 100])
  found = coffee_automaton.exponents(sides, 3.0 * sides**2.0, power=2)
  assert found["exponent"] == pytest.approx(2)
  assert found["exponent_all_sides"] == pytest.approx(2)
  assert found["r_squared"] == pytest.approx(1)
  bent = np.where(sides < 40, 1.0, 3.0 * sides)
  assert coffee_automaton.exponents(sides, bent, power=1)["exponent"] == pytest.approx(1)


@pytest.mark.slow
def test_figures_draw():
  n, seeds = 12, (0, 1)
  made = {
    "interacting": automaton.interacting(n, automaton.log_times(2000, count=20), seeds=seeds),
    "independent": automaton.independent(n, automaton.log_times(200, count=20), seeds=seeds),
  }
  curves = {model: cups.swaps + 1 for model, cups in made.items()}
  adjusted = {(model, grain): (curves[model], curves[model][:, 0]) for model in made for grain in (10, 20, 30)}
  stirred = automaton.stirred(n, 5, seeds=seeds, amplitude=2, attempts=20)
  sides = np.array([20, 40])
  points = {"interacting, grain 10 cells": (np.ones((2, 2)), 1.0), "interacting, grain n / 10": (np.ones((2, 2)), 1.0)}
  drawn = (
    coffee_automaton_figures.draw_pictures(made["interacting"]), coffee_automaton_figures.draw_rise(made, curves),
    coffee_automaton_figures.draw_adjusted(made, adjusted), coffee_automaton_figures.draw_compressors(made["interacting"]),
    coffee_automaton_figures.draw_stirred(stirred, stirred.swaps, grain=4),
    coffee_automaton_figures.draw_tendril(stirred, stirred.swaps), coffee_automaton_figures.draw_laws(sides, points, of="height"),
  )  # fmt: skip
  for figure in drawn:
    assert image(figure, kind="png", dots_per_inch=30).startswith(b"\x89PNG")
