"""The flags of GPUs and TPUs: the compilers that are installed know each of them, and what the user set stays."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ilya_jax.parallel.xla_flags import GPU_FLAGS, TPU_FLAGS, add_flags, use_flags

ROOT = Path(__file__).parents[2]


def run(program, **environment):
  """A program in a process of its own on the CPU."""
  return subprocess.run([sys.executable, "-c", program], env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
                        cwd=ROOT, capture_output=True, text=True, timeout=240)  # fmt: skip


def test_what_the_user_set_stays():
  flags = {"a_flag": "true", "b_flag": "true", "c_flag": "true"}
  assert add_flags("", flags) == "--a_flag=true --b_flag=true --c_flag=true"
  assert add_flags("--b_flag=false --nob --noc_flag --other=1", flags) == (
    "--a_flag=true --b_flag=false --nob --noc_flag --other=1"
  )
  assert add_flags(add_flags("", flags), flags) == add_flags("", flags)


def test_flags_go_to_the_variable_of_the_platform_alone():
  for platform, variable, flags in (("gpu", "XLA_FLAGS", GPU_FLAGS), ("tpu", "LIBTPU_INIT_ARGS", TPU_FLAGS)):
    environment = {}
    use_flags(platform, environment)
    assert environment == {variable: add_flags("", flags)}
  environment = {}
  use_flags("", environment)
  assert environment == {}


def test_this_jaxlib_knows_the_flags_of_gpus():
  program = "import jax; print(jax.numpy.zeros(1).sum())"  # XLA_FLAGS are parsed on the CPU too, and all of them
  assert run(program, XLA_FLAGS=add_flags("", GPU_FLAGS)).stdout.strip() == "0.0"
  unknown = run(program, XLA_FLAGS="--xla_gpu_enable_latency_hiding_schedular=true")
  assert unknown.returncode != 0
  assert "Unknown flag" in unknown.stderr


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_libtpu_compiles_for_a_slice_with_the_flags_of_tpus():
  program = """
import jax, numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ilya_jax.parallel.chips import parse_topology, slice_devices
devices = np.array(slice_devices(parse_topology("v5p:2x2x4"))).reshape(-1)
split = NamedSharding(Mesh(devices, ("fsdp",), axis_types=(AxisType.Auto,)), PartitionSpec("fsdp"))
def loss(w, x):
  for _ in range(4):
    x = jax.numpy.tanh(x @ w)
  return (x**2).mean()
shapes = [jax.ShapeDtypeStruct(shape, jax.numpy.bfloat16, sharding=split) for shape in ((2048, 2048), (1024, 2048))]
print("compiled", len(jax.jit(jax.grad(loss), out_shardings=split).lower(*shapes).compile().as_text()))
"""
  more = {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
  ended = run(program, LIBTPU_INIT_ARGS=add_flags("", TPU_FLAGS), **more)
  assert "compiled" in ended.stdout, ended.stderr
  unknown = run(program, LIBTPU_INIT_ARGS="--xla_no_such_flag=true", **more)
  assert unknown.returncode != 0
  assert "compiled" not in unknown.stdout
