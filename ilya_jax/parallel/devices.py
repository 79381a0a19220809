"""The devices of this process: how many virtual ones a CPU gives, and where compiled programs are kept."""

import os
from importlib.util import find_spec

import jax

from ilya_jax.cache import cache_folder

_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin", "libtpu")


def on_cpu() -> bool:
  """Whether this process computes on the CPU: told to, or no GPU or TPU runtime installed (none is started to see)."""
  platforms = jax.config.jax_platforms or ""  # type: ignore[attr-defined]
  return platforms == "cpu" if platforms else not any(find_spec(name) for name in _PLUGINS)


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
