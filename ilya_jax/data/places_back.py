"""Random strings, at whose every place the symbols some places back are asked for; drawn inside the step.

What tries whether heads that look at different places are easy to learn (Vaswani et al. 2017, section 3.2.2: with one head
"averaging inhibits this"). Letters: B batch, T length.
"""

import hashlib

import jax
import jax.numpy as jnp

from ilya_jax.errors import UserError
from ilya_jax.task import Source

BACK = (1, 3, 6, 10)  # places
_HELD_OUT_SEED = 2019
_STREAMS = {"train": 0, "heldout": 1}
_EVALUATED = 64  # strings of a held-out batch


def places_back_source(*, symbols: int, length: int, batch_size: int, seed: int, eval_strings: int) -> Source:
  """Batches {"tokens": int32 [B, T]} of uniform symbols, endless; a held-out set that does not depend on `seed`.

  Raises UserError on sizes that make no sense.
  """
  for field, value, least in (
    ("data.symbols", symbols, 2), ("data.length", length, max(BACK) + 1), ("batch_size", batch_size, 1),
    ("eval.examples", eval_strings, 1),
  ):  # fmt: skip
    if value < least:
      raise UserError(f"{field} = {value}", f"at least {least}", f"--config.{field}")
  seeds = {"train": seed % 2**32, "heldout": _HELD_OUT_SEED}
  rows = {"train": batch_size, "heldout": min(eval_strings, _EVALUATED)}

  def batch(step: jax.typing.ArrayLike, *, split: str = "train") -> dict[str, jax.Array]:
    stream = jax.random.fold_in(jax.random.key(seeds[split]), _STREAMS[split])
    shape = (rows[split], length)
    return {"tokens": jax.random.randint(jax.random.fold_in(stream, step), shape, 0, symbols, jnp.int32)}

  content = f"places back {BACK} {symbols} {length} {eval_strings}"
  info = {
    "name": "places_back",
    "fingerprint": hashlib.sha256(content.encode()).hexdigest(),
    "vocab_size": symbols,
    "d_unique_total": None,  # never repeats
  }
  return Source(batch, {"heldout": -(-eval_strings // rows["heldout"])}, info, traced=True)


def answers(tokens: jax.Array) -> jax.Array:
  """tokens [B, T] -> the symbols BACK places before each place from max(BACK) on, [B, T - max(BACK), len(BACK)]."""
  first, length = max(BACK), tokens.shape[1]
  return jnp.stack([tokens[:, first - back : length - back] for back in BACK], axis=-1)
