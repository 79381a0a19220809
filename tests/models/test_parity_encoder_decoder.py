"""The Transformer against torch.nn.Transformer, and its encoder layers against transformers' BERT, weights copied over."""

import functools
import warnings

import jax
import numpy as np
import pytest

from ilya_jax.models.transformer import Transformer
from ilya_jax.models.transformer_layers import TransformerLayer, sinusoids
from tests.models.torch_oracle import randomised

REASON = "needs torch and transformers: pip install 'ilya-jax[parity]'"
torch = pytest.importorskip("torch", reason=REASON)
with warnings.catch_warnings():  # transformers warns at import about versions of what it finds installed
  warnings.simplefilter("ignore")
  transformers = pytest.importorskip("transformers", reason=REASON)

D, H, F, N, V = 32, 4, 48, 2, 13
RNG = np.random.default_rng(0)
SOURCE = np.array([[3, 4, 5, 6, 7, 2], [7, 8, 9, 2, 0, 0]], np.int32)
TARGET = np.array([[1, 9, 4, 3], [1, 5, 10, 11]], np.int32)


def norm(w, name):
  return {"scale": w[f"{name}.weight"], "bias": w[f"{name}.bias"]}


def heads(kernel, bias):
  """torch's [D out, D in] of queries, keys or values -> ours."""
  return {"kernel": kernel.T.reshape(D, H, D // H), "bias": bias.reshape(H, D // H)}


def out(kernel, bias):
  return {"kernel": kernel.T.reshape(H, D // H, D), "bias": bias}


def linear(w, name):
  return {"kernel": w[f"{name}.weight"].T, "bias": w[f"{name}.bias"]}


def attention_of(w, name):
  kernels, biases = np.split(w[f"{name}.in_proj_weight"], 3), np.split(w[f"{name}.in_proj_bias"], 3)
  made = {part: heads(k, b) for part, k, b in zip(("query", "key", "value"), kernels, biases, strict=True)}
  return {**made, "out": out(w[f"{name}.out_proj.weight"], w[f"{name}.out_proj.bias"])}


def layer_of(w, name, *, crosses):
  made = {
    "self_attention": attention_of(w, f"{name}.self_attn"), "self_norm": norm(w, f"{name}.norm1"),
    "inward": linear(w, f"{name}.linear1"), "outward": linear(w, f"{name}.linear2"),
    "feed_forward_norm": norm(w, f"{name}.norm{3 if crosses else 2}"),
  }  # fmt: skip
  if crosses:
    made |= {"cross_attention": attention_of(w, f"{name}.multihead_attn"), "cross_norm": norm(w, f"{name}.norm2")}
  return made


@pytest.mark.parametrize("norm_first", [False, True])
def test_the_whole_equals_torch_nn_transformer(norm_first):
  """With torch's departures from the paper: biases in attention, a norm after the last layer of each stack."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    theirs = randomised(torch.nn.Transformer(D, H, N, N, F, dropout=0.0, batch_first=True, norm_first=norm_first))
  w = {name: tensor.detach().numpy() for name, tensor in theirs.state_dict().items()}
  params = {"embed": {"embedding": RNG.normal(size=(V, D)).astype(np.float32)}}
  for kind, crosses in (("encoder", False), ("decoder", True)):
    for index in range(N):
      params[f"{kind}_{index}"] = layer_of(w, f"{kind}.layers.{index}", crosses=crosses)
    params[f"{kind}_{N - 1}"]["final_norm"] = norm(w, f"{kind}.norm")
  model = Transformer(V, N, D, H, F, norm_first=norm_first, final_norm=True, attention_bias=True, norm_epsilon=1e-5)
  ours = jax.jit(functools.partial(model.apply, train=False, method="states"))({"params": params}, SOURCE, TARGET)

  def entered(tokens):
    x = params["embed"]["embedding"][tokens] * D**0.5 + sinusoids(tokens.shape[1], D)
    return torch.from_numpy(x.astype(np.float32))

  hidden, causal = torch.from_numpy(SOURCE == 0), torch.triu(torch.ones(4, 4, dtype=torch.bool), 1)
  with torch.no_grad(), warnings.catch_warnings():
    warnings.simplefilter("ignore")
    expected = theirs(entered(SOURCE), entered(TARGET), tgt_mask=causal, src_key_padding_mask=hidden,
                      memory_key_padding_mask=hidden)  # fmt: skip
  np.testing.assert_allclose(ours, expected.numpy(), atol=1e-5)


def test_layers_equal_those_of_bert():
  """Post-LN as the paper's, with GELU by erf and biases in attention."""
  config = transformers.BertConfig(
    hidden_size=D, num_attention_heads=H, intermediate_size=F, num_hidden_layers=N, vocab_size=V,
    attn_implementation="eager",
  )  # fmt: skip
  theirs = randomised(transformers.BertModel(config, add_pooling_layer=False))
  w = {name: tensor.detach().numpy() for name, tensor in theirs.state_dict().items()}
  x = RNG.normal(size=(2, 6, D)).astype(np.float32)
  there = (SOURCE != 0).astype(np.float32)
  layer = TransformerLayer(D, H, D // H, D // H, F, crosses=False, attention_bias=True, activation="gelu",
                           norm_epsilon=1e-12)  # fmt: skip
  run = jax.jit(functools.partial(layer.apply, method="encode", train=False))
  ours = x
  for index in range(N):
    name = f"encoder.layer.{index}"
    attention = {
      part: heads(w[f"{name}.attention.self.{part}.weight"], w[f"{name}.attention.self.{part}.bias"])
      for part in ("query", "key", "value")
    }
    dense = f"{name}.attention.output.dense"
    attention["out"] = out(w[f"{dense}.weight"], w[f"{dense}.bias"])
    params = {
      "self_attention": attention, "self_norm": norm(w, f"{name}.attention.output.LayerNorm"),
      "inward": linear(w, f"{name}.intermediate.dense"), "outward": linear(w, f"{name}.output.dense"),
      "feed_forward_norm": norm(w, f"{name}.output.LayerNorm"),
    }  # fmt: skip
    ours = run({"params": params}, ours, there)
  mask = torch.from_numpy((1 - there)[:, None, None] * np.finfo(np.float32).min)
  with torch.no_grad(), warnings.catch_warnings():
    warnings.simplefilter("ignore")
    expected = torch.from_numpy(x)
    for member in theirs.encoder.layer:
      expected = member(expected, attention_mask=mask)
      expected = expected[0] if isinstance(expected, tuple) else expected
  np.testing.assert_allclose(np.asarray(ours)[there > 0], expected.numpy()[there > 0], atol=1e-5)
