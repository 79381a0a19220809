"""Plans for TPU slices: steps compiled by the TPU's compiler on a machine without a TPU, and what is read off them."""

import functools
import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, Mesh, PartitionSpec

from ilya_jax import cli
from ilya_jax.config import load_config
from ilya_jax.parallel import chips, collectives, hlo
from ilya_jax.parallel.chips import compile_for, parse_topology, slice_devices
from ilya_jax.task import Counts, Layer, Layers, Source, Task
from ilya_jax.tasks import language
from ilya_jax.train.plan import compile_step, needed_bytes, stand_in
from ilya_jax.train.plan_printed import RECORDS, table
from ilya_jax.train.plan_search import candidates, facts_of, with_mesh
from ilya_jax.train.roofline import chip_flops

LM, LSTM = "configs/transformer_lm.py", "configs/lstm_lm.py"
needs_compiler = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install 'ilya-jax[tpu]'"
)


def tiny(spec=f"{LM}:tiny", **overrides):
  small = {"data.context": 64, "batch_size": 16, "mesh.data": 1, "execution.steps_per_dispatch": 1}
  return load_config(spec, {**small, **overrides})


@functools.cache
def devices(name):
  return slice_devices(parse_topology(name))


def compiled(config, *, on="v5e:2x4"):
  task, source = stand_in(config)
  return compile_step(config, task=task, source=source, devices=devices(on))


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(
  ("spec", "overrides", "kinds"),
  {
    "FSDP": (f"{LM}:modern_tiny", {"mesh.fsdp": 8, "dtype": "bfloat16", "execution.remat": True}, {"all-gather"}),
    "tensor": (f"{LM}:tiny", {"mesh.data": 4, "mesh.tensor": 2}, {"all-reduce"}),
    "stages": (f"{LM}:tiny", {"mesh.fsdp": 2, "mesh.tensor": 2, "mesh.stage": 2, "pipeline.microbatches": 4},
               {"all-gather", "all-reduce", "collective-permute"}),
    "LSTM": (f"{LSTM}:tiny", {"mesh.data": 2, "mesh.fsdp": 2, "mesh.stage": 2, "pipeline.microbatches": 2},
             {"all-gather", "collective-permute"}),
  }.values(),
)  # fmt: skip
def test_steps_are_valid_programs_for_a_tpu(spec, overrides, kinds):
  found = compiled(tiny(spec, **overrides))
  assert found.fits
  assert 0 < found.parts["arguments"] <= found.needed < 2**30
  assert kinds <= {kind for kind, bytes_ in collectives.by_kind(found.sent).items() if bytes_}
  assert found.traffic > 0


@pytest.mark.slow
@needs_compiler
def test_a_pipeline_of_layers_that_differ_is_a_valid_program_for_a_tpu():
  sizes = [16, 24, 8, 20, 16]
  layers = tuple(Layer(f"l{k}", lambda own, state, x, rng, *, train: (jnp.tanh(x @ own["w"]), state)) for k in range(4))

  def init(rng, batch):
    return {"params": {f"l{k}": {"w": jnp.ones((sizes[k], sizes[k + 1]))} for k in range(4)}}

  def after(params, x, batch, rng, *, train):
    error = jnp.square(x - batch["y"]).sum(1)
    return error.mean(), {"loss": (error.sum(), jnp.float32(error.size))}

  own = Layers(lambda p, b, rng, *, train: b["x"], layers, after)
  task = Task(init, None, Counts(1, 1, 6.0, 16), layers=own)
  batch = {name: np.zeros((16, 16), np.float32) for name in ("x", "y")}
  source = Source(lambda step, *, split: batch, {}, {"fingerprint": "none"})
  config = tiny(**{"mesh.data": 4, "mesh.stage": 2, "pipeline.microbatches": 2})
  found = compile_step(config, task=task, source=source, devices=devices("v5e:2x4"))
  assert found.fits
  # M + K - 1 = 3 ticks send rows of the widest boundary, forwards and backwards; XLA moves some inputs so too.
  assert collectives.by_kind(found.sent)["collective-permute"] >= 2 * 3 * (16 / 4 / 2) * 16 * 4


@needs_compiler
def test_bytes_and_trip_counts_of_a_tpu_program_are_what_its_shapes_say():
  mesh = Mesh(np.array(devices("v5e:2x4")).reshape(4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)

  def program(x):  # [256, 512] on each device; large enough to stay out of VMEM
    def body(x, _):
      gathered = lax.all_gather(x, "a", tiled=True)
      moved = lax.ppermute(
        lax.psum_scatter(jnp.sin(gathered), "a", tiled=True), "a", [(k, (k + 1) % 4) for k in range(4)]
      )
      return moved * 2, None

    return lax.psum(lax.scan(body, x, None, length=5)[0], "b")

  mapped = jax.jit(jax.shard_map(program, mesh=mesh, in_specs=PartitionSpec(("a", "b")), out_specs=PartitionSpec("a")))
  text = compile_for(mapped.lower(jax.ShapeDtypeStruct((2048, 512), jnp.float32))).as_text()
  assert "known_trip_count" not in text  # the reason for reading conditions
  array = 256 * 512 * 4
  found = collectives.by_kind(collectives.sent(hlo.parse(text), devices=8))
  assert found == {
    **dict.fromkeys(collectives.KINDS, 0.0), "all-gather": 5 * 3 * array, "reduce-scatter": 5 * 3 * array,
    "collective-permute": 5 * array, "all-reduce": array,
  }  # fmt: skip


@needs_compiler
def test_memory_traffic_of_a_product_is_its_three_matrices():
  sharding = jax.sharding.SingleDeviceSharding(devices("v5e:2x4")[0])
  matrix = jax.ShapeDtypeStruct((8192, 8192), jnp.bfloat16, sharding=sharding)
  text = compile_for(jax.jit(lambda x, w: jax.nn.relu(x @ w)).lower(matrix, matrix)).as_text()
  assert hlo.memory_traffic(hlo.parse(text)) == 3 * 2 * 8192**2


@needs_compiler
def test_a_plan_that_does_not_fit_is_a_result_with_one_change(capsys):
  arguments = ["plan", "--config", f"{LM}:1b", "--topology", "v5e:4x4", "--config.model.n_layers=1"]
  assert cli.main([*arguments, "--config.accumulate=1", "--config.batch_size=512"]) == 0
  shown = capsys.readouterr().out
  assert "does not fit" in shown
  assert "--config.accumulate=" in shown


@pytest.mark.slow
@needs_compiler
def test_a_plan_and_a_search_print_what_they_promise(capsys):
  arguments = ["plan", "--config", f"{LM}:tiny", "--config.data.context=32", "--topology", "v5e:2x2", "--tokens", "1e9"]
  assert cli.main([*arguments, "--search"]) == 0
  shown = capsys.readouterr().out
  for word in (
    "fits",
    "FLOP a chip",
    "sent by a chip",
    "seconds a step",
    "tokens/s",
    "1e+09 tokens in at least",
    "best: ",
  ):
    assert word in shown
  assert shown.count("compiled in") == 3


@needs_compiler
def test_the_search_shards_what_does_not_fit_whole():
  # 16 bytes for each of 1.3e9 parameters are more than a chip of v5e has.
  config = load_config(f"{LM}:1b", {"batch_size": 16})
  task, source = stand_in(config)
  ranked = candidates(
    config, facts_of(config, task, source), topology=parse_topology("v5e:2x2"), devices=devices("v5e:2x2")
  )
  assert ranked.fitting[0].sizes == {"data": 1, "fsdp": 4, "tensor": 1, "stage": 1}
  assert all(one.sizes["fsdp"] * one.sizes["tensor"] * one.sizes["stage"] > 1 for one in ranked.fitting)
  assert ranked.too_large > 0


@needs_compiler
def test_the_search_leaves_out_what_the_step_would_refuse():
  config = tiny(**{"model.n_layers": 3, "model.n_heads": 2, "batch_size": 8})
  task, source = stand_in(config)
  ranked = candidates(
    config, facts_of(config, task, source), topology=parse_topology("v5e:4x4"), devices=devices("v5e:4x4")
  )
  assert not any(one.sizes["stage"] > 3 or one.sizes["tensor"] > 2 for one in ranked.fitting)
  assert all(
    8 % (one.sizes["data"] * one.sizes["fsdp"] * one.config.accumulate * one.config.pipeline.microbatches) == 0
    for one in ranked.fitting
  )
  assert any("pipeline stages for 3 layers" in reason for reason in ranked.skipped)
  assert any("tensor 4 does not divide" in reason for reason in ranked.skipped)


@needs_compiler
@pytest.mark.parametrize("name", ["v4:2x2x1", "v4:4x4x4", "v5e:2x2", "v5p:2x2x2", "v6e:2x4", "v5e:1x1"])
def test_one_device_a_chip(name):
  found = devices(name)
  assert len(found) == parse_topology(name).size == len({tuple(device.coords) for device in found})


def test_flop_count_what_is_recomputed_and_what_idles():
  config = tiny(**{"mesh.data": 1})
  task, _ = stand_in(config)
  counts = task.counts
  whole = counts.flops_per_unit * counts.units_per_step
  head = counts.outside_flops_per_unit * counts.units_per_step
  assert head == 6 * 64 * 256 * counts.units_per_step  # width, vocabulary
  alone = {"data": 1, "fsdp": 1, "tensor": 1, "stage": 1}
  assert chip_flops(config, task, mesh=alone) == (whole, 0, 0)
  assert (
    chip_flops(tiny(**{"execution.remat": True}), task, mesh={**alone, "fsdp": 4}).recomputed == (whole - head) / 12
  )
  piped = with_mesh(config, {**alone, "stage": 2}, micro=4)
  found = chip_flops(piped, task, mesh={**alone, "stage": 2})
  assert found.formula == whole / 2
  assert found.recomputed == pytest.approx((whole - head) / 6)
  assert found.idle == pytest.approx((whole - head) * 4 / 3 / 2 / 4)  # (K - 1) / M of all that the layers do


def test_a_stand_in_has_the_shapes_of_the_data(small_run):
  config = small_run()
  real, empty = language.make_source(config), language.make_stand_in(config)
  kinds = lambda source: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), source.batch(0, split="train"))  # noqa: E731
  assert kinds(real) == kinds(empty)
  assert real.info["vocab_size"] == empty.info["vocab_size"]


def test_what_the_compiler_says_of_too_little_memory():
  error = RuntimeError("kept")
  said = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (74.54G) exceeds available"
  assert needed_bytes(said, error) == 74.54 * 2**30
  said = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.31G of 15.75G hbm. Exceeded hbm capacity by 1.56G."
  assert needed_bytes(said, error) == 17.31 * 2**30
  with pytest.raises(RuntimeError, match="kept"):
    needed_bytes("INTERNAL: something else", error)


BAD = {
  "no topology": (["--config", f"{LM}:tiny"], "no --topology"),
  "malformed": (["--config", f"{LM}:tiny", "--topology", "v5e-16"], "'v5e-16'"),
  "unknown chip": (["--config", f"{LM}:tiny", "--topology", "h100:2x2"], "'h100'"),
  "no config": (["--topology", "v5e:2x2"], "no --config"),
  "unknown field": (["--config", f"{LM}:tiny", "--topology", "v5e:2x2", "--config.mash.data=1"], "mash.data"),
  "too large a slice": (["--config", f"{LM}:tiny", "--topology", "v5e:32x32"], "v5e:32x32"),
  "negative tokens": (["--config", f"{LM}:tiny", "--topology", "v5e:2x2", "--tokens=-1"], "--tokens"),
}  # fmt: skip
WITH_COMPILER = {
  "too large a mesh": (["--config", f"{LM}:tiny", "--topology", "v5e:2x2", "--config.mesh.data=8"], "a mesh of 8 devices"),
  "batch not divided": (["--config", f"{LM}:tiny", "--topology", "v5e:2x2", "--config.batch_size=6"], "a batch of 6"),
  "too many stages": (["--config", f"{LM}:tiny", "--topology", "v5e:2x2", "--config.mesh.data=1", "--config.mesh.stage=4"],
                      "4 pipeline stages"),
}  # fmt: skip


@pytest.mark.parametrize(
  ("arguments", "named"),
  [*BAD.values(), *(pytest.param(*case, marks=needs_compiler, id=name) for name, case in WITH_COMPILER.items())],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, named, capsys):
  assert cli.main(["plan", *arguments]) == 2
  captured = capsys.readouterr()
  assert named in captured.err
  assert captured.err.count("\n") == 1
  assert captured.err.count(";") == 2
  assert captured.out == ""


def test_without_libtpu_the_line_says_what_to_install(monkeypatch, capsys):
  monkeypatch.setattr(chips.importlib.util, "find_spec", lambda name: None)
  assert cli.main(["plan", "--config", f"{LM}:tiny", "--topology", "v5e:2x2"]) == 2
  assert "pip install 'ilya-jax[tpu]'" in capsys.readouterr().err


def test_the_readme_holds_the_recorded_plans():
  records = json.loads(RECORDS.read_text())
  assert {one["topology"] for one in records} >= {"v5e:4x4", "v5p:4x4x4"}
  assert table(records) in Path("README.md").read_text(), (
    "put `table(records)` of ilya_jax.train.plan_printed into README.md"
  )
