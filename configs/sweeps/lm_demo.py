"""The demo: two families of language models on real text, and a larger Transformer that grades the fits.

The text is the standard library's source. Transformer: five widths (a factor of 30 in N), four lengths from one trunk
each; LSTM: three widths; three seeds at two cells for the noise. Held out: one Transformer with three times the compute
of the largest fitted cell. Expected: the held-out loss predicted within 2 % (seen: +1.9 %).
`:quick` is for looking at the machinery in 3 minutes, too small to trust.
"""

VARIANTS = ("", "quick")

_COMMON = {"eval.tokens": 131_072, "execution.tensorboard": False, "checkpoint.every_s": 20.0, "checkpoint.keep": 1}


def _transformer_rate(width: int) -> float:
  return float(f"{8e-3 * (16 / width) ** 0.55:.2e}")


def _lstm_rate(width: int) -> float:
  return float(f"{1.6e-2 * (16 / width) ** 0.5:.2e}")


def _widths(widths, rate) -> dict:
  return {"model.d_model": list(widths), "optim.learning_rate": [rate(width) for width in widths]}


def get_sweep(arg: str = "") -> dict:
  """The sweep of a variant."""
  widths, lstm_widths, steps, largest = [16, 24, 36, 56, 88], [16, 32, 64], [160, 256, 400, 640], (112, 1280)
  if arg == "quick":
    widths, lstm_widths, steps, largest = [16, 24, 36], [16, 32], [80, 128, 200], (48, 400)
  common = {**_COMMON, "eval.tokens": 65_536} if arg == "quick" else _COMMON
  transformer = {"family": "transformer", "config": "configs/transformer_lm.py:tiny", "set": common}
  lstm = {"family": "lstm", "config": "configs/lstm_lm.py:tiny", "set": common}
  held_out = {"model.d_model": largest[0], "optim.learning_rate": _transformer_rate(largest[0]), "steps": largest[1]}
  notes = {
    "learning rate": "by a rule: 8e-3 (16 / width)^0.55 for the Transformer, 1.6e-2 (16 / width)^0.5 for the LSTM"
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
