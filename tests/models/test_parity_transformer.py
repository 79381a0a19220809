"""The Transformer's two forms against transformers' GPT-2, Llama and Qwen3 with random weights copied over."""

import functools
import warnings

import jax
import numpy as np
import pytest

from ilya_jax.models.transformer_lm import FORMS, TransformerLM
from tests.models.torch_oracle import randomised

REASON = "needs torch and transformers: pip install 'ilya-jax[parity]'"
torch = pytest.importorskip("torch", reason=REASON)
with warnings.catch_warnings():  # transformers warns at import about versions of what it finds installed
  warnings.simplefilter("ignore")
  transformers = pytest.importorskip("transformers", reason=REASON)

VOCAB, CONTEXT, LAYERS, WIDTH, HEADS, FEED_FORWARD = 61, 24, 2, 32, 4, 72
HEAD = WIDTH // HEADS
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (3, CONTEXT)).astype(np.int32)


def torch_logits(model):
  with torch.no_grad(), warnings.catch_warnings():
    warnings.simplefilter("ignore")
    return model(torch.from_numpy(TOKENS).long()).logits.numpy()


def our_logits(model, params):
  run = jax.jit(functools.partial(model.apply, train=False))
  return np.asarray(run({"params": params}, TOKENS))


def stacked(weights, pattern, convert):
  return np.stack([convert(weights[pattern.format(layer)]) for layer in range(LAYERS)])


def test_gpt2_form_equals_gpt2():
  config = transformers.GPT2Config(
    vocab_size=VOCAB, n_positions=CONTEXT, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, attn_implementation="eager"
  )
  theirs = randomised(transformers.GPT2LMHeadModel(config))
  w = {name: tensor.detach().numpy() for name, tensor in theirs.state_dict().items()}
  layer = functools.partial(stacked, w)
  norm = lambda name: {  # noqa: E731
    "scale": layer(f"transformer.h.{{}}.{name}.weight", np.asarray),
    "bias": layer(f"transformer.h.{{}}.{name}.bias", np.asarray),
  }
  linear = lambda name, kernel, bias: {  # noqa: E731
    "kernel": layer(f"transformer.h.{{}}.{name}.weight", lambda a: a.reshape(kernel)),
    "bias": layer(f"transformer.h.{{}}.{name}.bias", lambda a: a.reshape(bias)),
  }
  params = {
    "embed": {"embedding": w["transformer.wte.weight"]},
    "position_embed": {"embedding": w["transformer.wpe.weight"]},
    "layers": {
      "attention_norm": norm("ln_1"),
      "qkv": linear("attn.c_attn", (WIDTH, 3, HEADS, HEAD), (3, HEADS, HEAD)),
      "attention_out": linear("attn.c_proj", (HEADS, HEAD, WIDTH), (WIDTH,)),
      "mlp_norm": norm("ln_2"),
      "mlp_in": linear("mlp.c_fc", (WIDTH, 1, 4 * WIDTH), (1, 4 * WIDTH)),
      "mlp_out": linear("mlp.c_proj", (4 * WIDTH, WIDTH), (WIDTH,)),
    },
    "final_norm": {"scale": w["transformer.ln_f.weight"], "bias": w["transformer.ln_f.bias"]},
  }
  ours = TransformerLM(
    vocab_size=VOCAB,
    context=CONTEXT,
    n_layers=LAYERS,
    d_model=WIDTH,
    n_heads=HEADS,
    layer_unroll=1,
    **FORMS["gpt2"],
  )
  np.testing.assert_allclose(our_logits(ours, params), torch_logits(theirs), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("family", "tied"), [("Llama", False), ("Qwen3", False), ("Qwen3", True)])
def test_modern_form_equals_llama_and_qwen3(family, tied):
  sizes = {
    "vocab_size": VOCAB, "max_position_embeddings": CONTEXT, "hidden_size": WIDTH, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "head_dim": HEAD, "intermediate_size": FEED_FORWARD,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": tied, "attn_implementation": "eager",
  }  # fmt: skip
  config = getattr(transformers, f"{family}Config")(**sizes)
  theirs = randomised(getattr(transformers, f"{family}ForCausalLM")(config))
  w = {name: tensor.detach().numpy() for name, tensor in theirs.state_dict().items()}
  heads = lambda a: a.T.reshape(WIDTH, HEADS, HEAD)  # noqa: E731
  layer = lambda name, convert: stacked(w, f"model.layers.{{}}.{name}.weight", convert)  # noqa: E731
  layers = {
    "attention_norm": {"scale": layer("input_layernorm", np.asarray)},
    "qkv": {"kernel": np.stack([layer(f"self_attn.{name}_proj", heads) for name in "qkv"], axis=2)},
    "attention_out": {"kernel": layer("self_attn.o_proj", lambda a: a.T.reshape(HEADS, HEAD, WIDTH))},
    "mlp_norm": {"scale": layer("post_attention_layernorm", np.asarray)},
    "mlp_in": {"kernel": np.stack([layer("mlp.gate_proj", np.transpose), layer("mlp.up_proj", np.transpose)], axis=2)},
    "mlp_out": {"kernel": layer("mlp.down_proj", np.transpose)},
  }
  if family == "Qwen3":
    layers["query_norm"] = {"scale": layer("self_attn.q_norm", np.asarray)}
    layers["key_norm"] = {"scale": layer("self_attn.k_norm", np.asarray)}
  params = {
    "embed": {"embedding": w["model.embed_tokens.weight"]},
    "layers": layers,
    "final_norm": {"scale": w["model.norm.weight"]},
  }
  if not tied:
    params["head"] = {"kernel": w["lm_head.weight"].T}
  ours = TransformerLM(
    vocab_size=VOCAB, context=CONTEXT, n_layers=LAYERS, d_model=WIDTH, n_heads=HEADS, d_ff=FEED_FORWARD,
    layer_unroll=1,
    **{**FORMS["modern"], "qk_norm": family == "Qwen3", "tied": tied},
  )  # fmt: skip
  np.testing.assert_allclose(our_logits(ours, params), torch_logits(theirs), rtol=0, atol=1e-4)
