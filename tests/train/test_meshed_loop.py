"""The loop on meshes by config alone: pipelined, sharded and both give the run of one device; their refusals are one line."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from ilya_jax.errors import UserError
from ilya_jax.train.loop import prepare, train
from ilya_jax.train.metrics import read_rows


def with_sgd(config):
  """AdamW turns the rounding of a gradient near zero into a whole step; SGD does not."""
  with config.unlocked():
    config.optim.name, config.optim.options, config.optim.learning_rate = "sgd", ConfigDict(), 0.1
  return config


def curve(folder, split="train"):
  return np.array([row["loss"] for row in read_rows(folder / "metrics.jsonl") if row["split"] == split])


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["configs/transformer_lm.py:tiny", "configs/lstm_lm.py:tiny"])
@pytest.mark.parametrize("mesh", [
  {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2},
  {"mesh.stage": 4, "pipeline.microbatches": 4},
  {"mesh.stage": 2, "mesh.data": 2, "mesh.fsdp": 2, "pipeline.microbatches": 2},
  {"mesh.stage": 2, "mesh.tensor": 2, "pipeline.microbatches": 4, "pipeline.virtual_stages": 2},
  {"mesh.stage": 3, "pipeline.microbatches": 8, "pipeline.partition": (1, 2, 1)},
])  # fmt: skip
def test_a_run_does_not_depend_on_the_mesh(small_run, tmp_path, spec, mesh):
  alone = train(with_sgd(small_run(spec, **{"model.n_layers": 4})), tmp_path / "alone")
  spread = train(with_sgd(small_run(spec, **{"model.n_layers": 4, "mesh.data": 1, **mesh})), tmp_path / "spread")
  assert spread.run == alone.run
  for split in ("train", "eval"):
    np.testing.assert_allclose(curve(tmp_path / "spread", split), curve(tmp_path / "alone", split), rtol=1e-4)


def test_micro_batches_belong_to_the_id_where_dropout_draws_for_each(small_run):
  def name(**changes):
    return prepare(small_run(**changes))[2]

  assert name() == name(**{"pipeline.microbatches": 4})
  assert name(**{"model.dropout": 0.1}) != name(**{"model.dropout": 0.1, "pipeline.microbatches": 4})


@pytest.mark.parametrize(("change", "words"), [
  ({"mesh.stage": 8, "model.n_layers": 4}, "8 pipeline stages for 4 layers"),
  ({"mesh.stage": 2, "model.n_layers": 2, "pipeline.microbatches": 3}, "a batch of 8"),
  ({"mesh.stage": 2, "model.n_layers": 4, "pipeline.partition": (1, 1)}, "pipeline.partition"),
  ({"mesh.stage": 4, "model.n_layers": 8, "pipeline.virtual_stages": 2, "pipeline.microbatches": 2}, "2 micro-batches"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(small_run, tmp_path, change, words):
  with pytest.raises(UserError, match=words):
    train(small_run(**change), tmp_path / "x")
  assert not (tmp_path / "x").exists()
