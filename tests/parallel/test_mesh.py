"""The mesh of a config: how many of the devices its free axis takes, and what is refused."""

import pytest

from ilya_jax.errors import UserError
from ilya_jax.parallel.mesh import make_mesh


def sizes(**given):
  return {"data": 1, "fsdp": 1, "tensor": 1, "stage": 1, **given}


@pytest.mark.parametrize(
  ("axes", "batch", "accumulate", "axis", "taken"),
  [
    ({"data": -1}, 16, 1, "data", 8),
    ({"data": -1}, 12, 1, "data", 6),  # of the eight of these tests
    ({"data": -1}, 7, 1, "data", 7),
    ({"data": -1}, 12, 3, "data", 4),
    ({"data": -1, "tensor": 2}, 6, 1, "data", 3),
    ({"data": 2, "fsdp": -1}, 12, 1, "fsdp", 3),
    ({"tensor": -1}, 3, 1, "tensor", 8),  # no axis of the batch
  ],
)
def test_on_a_cpu_the_free_axis_takes_as_many_devices_as_the_batch_divides_over(axes, batch, accumulate, axis, taken):
  assert make_mesh(sizes(**axes), batch_size=batch, accumulate=accumulate).shape[axis] == taken


@pytest.mark.parametrize(
  ("axes", "batch", "named"),
  [({"data": 8}, 12, "batch of 12"), ({"data": -1, "fsdp": -1}, 8, "-1"), ({"data": 16}, 16, "16 devices")],
)
def test_what_does_not_divide_or_is_not_there_is_refused_by_name(axes, batch, named):
  with pytest.raises(UserError, match=named):
    make_mesh(sizes(**axes), batch_size=batch)


def test_where_no_number_divides_the_batch_it_is_refused():
  with pytest.raises(UserError, match="batch of 5"):
    make_mesh(sizes(data=-1, fsdp=2), batch_size=5)
