"""Where this machine keeps what need not be made twice: tokenised corpora, tokenizers, compiled programs."""

import os
from pathlib import Path


def cache_folder() -> Path:
  """`$ILYA_JAX_CACHE`, else `~/.cache/ilya_jax`."""
  return Path(os.environ.get("ILYA_JAX_CACHE") or "~/.cache/ilya_jax").expanduser()
