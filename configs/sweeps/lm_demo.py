"""The demo: two families of language models on real text, and a larger Transformer that grades the fits.

The text is the standard library's source. Transformer: five widths (a factor of 30 in N), four lengths from one trunk
each; LSTM: three widths; three seeds at two cells for the noise. Held out: one Transformer with three times the compute
of the largest fitted cell. Expected: the held-out loss predicted within 2 % (seen: -0.5 %).
`:quick` is for looking at the machinery in a minute and a half, too small to trust.
"""

VARIANTS = ("", "quick")

_COMMON = {
  "batch_size": 8,  # a text this short is learnt by many small steps: 1.69 nats a byte where 32 reach 1.89 (width 56)
  "schedule.warmup_steps": 200,
  "eval.tokens": 131_072,
  "execution.tensorboard": False,
  "checkpoint.every_s": 20.0,
  "checkpoint.keep": 1,
}


def _transformer_rate(width: int) -> float:
  return float(f"{1.5e-2 * (16 / width) ** 0.75:.2e}")


def _lstm_rate(width: int) -> float:
  return float(f"{2.8e-2 * (16 / width) ** 0.3:.2e}")


def _widths(widths, rate) -> dict:
  return {"model.d_model": list(widths), "optim.learning_rate": [rate(width) for width in widths]}


def get_sweep(arg: str = "") -> dict:
  """The sweep of a variant."""
  widths, lstm_widths, steps, largest = [16, 24, 36, 56, 88], [16, 32, 64], [800, 1280, 2000, 3200], (112, 6400)
  if arg == "quick":
    widths, lstm_widths, steps, largest = [16, 24, 36], [16, 32], [320, 512, 800], (48, 1600)
  common = {**_COMMON, "eval.tokens": 65_536} if arg == "quick" else _COMMON
  transformer = {"family": "transformer", "config": "configs/transformer_lm.py:tiny", "set": common}
  lstm = {"family": "lstm", "config": "configs/lstm_lm.py:tiny", "set": common}
  held_out = {"model.d_model": largest[0], "optim.learning_rate": _transformer_rate(largest[0]), "steps": largest[1]}
  notes = {
    "learning rate": "by a rule: 1.5e-2 (16 / width)^0.75 for the Transformer, 2.8e-2 (16 / width)^0.3 for the LSTM"
  }
  if arg == "quick":
    notes["size"] = "this quick variant is too small to trust: it shows the machinery, not a law"
  return {
    "name": f"lm_demo{'_quick' if arg else ''}",
    "groups": [
      {**transformer, "axes": [_widths(widths, _transformer_rate), {"steps": steps}]},
      {**transformer, "seeds": [1, 2], "axes": [_widths(widths[1:3], _transformer_rate), {"steps": steps[-2:-1]}]},
      {**lstm, "axes": [_widths(lstm_widths, _lstm_rate), {"steps": steps}]},
      {**transformer, "role": "held_out", "set": {**common, **held_out}},
    ],
    "fit": {"drop_shortest": True, "target_compute": [1e14, 1e16, 1e18]},
    "notes": notes,
  }
