"""Residual networks and their plain twins on pictures, trained as the paper does: momentum, L2 on all parameters, two drops.

He, Zhang, Ren, Sun 2015, https://arxiv.org/abs/1512.03385 (section 4.2 for CIFAR-10, 3.4 for ImageNet).
Plain nets: --config.model.shortcut=none. Depth: --config.model.depth=20, 32, 44, 56, 110 (family cifar), 18, 34, 50, 101, 152
(imagenet). On a CPU: --config.execution.unroll_steps=true --config.execution.steps_per_dispatch=4.

Deviations: pictures are divided by one standard deviation of all training pixels, which the first norm undoes; for `imagenet` the
mean is that of each channel, there is no colour augmentation, tests use one crop of the middle (the paper's tables ten), and the
rate drops at fixed steps (the paper: where the error stays). At depth 110 the paper trains at .01 until the error falls under 80 %
(about 400 steps): here --config.schedule.warmup_steps=400, linear from 0.
Expected: `` 8.75 % test error at depth 20, 6.97 at 56 (the paper's table 6; 64,000 steps); `digits` 3 to 8 % at depth 20 in 300
steps; `imagenet` 25.0 % (ten crops) at depth 34, option A.
"""

from ml_collections import ConfigDict

VARIANTS = ("", "tiny", "digits", "fashion", "imagenet")
COUNTS = {"tiny": (4_804, 4_934)}  # (N, N_total), as recorded when it was added
CONFORMANCE = {"eval.examples": 16}  # of tests/test_conformance.py

_SETTINGS = {  # data, size, family, depth, width, shortcut, batch, steps, learning rate, pad, flip
  "tiny": ("templates", 8, "cifar", 8, 4, "A", 32, 100, 0.05, 1, False),
  "digits": ("digits", 0, "cifar", 20, 8, "A", 64, 300, 0.02, 1, False),
  "fashion": ("fashion_mnist", 0, "cifar", 20, 16, "A", 128, 4_000, 0.1, 2, True),
  "": ("tfds:cifar10", 0, "cifar", 20, 16, "A", 128, 64_000, 0.1, 4, True),
  "imagenet": ("tfds:imagenet2012", 224, "imagenet", 34, 64, "A", 256, 600_000, 0.1, 0, True),
}


def get_config(arg: str = "") -> ConfigDict:
  """The config of a variant."""
  name, size, family, depth, width, shortcut, batch_size, steps, learning_rate, pad, flip = _SETTINGS[arg]
  config = ConfigDict()
  config.task = "classify"
  config.steps = steps
  config.batch_size = batch_size

  config.data = ConfigDict()
  config.data.name = name  # templates:NUMBER, digits, fashion_mnist, idx, tfds:NAME
  config.data.path = ""  # where its files are, where that is not the usual place
  config.data.train_examples = 0  # only so many of the training pictures; 0: all
  config.data.pad = pad  # zeros on each side, before a picture of the old size is cut out at random
  config.data.flip = flip
  config.data.size = size  # of generated pictures, and of those cut out of a stream
  config.data.channels = 1  # of generated pictures, as are the next two
  config.data.classes = 10
  config.data.noise = 0.5  # its standard deviation; that of the pictures without it is 1

  config.model = ConfigDict()
  config.model.name = "resnet"
  config.model.family = family
  config.model.depth = depth
  config.model.width = width  # channels of the first stage
  config.model.shortcut = shortcut  # A, B, C, or none: the plain net
  config.model.stride_at = "1x1"  # of a bottleneck: its first convolution, or 3x3

  config.optim = ConfigDict()
  config.optim.name = "sgd"
  config.optim.learning_rate = learning_rate
  config.optim.clip_norm = 0.0
  config.optim.l2 = 1e-4
  config.optim.options = ConfigDict({"momentum": 0.9})

  config.schedule = ConfigDict()
  config.schedule.name = "drops"
  config.schedule.options = ConfigDict({"at": (0.5, 0.75), "factor": 0.1})  # of 64,000 steps: at 32,000 and 48,000

  config.execution = ConfigDict()
  config.execution.steps_per_dispatch = 1  # a convolution inside a loop is slow on a CPU

  config.eval = ConfigDict()
  config.eval.examples = 500  # of a generated set; of others all that are held out

  config.checkpoint = ConfigDict()
  config.checkpoint.every = 0 if arg in ("tiny", "digits") else 2_000  # steps; 0: at the end
  return config
