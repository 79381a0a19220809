"""Neural Turing Machines and the stacked LSTM on copy, repeat copy, associative recall, dynamic n-grams and priority sort.

Graves, Wayne, Danihelka 2014, https://arxiv.org/abs/1410.5401, section 4, tables 1 to 3 (sizes, rates). A variant is a task and a net,
as copy_lstm: ntm (LSTM controller), ff (feed-forward controller) or lstm (the stacked LSTM); "" is copy_ntm; copy_small, recall_small
and ngrams_small with the same nets are forms for a CPU.
Deviations: the paper states neither batch (here 16), initial weightings, squashings nor the order within a step
(`ilya_jax/models/ntm.py`). optax's centred RMSProp stands for that of Graves 2013; gradients are clipped to +-10 component by
component. The small forms use Adam, rate 1e-3, a global norm of at most 10, and write before they read.
Expected: copy_ntm and copy_ff near 0 bits a sequence by 100,000 sequences (6,250 updates), copy_lstm about 5. Small forms, share of
wrong bits at lengths 5, 10 and 15: copy_small_ntm 0, .02, .06 after 5,000 updates (seed 2), copy_small_lstm 0, .46, .49 after 8,000 (seed
0). With controller matrices that began uniform on +-1/sqrt(width), copy_small_ntm gave 0, .05, .24 and 0, .18, .40 and .01, .48, .49
(8,000 updates, seeds 0, 1, 2) and copy_small_ff 0, 0, 0 (seed 0).
"""

from ml_collections import ConfigDict

_DATA = {
  "copy": {"name": "copy", "tests": tuple(f"length={n}" for n in (10, 20, 30, 50, 120))},
  "repeat": {"name": "repeat", "length": (1, 10), "tests": ("length=20,repeats=10", "length=10,repeats=20")},
  "recall": {"name": "recall", "bits": 6, "tests": tuple(f"item_count={n}" for n in (6, 8, 10, 12, 15, 20))},
  "ngrams": {"name": "ngrams", "length": (200, 200)},
  "sort": {"name": "sort"},
  "copy_small": {"name": "copy", "bits": 4, "length": (1, 5), "tests": ("length=5", "length=10", "length=15")},
  "recall_small": {
    "name": "recall", "bits": 4, "item_count": (2, 4), "item_length": 2, "tests": ("item_count=4", "item_count=6", "item_count=8"),
  },
  "ngrams_small": {"name": "ngrams", "length": (40, 40), "history": 2},
  "tiny": {"name": "copy", "bits": 3, "length": (1, 3), "tests": ("length=5",)},
}  # fmt: skip
_NETS = ("ntm", "ff", "lstm")
_SIZES = {  # of each net: heads of each kind (of the stacked LSTM: none), width, layers, learning rate
  "copy": ((1, 100, 1, 1e-4), (1, 100, 1, 1e-4), (0, 256, 3, 3e-5)),
  "repeat": ((1, 100, 1, 1e-4), (1, 100, 1, 1e-4), (0, 512, 3, 3e-5)),
  "recall": ((1, 100, 1, 1e-4), (4, 256, 1, 1e-4), (0, 256, 3, 1e-4)),
  "ngrams": ((1, 100, 1, 3e-5), (1, 100, 1, 3e-5), (0, 128, 3, 1e-4)),
  "sort": ((5, 100, 2, 3e-5), (8, 512, 1, 3e-5), (0, 128, 3, 3e-5)),
  "copy_small": ((1, 48, 1, 1e-3), (1, 48, 1, 1e-3), (0, 64, 2, 1e-3)),
  "recall_small": ((1, 64, 1, 1e-3), (1, 64, 1, 1e-3), (0, 64, 2, 1e-3)),
  "ngrams_small": ((1, 48, 1, 1e-3), (1, 48, 1, 1e-3), (0, 64, 2, 1e-3)),
  "tiny": ((1, 12, 1, 1e-2),),
}
_MEMORY = {"copy_small": (20, 8), "recall_small": (24, 12), "ngrams_small": (32, 8), "tiny": (6, 5)}  # rows, columns
_STEPS = {"copy_small": 8_000, "recall_small": 25_000, "ngrams_small": 8_000, "tiny": 30}

VARIANTS = ("", *(f"{task}_{net}" for task in _SIZES if task != "tiny" for net in _NETS), "tiny")
COUNTS = {"tiny": (1_443, 1_555)}  # (N, N_total), as recorded when it was added
CONFORMANCE = {"eval.examples": 16, "execution.steps_per_dispatch": 4}


def get_config(arg: str = "") -> ConfigDict:
  """The config of a variant."""
  task, _, net = (arg or "copy_ntm").rpartition("_") if arg != "tiny" else ("tiny", "", "ntm")
  heads, width, layers, learning_rate = _SIZES[task][_NETS.index(net)]
  rows, columns = _MEMORY.get(task, (128, 20))
  small = task in _MEMORY
  config = ConfigDict()
  config.task = "bit_sequences"
  config.steps = _STEPS.get(task, 62_500)  # a million sequences
  config.batch_size = 16

  config.data = ConfigDict()
  config.data.name = "copy"  # copy, repeat, recall, ngrams, sort
  config.data.bits = 8  # of a vector
  config.data.length = (1, 20)  # first and last, of copy and repeat; of ngrams the same number twice
  config.data.repeats = (1, 10)
  config.data.item_count = (2, 6)  # of recall
  config.data.item_length = 3
  config.data.history = 5  # of ngrams: bits that a bit depends on
  config.data.vectors = 20  # of sort
  config.data.answered = 16
  config.data.tests = ()  # further held-out sets, as length=30
  config.data.update(_DATA[task])

  config.model = ConfigDict()
  config.model.name = "stacked_lstm" if net == "lstm" else "ntm"
  config.model.layers = layers
  config.model.width = width
  config.model.forget_bias = 1.0
  if net != "lstm":
    config.model.controller = "feedforward" if net == "ff" else "lstm"
    config.model.read_heads = heads
    config.model.write_heads = heads
    config.model.rows = rows
    config.model.columns = columns
    config.model.shifts = 3  # -1, 0, 1; 0: the window of width 1 that the paper also tried
    config.model.order = "write_first" if small else "read_first"
    config.model.squash = "tanh"  # of keys and adds; or identity
    config.model.activation = "tanh"  # of a feed-forward controller; or relu
    config.model.clip = 20.0  # of head parameters and logits; 0: none
    config.model.first_weights = "one_hot" if small else "learned"
    config.model.first_memory = "constant"  # or learned

  config.optim = ConfigDict()
  config.optim.name = "adam" if small else "rmsprop"
  config.optim.learning_rate = learning_rate
  config.optim.clip_norm = 10.0 if small else 0.0
  config.optim.clip_component = 0.0 if small else 10.0
  config.optim.options = ConfigDict({} if small else {"decay": 0.95, "centered": True, "momentum": 0.9, "eps": 1e-4})

  config.schedule = ConfigDict()
  config.schedule.name = "constant"

  config.execution = ConfigDict()
  config.execution.time_unroll = 1  # time steps written out per iteration: more was no faster on the CPU
  config.execution.steps_per_dispatch = 50 if small and task != "tiny" else 10

  config.eval = ConfigDict()
  config.eval.examples = 256 if small and task != "ngrams_small" else 1_024
  config.eval.every = {"tiny": 0, "copy_small": 200}.get(task, 500)

  config.checkpoint = ConfigDict()
  config.checkpoint.every = 0 if small else 2_000  # steps; 0: at the end

  config.log_every = 50 if small and task != "tiny" else 10
  return config
