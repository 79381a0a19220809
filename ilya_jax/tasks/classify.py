"""Classification of pictures: any model file of images, with cross-entropy and the share of errors, as a Task with its Source.

What a model file `ilya_jax/models/<config.model.name>.py` gives: from_config(config, classes=) -> a Linen module whose
apply(variables, x, train=) takes images [B, H, W, C] to logits [B, classes]; layers(module) -> the same net as a list of `task.Layer`,
which together are its parameters; counts(config, shape=(H, W, C), classes=) -> Counts; RULES.
"""

import importlib
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from ilya_jax.data.augmentation import augment
from ilya_jax.data.images import image_source, standardise
from ilya_jax.errors import UserError
from ilya_jax.nn.precision import at_least_float32
from ilya_jax.parallel.layers import in_turn
from ilya_jax.task import Layer, Layers, Metrics, Source, Task

_TOP = 5  # of so many guesses one may be right: a second error where there are many classes
_MANY = 100


def make_source(config: ConfigDict) -> Source:
  """The pictures of `config.data`, in batches {"image": [B, H, W, C], "label": [B]}; augmentation is the task's."""
  data = config.data
  return image_source(
    data.name, path=data.path, batch_size=config.batch_size, seed=config.seed, train_examples=data.train_examples,
    size=data.size, channels=data.channels, classes=data.classes, noise=data.noise, test_examples=config.eval.examples,
  )  # fmt: skip


def make_task(config: ConfigDict, source: Source) -> Task:
  """The classifier of `config.model` with its mean cross-entropy, in nats."""
  model_file = find_model(config.model.name)
  info = source.info
  model = model_file.from_config(config, classes=info["classes"])

  def init(rng, batch):
    return model.init(rng, standardise(batch["image"], mean=info["mean"], std=info["std"]), train=False)

  def predict(params, model_state, batch):
    images = standardise(batch["image"], mean=info["mean"], std=info["std"])
    return model.apply({"params": params, **model_state}, images, train=False)

  counts = model_file.counts(config, shape=info["shape"], classes=info["classes"])
  layers = make_layers(model_file.layers(model), source=source, pad=config.data.pad, flip=config.data.flip)
  return Task(init, in_turn(layers), counts=counts, rules=model_file.RULES, predict=predict, layers=layers)


def find_model(name: str) -> Any:
  """The file of a classifier of pictures. Raises UserError where there is none of that name."""
  file = f"ilya_jax.models.{name}"
  try:
    module = importlib.import_module(file)
  except ModuleNotFoundError as error:
    if error.name != file:
      raise
    module = None
  if not hasattr(module, "layers"):
    raise UserError(
      f"config.model.name = {name!r}", "a file in ilya_jax/models with from_config and layers, as resnet",
      "--config.model.name",
    )  # fmt: skip
  return module


def make_layers(net: tuple[Layer, ...], *, source: Source, pad: int, flip: bool) -> Layers:
  """The layer list of a classifier: the net, the picture made ready before it, and the loss after it.

  pad, flip: the augmentation of training pictures (`augmentation.augment`).
  """

  def before(params, batch, rng, *, train):
    images = standardise(batch["image"], mean=source.info["mean"], std=source.info["std"])
    return augment(rng, images, pad=pad, flip=flip) if train else images

  def after(params, logits, batch, rng, *, train):
    metrics = score(logits, batch["label"])
    total, weight = metrics["loss"]
    return total / weight, metrics

  return Layers(before, net, after)


def score(logits: jax.Array, labels: jax.Array) -> Metrics:
  """Metrics of logits [B, K] against labels int32 [B]: `loss` in nats, `error` the share of pictures whose likeliest class is
  wrong, and from 100 classes on `error_top5`, of those whose class is not among the five likeliest."""
  logits = at_least_float32(logits)
  nll = optax.softmax_cross_entropy_with_integer_labels(logits, labels).sum()
  number = jnp.asarray(labels.shape[0], logits.dtype)
  metrics = {"loss": (nll, number), "error": ((logits.argmax(1) != labels).sum().astype(logits.dtype), number)}
  if logits.shape[1] >= _MANY:
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)
    not_below = (logits >= own).sum(1)  # the class itself and those that are held as likely or likelier
    metrics["error_top5"] = ((not_below > _TOP).sum().astype(logits.dtype), number)
  return metrics
