"""Layers that recompute their inside (`execution.remat`): the same gradients, fewer bytes kept, named where it cannot be."""

import functools

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from ilya_jax.errors import UserError
from ilya_jax.train.loop import prepare
from ilya_jax.train.programs import make_programs

SPECS = ("configs/transformer_lm.py:modern_tiny", "configs/lstm_lm.py:tiny")


def one_step(config):
  """(state after a step of plain gradient descent, the compiled program) of a config."""
  with config.unlocked():
    config.optim.name, config.optim.options, config.optim.clip_norm = "sgd", ConfigDict(), 0.0
  task, source, _ = prepare(config)
  programs = make_programs(config, task=task, source=source)
  state = programs.init(jax.numpy.uint32(0))
  batches = jax.tree.map(lambda leaf: leaf[None], source.batch(0, split="train"))
  arguments = (jax.device_put(batches, programs.batches_sharding), np.full(1, 0.1, np.float32), np.int32(1))
  compiled = programs.steps.lower(state, *arguments).compile()
  return compiled(state, *arguments)[0], compiled


@pytest.mark.parametrize(
  ("spec", "settings"),
  [
    (SPECS[0], {"execution.layer_unroll": 0}),
    (SPECS[0], {"execution.layer_unroll": 1, "mesh.fsdp": 2}),
    (SPECS[1], {"execution.layer_unroll": 1, "mesh.stage": 2, "pipeline.microbatches": 4}),
  ],
  ids=["written out", "fsdp", "stages"],
)
def test_a_step_is_the_same(small_run, spec, settings):
  settings = {"model.n_layers": 4, "execution.steps_per_dispatch": 1, **settings}
  make = functools.partial(small_run, spec, **settings)
  kept, recomputed = (one_step(make(**{"execution.remat": remat}))[0].params for remat in (False, True))
  for one, other in zip(jax.tree.leaves(kept), jax.tree.leaves(recomputed), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS)
def test_fewer_bytes_are_kept(small_run, spec):
  settings = {"model.n_layers": 8, "data.context": 32, "execution.steps_per_dispatch": 1, "execution.layer_unroll": 1}
  plain, recomputed = (
    one_step(small_run(spec, **settings, **{"execution.remat": remat}))[1].memory_analysis().temp_size_in_bytes
    for remat in (False, True)
  )
  assert recomputed < 0.6 * plain


def test_a_task_without_layers_is_refused(small_run):
  config = small_run(**{"execution.remat": True})
  task, source, _ = prepare(config)
  with pytest.raises(UserError, match="names no layers"):
    make_programs(config, task=task._replace(layers=None), source=source)
