"""Shifts and mirror images: exact windows, their probabilities, and no dependence on the devices."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from ilya_jax.data.augmentation import augment, mirror, shift


def images(count=6, side=5, channels=2):
  return jnp.asarray(np.random.default_rng(0).normal(size=(count, side, side, channels)), jnp.float32)


def test_the_window_in_the_middle_is_the_image():
  x = images()
  np.testing.assert_array_equal(shift(x, jnp.full((6, 2), 4), pad=4), x)
  np.testing.assert_array_equal(mirror(x, jnp.zeros(6, bool)), x)


def test_windows_are_those_of_the_padded_image():
  x = images()
  offsets = np.random.default_rng(1).integers(0, 7, size=(6, 2))
  padded = np.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0)))
  wanted = np.stack([p[a : a + 5, b : b + 5] for p, (a, b) in zip(padded, offsets, strict=True)])
  np.testing.assert_array_equal(shift(x, jnp.asarray(offsets), pad=3), wanted)


def test_mirror_images_are_mirrored_twice_into_themselves():
  x, chosen = images(), jnp.asarray([True, False, True, True, False, False])
  once = mirror(x, chosen)
  np.testing.assert_array_equal(mirror(once, chosen), x)
  np.testing.assert_array_equal(once[0], x[0, :, ::-1])


def test_every_window_and_both_sides_are_equally_likely():
  """Marked pixels tell where a window began and whether it was mirrored."""
  count, pad = 9000, 1
  x = jnp.zeros((count, 3, 3, 1)).at[:, 1, 1].set(1.0).at[:, 1, 2].set(2.0)
  drawn = np.asarray(jax.jit(lambda key: augment(key, x, pad=pad, flip=True))(jax.random.key(0)))[..., 0]
  flat = drawn.reshape(count, 9)
  seen = {}
  for row in flat.astype(int):
    seen[tuple(row)] = seen.get(tuple(row), 0) + 1
  middle = [row.index(1) for row in seen]
  assert sorted(set(middle)) == list(range(9))
  by_place = [sum(number for row, number in seen.items() if row.index(1) == place) for place in range(9)]
  assert stats.chisquare(by_place).pvalue > 1e-3
  mirrored = sum(number for row, number in seen.items() if row.index(1) == 4 and row[3] == 2)
  whole = sum(number for row, number in seen.items() if row.index(1) == 4)
  assert stats.binomtest(mirrored, whole).pvalue > 1e-3


def test_without_padding_and_flip_nothing_changes():
  np.testing.assert_array_equal(augment(jax.random.key(0), images(), pad=0, flip=False), images())


def test_a_batch_that_is_split_over_devices_is_augmented_alike():
  mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  split = jax.NamedSharding(mesh, jax.P("data"))
  x = images(16)
  run = jax.jit(lambda key, x: augment(key, x, pad=2, flip=True))
  lowered = jax.jit(run, out_shardings=split).lower(jax.random.key(3), jax.device_put(x, split)).compile().as_text()
  assert "all-gather" not in lowered
  np.testing.assert_array_equal(run(jax.random.key(3), jax.device_put(x, split)), run(jax.random.key(3), x))
