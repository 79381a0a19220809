"""The state of a run: a plain pytree, and the digests that tell whether two of them are the same."""

import hashlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ilya_jax.parallel.distributed import whole
from ilya_jax.parallel.sharding import path_name

PyTree = Any


class TrainState(NamedTuple):
  """step: int32 scalar; params; model_state (batch statistics, carries); opt_state; rng: base key, never advanced."""

  step: jax.Array
  params: PyTree
  model_state: PyTree
  opt_state: PyTree
  rng: jax.Array


def params_digest(params: PyTree) -> str:
  """SHA-256 (hexadecimal) of the parameters' bytes, names, shapes and types, in sorted path order."""
  leaves = sorted((path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params))
  sha = hashlib.sha256()
  for name, leaf in leaves:
    array = whole(leaf) if isinstance(leaf, jax.Array) else np.asarray(leaf)
    sha.update(f"{name} {array.shape} {array.dtype}\n".encode())
    sha.update(np.ascontiguousarray(array).tobytes())
  return sha.hexdigest()


def _words(leaf: jax.Array) -> jax.Array:
  """A leaf's bits as uint32, one word an element at least."""
  if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    leaf = jax.random.key_data(leaf)
  if leaf.dtype == jnp.bool_:
    return leaf.astype(jnp.uint32)
  unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[leaf.dtype.itemsize]
  return jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)


@jax.jit
def checksum(tree: PyTree) -> jax.Array:
  """uint32 [leaves]: position-weighted sums (mod 2**32) of the bits of each leaf, made where the leaf lies.

  One changed bit changes the sum, since the weights are odd; the same for every sharding of the tree.
  """
  sums = []
  for leaf in jax.tree.leaves(tree):
    words = _words(leaf).reshape(-1)
    weights = jnp.arange(words.size, dtype=jnp.uint32) * jnp.uint32(2654435761) * jnp.uint32(2) + jnp.uint32(1)
    sums.append(jnp.sum(words * weights, dtype=jnp.uint32))
  return jnp.stack(sums)


def bytes_per_device(state: PyTree) -> int:
  """Bytes of the state on the device that holds most of it."""
  held: dict[Any, int] = {}
  for leaf in jax.tree.leaves(state):
    data = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    for shard in data.addressable_shards:
      held[shard.device] = held.get(shard.device, 0) + shard.data.nbytes
  return max(held.values(), default=0)
