"""Recurrent cells on tasks whose answer lies many steps back, and the nets of 1997 with their own recipe.

Olah 2015, https://colah.github.io/posts/2015-08-Understanding-LSTMs (the cells); Hochreiter, Schmidhuber 1997, Neural
Computation 9(8), experiments 4, 6a, 6b (the tasks, and the variants that end in 1997: 93, 156 and 308 weights, one sequence
an update, no momentum, input gates that begin nearly shut).
Expected: small (adding over 60 steps), 4,000 updates: squared error .003, where guessing costs .167; 1997 at 100 steps: every
answer within .04 after 74,000 sequences, as published (measured: 58 to 72 of 2,560 wrong at best within 222,000).
"""

from ml_collections import ConfigDict

VARIANTS = ("", "tiny", "small", "order", "adding_1997", "order_1997", "order_1997_6b")
COUNTS = {"tiny": (624, 658)}  # (N, N_total), as recorded when it was added
CONFORMANCE = {"eval.examples": 32, "execution.steps_per_dispatch": 4}

_DATA = {  # name, length, spread, windows
  "": ("adding", 200, 0, ()),
  "tiny": ("first_symbol", 10, 0, ()),
  "small": ("adding", 60, 0, ()),
  "order": ("temporal_order", 40, 4, ((4, 8), (20, 24))),
  "adding_1997": ("adding_1997", 100, 0, ()),
  "order_1997": ("temporal_order", 100, 10, ((10, 20), (50, 60))),
  "order_1997_6b": ("temporal_order", 100, 10, ((10, 20), (33, 43), (66, 76))),
}
_SIZES = {  # width, batch, updates, learning rate
  "": (128, 64, 20_000, 1e-3),
  "tiny": (8, 32, 150, 1e-2),
  "small": (64, 64, 4_000, 1e-3),
  "order": (32, 32, 3_000, 3e-3),
  "adding_1997": (0, 1, 150_000, 0.5),
  "order_1997": (0, 1, 100_000, 0.5),
  "order_1997_6b": (0, 1, 1_000_000, 0.1),
}
_INPUT_GATES = {"adding_1997": (-3.0, -6.0), "order_1997": (-2.0, -4.0), "order_1997_6b": (-2.0, -4.0, -6.0)}


def get_config(arg: str = "") -> ConfigDict:
  """The config of a variant."""
  name, length, spread, windows = _DATA[arg]
  width, batch_size, steps, learning_rate = _SIZES[arg]
  of_1997 = arg in _INPUT_GATES
  config = ConfigDict()
  config.task = "long_lag"
  config.steps = steps
  config.batch_size = batch_size

  config.data = ConfigDict()
  config.data.name = name  # adding, adding_1997, temporal_order, first_symbol
  config.data.length = length
  config.data.spread = spread  # lengths are length to length + spread
  config.data.windows = windows  # of temporal_order: where each X or Y may stand

  config.model = ConfigDict()
  config.model.cell = "memory_blocks" if of_1997 else "lstm"  # or rnn, gru, …: ilya_jax/models/recurrent_cells.py
  config.model.output = "logistic" if of_1997 else "linear"
  config.model.width = width
  config.model.forget_bias = 1.0
  config.model.init_scale = 0.1 if of_1997 else 0.0  # parameters uniform in [-s, s]; 0: s = 1 / sqrt(width)
  config.model.blocks = len(_INPUT_GATES.get(arg, ()))  # of memory_blocks, as all below
  config.model.block_size = 2
  config.model.input_gate_bias = _INPUT_GATES.get(arg, ())
  config.model.truncated = True  # errors flow back through the cells alone

  config.optim = ConfigDict()
  config.optim.name = "sgd" if of_1997 else "adam"
  config.optim.learning_rate = learning_rate
  config.optim.clip_norm = 0.0 if of_1997 else 1.0
  config.optim.options = ConfigDict()

  config.schedule = ConfigDict()
  config.schedule.name = "constant"

  config.execution = ConfigDict()
  config.execution.time_unroll = 1  # time steps unrolled in the recurrence
  config.execution.steps_per_dispatch = 100 if of_1997 else 16

  config.eval = ConfigDict()
  config.eval.examples = 2_560  # as many as in the tests of 1997
  config.eval.every = {"tiny": 0, "small": 100, "order": 100}.get(arg, 1_000)

  config.checkpoint = ConfigDict()
  config.checkpoint.every = {"tiny": 0}.get(arg, 50_000 if of_1997 else 1_000)  # steps; 0: at the end

  config.log_every = 1_000 if of_1997 else 10
  return config
