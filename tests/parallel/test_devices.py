"""Which devices there are: a runtime counts only where its devices are, and a task of Slurm sees the GPUs that are its own."""

import pytest

from ilya_jax.parallel import devices, distributed


@pytest.mark.parametrize(("files", "packages", "platform"), [
  ((), ("libtpu",), ""),  # installed for `plan`
  (("accel0",), ("libtpu",), "tpu"),
  (("vfio/0",), ("libtpu",), "tpu"),
  (("vfio/vfio",), ("libtpu",), ""),  # of any machine that can lend devices to virtual ones
  (("accel0",), (), ""),
  (("nvidia0",), (), ""),
  (("nvidia0",), ("jax_cuda12_plugin",), "gpu"),
  (("nvidia0",), ("libtpu", "jax_cuda13_plugin"), "gpu"),
  (("kfd",), ("jax_rocm7_plugin", "jax_cuda12_plugin"), "gpu"),
])  # fmt: skip
def test_an_accelerator_is_a_runtime_with_its_devices(files, packages, platform, tmp_path, monkeypatch):
  for name in files:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
  monkeypatch.setattr(devices, "find_spec", lambda name: name in packages or None)
  assert devices.accelerator(tmp_path) == platform


@pytest.mark.parametrize(("environment", "all_of_them"), [
  ({"SLURM_STEP_TASKS_PER_NODE": "1"}, True),
  ({"SLURM_STEP_TASKS_PER_NODE": "1(x2)"}, True),
  ({"SLURM_STEP_TASKS_PER_NODE": "8(x2)"}, False),
  ({"SLURM_STEP_TASKS_PER_NODE": "1,2"}, False),
  ({"SLURM_STEP_TASKS_PER_NODE": "8", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, False),
  ({"SLURM_STEP_TASKS_PER_NODE": "8", "CUDA_VISIBLE_DEVICES": "0"}, True),
  ({}, False),
])  # fmt: skip
def test_a_task_of_slurm_takes_the_gpus_that_are_its_own(environment, all_of_them):
  assert distributed._sees_only_its_own(environment) == all_of_them


@pytest.mark.parametrize(("environment", "found", "asked"), [
  ({}, "tpu", True), ({}, "gpu", False), ({}, "", False), ({"TPU_WORKER_HOSTNAMES": "localhost"}, "tpu", False),
  ({"TPU_SKIP_MDS_QUERY": "1"}, "tpu", False),
])  # fmt: skip
def test_a_tpu_machine_that_was_told_nothing_asks_for_its_slice(environment, found, asked, monkeypatch):
  monkeypatch.setattr(distributed, "on_cpu", lambda: not found)
  monkeypatch.setattr(distributed, "accelerator", lambda: found)
  assert distributed.wanted(environment) == asked
