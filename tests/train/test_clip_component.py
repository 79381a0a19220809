"""Clipping of gradients component by component, before that of their norm."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from ilya_jax.train.optimizer import make_optimizer, with_learning_rate


@pytest.mark.parametrize(("norm", "expected"), [(0.0, [-10.0, 3.0, 10.0]), (1.0, np.array([-10, 3, 10]) / 209**0.5)])
def test_components_are_cut_and_then_the_norm(norm, expected):
  optim = ConfigDict({"name": "sgd", "clip_norm": norm, "clip_component": 10.0, "options": {}})
  optimizer = make_optimizer(optim)
  with jax.numpy_dtype_promotion("standard"):
    state = with_learning_rate(optimizer.init(np.zeros(3, np.float32)), np.float32(1))
    updates, _ = optimizer.update(np.array([-50, 3, 11], np.float32), state)
  np.testing.assert_allclose(updates, -np.asarray(expected), rtol=1e-6)
