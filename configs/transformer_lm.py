"""The decoder-only Transformer on text: the GPT-2 form of Kaplan et al. 2020, and a modern form.

Expected: `:tiny` reaches about 2.0 nats a byte on the standard library's source in 300 steps (seconds on a laptop).
`:modern_tiny` and `:modern_small` are the same sizes with rotary positions, RMSNorm, SwiGLU and QK-norm.
`:1b` is a modern form of 1.3 billion parameters (the depth and width of GPT-3 XL, Brown et al. 2020, Table 2.1) for slices of
accelerators, on some 20 tokens a parameter: `ilya-jax plan` says what it takes. It was planned, not trained, here.
"""

from ml_collections import ConfigDict

VARIANTS = ("", "tiny", "small", "modern_tiny", "modern_small", "1b")
COUNTS = {"tiny": (98_304, 124_672), "modern_tiny": (97_280, 114_112)}  # (N, N_total), as recorded when it was added
CONFORMANCE = {
  "data.context": 16,
  "eval.tokens": 512,
  "execution.steps_per_dispatch": 4,
}  # of tests/test_conformance.py

_SIZES = {  # layers, width, heads, context, batch, steps, learning rate
  "tiny": (2, 64, 2, 128, 32, 300, 4e-3),
  "small": (4, 256, 4, 256, 16, 3_000, 2e-3),
  "": (12, 768, 12, 1024, 64, 100_000, 6e-4),
  "1b": (24, 2048, 16, 2048, 256, 50_000, 2e-4),
}


def get_config(arg: str = "") -> ConfigDict:
  """The config of a variant."""
  size = arg.removeprefix("modern_")
  n_layers, d_model, n_heads, context, batch_size, steps, learning_rate = _SIZES[size]
  large = size == "1b"
  modern = arg.startswith("modern_") or large
  config = ConfigDict()
  config.task = "language"
  config.steps = steps
  config.batch_size = batch_size
  config.dtype = "bfloat16" if large else "float32"  # of the computation; parameters are float32 always

  config.data = ConfigDict()
  config.data.name = "tfds:c4/en" if large else "stdlib"  # or files, shakespeare, state_of_the_union, tfds:NAME, markov
  config.data.path = ""
  config.data.tokenizer = "bpe" if large else "bytes"
  config.data.vocab_size = 50_304 if large else 256  # 393 times 128: meshes divide it
  config.data.heldout_fraction = 0.05
  config.data.context = context

  config.model = ConfigDict()
  config.model.name = "transformer_lm"
  config.model.form = "modern" if modern else "gpt2"
  config.model.n_layers = n_layers
  config.model.d_model = d_model
  config.model.n_heads = n_heads
  config.model.d_ff = 5_504 if large else 0  # 0: four times the width (a third less for SwiGLU); 5504 is 43 times 128
  config.model.dropout = 0.0
  config.model.qk_norm = modern
  config.model.tied = True  # one matrix for embedding and softmax

  config.optim = ConfigDict()
  config.optim.name = "adamw"
  config.optim.learning_rate = learning_rate
  config.optim.clip_norm = 1.0
  config.optim.options = ConfigDict({"b1": 0.9, "b2": 0.95, "weight_decay": 0.1})

  config.schedule = ConfigDict()
  config.schedule.warmup_steps = 50 if size == "tiny" else 200 if size == "small" else 2_000
  config.schedule.cooldown_fraction = 0.2

  config.mesh = ConfigDict({"data": 1 if large else -1, "fsdp": -1 if large else 1, "tensor": 1, "stage": 1})
  config.execution = ConfigDict()
  config.execution.steps_per_dispatch = 1 if large else 16
  config.execution.remat = large  # layers recompute their inside in the backward pass
  config.execution.layer_unroll = 1 if large else 0  # layers unrolled in the compiled program; 0: all
  config.execution.attention_blocks = 1  # query blocks of causal attention, each against the keys it may see
  config.execution.attention_kernel = ""  # ours, cudnn or xla; "": cudnn where it is fastest (`best_kernel`), else ours

  config.eval = ConfigDict()
  config.eval.tokens = 65_536 if size == "tiny" else 262_144

  config.checkpoint = ConfigDict()
  config.checkpoint.every = 0 if size == "tiny" else 1_000  # steps; 0: at the end
  return config
