"""README and the pages of the readings are what the recorded evidence says."""

import json
from pathlib import Path

import pytest

from ilya_jax.claims import pages
from ilya_jax.claims.claim import SCALES
from ilya_jax.claims.evidence import read_records
from ilya_jax.claims.readings import READINGS, claims_of

ROOT = Path(__file__).parents[1]
MEASURED = [reading for reading in READINGS if read_records(ROOT, reading.id)]


def test_the_table_of_readings_is_that_of_the_records():
  text = (ROOT / "README.md").read_text()
  assert pages.with_table(text, pages.readme_table(ROOT)) == text


@pytest.mark.parametrize("reading", MEASURED, ids=lambda reading: reading.id)
def test_a_page_is_that_of_the_records(reading):
  path = ROOT / "experiments" / "results" / f"{reading.id}.md"
  assert path.read_text() == pages.page(ROOT, reading)


@pytest.mark.parametrize("reading", MEASURED, ids=lambda reading: reading.id)
def test_records_are_judged_by_the_rule_in_the_code(reading):
  """Judged again from the recorded values, every record gives the verdict and the finding that stand there."""
  claims = {claim.id: claim for claim in claims_of(reading, ROOT)}
  for record in read_records(ROOT, reading.id):
    claim = claims[record["claim"]]
    assert record["criterion"] == claim.criteria[record["scale"]]
    assert record["scale"] in SCALES
    judged = claim.judge(record["values"], record["scale"])
    assert [judged.verdict, judged.finding] == [record["verdict"], record["finding"]]
    if record["scale"] != "tiny" and not record["exact"]:
      assert len(record["seeds"]) >= 3
    for name in record["figures"]:
      assert (ROOT / "experiments" / "results" / "figures" / reading.id / f"{name}.svg").is_file()


@pytest.mark.parametrize("reading", READINGS, ids=lambda reading: reading.id)
def test_claims_are_complete(reading):
  """Every claim has a tiny form, a criterion for each scale, and says where it stands."""
  claims = claims_of(reading, ROOT)
  assert len({claim.id for claim in claims}) == len(claims)
  for claim in claims:
    assert "tiny" in claim.criteria
    assert set(claim.criteria) <= set(SCALES)
    assert all([claim.statement, claim.where, claim.published, *claim.criteria.values()])
  json.dumps([claim.criteria for claim in claims])
