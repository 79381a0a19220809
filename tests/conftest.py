"""Settings of every test: 8 fake CPU devices, strict dtype and rank promotion, a private cache folder."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Programs run a few times here, so LLVM need not optimise them; what XLA makes of them stays. Processes that tests start do the
# same, as bits are compared with theirs. "false" tests what users run, in a third more time.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Programs compiled by an earlier run of the tests are kept, so that a second run is faster; results are the same.
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".pytest_cache" / "xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


@pytest.fixture(scope="session", autouse=True)
def _private_cache(tmp_path_factory):
  """Caches of corpora and tokenizers go to a folder of this session unless the caller names one."""
  os.environ.setdefault("ILYA_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))


_WORDS = "the quick brown fox jumps over a lazy dog while seven wizards mix potions from bright purple herbs".split()


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory):
  """A folder of 60 small text files made from a fixed seed: a corpus that is read in milliseconds."""
  import numpy as np

  folder = tmp_path_factory.mktemp("text")
  rng = np.random.default_rng(0)
  for index in range(60):
    words = rng.choice(_WORDS, size=300)
    (folder / f"{index:02d}.txt").write_text(" ".join(words.tolist()) + "\n")
  return folder


@pytest.fixture(scope="session")
def small_run(text_folder):
  """A function that makes the config of a run of a second: `small_run(**{"model.d_model": 16})`."""
  from ilya_jax.config import load_config

  common = {
    "data.name": "files", "data.path": str(text_folder), "data.heldout_fraction": 0.2, "data.context": 16,
    "batch_size": 8, "steps": 20, "model.d_model": 16, "model.n_layers": 1, "schedule.warmup_steps": 4,
    "eval.tokens": 1024, "log_every": 1,
    "execution.steps_per_dispatch": 4, "execution.tensorboard": False, "mesh.data": 1,
  }  # fmt: skip

  def make(spec="configs/transformer_lm.py:tiny", **overrides):
    return load_config(spec, {**common, **overrides})

  return make
