"""Names of TPU slices, and what a group of chips on a torus can send."""

import itertools

import pytest

from ilya_jax.errors import UserError
from ilya_jax.parallel.chips import CHIPS, Topology, bandwidth, parse_topology


def test_names_of_slices():
  assert parse_topology("v5p:4x4x8") == Topology("v5p", (4, 4, 8))
  assert parse_topology("v5e:4x4").size == 16
  assert parse_topology("v4:2x2").shape == (2, 2, 1)
  assert parse_topology("v5p:2x2x1").name == "v5p:2x2x1"


@pytest.mark.parametrize(
  ("text", "named"),
  [("v5e", "CHIP:AxB"), ("v5e:", "CHIP:AxB"), ("v5e:4*4", "CHIP:AxB"), ("v9:2x2", "one of v4"), ("v5e:2x2x2", "2 sizes"),
   ("v5e:16", "2 sizes"), ("v5p:0x4x4", "at least 1"), ("v5e:999x999", "chips in all")],
)  # fmt: skip
def test_names_that_are_none(text, named):
  with pytest.raises(UserError, match=named.replace("*", r"\*")):
    parse_topology(text)


def test_what_a_group_sends_over_its_links():
  slice_ = parse_topology("v5p:4x4x4")
  link = CHIPS["v5p"].link_bandwidth
  assert link == 100e9
  along = [(k, 0, 0) for k in range(4)]
  assert bandwidth(slice_, along) == 2 * link  # a ring
  assert bandwidth(slice_, along[:2]) == link  # half of it: a line
  assert bandwidth(slice_, along[::2]) == link / 2  # every other chip: two such groups share the links between
  assert bandwidth(slice_, list(itertools.product(range(4), repeat=3))) == 6 * link
  small = parse_topology("v5e:4x4")  # links of v5e close to a ring at 16
  assert bandwidth(small, [(k, 0, 0) for k in range(4)]) == CHIPS["v5e"].link_bandwidth
  assert bandwidth(parse_topology("v5e:16x16"), [(k, 0, 0) for k in range(16)]) == 2 * CHIPS["v5e"].link_bandwidth
