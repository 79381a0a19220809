"""The Transformer language model: causality, equal results of every execution choice, sharding, parity with oracles."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from ml_collections import ConfigDict

from ilya_jax.errors import UserError
from ilya_jax.models import transformer_lm
from ilya_jax.models.transformer_lm import FORMS, TransformerBlock, TransformerLM
from ilya_jax.nn.attention import causal_attention
from ilya_jax.parallel.sharding import shardings

VOCAB, CONTEXT, WIDTH, HEADS, LAYERS = 32, 12, 16, 2, 2
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (2, CONTEXT)).astype(np.int32)


def make(form, **fields):
  sizes = {"vocab_size": VOCAB, "context": CONTEXT, "n_layers": LAYERS, "d_model": WIDTH, "n_heads": HEADS}
  rolled = {"layer_unroll": 1}  # compiles faster; test_execution_choices_change_nothing compares it with the default
  return TransformerLM(**{**sizes, **FORMS[form], **rolled, **fields})


@functools.cache
def _random(model, seed):
  shapes = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), TOKENS)["params"]
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    values = rng.normal(size=leaf.shape) * 0.2
    return np.asarray(values + (jax.tree_util.keystr(path[-1:], simple=True) == "scale"), np.float32)

  return jax.tree_util.tree_map_with_path(draw, shapes)


def random_params(model, *, seed=0):
  """Every parameter away from its initial value, so that a missing bias or scale shows."""
  return _random(model.clone(layer_unroll=0, attention_blocks=1, dropout=0.0, dtype=jnp.float32), seed)


@functools.cache
def _apply(model):
  return jax.jit(lambda params, tokens: model.apply({"params": params}, tokens, train=False))


@functools.cache
def _loss_and_grads(model, train):
  def loss(params, key):
    logits = model.apply({"params": params}, TOKENS, train=train, rngs={"dropout": key})
    return jnp.mean(jnp.square(jax.nn.log_softmax(logits)))

  return jax.jit(jax.value_and_grad(loss))


def logits_of(model, params, tokens=TOKENS):
  return np.asarray(_apply(model)(params, tokens))


def loss_and_grads(model, params, *, train=False, key=0):
  return _loss_and_grads(model, train)(params, jax.random.key(key))


def assert_close(expected, got, *, atol):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=atol), expected, got
  )


@pytest.mark.parametrize("form", FORMS)
def test_later_tokens_leave_earlier_logits_bit_equal(form):
  model = make(form)
  params = random_params(model)
  changed = TOKENS.copy()
  changed[:, 7:] = (changed[:, 7:] + 1) % VOCAB
  before, after = logits_of(model, params), logits_of(model, params, changed)
  np.testing.assert_array_equal(before[:, :7], after[:, :7])
  assert np.abs(before[:, 7:] - after[:, 7:]).max() > 1e-3


@pytest.mark.parametrize("form", FORMS)
def test_logits_have_no_gradient_from_later_tokens(form):
  model = make(form, tied=False)
  tokens = np.arange(CONTEXT, dtype=np.int32)[None]  # each token once: row s of the table is the input at s

  def logits_at_6(params):
    return jnp.sum(jnp.sin(model.apply({"params": params}, tokens, train=False)[0, 6]))

  table = np.asarray(jax.jit(jax.grad(logits_at_6))(random_params(model))["embed"]["embedding"])
  np.testing.assert_array_equal(table[7:], 0.0)
  assert (np.abs(table[:7]).max(-1) > 0).all()


@pytest.mark.parametrize("form", FORMS)
def test_execution_choices_change_nothing(form):
  model = make(form)
  params = random_params(model)
  expected = loss_and_grads(model, params)
  for choice in (
    {"layer_unroll": 0},
    {"attention_blocks": 2},
    {"attention_kernel": "xla"},
    {"attention_blocks": 4},
  ):
    assert_close(expected, loss_and_grads(make(form, **choice), params), atol=1e-5)


def test_dropout_is_off_in_evaluation_and_fresh_by_key():
  model = make("gpt2", dropout=0.5)
  params = random_params(model)
  np.testing.assert_array_equal(logits_of(model, params), logits_of(make("gpt2"), params))
  losses = [float(loss_and_grads(model, params, train=True, key=key)[0]) for key in (1, 1, 2)]
  assert losses[0] == losses[1] != losses[2]


def test_layers_drop_with_different_masks():
  model = make("gpt2", dropout=0.5)
  seen = []

  def spy(next_function, args, kwargs, context):
    result = next_function(*args, **kwargs)
    if type(context.module).__name__ == "Dropout":
      seen.append(args[0].shape)
    return result

  with nn.intercept_methods(spy):
    jax.eval_shape(
      lambda t: model.apply(
        {"params": random_params(model)}, t, train=True, rngs={"dropout": jax.random.key(0)}
      ),
      TOKENS,
    )  # fmt: skip
  hidden = (2, CONTEXT, WIDTH)
  assert set(seen) == {hidden, (2, HEADS, CONTEXT, CONTEXT)}


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_computation_keeps_float32_parameters_and_logits(form):
  model = make(form, dtype=jnp.bfloat16)
  params = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), TOKENS)["params"]
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
  low, full = logits_of(model, params), logits_of(make(form), params)
  assert low.dtype == np.float32
  np.testing.assert_allclose(low, full, rtol=0, atol=0.05)
  assert np.abs(low - full).max() > 0


def test_initial_deviations_follow_gpt2():
  model = make("gpt2", d_model=64, vocab_size=512)
  params = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), TOKENS)["params"]
  std = 0.02 * (768 / 64) ** 0.5
  layers = params["layers"]
  for leaf in (params["embed"]["embedding"], layers["qkv"]["kernel"], layers["mlp_in"]["kernel"]):
    np.testing.assert_allclose(np.std(np.asarray(leaf)), std, rtol=0.03)
  for leaf in (layers["attention_out"]["kernel"], layers["mlp_out"]["kernel"]):
    np.testing.assert_allclose(np.std(np.asarray(leaf)), std / np.sqrt(2 * LAYERS), rtol=0.03)
  assert not np.asarray(layers["qkv"]["bias"]).any()
  first, second = np.asarray(layers["qkv"]["kernel"])[:2]
  assert (first != second).any()  # layers are drawn apart


@pytest.mark.parametrize("form", FORMS)
def test_every_parameter_has_a_gradient(form):
  _, grads = loss_and_grads(make(form), random_params(make(form)))
  for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
    values = np.asarray(leaf)
    assert np.isfinite(values).all(), path
    assert np.abs(values).max() > 0, path


@pytest.mark.parametrize("form", FORMS)
def test_one_token_at_a_time_with_kept_keys_equals_the_whole(form):
  model = make(form)
  params = random_params(model)
  layer = jax.tree.map(lambda leaf: leaf[0], params["layers"])
  fields = {name: getattr(model, name) for name in TransformerBlock.__dataclass_fields__ if hasattr(model, name)}
  block = TransformerBlock(**{**fields, "d_ff": 4 * WIDTH, "init_std": 0.02, "parent": None, "name": None})
  if form == "modern":
    block = block.clone(d_ff=transformer_lm.feed_forward_width(WIDTH, activation="swiglu"))
  angles = transformer_lm.angles(model, jnp.arange(CONTEXT))
  x = jnp.asarray(np.random.default_rng(1).normal(size=(2, CONTEXT, WIDTH)), jnp.float32)

  @jax.jit
  def both(layer, x):
    whole, _ = block.apply({"params": layer}, x, angles, False)
    kept = []
    rows = []
    for t in range(CONTEXT):
      now = None if angles is None else angles[t : t + 1]
      query, key, value = block.apply({"params": layer}, x[:, t : t + 1], now, method="heads_of")
      kept.append((key, value))
      keys, values = (jnp.concatenate(part, axis=1) for part in zip(*kept, strict=True))
      attended = causal_attention(query, keys, value=values)
      rows.append(block.apply({"params": layer}, x[:, t : t + 1], attended, train=False, method="finish"))
    return whole, jnp.concatenate(rows, axis=1)

  whole, stepwise = both(layer, x)
  np.testing.assert_allclose(np.asarray(stepwise), np.asarray(whole), rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_sharded_over_three_axes_equals_unsharded(form):
  model = make(form, tied=False)
  params = random_params(model)
  mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
  layout = shardings(params, rules=transformer_lm.RULES, mesh=mesh)
  split = [leaf for leaf in jax.tree.leaves(layout) if leaf.spec != jax.sharding.PartitionSpec()]
  assert len(split) >= 6
  expected = loss_and_grads(model, params)
  assert_close(expected, loss_and_grads(model, jax.device_put(params, layout)), atol=1e-5)


def test_every_rule_fits_a_parameter_of_a_form():
  names = []
  for form in FORMS:
    for path, leaf in jax.tree_util.tree_leaves_with_path(random_params(make(form, tied=False))):
      names.append((jax.tree_util.keystr(path, simple=True, separator="/"), leaf.ndim))
  for pattern, spec in transformer_lm.RULES:
    found = [ndim for name, ndim in names if re.search(pattern, name)]
    assert found, pattern
    assert min(found) >= len(spec), pattern


def config_of(**model):
  fields = {"form": "gpt2", "n_layers": 2, "d_model": 64, "n_heads": 2, "d_ff": 0, "dropout": 0.0, "qk_norm": False}
  return ConfigDict(
    {
      "batch_size": 8,
      "dtype": "float32",
      "data": {"context": 32},
      "model": {**fields, "tied": True, **{name: value for name, value in model.items() if "." not in name}},
      "execution": {
        "layer_unroll": 0,
        "attention_blocks": 1,
        "attention_kernel": model.get("execution.attention_kernel", ""),
      },
    }
  )


@pytest.mark.parametrize(
  ("model", "named"),
  [
    ({"n_heads": 3}, "model.n_heads"),
    ({"n_heads": 0}, "model.n_heads"),
    ({"form": "gpt3"}, "model.form"),
    ({"n_layers": 0}, "model.n_layers"),
    ({"dropout": 1.0}, "model.dropout"),
    ({"form": "modern", "n_heads": 64}, "model.n_heads"),
    ({"execution.attention_kernel": "flash"}, "execution.attention_kernel"),
    ({"execution.attention_kernel": "xla", "dropout": 0.1}, "execution.attention_kernel"),
    ({"execution.attention_kernel": "cudnn"}, "dtype"),
  ],
)
def test_bad_sizes_name_the_field(model, named):
  with pytest.raises(UserError, match=named):
    transformer_lm.from_config(config_of(**model), vocab_size=256)


def test_counts_of_a_config():
  counts = transformer_lm.counts(config_of(), vocab_size=256)
  assert (counts.n, counts.units_per_step) == (98_304, 256)
  assert counts.flops_per_unit == 3 * (2 * 98_304 + 4 * 2 * 32 * 64 + 2 * 64 * 256)


def test_more_tokens_than_the_context_are_refused():
  model = make("gpt2")
  with pytest.raises(UserError, match="data.context"):
    jax.eval_shape(
      functools.partial(model.apply, train=False),
      {"params": random_params(model)},
      np.zeros((1, CONTEXT + 1), np.int32),
    )
