"""Causal attention against a loop in float64, its limits, its blocks, and rotary positions' relative property."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ilya_jax.errors import UserError
from ilya_jax.nn.attention import best_kernel, causal_attention, fused_attention
from ilya_jax.nn.rotary import rotary_angles, rotate

ATTEND = jax.jit(causal_attention, static_argnames=("blocks",))


def draw(seed, *, length, past=0, batch=2, heads=3, width=4, dtype=np.float64):
  rng = np.random.default_rng(seed)
  query = rng.normal(size=(batch, length, heads, width)).astype(dtype)
  key, value = rng.normal(size=(2, batch, past + length, heads, width)).astype(dtype)
  return query, key, value


def attention_by_loop(query, key, value):
  batch, length, heads, width = query.shape
  past = key.shape[1] - length
  result = np.zeros_like(query)
  for b in range(batch):
    for h in range(heads):
      for t in range(length):
        seen = past + t + 1
        scores = np.array([query[b, t, h] @ key[b, s, h] for s in range(seen)]) / np.sqrt(width)
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
        for s in range(seen):
          result[b, t, h] += weights[s] * value[b, s, h]
  return result


@pytest.mark.parametrize("past", [0, 3])
@pytest.mark.parametrize("blocks", [1, 2, 4, 7, 100])
def test_equals_a_loop_in_float64(blocks, past):
  query, key, value = draw(0, length=7, past=past)
  with jax.enable_x64(True):
    got = np.asarray(ATTEND(query, key, value=value, blocks=blocks))
  np.testing.assert_allclose(got, attention_by_loop(query, key, value), rtol=0, atol=1e-10)


def test_equal_scores_give_the_mean_of_what_is_seen():
  _, key, value = draw(1, length=6)
  with jax.enable_x64(True):
    got = np.asarray(ATTEND(np.zeros_like(key), key, value=value))
  expected = np.cumsum(value, axis=1) / np.arange(1, 7)[None, :, None, None]
  np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)


def test_one_key_gives_its_value():
  query, key, value = draw(2, length=1, dtype=np.float32)
  np.testing.assert_array_equal(np.asarray(ATTEND(query, key, value=value)), value)


def test_gradients_of_blocks_agree():
  query, key, value = draw(3, length=8)

  def loss(blocks):
    return lambda q, k, v: jnp.sum(jnp.sin(causal_attention(q, k, value=v, blocks=blocks)))

  with jax.enable_x64(True):
    whole, *blocked = (jax.jit(jax.grad(loss(blocks), argnums=(0, 1, 2)))(query, key, value) for blocks in (1, 2, 4))
    for grads in blocked:
      jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12), whole, grads)


def test_large_scores_stay_finite():
  query, key, value = draw(4, length=5, dtype=np.float32)
  got = np.asarray(ATTEND(query * np.float32(1e4), key * np.float32(1e4), value=value))
  assert np.isfinite(got).all()


def test_dropout_acts_on_the_weights():
  query, key, value = draw(5, length=5, dtype=np.float32)
  shapes = []

  def drop(weights):
    shapes.append(weights.shape)
    return jnp.zeros_like(weights)

  got = causal_attention(query, key, value=value, dropout=drop)
  assert shapes == [(2, 3, 5, 5)]
  np.testing.assert_array_equal(np.asarray(got), np.zeros_like(query))


def test_rotary_scores_depend_on_distance_alone():
  rng = np.random.default_rng(6)
  query, key = rng.normal(size=(2, 1, 1, 1, 8))
  with jax.enable_x64(True):
    score = jax.jit(
      lambda p, q: jnp.sum(
        rotate(query, rotary_angles(p[None], 8, dtype=jnp.float64))
        * rotate(key, rotary_angles(q[None], 8, dtype=jnp.float64))
      )
    )
    near = [float(score(jnp.int32(p), jnp.int32(p - 5))) for p in (5, 17, 400)]
    other = float(score(jnp.int32(17), jnp.int32(16)))
  np.testing.assert_allclose(near, near[0], rtol=0, atol=1e-10)
  assert abs(other - near[0]) > 1e-3


def test_rotary_keeps_norms_and_leaves_position_zero():
  x = np.random.default_rng(7).normal(size=(2, 6, 3, 8))
  with jax.enable_x64(True):
    turned = np.asarray(rotate(x, rotary_angles(jnp.arange(6), 8, dtype=jnp.float64)))
  np.testing.assert_allclose(np.linalg.norm(turned, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-12)
  np.testing.assert_array_equal(turned[:, 0], x[:, 0])


def test_the_fused_form_is_the_same_function_with_the_same_derivative():
  query, key, value = draw(0, length=9, dtype=np.float32)

  def loss(attend):
    return jax.jit(jax.value_and_grad(lambda *args: jnp.sum(jnp.sin(attend(*args))), argnums=(0, 1, 2)))

  ours = loss(lambda q, k, v: causal_attention(q, k, value=v))(query, key, value)
  fused = loss(lambda q, k, v: fused_attention(q, k, value=v, kernel="xla"))(query, key, value)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, fused)


def test_a_kernel_that_is_not_there_is_refused_by_name():
  query, key, value = (jnp.asarray(x, jnp.bfloat16) for x in draw(0, length=64, width=64, dtype=np.float32))
  with pytest.raises(UserError, match="attention by cudnn"):
    jax.jit(lambda q, k, v: fused_attention(q, k, value=v, kernel="cudnn")).lower(query, key, value)


@pytest.mark.parametrize(
  ("change", "kernel"),
  [({}, "cudnn"), ({"dtype": jnp.float32}, "ours"), ({"dropout": 0.1}, "ours"), ({"head_width": 20}, "ours"),
   ({"head_width": 256}, "ours"), ({"length": 1_000}, "ours")],
)  # fmt: skip
def test_by_itself_a_gpu_takes_cudnn_where_its_kernel_takes_the_heads(monkeypatch, change, kernel):
  call = {"dtype": jnp.dtype("bfloat16"), "length": 1_024, "head_width": 64, "dropout": 0.0, **change}
  assert best_kernel(**call) == "ours"  # these tests compute on the CPU
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert best_kernel(**call) == kernel
