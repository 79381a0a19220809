"""The compiler flags of GPUs and TPUs, in one place: communication runs beside computation where they can.

Sources: JAX, "GPU performance tips" (https://docs.jax.dev/en/latest/gpu_performance_tips.html) and NVIDIA JAX-Toolbox, "Tips for
High-Performance LLMs with JAX and XLA" (https://docs.nvidia.com/jax-toolbox/performance-profiling/gpu-performance) for GPUs; MaxText,
`benchmarks/xla_flags_library.py`, DATA_PARALLEL_OVERLAP, for TPUs.
Left out: what XLA's defaults are already (asynchronous collectives and their own stream on GPUs), sizes that depend on the model
(thresholds of combined collectives), and MaxText's CF_FOR_ALL_GATHER: v5e fuses gathers with computation by default, and forced on
elsewhere it is refused by libtpu 0.0.52 on v5p, as it may end in wrong results (0.0.42.1 compiles it without a word).
An unknown flag ends the process, so a test tries each: the GPU's on jaxlib 0.10.2 and 0.12.0.1, the TPU's on libtpu 0.0.42.1 and
0.0.52. What they gain was not measured (one H200 ran with them; they are for several).
"""

import os
import re
from collections.abc import Mapping, MutableMapping

GPU_FLAGS = {
  "xla_gpu_enable_latency_hiding_scheduler": "true",
  "xla_gpu_enable_pipelined_all_gather": "true",
  "xla_gpu_enable_pipelined_all_reduce": "true",
  "xla_gpu_enable_pipelined_reduce_scatter": "true",
}
TPU_FLAGS = {
  "xla_tpu_enable_latency_hiding_scheduler": "true",  # the default of v5p, as the compiled program shows
  "xla_tpu_enable_data_parallel_all_reduce_opt": "true",  # between slices
  "xla_tpu_data_parallel_opt_different_sized_ops": "true",
}
_VARIABLES = {"gpu": ("XLA_FLAGS", GPU_FLAGS), "tpu": ("LIBTPU_INIT_ARGS", TPU_FLAGS)}


def add_flags(given: str, flags: Mapping[str, str]) -> str:
  """The flags of an environment variable with those of `flags` before it that it does not set; the user's stay as they are."""
  named = {
    name for flag in re.findall(r"--(\w+)", given) for name in (flag, flag.removeprefix("no"))
  }  # --noNAME: false
  added = [f"--{name}={value}" for name, value in flags.items() if name not in named]
  return " ".join([*added, given]).strip()


def use_flags(platform: str, environment: MutableMapping[str, str] = os.environ) -> None:
  """Adds the flags of a platform ('gpu', 'tpu'; none for others) to the environment. To be called before any computation."""
  if platform in _VARIABLES:
    variable, flags = _VARIABLES[platform]
    environment[variable] = add_flags(environment.get(variable, ""), flags)
