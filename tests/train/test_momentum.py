"""Momentum with an L2 penalty against torch's SGD, and the rate that drops at fractions of the run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from ilya_jax.train.optimizer import learning_rates, make_optimizer, make_schedule, with_learning_rate


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_with_l2_is_torch_sgd(nesterov):
  """Biases and norms are decayed too, and the rate changes on the way, where the two usual forms of momentum differ."""
  torch = pytest.importorskip("torch")
  rng = np.random.default_rng(0)
  start = {"conv": {"kernel": rng.normal(size=(3, 4))}, "norm": {"scale": rng.normal(size=4)}}
  target = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), start)
  optim = ConfigDict({
    "name": "sgd", "clip_norm": 0.0, "l2": 0.01, "options": {"momentum": 0.9, "nesterov": nesterov},
  })  # fmt: skip
  rates = np.array([0.1] * 10 + [0.01] * 10)

  with jax.enable_x64(True):
    optimizer, params = make_optimizer(optim), jax.tree.map(jnp.asarray, start)
    state = optimizer.init(params)
    for rate in rates:
      grads = jax.tree.map(lambda p, t: jnp.sin(p - t), params, target)
      with jax.numpy_dtype_promotion("standard"):
        updates, state = optimizer.update(grads, with_learning_rate(state, jnp.asarray(rate)), params)
      params = optax.apply_updates(params, updates)

  theirs = [torch.tensor(leaf, requires_grad=True) for leaf in jax.tree.leaves(start)]
  sgd = torch.optim.SGD(theirs, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=nesterov)
  for rate in rates:
    sgd.param_groups[0]["lr"] = rate
    for leaf, goal in zip(theirs, jax.tree.leaves(target), strict=True):
      leaf.grad = torch.sin(leaf.detach() - torch.tensor(goal))
    sgd.step()
  for ours, other in zip(jax.tree.leaves(params), theirs, strict=True):
    np.testing.assert_allclose(ours, other.detach().numpy(), rtol=1e-6)  # the rate is float32


def test_without_l2_nothing_is_decayed():
  optim = ConfigDict({"name": "sgd", "clip_norm": 0.0, "options": {"momentum": 0.9}})
  params = {"scale": jnp.ones(3)}
  optimizer = make_optimizer(optim)
  state = with_learning_rate(optimizer.init(params), jnp.float32(1.0))
  with jax.numpy_dtype_promotion("standard"):
    updates, _ = optimizer.update({"scale": jnp.zeros(3)}, state, params)
  assert (np.asarray(updates["scale"]) == 0).all()


def test_the_rate_drops_at_fractions_of_the_run():
  schedule = ConfigDict({"name": "drops", "warmup_steps": 0, "options": {"at": (0.5, 0.75), "factor": 0.1}})
  made = make_schedule(schedule, learning_rate=0.02, steps=300)
  rates = learning_rates(made, first=0, last=300)
  np.testing.assert_allclose(rates, [0.02] * 150 + [0.002] * 75 + [0.0002] * 75, rtol=1e-6)
