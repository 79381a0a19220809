"""The demo: two families of language models on real text, and a larger Transformer that grades the fits.

The text is the standard library's source. Transformer: five widths (a factor of 36 in N), four lengths from one trunk each; LSTM: three widths; three seeds at two
cells for the noise. Held out: one Transformer with more than three times the compute of the largest fitted cell.
Expected: the held-out loss predicted within 2 %. `:quick` is for looking at the machinery, too small to trust.
"""

VARIANTS = ("", "quick")

_TRANSFORMER = {  # width -> learning rate: 8e-3 (16 / width)^0.55, found on a pilot of widths 16 to 96
  width: float(f"{8e-3 * (16 / width) ** 0.55:.2e}") for width in (16, 24, 32, 48, 64, 96, 128)
}
_LSTM = {width: float(f"{1.6e-2 * (16 / width) ** 0.5:.2e}") for width in (16, 32, 64)}
_COMMON = {"eval.tokens": 262_144, "execution.tensorboard": False, "checkpoint.every_s": 20.0, "checkpoint.keep": 1}


def _axis(rates, widths):
  return {"model.d_model": list(widths), "optim.learning_rate": [rates[width] for width in widths]}


def get_sweep(arg: str = "") -> dict:
  """The sweep of a variant."""
  widths, lstm_widths, steps = [16, 32, 48, 64, 96], [16, 32, 64], [128, 256, 512, 1024]
  largest = {"model.d_model": 128, "steps": 2048}
  if arg == "quick":
    widths, lstm_widths, steps = [16, 32, 48], [16, 32], [64, 128, 256]
    largest = {"model.d_model": 64, "steps": 512}
  transformer, lstm = "configs/transformer_lm.py:tiny", "configs/lstm_lm.py:tiny"
  common = {**_COMMON, "eval.tokens": 65_536} if arg == "quick" else _COMMON
  groups = [
    {
      "family": "transformer", "config": transformer, "set": common,
      "axes": [_axis(_TRANSFORMER, widths), {"steps": steps}],
    },
    {
      "family": "transformer", "config": transformer, "set": common, "seeds": [1, 2],
      "axes": [_axis(_TRANSFORMER, widths[1:3]), {"steps": steps[-2:-1]}],
    },
    {"family": "lstm", "config": lstm, "set": common, "axes": [_axis(_LSTM, lstm_widths), {"steps": steps}]},
    {
      "family": "transformer", "config": transformer, "role": "held_out",
      "set": {**common, **largest, "optim.learning_rate": _TRANSFORMER[largest["model.d_model"]]},
    },
  ]  # fmt: skip
  return {
    "name": f"lm_demo{'_quick' if arg else ''}",
    "groups": groups,
    "fit": {"drop_shortest": True, "target_compute": [1e14, 1e16, 1e18]},
    "notes": {
      "learning rate": "by a rule: 8e-3 (16 / width)^0.55 for the Transformer, 1.6e-2 (16 / width)^0.5 for the LSTM",
      **(
        {"size": "this quick variant is too small to trust: it shows the machinery, not a law"}
        if arg == "quick"
        else {}
      ),
    },
  }
