"""What the partitioner makes of the layouts, read off the compiled step: Megatron's sums, FSDP's gathers, and no more."""

import collections
import re

import jax
import numpy as np
import pytest

from ilya_jax.train.loop import prepare
from ilya_jax.train.programs import make_programs

BATCH, TIME, WIDTH, VOCABULARY, LAYERS = 16, 24, 64, 96, 2
_OPERATION = re.compile(
  r"(\w+\[[\d,]*\])\S* (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)


@pytest.fixture
def compiled(small_run):
  """compiled(spec, **changes) -> the compiled step of a small model."""

  def make(spec="configs/transformer_lm.py:tiny", **changes):
    heads = {"model.n_heads": 4} if "transformer" in spec else {}
    config = small_run(spec, **{
      "data.name": "markov", "data.vocab_size": VOCABULARY, "data.context": TIME, "batch_size": BATCH, "mesh.data": 1,
      "model.d_model": WIDTH, "model.n_layers": LAYERS, "execution.steps_per_dispatch": 1, **heads, **changes,
    })  # fmt: skip
    task, source, _ = prepare(config)
    programs = make_programs(config, task=task, source=source)
    scalars = jax.ShapeDtypeStruct((1,), np.float32), jax.ShapeDtypeStruct((), np.int32)
    assert source.traced
    return programs, programs.steps.lower(programs.abstract_state, None, *scalars).compile()

  return make


def collectives(program):
  """Counter of (kind, shape of the result) of the collectives that move one array."""
  return collections.Counter((kind, shape) for shape, kind in _OPERATION.findall(program.as_text()))


def gathered_shapes(program):
  return {shape for kind, shape in collectives(program) if kind == "all-gather"}


def test_tensor_parallel_blocks_sum_activations_and_gather_nothing(compiled, capfd):
  _, program = compiled(**{"mesh.tensor": 4, "mesh.data": 2})
  found, rows = collectives(program), BATCH // 2
  # Two sums a layer forwards and two backwards (Shoeybi et al. 2019, section 3), one for the embedding's split vocabulary.
  assert found["all-reduce", f"f32[{rows},{TIME},{WIDTH}]"] == 4 * LAYERS + 1
  # The softmax is computed in parts of the vocabulary: its maximum and its sum, and the target's logit.
  assert sum(n for (kind, shape), n in found.items() if kind == "all-reduce" and shape == f"f32[{rows},{TIME}]") == 2
  assert not gathered_shapes(program)
  assert "rematerialization" not in capfd.readouterr().err


@pytest.mark.parametrize(("spec", "mesh"), [
  ("configs/transformer_lm.py:tiny", {"mesh.fsdp": 4, "mesh.data": 2}),
  ("configs/transformer_lm.py:tiny", {"mesh.fsdp": 2, "mesh.data": 2, "mesh.tensor": 2}),
  ("configs/transformer_lm.py:tiny", {"mesh.fsdp": 4, "mesh.stage": 2, "pipeline.microbatches": 4}),
  ("configs/lstm_lm.py:tiny", {"mesh.fsdp": 8}),
  ("configs/lstm_lm.py:tiny", {"mesh.fsdp": 4, "mesh.stage": 2, "pipeline.microbatches": 4}),
])  # fmt: skip
def test_fsdp_gathers_parameters_and_never_activations(compiled, capfd, spec, mesh):
  programs, program = compiled(spec, **mesh)
  shards = mesh["mesh.fsdp"] * mesh.get("mesh.data", 1)
  micro = mesh.get("pipeline.microbatches", 1)
  for shape in gathered_shapes(program):
    sizes = [int(size) for size in re.findall(r"\d+", shape)[1:]]
    if TIME in sizes and sizes not in ([TIME, WIDTH], [TIME, WIDTH // 2]):  # an activation, not the position embedding
      assert micro > 1  # between the stages, micro-batches alone are put together, the rows of each stay where they are
      assert BATCH // micro // shards in sizes
      assert BATCH // micro not in sizes[1:]
  assert "rematerialization" not in capfd.readouterr().err


@pytest.mark.parametrize("mesh", [{"mesh.fsdp": 8}, {"mesh.fsdp": 4, "mesh.stage": 2, "pipeline.microbatches": 2}])
def test_no_device_ever_holds_all_parameters(compiled, mesh):
  changes = {"model.d_model": 256, "model.n_layers": 8, "batch_size": 8, **mesh}
  programs, program = compiled(**changes)
  whole = sum(4 * leaf.size for leaf in jax.tree.leaves(programs.abstract_state.params))
  used = program.memory_analysis()
  assert used.temp_size_in_bytes < whole
  # parameters and both moments of AdamW, an eighth each; what is small is on every device
  assert used.argument_size_in_bytes < 3 * whole / 8 * 1.2
