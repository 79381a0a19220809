"""A small perceptron on the examples of a random teacher (Sharma & Kaplan 2020): the sweep that is not about language.

Expected: `:tiny` reaches a mean squared error of about .14 of the target's variance in a second.
"""

from ml_collections import ConfigDict

VARIANTS = ("", "tiny")
COUNTS = {"tiny": (656, 705)}  # (N, N_total), as recorded when it was added
CONFORMANCE = {"eval.examples": 512, "execution.steps_per_dispatch": 4}

_SIZES = {"tiny": (16, 400), "": (64, 20_000)}  # width, steps


def get_config(arg: str = "") -> ConfigDict:
  """The config of a variant."""
  width, steps = _SIZES[arg]
  config = ConfigDict()
  config.task = "regression"
  config.steps = steps
  config.batch_size = 256

  config.data = ConfigDict()
  config.data.teacher = 0  # number of the teacher
  config.data.features = 8

  config.model = ConfigDict()
  config.model.name = "mlp"
  config.model.n_layers = 3
  config.model.width = width

  config.optim = ConfigDict()
  config.optim.name = "adam"
  config.optim.learning_rate = 3e-3
  config.optim.clip_norm = 0.0
  config.optim.options = ConfigDict()

  config.schedule = ConfigDict()
  config.schedule.warmup_steps = 100
  config.schedule.cooldown_fraction = 0.4

  config.execution = ConfigDict()
  config.execution.steps_per_dispatch = 100

  config.eval = ConfigDict()
  config.eval.examples = 65_536
  config.log_every = 100
  return config
