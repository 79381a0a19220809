"""The Transformer on translation as printed, its ablations, the copy task, LibreOffice's help, and what it is compared with.

Vaswani et al. 2017, https://arxiv.org/abs/1706.03762. "" and big: table 2, newstest2014 EN-DE; table3_*: rows of table 3.
Expected: "" 27.3 BLEU after 100,000 updates, big 28.4 after 300,000 (tokenised, last 5 and 20 checkpoints averaged: `--average`).
Deviation: the paper's batches are pairs of about one length, 25,000 tokens a side; here 1,024 pairs of at most 128 tokens, padded.
"""

from typing import Any

from ml_collections import ConfigDict

_TABLE_3: dict[str, dict[str, Any]] = {  # what differs from base: rows A to E
  "a_h1": {"n_heads": 1}, "a_h4": {"n_heads": 4}, "a_h16": {"n_heads": 16}, "a_h32": {"n_heads": 32},
  "b_dk16": {"d_k": 16, "d_v": 64}, "b_dk32": {"d_k": 32, "d_v": 64},
  "c_n2": {"n_layers": 2}, "c_n4": {"n_layers": 4}, "c_n8": {"n_layers": 8},
  "c_d256": {"d_model": 256, "d_k": 32, "d_v": 32}, "c_d1024": {"d_model": 1024, "d_k": 128, "d_v": 128},
  "c_f1024": {"d_ff": 1024}, "c_f4096": {"d_ff": 4096},
  "d_drop0": {"dropout": 0.0}, "d_drop2": {"dropout": 0.2}, "d_smooth0": {}, "d_smooth2": {},
  "e_learned": {"positions": "learned"},
}  # fmt: skip
_SMOOTHING = {"table3_d_smooth0": 0.0, "table3_d_smooth2": 0.2}
VARIANTS = (
  "", "big", "tiny", "lstm_tiny", "heads_tiny", "copy", "copy_lstm", "copy_attention_lstm", "help", "help_attention_lstm",
  "heads", *(f"table3_{row}" for row in _TABLE_3),
)  # fmt: skip
COUNTS = {  # (N, N_total), as recorded when they were added
  "tiny": (20_480, 33_792),
  "lstm_tiny": (8_480, 8_980),
  "heads_tiny": (2_560, 2_832),
}
CONFORMANCE = {"eval.examples": 64, "execution.steps_per_dispatch": 4}

_BASE: dict[str, Any] = {"n_layers": 6, "d_model": 512, "n_heads": 8, "d_ff": 2048, "dropout": 0.1}
_SIZES: dict[str, dict[str, Any]] = {
  "big": {"n_layers": 6, "d_model": 1024, "n_heads": 16, "d_ff": 4096, "dropout": 0.3},
  "tiny": {"n_layers": 1, "d_model": 32, "n_heads": 4, "d_ff": 64},
  "lstm_tiny": {"d_model": 16, "width": 20, "attention": True},
  "heads_tiny": {"n_layers": 1, "d_model": 16, "n_heads": 4, "d_ff": 32},
  "copy": {"n_layers": 2, "d_model": 64, "n_heads": 4, "d_ff": 256},
  "copy_lstm": {"d_model": 64, "width": 137, "attention": False},  # as many parameters as `copy` has, within 1 %
  "copy_attention_lstm": {"d_model": 64, "width": 109, "attention": True},
  "help": {"n_layers": 2, "d_model": 96, "n_heads": 4, "d_ff": 384},
  "help_attention_lstm": {"d_model": 96, "width": 164, "attention": True},  # as many as `help` has
  "heads": {"n_layers": 1, "d_model": 64, "n_heads": 4, "d_ff": 256},
}
_STEPS = {"": 100_000, "big": 300_000, "tiny": 60, "lstm_tiny": 60, "heads_tiny": 60, "help": 800, "heads": 1_000}
_BATCH = {"tiny": 32, "lstm_tiny": 32, "copy": 32, "help": 64, "heads": 64}


def get_config(arg: str = "") -> ConfigDict:
  """The config of a variant."""
  kind = "wmt" if arg in ("", "big") or arg.startswith("table3_") else arg.removesuffix("_attention_lstm")
  kind = kind.removesuffix("_lstm")
  config = ConfigDict()
  config.task = "places_back" if kind.startswith("heads") else "translation"
  config.steps = _STEPS.get(arg, {"wmt": 100_000, "help": 800}.get(kind, 1_500))
  config.batch_size = _BATCH.get(kind, 1_024 if kind == "wmt" else 32)

  config.data = _data(kind)
  config.model = _model(arg, kind)
  if config.task == "translation":
    config.smoothing = ConfigDict()
    config.smoothing.epsilon = _SMOOTHING.get(arg, 0.1 if kind == "wmt" else 0.0)
    config.smoothing.shared_by = "others"  # others_but_pad, all

  width, warmup = config.model.d_model, 4_000
  config.optim = ConfigDict()
  config.optim.name = "adam"
  config.optim.learning_rate = (width * warmup) ** -0.5 if kind == "wmt" else 2e-3  # at the peak
  config.optim.clip_norm = 0.0
  config.optim.options = ConfigDict({"b1": 0.9, "b2": 0.98, "eps": 1e-9})

  config.schedule = ConfigDict()
  config.schedule.name = "inverse_sqrt"
  config.schedule.warmup_steps = warmup if kind == "wmt" else 20 if "tiny" in arg else 300

  config.execution = ConfigDict()
  config.execution.steps_per_dispatch = 1 if kind == "wmt" else 16
  if "lstm" in arg:
    config.execution.time_unroll = 1  # time steps unrolled in the recurrence

  config.eval = ConfigDict()
  if config.task == "places_back":
    config.eval.examples = 64 if "tiny" in arg else 1_024
  else:
    config.eval.examples = {"wmt": 0, "tiny": 64, "lstm_tiny": 64, "copy": 1_024}.get(
      kind, 0
    )  # at most; 0: all there are
    config.eval.beams = 4 if kind == "wmt" else 1
    config.eval.alpha = 0.6  # of the length penalty
    config.eval.extra = 0 if config.data.name == "copy" else 50  # tokens at most beyond the source's
  config.eval.every = 5_000 if kind == "wmt" else 0

  config.checkpoint = ConfigDict()
  config.checkpoint.every = 1_500 if kind == "wmt" else 0  # steps: ten minutes of the paper's base; 0: at the end
  config.checkpoint.keep = 20 if arg == "big" else 5 if kind == "wmt" else 2
  return config


def _data(kind: str) -> ConfigDict:
  data = ConfigDict()
  if kind.startswith("heads"):
    data.symbols, data.length = 8, 16 if "tiny" in kind else 32
    return data
  data.name = {"wmt": "tfds:wmt14_translate/de-en", "help": "libreoffice_help", "tiny": "invented"}.get(kind, "copy")
  data.path = ""  # the data_dir of a TFDS set
  data.languages = {"wmt": ("en", "de"), "help": ("en-US", "fr")}.get(kind, ("", ""))  # from, to
  data.vocab_size = {"wmt": 37_000, "help": 2_000}.get(kind, 400)  # of both languages, 3 specials among them
  data.shortest = 4  # of copy
  data.longest = {"wmt": 128, "tiny": 40, "lstm_tiny": 6, "help": 32}.get(kind, 24)  # tokens; END comes on top
  data.symbols = 16  # of copy
  data.train_pairs = 2_000 if kind == "tiny" else 0  # 0: all there are
  data.heldout_fraction = 0.05  # of the pages of libreoffice_help
  return data


def _model(arg: str, kind: str) -> ConfigDict:
  own = {**_BASE, **_TABLE_3.get(arg.removeprefix("table3_"), {})} if kind == "wmt" and arg != "big" else _SIZES[arg]
  if "lstm" in arg:
    return ConfigDict({"name": "seq2seq", "dropout": 0.0, **own})
  heads = {"d_k": 0, "d_v": 0, **own}  # 0: d_model / n_heads
  if kind.startswith("heads"):
    return ConfigDict(heads)
  departures: dict[str, Any] = {"positions": "sinusoidal", "max_positions": 0, "norm_first": False, "final_norm": False,
                "attention_bias": False}  # fmt: skip
  return ConfigDict({"name": "transformer", "dropout": 0.0, **departures, **heads})
