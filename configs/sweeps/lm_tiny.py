"""The smallest sweep that has everything: two families, trunks with branches, seeds, a held-out run; about a minute."""

VARIANTS = ("",)

_SMALL = {
  "data.context": 32, "batch_size": 16, "model.n_layers": 1, "schedule.warmup_steps": 8, "eval.tokens": 16_384,
  "execution.tensorboard": False, "checkpoint.keep": 1,
}  # fmt: skip


def get_sweep(arg: str = "") -> dict:
  """The sweep."""
  transformer: dict = {"family": "transformer", "config": "configs/transformer_lm.py:tiny"}
  widths = {"model.d_model": [8, 16, 32], "optim.learning_rate": [2e-2, 1.4e-2, 1e-2]}
  groups = [
    {**transformer, "set": _SMALL, "axes": [widths, {"steps": [40, 80, 160]}]},
    {
      **transformer, "seeds": [1, 2],
      "set": {**_SMALL, "model.d_model": 16, "optim.learning_rate": 1.4e-2, "steps": 80},
    },
    {
      "family": "lstm", "config": "configs/lstm_lm.py:tiny", "set": {**_SMALL, "optim.learning_rate": 2e-2},
      "axes": [{"model.d_model": [8, 16]}, {"steps": [40, 80, 160]}],
    },
    {
      **transformer, "role": "held_out",
      "set": {**_SMALL, "model.d_model": 48, "optim.learning_rate": 8e-3, "steps": 320},
    },
  ]  # fmt: skip
  return {
    "name": "lm_tiny",
    "groups": groups,
    "fit": {"drop_shortest": True, "bootstrap": 200},
    "notes": {
      "learning rate": "by hand for each width",
      "size": "far too small to trust: it shows the machinery, not a law",
    },
  }
