"""The copy task: a random string as source and as target, drawn inside the step; its batches are those of pairs of sentences.

The test of The Annotated Transformer (Rush 2018, https://nlp.seas.harvard.edu/annotated-transformer), with lengths that vary.
Tokens: PAD 0, BEGIN 1, END 2, then the symbols. Letters: B batch, L longest string.
"""

import functools
import hashlib

import jax
import jax.numpy as jnp

from ilya_jax.data.translation import BEGIN, END, PAD, SPECIALS
from ilya_jax.errors import UserError
from ilya_jax.task import Source

_HELD_OUT_SEED = 2018
_STREAMS = {"train": 0, "heldout": 1}
_EVALUATED = 64  # strings of a held-out batch


@functools.partial(jax.jit, static_argnames=("rows", "symbols", "shortest", "longest"))
def copies(rng: jax.Array, *, rows: int, symbols: int, shortest: int, longest: int) -> dict[str, jax.Array]:
  """{"source": int32 [B, L + 1], "target": int32 [B, L + 2]}: strings of uniform lengths and symbols, BEGIN and END added."""
  for_lengths, for_symbols = jax.random.split(rng)
  lengths = jax.random.randint(for_lengths, (rows, 1), shortest, longest + 1)
  drawn = jax.random.randint(for_symbols, (rows, longest), SPECIALS, SPECIALS + symbols)
  at = jnp.arange(longest + 1)[None]
  drawn = jnp.pad(drawn, ((0, 0), (0, 1)))
  source = jnp.where(at < lengths, drawn, jnp.where(at == lengths, END, PAD)).astype(jnp.int32)
  begin = jnp.full((rows, 1), BEGIN, jnp.int32)
  return {"source": source, "target": jnp.concatenate([begin, source], axis=1)}


def copy_source(
  *, symbols: int, shortest: int, longest: int, batch_size: int, seed: int, eval_pairs: int
) -> Source:  # fmt: skip
  """Endless training strings that depend on `seed`; a held-out set that does not. Raises UserError on sizes that make no sense."""
  if symbols < 1 or not 1 <= shortest <= longest:
    raise UserError(
      f"copies of {shortest} to {longest} of {symbols} symbols", "1 or more symbols, lengths from 1, shortest first",
      "--config.data.symbols, --config.data.shortest or --config.data.longest",
    )  # fmt: skip
  if batch_size < 1 or eval_pairs < 1:
    got = f"batches of {batch_size} and {eval_pairs} held-out strings"
    raise UserError(got, "1 or more", "--config.batch_size or --config.eval.examples")
  seeds = {"train": seed % 2**32, "heldout": _HELD_OUT_SEED}
  rows = {"train": batch_size, "heldout": min(eval_pairs, _EVALUATED)}

  def batch(step: jax.typing.ArrayLike, *, split: str = "train") -> dict[str, jax.Array]:
    stream = jax.random.fold_in(jax.random.key(seeds[split]), _STREAMS[split])
    rng = jax.random.fold_in(stream, step)
    return copies(rng, rows=rows[split], symbols=symbols, shortest=shortest, longest=longest)

  content = f"copy {symbols} {shortest} {longest} {eval_pairs}"
  info = {
    "name": "copy",
    "fingerprint": hashlib.sha256(content.encode()).hexdigest(),
    "vocab_size": SPECIALS + symbols,
    "d_unique_total": None,  # never repeats
    "source_positions": longest + 1,
    "target_positions": longest + 1,
  }
  return Source(batch, {"heldout": -(-eval_pairs // rows["heldout"])}, info, traced=True)
