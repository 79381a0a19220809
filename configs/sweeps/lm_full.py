"""The sweep for accelerators: GPT-2-form Transformers from 1 to 250 million parameters, three seeds, 20 % cooldowns.

Budget: 1.0e20 FLOP by formula, three days at 4e14 FLOP/s; not run yet. The text is the standard library's source unless
`--config.data.name=tfds:c4/en` or another large one is given, which these lengths need (the report counts D_unique).
"""

VARIANTS = ("",)

_SIZES = [  # layers, width, heads
  (6, 128, 2), (8, 192, 3), (10, 256, 4), (12, 384, 6), (12, 512, 8), (14, 640, 10), (16, 768, 12), (20, 1024, 16),
]  # fmt: skip
_TOKENS_PER_STEP = 128 * 1024


def get_sweep(arg: str = "") -> dict:
  """The sweep."""
  common = {
    "data.context": 1024, "batch_size": 128, "data.tokenizer": "bpe", "data.vocab_size": 16_384, "dtype": "bfloat16",
    "schedule.warmup_steps": 500, "eval.tokens": 2**21, "checkpoint.every_s": 600.0, "checkpoint.keep": 1,
  }  # fmt: skip
  sizes = [
    {
      "model.n_layers": n,
      "model.d_model": d,
      "model.n_heads": h,
      "optim.learning_rate": float(f"{2e-3 * (256 / d) ** 0.5:.2e}"),
    }
    for n, d, h in _SIZES
  ]
  steps = [2 ** (28 + k) // _TOKENS_PER_STEP for k in range(6)]  # 0.27 to 8.6 thousand million tokens
  base = {"family": "transformer", "config": "configs/transformer_lm.py"}
  return {
    "name": "lm_full",
    "groups": [
      {**base, "set": common, "axes": [sizes[:-1], {"steps": steps}], "seeds": [0, 1, 2]},
      {**base, "set": {**common, **sizes[-1], "steps": 2 * steps[-1]}, "role": "held_out"},
    ],
    "fit": {"drop_shortest": True, "target_compute": [1e19, 1e21, 1e23]},
    "notes": {"learning rate": "by a rule: 2e-3 (256 / width)^0.5"},
  }
