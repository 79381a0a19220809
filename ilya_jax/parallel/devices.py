"""The devices of this process: which kind there is and how it is set up, and where compiled programs are kept."""

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import jax

from ilya_jax.cache import cache_folder
from ilya_jax.parallel.xla_flags import use_flags

_NVIDIA = ("nvidia[0-9]*", "nvidiactl", "dxg")  # as JAX looks for them; dxg: Windows' Linux
_TPU = ("accel[0-9]*", "vfio/[0-9]*")
# Runtime package -> platform, and what its devices are called under /dev.
_RUNTIMES: Mapping[str, tuple[str, tuple[str, ...]]] = {
  "jax_cuda12_plugin": ("gpu", _NVIDIA),
  "jax_cuda13_plugin": ("gpu", _NVIDIA),
  "jax_rocm7_plugin": ("gpu", ("kfd",)),
  "libtpu": ("tpu", _TPU),
}


def accelerator(folder: Path = Path("/dev")) -> str:
  """'gpu' or 'tpu' where its runtime is installed and its devices are there, else ''. Nothing is started to see it."""
  for package, (platform, names) in _RUNTIMES.items():
    if any(any(folder.glob(name)) for name in names) and find_spec(package):
      return platform
  return ""


def on_cpu() -> bool:
  """Whether this process computes on the CPU: told to, or no GPU or TPU with its runtime here."""
  platforms = jax.config.jax_platforms or ""  # type: ignore[attr-defined]
  return platforms == "cpu" if platforms else not accelerator()


def prepare_devices() -> None:
  """Sets the compiler flags of the accelerator that is here; without one, keeps JAX from looking for it.

  (libtpu, which `plan` needs, would say at length that it finds no TPU.) To be called before any computation.
  """
  if not on_cpu():
    use_flags(accelerator())
  elif any(find_spec(package) for package in _RUNTIMES):  # else JAX finds the CPU by itself, or a kind not known here
    jax.config.update("jax_platforms", "cpu")


def split_cpu(batch_size: int) -> None:
  """Makes one virtual device a core where that divides the batch: a small model's step then uses every core.

  Leaves a count that the user gave (JAX_NUM_CPU_DEVICES) and accelerators alone. To be called before any computation.
  """
  if on_cpu() and "JAX_NUM_CPU_DEVICES" not in os.environ:
    cores = len(os.sched_getaffinity(0))
    jax.config.update("jax_num_cpu_devices", max(n for n in range(1, cores + 1) if batch_size % n == 0))


def use_compilation_cache() -> None:
  """Keeps compiled programs on disk (in $JAX_COMPILATION_CACHE_DIR where set), so that another process need not compile."""
  if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
