"""Message passing neural networks: edge networks, GG-NN and pair messages, towers, a master node, set2set.

Gilmer, Schoenholz, Riley, Vinyals, Dahl 2017, https://arxiv.org/abs/1704.01212, sections 2 and 5; the GRU and the message bias
as in the authors' code (github.com/brain-research/mpnn); set2set: Vinyals, Bengio, Kudlur 2015,
https://arxiv.org/abs/1511.06391, eqs. 3 to 7.
Letters: B batch, V and W atoms (receiving, sending), F features of an atom, E of a pair, C the 2 directions, P towers, D width of a
tower, K channels of a pair, O targets, T rounds.

  m_v = [in_v ; out_v] + bias, in_v = sum_w M(h_v, h_w, e_vw), out_v likewise with weights of its own and e_wv    eq. 1
  h_v <- GRU(h_v, m_v); mixed over the towers; T rounds with the same weights                                     eq. 2

  message  M                                        readout  R
  ggnn     A_label h_w                              ggnn     sum_v s(i(h_v, x_v)) j(h_v), i and j nets             eq. 4
  edge     A(e_vw) h_w, A a net onto D x D          set2set  attention over linear maps of (h_v, x_v), then a net
  pair     a net of (h_v, h_w, e_vw)

Both matrix messages are computed as sum_k (sum_w c_k(e_vw) h_w) A_k, with c the last hidden layer of the edge network (and a 1
for its bias) or the one-hot label: the same numbers without a D x D matrix for every pair.

Deviations: the edge network's output is divided by D, without which D^2 outputs saturate the GRU at the start. Set2set scores by the
dot product (one of the two forms of the code, "no clear difference"); its LSTM is that of the paper, not the code's, whose
candidate is a sigmoid and then a tanh. The mixing of towers is one matrix, which begins at random. The master node begins at zero and
is not read out; the paper says neither.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ilya_jax.errors import UserError
from ilya_jax.nn.linear import Linear
from ilya_jax.nn.lstm import LstmState, lstm_step
from ilya_jax.nn.precision import at_least_float32
from ilya_jax.task import Counts

BIN_EDGES = tuple(
  2.0 + 0.5 * k for k in range(9)
)  # [0, 2), 8 equal ones on [2, 6), [6, inf): 10 bins, left ends included
MESSAGES, EDGES, READOUTS = ("ggnn", "edge", "pair"), ("bonds", "bins", "raw"), ("ggnn", "set2set")
_DIRECTIONS = 2
_SHUT_OUT = -1e30  # the score of what is not there


def pair_distances(positions: jax.Array) -> jax.Array:
  """positions [B, N, 3] -> distances [B, N, N], 0 on the diagonal, where the derivative is 0 too."""
  squares = jnp.sum((positions[:, :, None] - positions[:, None]) ** 2, axis=-1)
  apart = squares > 0
  return jnp.where(apart, jnp.sqrt(jnp.where(apart, squares, jnp.ones_like(squares))), jnp.zeros_like(squares))


def pair_features(
  bonds: jax.Array, distances: jax.Array, *, edges: str, labels: int, virtual: bool = False
) -> tuple[jax.Array, jax.Array]:
  """What is known of each pair: features [B, V, W, E] and which pairs are joined, bool [B, V, W].

  bonds: int [B, V, W], 0 where there is none, else 1 to `labels`. edges: "bonds" is the one-hot label of bonded pairs, of all
  pairs with `virtual` (one label more, for those that are not bonded); "bins" has a label for each of ten bins of distance
  instead; "raw" is the distance beside the one-hot label, for all pairs.
  """
  everywhere = jnp.ones(bonds.shape, bool)
  if edges == "raw":
    return jnp.concatenate([distances[..., None], one_hot(bonds - 1, labels, distances.dtype)], axis=-1), everywhere
  if edges == "bins":
    bins = jnp.searchsorted(jnp.asarray(BIN_EDGES, distances.dtype), distances, side="right").astype(bonds.dtype)
    bonds, labels = jnp.where(bonds > 0, bonds, labels + 1 + bins), labels + len(BIN_EDGES) + 1
  if virtual:
    return one_hot(bonds, labels + 1, distances.dtype), everywhere
  return one_hot(bonds - 1, labels, distances.dtype), bonds > 0


def one_hot(labels: jax.Array, count: int, dtype: Any) -> jax.Array:
  """labels [...] -> [..., count] of the type; zeros where a label is not one of 0 to count - 1."""
  return jax.nn.one_hot(labels, count, dtype=dtype)


def pair_width(*, edges: str, labels: int, virtual: bool) -> int:
  """E, the number of features of a pair."""
  return {"raw": labels + 1, "bins": labels + len(BIN_EDGES) + 1, "bonds": labels + int(virtual)}[edges]


class Banked(nn.Module):
  """A linear map for each member of a bank: x [..., *banks, I] -> [..., *banks, features]."""

  banks: tuple[int, ...]
  features: int
  use_bias: bool = True
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x [..., *banks, I] -> [..., *banks, features]."""
    count = len(self.banks)
    init = nn.initializers.lecun_normal(batch_axis=tuple(range(count)))
    kernel = self.param("kernel", init, (*self.banks, x.shape[-1], self.features)).astype(self.dtype)
    banks = "cp"[-count:]
    y = jnp.einsum(f"...{banks}i,{banks}io->...{banks}o", x.astype(self.dtype), kernel)
    if self.use_bias:
      bias = self.param("bias", nn.initializers.zeros, (*self.banks, self.features)).astype(self.dtype)
      y = y + bias.reshape((1,) * (y.ndim - count - 1) + bias.shape)
    return y


class MatrixMessages(nn.Module):
  """Messages A(e_vw) h_w both ways; without `widths` A is a matrix for each label, else a network of these hidden widths."""

  towers: int
  width: int
  widths: tuple[int, ...] = ()
  dtype: jnp.dtype = jnp.float32

  def setup(self):
    banks = (_DIRECTIONS, self.towers)
    self.hidden = [Banked(banks, width, dtype=self.dtype) for width in self.widths]

  def channels(self, features: jax.Array, joined: jax.Array) -> jax.Array:
    """features [B, V, W, E], joined [B, V, W] -> c [B, V, W, C, P, K], zero where a pair is not joined; once for all rounds."""
    x = both_ways(features, towers=self.towers)
    for layer in self.hidden:
      x = nn.relu(layer(x))
    if self.widths:
      x = jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)
    return x * both_ways(joined[..., None].astype(x.dtype), towers=self.towers)

  @nn.compact
  def __call__(self, channels: jax.Array, h: jax.Array) -> jax.Array:
    """c [B, V, W, C, P, K], h [B, W, P, D] -> [B, V, P, C, D]."""
    k, d = channels.shape[-1], self.width
    learned = k - bool(self.widths)
    shape = (_DIRECTIONS, self.towers, learned, d, d)
    # A matrix a label keeps the size of h; the products of a network's hidden layer add up to an entry of size 1.
    spread = learned**-0.5 if self.widths else d**-0.5
    matrices = self.param("kernel", nn.initializers.normal(spread), shape).astype(self.dtype)
    if self.widths:
      bias = self.param("bias", nn.initializers.zeros, (_DIRECTIONS, self.towers, 1, d, d)).astype(self.dtype)
      matrices = jnp.concatenate([matrices, bias], axis=2) / d
    gathered = jnp.einsum("bvwcpk,bwpd->bvcpkd", channels, h)
    return jnp.einsum("bvcpkd,cpkde->bvpce", gathered, matrices)


class PairMessages(nn.Module):
  """Messages f(h_v, h_w, e_vw) both ways, f a network of hidden `widths`."""

  towers: int
  width: int
  widths: tuple[int, ...]
  dtype: jnp.dtype = jnp.float32

  def channels(self, features: jax.Array, joined: jax.Array) -> tuple[jax.Array, jax.Array]:
    """features [B, V, W, E], joined [B, V, W] -> both, in both directions: [B, V, W, C, P, E] and [B, V, W, C, P, 1]."""
    ways = both_ways(features, towers=self.towers)
    return ways, both_ways(joined[..., None].astype(ways.dtype), towers=self.towers)

  @nn.compact
  def __call__(self, channels: tuple[jax.Array, jax.Array], h: jax.Array) -> jax.Array:
    """channels, h [B, W, P, D] -> [B, V, P, C, D]."""
    features, joined = channels
    shape = (*features.shape[:-1], h.shape[-1])
    own, other = (jnp.broadcast_to(jnp.expand_dims(h, (axis, 3)), shape) for axis in (2, 1))
    x = jnp.concatenate([own, other, features.astype(h.dtype)], axis=-1)
    banks = (_DIRECTIONS, self.towers)
    for k, width in enumerate(self.widths):
      x = nn.relu(Banked(banks, width, dtype=self.dtype, name=f"hidden_{k}")(x))
    # The last map is linear, so that it may follow the sum over w; its bias counts once for each neighbour.
    x = jnp.sum(jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1) * joined, axis=2)  # [B, V, C, P, K + 1]
    messages = Banked(banks, self.width, use_bias=False, dtype=self.dtype, name="output")(x)
    return jnp.swapaxes(messages, 2, 3)


def both_ways(x: jax.Array, *, towers: int) -> jax.Array:
  """x [B, V, W, E] of the pair (v, w), and of (w, v) beside it, for every tower: [B, V, W, C, P, E]."""
  ways = jnp.stack([x, jnp.swapaxes(x, 1, 2)], axis=3)[..., None, :]
  return jnp.broadcast_to(ways, (*ways.shape[:4], towers, ways.shape[-1]))


class GatedUpdate(nn.Module):
  """The GRU of the authors' code, without biases, reset before the product, one for each tower.

  z, r = s(W m + U h); n = tanh(W m + U (r h)); h' = (1 - z) h + z n.
  """

  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, h: jax.Array, messages: jax.Array) -> jax.Array:
    """h [..., P, D], messages [..., P, M] -> [..., P, D]."""
    p, d = h.shape[-2:]
    seen = Banked((p,), 3 * d, use_bias=False, dtype=self.dtype, name="from_messages")(messages)
    gates = seen[..., : 2 * d] + Banked((p,), 2 * d, use_bias=False, dtype=self.dtype, name="gates")(h)
    z, r = jnp.split(nn.sigmoid(gates), 2, axis=-1)
    candidate = Banked((p,), d, use_bias=False, dtype=self.dtype, name="candidate")(r * h)
    return (1 - z) * h + z * jnp.tanh(seen[..., 2 * d :] + candidate)


class GatedSum(nn.Module):
  """The readout of GG-NN: sum over the atoms of s(i(h, x)) j(h), i and j nets of one hidden layer; additive over molecules."""

  hidden: int
  outputs: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, h: jax.Array, x: jax.Array, mask: jax.Array) -> jax.Array:
    """h [B, N, D], x [B, N, F], mask [B, N] -> [B, O]."""

    def net(name, inputs):
      hidden = nn.relu(Linear((self.hidden,), dtype=self.dtype, name=f"{name}_hidden")(inputs))
      return at_least_float32(Linear((self.outputs,), dtype=self.dtype, name=name)(hidden))

    shares = nn.sigmoid(net("gate", jnp.concatenate([h, x], axis=-1))) * net("value", h)
    return jnp.sum(shares * mask[..., None].astype(shares.dtype), axis=1)


class SetToSet(nn.Module):
  """Set2set: `steps` of an LSTM whose only input is its own state beside what it attends to, then a net of one hidden layer."""

  steps: int
  width: int
  hidden: int
  outputs: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, h: jax.Array, x: jax.Array, mask: jax.Array) -> jax.Array:
    """h [B, N, D], x [B, N, F], mask [B, N] -> [B, O]."""
    memories = Linear((self.width,), dtype=self.dtype, name="memories")(jnp.concatenate([h, x], axis=-1))
    gates = Linear((4, self.width), dtype=self.dtype, name="process")
    summary = set_to_set(gates, memories, mask, steps=self.steps)
    hidden = nn.relu(Linear((self.hidden,), dtype=self.dtype, name="output_hidden")(summary))
    return at_least_float32(Linear((self.outputs,), dtype=self.dtype, name="output")(hidden))


def set_to_set(gates: Any, memories: jax.Array, mask: jax.Array, *, steps: int) -> jax.Array:
  """q* [B, 2 D] after `steps`; gates: q* -> pre-activations [B, 4, D] (i, f, g, o); memories [B, N, D], mask [B, N]."""
  b, _, d = memories.shape
  zeros = jnp.zeros((b, d), memories.dtype)
  state, seen = LstmState(zeros, zeros), zeros
  for _ in range(steps):
    state, _ = lstm_step(state, gates(jnp.concatenate([state.hidden, seen], axis=-1)))
    scores = at_least_float32(jnp.einsum("bnd,bd->bn", memories, state.hidden))
    attention = nn.softmax(jnp.where(mask, scores, jnp.full_like(scores, _SHUT_OUT)), axis=-1)
    seen = jnp.einsum("bn,bnd->bd", attention.astype(memories.dtype), memories)
  return jnp.concatenate([state.hidden, seen], axis=-1)


class Mpnn(nn.Module):
  """A message passing network; fields as in `config.model` (`from_config`). width: of all towers together."""

  message: str
  edges: str
  widths: tuple[int, ...]
  labels: int
  width: int
  rounds: int
  towers: int
  virtual_edges: bool
  master_width: int
  readout: str
  process_steps: int
  readout_width: int
  outputs: int
  dtype: jnp.dtype = jnp.float32

  def setup(self):
    p, d, dtype = self.towers, self.width // self.towers, self.dtype
    if self.message == "pair":
      self.messages: nn.Module = PairMessages(p, d, self.widths, dtype)
    else:
      self.messages = MatrixMessages(p, d, self.widths if self.message == "edge" else (), dtype)
    self.message_bias = self.param("message_bias", nn.initializers.zeros, (p, _DIRECTIONS, d))
    self.update = GatedUpdate(dtype)
    if p > 1:
      self.mix = Linear((self.width,), use_bias=False, dtype=dtype)
    if self.master_width:
      self.to_master = Linear((1, _DIRECTIONS * self.master_width), use_bias=False, dtype=dtype)
      self.from_master = Linear((p, _DIRECTIONS, d), use_bias=False, dtype=dtype)
      self.master_update = GatedUpdate(dtype)
    if self.readout == "set2set":
      self.read: nn.Module = SetToSet(self.process_steps, self.width, self.readout_width, self.outputs, dtype)
    else:
      self.read = GatedSum(self.readout_width, self.outputs, dtype)

  def __call__(self, atoms: jax.Array, bonds: jax.Array, positions: jax.Array, mask: jax.Array) -> jax.Array:
    """atoms [B, N, F], bonds int [B, N, N], positions [B, N, 3], mask bool [B, N] -> [B, O], float32 or wider.

    What masked atoms hold is not looked at.
    """
    h = self.states(atoms, bonds, positions, mask)
    x = atoms.astype(self.dtype) * mask[..., None].astype(self.dtype)
    return self.read(h, x, mask)

  def states(self, atoms: jax.Array, bonds: jax.Array, positions: jax.Array, mask: jax.Array) -> jax.Array:
    """The atoms' states after the last round, [B, N, width], zero where there is no atom; arguments as those of the call."""
    b, n, f = atoms.shape
    p, d = self.towers, self.width // self.towers
    there = mask[..., None].astype(self.dtype)  # [B, N, 1]
    joined = mask[:, :, None] & mask[:, None] & ~jnp.eye(n, dtype=bool)[None]
    distances = pair_distances(positions.astype(self.dtype) * there)
    features, known = pair_features(bonds, distances, edges=self.edges, labels=self.labels, virtual=self.virtual_edges)
    channels = self.messages.channels(features, joined & known)
    h = jnp.pad(atoms.astype(self.dtype) * there, ((0, 0), (0, 0), (0, self.width - f))).reshape(b, n, p, d)
    master = jnp.zeros((b, 1, self.master_width), self.dtype)
    for _ in range(self.rounds):
      messages = self.messages(channels, h) + self.message_bias.astype(self.dtype)[None, None]
      if self.master_width:
        to_master = self.to_master(jnp.sum(h, axis=1).reshape(b, self.width))
        messages = messages + self.from_master(master[:, 0])[:, None]
        master = self.master_update(master, to_master)
      h = self.update(h, messages.reshape(b, n, p, _DIRECTIONS * d)).reshape(b, n, self.width)
      h = ((self.mix(h) if p > 1 else h) * there).reshape(b, n, p, d)
    return h.reshape(b, n, self.width)


def from_config(config: Any, *, features: int, labels: int, outputs: int) -> Mpnn:
  """The network of `config.model` for atoms of `features` numbers; raises UserError on unknown kinds and sizes that do not fit."""
  model = config.model
  for field, known in (("message", MESSAGES), ("edges", EDGES), ("readout", READOUTS)):
    if model[field] not in known:
      raise UserError(f"model.{field} = {model[field]!r}", f"one of {', '.join(known)}", f"--config.model.{field}")
  for field, least in (("width", features), ("rounds", 1), ("towers", 1), ("process_steps", 1), ("master_width", 0)):
    if model[field] < least:
      raise UserError(f"model.{field} = {model[field]}", f"at least {least}", f"--config.model.{field}")
  if model.width % model.towers:
    raise UserError(f"model.width = {model.width} in {model.towers} towers", "a multiple", "--config.model.towers")
  if model.message != "ggnn" and not model.widths:
    raise UserError(f"no hidden layer of the {model.message} network", "at least one width", "--config.model.widths")
  if model.message == "ggnn" and model.edges == "raw":
    raise UserError("model.edges = 'raw' with ggnn, which knows labels alone", "bonds or bins", "--config.model.edges")
  if model.virtual_edges and model.edges != "bonds":
    raise UserError("virtual edges where all pairs are joined", "false", "--config.model.virtual_edges")
  return Mpnn(
    message=model.message, edges=model.edges, widths=tuple(model.widths), labels=labels, width=model.width,
    rounds=model.rounds, towers=model.towers, virtual_edges=model.virtual_edges, master_width=model.master_width,
    readout=model.readout, process_steps=model.process_steps, readout_width=model.readout_width, outputs=outputs,
    dtype=jnp.dtype(config.dtype),
  )  # fmt: skip


def counts(config: Any, *, features: int, labels: int, outputs: int, atoms: int) -> Counts:
  """Size and training cost of the network of `config` on molecules padded to `atoms`, by formula.

  n: the matrices. Messages cost 2 C P N (N K D + K D^2) a round, with c and the GRU once an atom or pair.
  """
  model, n = config.model, atoms
  towers, width = model.towers, model.width
  d = width // towers
  e = pair_width(edges=model.edges, labels=labels, virtual=model.virtual_edges)
  banks = _DIRECTIONS * towers
  if model.message == "pair":
    chain = [2 * d + e, *model.widths]
    messages = banks * (products(chain) + chain[-1] * d)
    biases = banks * (sum(model.widths) + d)  # the last bias stands as a row of the kernel
    cost = model.rounds * 2 * banks * (n * n * products(chain) + n * (chain[-1] + 1) * d)
  else:
    chain = [e, *model.widths] if model.message == "edge" else [e]
    net = model.message == "edge"
    messages = banks * (products(chain) + chain[-1] * d * d)
    biases = banks * (sum(model.widths) + d * d) if net else 0
    k = chain[-1] + net
    cost = 2 * banks * (n * n * products(chain) + model.rounds * n * (n * k * d + k * d * d))
  update = towers * 9 * d * d
  mix = width * width if towers > 1 else 0
  m = model.master_width
  master = (4 * width * m + 9 * m * m) if m else 0
  read, read_biases, read_cost = readout_counts(model, features=features, outputs=outputs, atoms=n)
  forward = cost + model.rounds * 2 * (n * (update + mix) + master) + read_cost
  matrices = messages + update + mix + master + read
  total = matrices + biases + _DIRECTIONS * width + read_biases
  return Counts(matrices, total, 3.0 * forward, config.batch_size, unit="examples")


def readout_counts(model: Any, *, features: int, outputs: int, atoms: int) -> tuple[int, int, int]:
  """Weights in matrices, biases, and forward FLOP of the readout."""
  d, hidden = model.width, model.readout_width
  if model.readout == "ggnn":
    matrices = hidden * (2 * d + features + 2 * outputs)
    return matrices, 2 * (hidden + outputs), 2 * atoms * matrices
  memories, process, head = (d + features) * d, 8 * d * d, hidden * (2 * d + outputs)
  cost = 2 * (atoms * memories + model.process_steps * (process + 2 * atoms * d) + head)
  return memories + process + head, d + 4 * d + hidden + outputs, cost


def products(chain: Sequence[int]) -> int:
  """Weights of the matrices between layers of these widths."""
  return int(np.sum([a * b for a, b in zip(chain[:-1], chain[1:], strict=True)], dtype=np.int64))
