"""The stacked LSTM language model on text; dropout, where there is any, acts on non-recurrent connections alone.

Zaremba, Sutskever, Vinyals 2014, https://arxiv.org/abs/1409.2329 (cell, places of dropout).
Expected: width 64 reaches 1.7 nats a byte on the standard library's source in 1.6M tokens (batch 8, rates 1e-2 to 4e-2).
"""

from ml_collections import ConfigDict

VARIANTS = ("", "tiny", "small")
COUNTS = {"tiny": (65_536, 99_072)}  # (N, N_total), as recorded when it was added
CONFORMANCE = {
  "data.context": 16,
  "eval.tokens": 512,
  "execution.steps_per_dispatch": 4,
}  # of tests/test_conformance.py

_SIZES = {  # layers, width, context, batch, steps, learning rate
  "tiny": (2, 64, 128, 32, 300, 1e-2),
  "small": (2, 256, 128, 32, 3_000, 4e-3),
  "": (2, 1_024, 256, 64, 50_000, 1e-3),
}


def get_config(arg: str = "") -> ConfigDict:
  """The config of a variant."""
  n_layers, d_model, context, batch_size, steps, learning_rate = _SIZES[arg]
  config = ConfigDict()
  config.task = "language"
  config.steps = steps
  config.batch_size = batch_size

  config.data = ConfigDict()
  config.data.name = "stdlib"  # stdlib, files, shakespeare, state_of_the_union, tfds:NAME, markov
  config.data.path = ""
  config.data.tokenizer = "bytes"  # bytes or bpe
  config.data.vocab_size = 256
  config.data.heldout_fraction = 0.05
  config.data.context = context

  config.model = ConfigDict()
  config.model.name = "lstm_lm"
  config.model.n_layers = n_layers
  config.model.d_model = d_model
  config.model.dropout = 0.0
  config.model.forget_bias = 1.0
  config.model.init_scale = 0.0  # parameters uniform in [-s, s]; 0: s = 1 / sqrt(width)
  config.model.tied = False

  config.optim = ConfigDict()
  config.optim.name = "adamw"
  config.optim.learning_rate = learning_rate
  config.optim.clip_norm = 1.0
  config.optim.options = ConfigDict({"b1": 0.9, "b2": 0.95, "weight_decay": 0.01})

  config.schedule = ConfigDict()
  config.schedule.warmup_steps = 50 if arg == "tiny" else 200
  config.schedule.cooldown_fraction = 0.2

  config.execution = ConfigDict()
  config.execution.layer_unroll = 0  # layers unrolled in the compiled program; 0: all
  config.execution.time_unroll = 1  # time steps unrolled in the recurrence: more was slower on the CPU

  config.eval = ConfigDict()
  config.eval.tokens = 65_536 if arg == "tiny" else 262_144

  config.checkpoint = ConfigDict()
  config.checkpoint.every = 0 if arg == "tiny" else 1_000  # steps; 0: at the end
  return config
