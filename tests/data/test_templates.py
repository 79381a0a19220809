"""The generated pictures: templates, moves, noise, and the exact posterior, which nothing beats."""

import functools
import itertools

import numpy as np
import pytest
from scipy import special, stats

from ilya_jax.data.templates import log_posterior, make_templates, sample, template_source
from ilya_jax.errors import UserError

SIZES = {"size": 8, "channels": 2, "classes": 5}


def test_templates_are_normal_smooth_and_depend_on_the_number():
  made = make_templates(0, **SIZES)
  assert made.shape == (5, 8, 8, 2)
  np.testing.assert_allclose(made.mean((1, 2, 3)), 0, atol=1e-6)
  np.testing.assert_allclose(made.var((1, 2, 3)), 1, rtol=1e-5)
  neighbours = (made * np.roll(made, 1, 1)).mean()
  assert neighbours > 0.5  # a Gaussian of width 1 correlates neighbours by exp(-1/4) = .78
  np.testing.assert_array_equal(made, make_templates(0, **SIZES))
  assert np.abs(made - make_templates(1, **SIZES)).max() > 0.5


def test_pictures_without_noise_are_moved_templates_each_as_often():
  made = make_templates(0, **SIZES)
  drawn = sample(np.random.default_rng(0), made, count=4500, noise=0.0)
  moves = list(itertools.product((-1, 0, 1), repeat=2))
  moved = np.stack([np.roll(made, move, (1, 2)) for move in moves])  # [9, K, S, S, C]
  distances = np.abs(np.asarray(drawn["image"])[:, None] - moved[:, np.asarray(drawn["label"])].swapaxes(0, 1))
  found = distances.max((2, 3, 4))
  assert (found.min(1) == 0).all()
  counts = np.bincount(found.argmin(1) * 5 + np.asarray(drawn["label"]), minlength=45)
  assert stats.chisquare(counts).pvalue > 1e-3


def test_the_posterior_is_that_of_bayes():
  """Against densities summed one by one, and calibrated: it says how often it is right, and its entropy is its loss."""
  made, noise = make_templates(0, size=4, channels=1, classes=3), 1.5
  drawn = sample(np.random.default_rng(1), made, count=20_000, noise=noise)
  images, labels = np.asarray(drawn["image"]), np.asarray(drawn["label"])
  logs = log_posterior(images, made, noise=noise)

  densities = np.zeros((3, 3))
  for row, (image, k) in enumerate(itertools.product(images[:1], range(3))):
    for move in itertools.product((-1, 0, 1), repeat=2):
      densities[0, k] += stats.norm(np.roll(made[k], move, (0, 1)), noise).pdf(image).prod()
    assert row < 3
  np.testing.assert_allclose(np.exp(logs[0]), densities[0] / densities[0].sum(), rtol=1e-6)

  right = logs.argmax(1) == labels
  said = np.exp(logs.max(1))
  assert abs(right.mean() - said.mean()) < 4 * right.std() / np.sqrt(len(right))
  nll, entropy = -logs[np.arange(len(labels)), labels], special.entr(np.exp(logs)).sum(1)
  assert abs(nll.mean() - entropy.mean()) < 4 * (nll - entropy).std() / np.sqrt(len(labels))
  assert 0.2 < entropy.mean() < 0.9 * np.log(3)


def test_a_source_never_repeats_and_its_held_out_set_is_fixed():
  shape = {**SIZES, "noise": 1.0, "batch_size": 4, "test_examples": 12, "test_batch": 6}
  source, other = template_source(0, seed=0, **shape), template_source(0, seed=1, **shape)
  batch = functools.partial(source.batch, split="train")
  assert batch(0)["image"].shape == (4, 8, 8, 2)
  assert batch(0)["image"].dtype == np.float32
  np.testing.assert_array_equal(batch(3)["image"], batch(3)["image"])
  assert np.abs(batch(3)["image"] - batch(4)["image"]).max() > 0.1
  assert np.abs(batch(3)["image"] - other.batch(3, split="train")["image"]).max() > 0.1
  np.testing.assert_array_equal(source.batch(1, split="test")["image"], other.batch(1, split="test")["image"])
  np.testing.assert_array_equal(batch(3, rows=slice(1, 3))["image"], batch(3)["image"][1:3])
  assert source.eval_batches == {"test": 2}
  assert source.info["fingerprint"] != template_source(1, seed=0, **shape).info["fingerprint"]
  assert source.info["std"] == pytest.approx(float(np.std(batch(0)["image"])), rel=0.2)


@pytest.mark.parametrize(
  ("changes", "message"), [({"size": 2}, "side"), ({"classes": 1}, "classes"), ({"test_examples": 7}, "whole batches")]
)
def test_refusals(changes, message):
  shape = {**SIZES, "noise": 1.0, "batch_size": 4, "seed": 0, "test_examples": 12, "test_batch": 6, **changes}
  with pytest.raises(UserError, match=message):
    template_source(0, **shape)
