"""A sweep that is not about language: width and number of examples of a perceptron that imitates a random teacher of 8 variables.

Expected: the mean squared error falls as a power of N without a floor; for a piecewise linear network and F = 8 variables at least
as N^(-4/8) (Sharma & Kaplan 2020, https://arxiv.org/abs/2004.10802). The held-out run has over three times the largest compute.
"""

VARIANTS = ("", "tiny")

_WIDTHS, _STEPS, _HELD_OUT = (8, 12, 18, 27, 40), (2_000, 4_000, 8_000, 16_000), (60, 28_000)


def get_sweep(arg: str = "") -> dict:
  """The sweep; `:tiny` takes seconds and is too small to say anything."""
  tiny = arg == "tiny"
  widths, steps = ((8, 12, 18), (200, 400, 800)) if tiny else (_WIDTHS, _STEPS)
  common = {"checkpoint.keep": 1, "execution.tensorboard": False, "checkpoint.every_s": 20.0}
  student = {"family": "mlp", "config": "configs/teacher.py", "set": common}
  width, length = (27, 1_200) if tiny else _HELD_OUT
  middle = {"model.width": [widths[1]], "steps": [steps[-2]]}
  return {
    "name": "students_tiny" if tiny else "students",
    "groups": [
      {**student, "axes": [{"model.width": list(widths)}, {"steps": list(steps)}]},
      {**student, "seeds": [1, 2], "axes": [middle]},
      {**student, "role": "held_out", "set": {**common, "model.width": width, "steps": length}},
    ],
    "fit": {"bootstrap": 50, "starts": 16} if tiny else {},
    "notes": {"size": "too small to say anything"} if tiny else {},
  }
