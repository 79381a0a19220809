"""Properties of molecules from their graphs: a message passing network with the squared error of scaled targets, as a Task.

Gilmer et al. 2017, https://arxiv.org/abs/1704.01212: targets are scaled to mean 0 and variance 1 over the training set,
errors are reported in the targets' own units over their chemical accuracy, the error ratio; below 1 is success.
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ilya_jax.data.molecules import load_molecules, molecule_source
from ilya_jax.models import mpnn
from ilya_jax.task import Metrics, Source, Task


def make_source(config: ConfigDict) -> Source:
  """The molecules of `config.data` (`ilya_jax.data.molecules`)."""
  data = config.data
  molecules = load_molecules(
    data.name, train_examples=data.train_examples, targets=tuple(data.targets), hydrogens=data.hydrogens, path=data.path
  )
  return molecule_source(molecules, name=data.name, batch_size=config.batch_size, seed=config.seed)


def make_task(config: ConfigDict, source: Source) -> Task:
  """The network of `config.model`; `loss` is the mean squared error, in units of the targets' variances (`score`)."""
  info = source.info
  sizes = {"features": info["features"], "labels": info["labels"], "outputs": len(info["targets"])}
  model = mpnn.from_config(config, **sizes)

  def predict(params, model_state, batch):
    return model.apply({"params": params}, batch["atoms"], batch["bonds"], batch["positions"], batch["mask"])

  def init(rng, batch):
    return model.init(rng, batch["atoms"], batch["bonds"], batch["positions"], batch["mask"])

  def loss(params, model_state, batch, rng, *, train):
    metrics = score(
      predict(params, model_state, batch), batch["targets"], names=info["targets"], mean=info["mean"],
      std=info["std"], yardsticks=info["yardsticks"],
    )  # fmt: skip
    total, weight = metrics["loss"]
    return total / weight, (metrics, model_state)

  return Task(init, loss, counts=mpnn.counts(config, **sizes, atoms=info["longest"]), predict=predict)


def score(
  outputs: jax.Array, targets: jax.Array, *, names: tuple[str, ...], mean: tuple[float, ...], std: tuple[float, ...],
  yardsticks: tuple[float, ...],
) -> Metrics:  # fmt: skip
  """Metrics of outputs [B, K], scaled, against targets [B, K] in their own units.

  loss: squared error of the scaled targets. error_ratio: absolute error in each target's unit over its yardstick, the mean of
  all; with several targets also error_ratio_NAME of each.
  """
  centre, spread, unit = (jnp.asarray(values, outputs.dtype)[None] for values in (mean, std, yardsticks))
  errors = outputs - (targets.astype(outputs.dtype) - centre) / spread  # [B, K]
  ratios = jnp.abs(errors) * spread / unit
  rows = jnp.asarray(errors.shape[0], errors.dtype)
  metrics = {"loss": (jnp.sum(errors**2), rows * len(names)), "error_ratio": (ratios.sum(), rows * len(names))}
  if len(names) > 1:
    metrics |= {f"error_ratio_{name}": (ratios[:, k].sum(), rows) for k, name in enumerate(names)}
  return metrics


def scaled_back(outputs: jax.Array, source: Source) -> jax.Array:
  """What `Task.predict` gave, [B, K], in the targets' own units."""
  mean, std = (jnp.asarray(source.info[name], outputs.dtype)[None] for name in ("mean", "std"))
  return outputs * std + mean
