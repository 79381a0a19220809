"""The record of the recovery: every law that can be fitted, from as many tables as were fixed, and again for one table."""

import json

import numpy as np
import pytest

from experiments import recovery
from ilya_jax.scaling import fit
from ilya_jax.scaling.laws import FORMS


@pytest.fixture(scope="module")
def record():
  return {each["form"]: each for each in json.loads(recovery.RESULT.read_text())}


def test_every_law_is_there(record):
  assert set(record) == set(recovery.TRUTH)
  assert set(FORMS) - set(record) == {"power", "power_d", "power_c"}  # Kaplan's 1.1 to 1.3 by other names
  for form, each in record.items():
    assert each["tables"] == 200
    assert {name: value["true"] for name, value in each["parameters"].items()} == recovery.TRUTH[form]
    assert all(abs(value["error_without_noise"]) < 1e-9 for value in each["parameters"].values())


@pytest.mark.parametrize("form", ["kaplan_nd", "power_floor_c"])
def test_a_table_drawn_anew_errs_as_the_recorded_ones(record, form):
  variables = recovery.design(form)
  noise = np.exp(recovery.NOISE * np.random.default_rng(1).standard_normal(record[form]["points"]))
  found = fit.fit_law(form, FORMS[form].loss(recovery.TRUTH[form], **variables) * noise, **variables, start_count=16)
  for name, value in record[form]["parameters"].items():
    error = 100 * (found.parameters[name] / value["true"] - 1)
    assert 2 * value["low_percent"] < error < 2 * value["high_percent"]
