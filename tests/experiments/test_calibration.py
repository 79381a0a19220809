"""The record of the calibration: judged again by the rule in the code, with the entropy of its languages computed anew."""

import json

import pytest

from experiments import calibration
from ilya_jax.data.lookup import lookup_language, mean_entropy


@pytest.fixture(scope="module")
def record():
  return json.loads(calibration.RESULT.read_text())


def test_the_verdicts_follow_from_the_languages_by_the_rule(record):
  assert [each["language"] for each in record["languages"]] == list(calibration.LANGUAGES)
  for family, verdict in record["verdicts"].items():
    assert calibration.judge(record["languages"], family) == verdict


def test_the_law_is_the_one_of_smallest_inner_error_among_those_with_a_floor(record):
  for language in record["languages"]:
    for found in language["families"].values():
      errors = {name: law["inner_mape"] for name, law in found["laws"].items()}
      if None not in errors.values():  # with three sizes none can be left out: AICc chooses
        assert errors[found["chosen"]] == min(errors.values())
      assert set(found["laws"]) <= set(calibration.FORMS)


@pytest.mark.parametrize("number", [1, 5])
def test_the_entropy_is_that_of_the_language(record, number):
  language = lookup_language(number, vocab_size=calibration.VOCABULARY)
  truth = mean_entropy(language, context=calibration.CONTEXT)
  (recorded,) = (each for each in record["languages"] if each["language"] == number)
  assert recorded["entropy"] == pytest.approx(truth, rel=1e-12)
  for found in recorded["families"].values():
    for law in found["laws"].values():
      assert law["floor_error"] == pytest.approx(100 * (law["E"] / truth - 1))
