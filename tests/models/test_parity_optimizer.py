"""AdamW with clipping against torch.optim.AdamW over 20 steps in float64, on gradients of small language models."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ilya_jax.models.lstm_lm import LstmLM
from ilya_jax.models.transformer_lm import FORMS, TransformerLM

torch = pytest.importorskip("torch", reason="needs torch: pip install 'ilya-jax[parity]'")

STEPS, RATE, BETAS, EPSILON, DECAY, CLIP = 20, 1e-2, (0.9, 0.95), 1e-8, 0.1, 0.1
TOKENS = np.random.default_rng(0).integers(0, 16, (3, 9)).astype(np.int32)
MODELS = {
  "transformer": TransformerLM(
    vocab_size=16, context=8, n_layers=2, d_model=8, n_heads=2, dtype=jnp.float64, layer_unroll=1, **FORMS["gpt2"]
  ),
  "lstm": LstmLM(vocab_size=16, n_layers=2, d_model=8, dtype=jnp.float64, layer_unroll=1, time_unroll=1),
}


@pytest.mark.parametrize("name", MODELS)
def test_adamw_equals_torch_over_twenty_steps(name):
  model = MODELS[name]

  def loss(params):
    logits = model.apply({"params": params}, TOKENS[:, :-1], train=False)
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), TOKENS[:, 1:, None], axis=-1))

  # optax raises a Python number to an integer array, which strict promotion refuses.
  with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
    init = jax.jit(functools.partial(model.init, train=False))
    params = init(jax.random.key(0), TOKENS[:, :-1])["params"]
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
    optimizer = optax.chain(optax.clip_by_global_norm(CLIP), optax.adamw(RATE, *BETAS, eps=EPSILON, weight_decay=DECAY))
    gradient = jax.jit(jax.grad(loss))

    @jax.jit
    def update(params, state):
      updates, state = optimizer.update(gradient(params), state, params)
      return optax.apply_updates(params, updates), state

    leaves, tree = jax.tree.flatten(params)
    theirs = [torch.nn.Parameter(torch.from_numpy(np.array(leaf))) for leaf in leaves]
    torch_optimizer = torch.optim.AdamW(theirs, lr=RATE, betas=BETAS, eps=EPSILON, weight_decay=DECAY)
    state = jax.jit(optimizer.init)(params)
    clipped = 0
    for _ in range(STEPS):
      params, state = update(params, state)
      point = jax.tree.unflatten(tree, [parameter.detach().numpy().copy() for parameter in theirs])
      for parameter, grad in zip(theirs, jax.tree.leaves(gradient(point)), strict=True):
        parameter.grad = torch.from_numpy(np.array(grad))
      norm = torch.sqrt(sum(torch.sum(parameter.grad**2) for parameter in theirs))
      clipped += bool(norm > CLIP)
      for parameter in theirs:  # torch's own clipping divides by the norm plus 1e-6, optax's by the norm
        parameter.grad *= torch.clamp(CLIP / norm, max=1.0)
      torch_optimizer.step()
  assert clipped > 0
  for ours, parameter in zip(jax.tree.leaves(params), theirs, strict=True):
    np.testing.assert_allclose(np.asarray(ours), parameter.detach().numpy(), rtol=0, atol=1e-10)
