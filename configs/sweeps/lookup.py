"""Calibration: two families of language models on a generated language whose entropy is known exactly, floor and all.

The language is `lookup:NUMBER` (`ilya_jax/data/lookup.py`). The grid is that of the demo: five Transformers of four lengths, three
LSTMs of four, seeds for the noise, and a Transformer of three times the compute held out. A fit must find the entropy as its floor E.
`:1` to `:5` are the languages fixed beforehand for `experiments/calibration.py`; the one without a number, language 0, served to
choose the design. Expected: 1.47 nats a token of entropy, losses from 1.65 to 1.50.
"""

VARIANTS = ("", "1", "2", "3", "4", "5")

_WIDTHS, _LSTM_WIDTHS, _STEPS, _HELD_OUT = (16, 24, 36, 56, 88), (16, 32, 64), (800, 1280, 2000, 3200), (112, 6400)


def _transformer_rate(width: int) -> float:
  return float(f"{1.5e-2 * (16 / width) ** 0.75:.2e}")


def _lstm_rate(width: int) -> float:
  return float(f"{2.8e-2 * (16 / width) ** 0.3:.2e}")


def _widths(widths, rate) -> dict:
  return {"model.d_model": list(widths), "optim.learning_rate": [rate(width) for width in widths]}


def get_sweep(arg: str = "") -> dict:
  """The sweep on one language."""
  common = {
    "data.name": f"lookup:{arg or 0}", "data.vocab_size": 32, "data.context": 128, "batch_size": 8, "schedule.warmup_steps": 200,
    "eval.tokens": 262_144, "execution.tensorboard": False, "checkpoint.every_s": 20.0, "checkpoint.keep": 1,
  }  # fmt: skip
  transformer = {"family": "transformer", "config": "configs/transformer_lm.py:tiny", "set": common}
  lstm = {"family": "lstm", "config": "configs/lstm_lm.py:tiny", "set": common}
  width, steps = _HELD_OUT
  held_out = {"model.d_model": width, "optim.learning_rate": _transformer_rate(width), "steps": steps}
  return {
    "name": f"lookup_{arg or 0}",
    "groups": [
      {**transformer, "axes": [_widths(_WIDTHS, _transformer_rate), {"steps": list(_STEPS)}]},
      {
        **transformer,
        "seeds": [1, 2],
        "axes": [_widths(_WIDTHS[1:3], _transformer_rate), {"steps": list(_STEPS[-2:-1])}],
      },
      {**lstm, "axes": [_widths(_LSTM_WIDTHS, _lstm_rate), {"steps": list(_STEPS)}]},
      {**transformer, "role": "held_out", "set": {**common, **held_out}},
    ],
    "fit": {"drop_shortest": True},
    "notes": {
      "learning rate": "by a rule: 1.5e-2 (16 / width)^0.75 for the Transformer, 2.8e-2 (16 / width)^0.3 for the LSTM",
    },
  }
