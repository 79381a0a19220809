"""Recurrent cells: the plain RNN, the LSTM and its variants, the GRU in two forms, and the blocks of cells of 1997.

Olah 2015, Understanding LSTM Networks, https://colah.github.io/posts/2015-08-Understanding-LSTMs, with Hochreiter,
Schmidhuber 1997 (Neural Computation 9(8); the blocks), Gers, Schmidhuber, Cummins 2000 (forget gate, peepholes) and Cho et
al. 2014, https://arxiv.org/abs/1406.1078 (GRU). Letters: T time, B batch, I inputs, D width, G blocks of pre-activations,
U units of the blocks of 1997. s = sigmoid; `.` stands for W [h, x] + b of the gate.

  rnn                 h = tanh(.)
  lstm                i, f, o = s(.); g = tanh(.); C = f C + i g; h = o tanh(C)
  lstm_no_forget      as lstm with f = 1, and no weights for it: the cell of 1997 with today's squashings
  lstm_coupled        i = 1 - f
  lstm_peephole       i and f also see the old C, o sees the new C, each through a weight a unit (Gers, Schmidhuber 2000)
  lstm_peephole_full  the same through matrices, as the post draws it
  gru                 z, r = s(.); n = tanh(W [r h, x] + b); h = (1 - z) h + z n: as in the post
  gru_torch           n = tanh(W x + b + r (V h + c)); h = (1 - z) n + z h: torch.nn.GRU and flax.linen.GRUCell

All that the input contributes is computed for every step at once, outside the recurrence; the backward loop collects the
gradients of the pre-activations, and each weight's gradient is one product after it (`recurrence`; reverse mode only).
Deviations: one bias a gate, also in the GRU, for which the post prints none. `forget_bias` is added to the initial bias of
the forget gate (Jozefowicz et al. 2015 recommend 1). Initial values are uniform on [-s, s], `init_scale` 0 standing for
s = 1 / sqrt(D), torch's rule; the post says nothing of them.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from ilya_jax.errors import UserError, check_positive, did_you_mean
from ilya_jax.models.lstm_lm import uniform_init
from ilya_jax.nn.linear import Kernel, Linear, product_over_rows
from ilya_jax.nn.lstm import LstmState, lstm_recurrence, lstm_step
from ilya_jax.nn.varying import vary_alike

Weights = Mapping[str, jax.Array]
State = Any  # a NamedTuple of arrays [B, ...]


class HiddenState(NamedTuple):
  """hidden [B, D], all that an RNN or a GRU carries."""

  hidden: jax.Array


class BlockState(NamedTuple):
  """cell [B, cells], the inner states; units [B, U], what cells and gates put out."""

  cell: jax.Array
  units: jax.Array


class Product(NamedTuple):
  """A matrix within the recurrence, [D, len(blocks), D], whose products are added to these blocks of pre-activations."""

  name: str
  blocks: tuple[int, ...]


class Cell(NamedTuple):
  """A kind of cell.

  gates: names of the blocks of pre-activations that see the input, in order.
  step(weights, state, inputs [B, G, D]) -> (state, operands): one step; operands maps a product's name to what stood on the
    left of it.
  read(state) -> what the layer shows of its state.
  products: matrices within the recurrence. vectors: name -> how many rows of D weights act unit by unit.
  state: the class of the state. candidate_bias: whether one more block holds a bias alone.
  """

  gates: tuple[str, ...]
  step: Callable[[Weights, State, jax.Array], tuple[State, dict[str, jax.Array]]]
  read: Callable[[State], jax.Array]
  products: tuple[Product, ...]
  vectors: tuple[tuple[str, int], ...] = ()
  state: type = LstmState
  candidate_bias: bool = False


def _times(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """[B, D] times [D, G, D] -> [B, G, D]."""
  return jnp.tensordot(x, kernel, 1)


def _blocks(gates: jax.Array) -> jax.Array:
  """[B, G, D] -> [G, B, D]."""
  return jnp.moveaxis(gates, 1, 0)


def _rnn(weights: Weights, state: HiddenState, inputs: jax.Array):
  hidden = jnp.tanh((inputs + _times(state.hidden, weights["recurrent"]))[:, 0])
  return HiddenState(hidden), {"recurrent": state.hidden}


def _lstm(weights: Weights, state: LstmState, inputs: jax.Array):
  new, _ = lstm_step(state, inputs + _times(state.hidden, weights["recurrent"]))
  return new, {"recurrent": state.hidden}


def _lstm_no_forget(weights: Weights, state: LstmState, inputs: jax.Array):
  i, g, o = _blocks(inputs + _times(state.hidden, weights["recurrent"]))
  cell = state.cell + jax.nn.sigmoid(i) * jnp.tanh(g)
  return LstmState(cell, jax.nn.sigmoid(o) * jnp.tanh(cell)), {"recurrent": state.hidden}


def _lstm_coupled(weights: Weights, state: LstmState, inputs: jax.Array):
  f, g, o = _blocks(inputs + _times(state.hidden, weights["recurrent"]))
  f = jax.nn.sigmoid(f)
  cell = f * state.cell + (1 - f) * jnp.tanh(g)
  return LstmState(cell, jax.nn.sigmoid(o) * jnp.tanh(cell)), {"recurrent": state.hidden}


def _lstm_peephole(weights: Weights, state: LstmState, inputs: jax.Array):
  i, f, g, o = _blocks(inputs + _times(state.hidden, weights["recurrent"]))
  to_i, to_f, to_o = weights["peephole"][:, None]  # [1, D] each
  i, f = jax.nn.sigmoid(i + to_i * state.cell), jax.nn.sigmoid(f + to_f * state.cell)
  cell = f * state.cell + i * jnp.tanh(g)
  return LstmState(cell, jax.nn.sigmoid(o + to_o * cell) * jnp.tanh(cell)), {"recurrent": state.hidden}


def _lstm_peephole_full(weights: Weights, state: LstmState, inputs: jax.Array):
  i, f, g, o = _blocks(inputs + _times(state.hidden, weights["recurrent"]))
  to_i, to_f = _blocks(_times(state.cell, weights["peephole"]))
  cell = jax.nn.sigmoid(f + to_f) * state.cell + jax.nn.sigmoid(i + to_i) * jnp.tanh(g)
  o = jax.nn.sigmoid(o + _times(cell, weights["peephole_output"])[:, 0])
  operands = {"recurrent": state.hidden, "peephole": state.cell, "peephole_output": cell}
  return LstmState(cell, o * jnp.tanh(cell)), operands


def _gru(weights: Weights, state: HiddenState, inputs: jax.Array):
  z, r = _blocks(jax.nn.sigmoid(inputs[:, :2] + _times(state.hidden, weights["recurrent"])))
  kept = r * state.hidden
  candidate = jnp.tanh(inputs[:, 2] + _times(kept, weights["candidate"])[:, 0])
  return HiddenState((1 - z) * state.hidden + z * candidate), {"recurrent": state.hidden, "candidate": kept}


def _gru_torch(weights: Weights, state: HiddenState, inputs: jax.Array):
  z, r, candidate = _blocks(_times(state.hidden, weights["recurrent"]))
  z, r = jax.nn.sigmoid(inputs[:, 0] + z), jax.nn.sigmoid(inputs[:, 1] + r)
  candidate = jnp.tanh(inputs[:, 2] + r * (inputs[:, 3] + candidate))
  return HiddenState((1 - z) * candidate + z * state.hidden), {"recurrent": state.hidden}


def _hidden(state: State) -> jax.Array:
  return state.hidden


_LSTM = ("input", "forget", "candidate", "output")
_FOUR, _THREE = (Product("recurrent", (0, 1, 2, 3)),), (Product("recurrent", (0, 1, 2)),)
_PEEPHOLES = (*_FOUR, Product("peephole", (0, 1)), Product("peephole_output", (3,)))
CELLS: dict[str, Cell] = {
  "rnn": Cell(("hidden",), _rnn, _hidden, (Product("recurrent", (0,)),), state=HiddenState),
  "lstm": Cell(_LSTM, _lstm, _hidden, _FOUR),
  "lstm_no_forget": Cell(("input", "candidate", "output"), _lstm_no_forget, _hidden, _THREE),
  "lstm_coupled": Cell(("forget", "candidate", "output"), _lstm_coupled, _hidden, _THREE),
  "lstm_peephole": Cell(_LSTM, _lstm_peephole, _hidden, _FOUR, (("peephole", 3),)),
  "lstm_peephole_full": Cell(_LSTM, _lstm_peephole_full, _hidden, _PEEPHOLES),
  "gru": Cell(("update", "reset", "candidate"), _gru, _hidden,
              (Product("recurrent", (0, 1)), Product("candidate", (2,))), state=HiddenState),
  "gru_torch": Cell(("update", "reset", "candidate"), _gru_torch, _hidden, (Product("recurrent", (0, 1, 3)),),
                    state=HiddenState, candidate_bias=True),
}  # fmt: skip


def find_cell(name: str) -> Cell:
  """The cell of a name. Raises UserError where there is none."""
  if name not in CELLS:
    raise UserError(
      f"model.cell = {name!r}{did_you_mean(name, CELLS)}", f"one of {', '.join(CELLS)}", "--config.model.cell"
    )
  return CELLS[name]


def recurrence(
  cell: Cell, inputs: jax.Array, *, weights: Weights, state: State, mask: jax.Array | None = None, unroll: int = 1
) -> tuple[jax.Array, State]:
  """Runs a cell over a sequence.

  Args:
    inputs: [T, B, G, D], the input's part of the pre-activations with the biases, computed beforehand.
    weights: the cell's products, [D, len(blocks), D] each, and its vectors, [rows, D] each.
    state: before the first step.
    mask: bool [T, B], False where a sequence has ended: the state then stays as it is.
    unroll: steps written out per iteration of the loop, an execution choice.

  Returns: what the cell shows at every step [T, B, D], and the state after the last step.
  """
  products = {product.name: weights[product.name] for product in cell.products}
  vectors = {name: weights[name] for name in weights if name not in products}
  return _recurrence(cell, unroll, *vary_alike(products, vectors, inputs, state), mask)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _recurrence(cell, unroll, products, vectors, inputs, state, mask):
  shown, final, _ = _loop(cell, unroll, products, vectors, inputs, state, mask)
  return shown, final


def _loop(cell, unroll, products, vectors, inputs, state, mask):
  def step(state, at):
    inputs_t, mask_t = at
    new, operands = cell.step({**products, **vectors}, state, inputs_t)
    if mask_t is not None:
      new = jax.tree.map(lambda after, before: jnp.where(mask_t[:, None], after, before), new, state)
    return new, (cell.read(new), operands)

  final, (shown, operands) = lax.scan(step, state, (inputs, mask), unroll=unroll)
  return shown, final, operands


def _save(cell, unroll, products, vectors, inputs, state, mask):
  def loop(vectors, inputs, state):
    shown, final, operands = _loop(cell, unroll, products, vectors, inputs, state, mask)
    return (shown, final), operands

  results, backward, operands = jax.vjp(loop, vectors, inputs, state, has_aux=True)
  return results, (backward, operands)


def _backward(cell, unroll, saved, cotangents):
  backward, operands = saved
  d_vectors, d_inputs, d_state = backward(cotangents)
  d_products = {
    product.name: product_over_rows(operands[product.name], _only(d_inputs, product.blocks), rows=2)
    for product in cell.products
  }
  return d_products, d_vectors, d_inputs, d_state, None


def _only(gradients: jax.Array, blocks: tuple[int, ...]) -> jax.Array:
  """These blocks of [T, B, G, D]."""
  return gradients if len(blocks) == gradients.shape[2] else jnp.stack([gradients[:, :, k] for k in blocks], axis=2)


_recurrence.defvjp(_save, _backward)


class Recurrent(nn.Module):
  """A layer of cells of one kind over a whole sequence. Raises UserError on an unknown cell and a width below 1."""

  cell: str
  width: int
  forget_bias: float = 0.0
  init_scale: float = 0.0
  dtype: jnp.dtype = jnp.float32
  time_unroll: int = 1

  def __post_init__(self):
    find_cell(self.cell)
    check_positive(self, "width")
    super().__post_init__()

  @nn.compact
  def __call__(self, x: jax.Array, *, state: State = None, mask: jax.Array | None = None) -> tuple[jax.Array, State]:
    """x [T, B, I] from `state` (zeros where none is given) -> hidden states [T, B, D], final state; mask as `recurrence`."""
    cell, uniform = CELLS[self.cell], uniform_init(self.init_scale or self.width**-0.5)
    gates = (len(cell.gates), self.width)
    forget = jnp.array([name == "forget" for name in cell.gates], jnp.float32)

    def bias_init(rng, shape, dtype=jnp.float32):  # [G D], flat
      return uniform(rng, shape, dtype) + self.forget_bias * jnp.repeat(forget, self.width)

    inputs = Linear(gates, kernel_init=uniform, bias_init=bias_init, dtype=self.dtype, name="input")(x)  # [T, B, G, D]
    if cell.candidate_bias:
      own = self.param("candidate_bias", uniform, (self.width,)).astype(self.dtype)
      inputs = jnp.concatenate([inputs, jnp.broadcast_to(own, (*x.shape[:2], 1, self.width))], axis=2)
    weights = {
      name: Kernel((self.width, len(blocks), self.width), uniform, name=name)() for name, blocks in cell.products
    }
    weights |= {name: self.param(name, uniform, (rows, self.width)) for name, rows in cell.vectors}
    weights = {name: weight.astype(self.dtype) for name, weight in weights.items()}
    if state is None:
      state = zero_state(cell.state, batch=x.shape[1], width=self.width, dtype=self.dtype)
    if self.cell == "lstm" and mask is None:  # whose backward pass is written out
      return lstm_recurrence(inputs, weights["recurrent"], state, self.time_unroll)
    return recurrence(cell, inputs, weights=weights, state=state, mask=mask, unroll=self.time_unroll)


def zero_state(kind: type, *, batch: int, width: int, dtype: jnp.dtype = jnp.float32) -> State:
  """The state before a first step: zeros, [B, D] each."""
  return kind(*(jnp.zeros((batch, width), dtype) for _ in kind._fields))  # type: ignore[attr-defined]


def parameters(name: str, *, inputs: int, width: int) -> tuple[int, int]:
  """How many parameters a layer of cells has: those in matrices, and all (with biases and peepholes of a weight a unit)."""
  cell = find_cell(name)
  matrices = len(cell.gates) * inputs * width + sum(len(product.blocks) * width**2 for product in cell.products)
  vectors = len(cell.gates) + sum(rows for _, rows in cell.vectors) + cell.candidate_bias
  return matrices, matrices + vectors * width


class Bidirectional(nn.Module):
  """Two layers of cells, one of which reads the sequence from its end."""

  cell: str
  width: int
  forget_bias: float = 0.0
  init_scale: float = 0.0
  dtype: jnp.dtype = jnp.float32
  time_unroll: int = 1

  @nn.compact
  def __call__(self, x: jax.Array, *, lengths: jax.Array) -> jax.Array:
    """x [T, B, I], lengths [B] -> [T, B, 2 D]: at each step what was read up to it, and what was read back to it."""
    fields = (self.cell, self.width, self.forget_bias, self.init_scale, self.dtype, self.time_unroll)
    onwards, _ = Recurrent(*fields, name="onwards")(x)
    backwards, _ = Recurrent(*fields, name="backwards")(reverse(x, lengths))
    return jnp.concatenate([onwards, reverse(backwards, lengths)], axis=-1)


def reverse(x: jax.Array, lengths: jax.Array) -> jax.Array:
  """x [T, B, D] with the first lengths [B] steps of each sequence in reverse order, the rest where it was."""
  steps = jnp.arange(x.shape[0], dtype=lengths.dtype)[:, None]  # [T, 1]
  order = jnp.where(steps < lengths[None], lengths[None] - 1 - steps, steps)
  return jnp.take_along_axis(x, order[..., None], axis=0)


class MemoryBlocks(nn.Module):
  """The hidden layer of 1997: blocks of cells, the cells of a block sharing an input and an output gate, no forget gate.

  C = C + i g(.), shown o h(C), with g = 4 s - 2, h = 2 s - 1. Every unit, the U = blocks (size + 2) cells and gates, sees
  the input, what all units put out a step before, and a bias: U (I + U + 1) weights. Order of units: cells block by
  block, input gates, output gates.

  input_gate_bias: the initial biases of the blocks' input gates; other values are uniform on [-init_scale, init_scale].
  truncated: no error flows from a step to the one before but through C, as in the paper (appendix A.1).
  Raises UserError on sizes below 1 and where biases and blocks differ in number.
  """

  blocks: int
  size: int
  input_gate_bias: tuple[float, ...] = ()
  init_scale: float = 0.1
  truncated: bool = True
  dtype: jnp.dtype = jnp.float32
  time_unroll: int = 1

  def __post_init__(self):
    check_positive(self, "blocks", "size")
    if self.input_gate_bias and len(self.input_gate_bias) != self.blocks:
      got = f"model.input_gate_bias of {len(self.input_gate_bias)} numbers for {self.blocks} blocks"
      raise UserError(got, "one for each block, or none", "--config.model.input_gate_bias")
    super().__post_init__()

  @nn.compact
  def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> tuple[jax.Array, BlockState]:
    """x [T, B, I] from zeros -> what the cells put out [T, B, cells], final state; mask as `recurrence`."""
    cells, units = self.blocks * self.size, self.blocks * (self.size + 2)
    uniform = uniform_init(self.init_scale)

    def bias_init(rng, shape, dtype=jnp.float32):  # [U]
      given = jnp.array(self.input_gate_bias, dtype)
      return uniform(rng, shape, dtype).at[cells : cells + len(given)].set(given)

    inputs = Linear((1, units), kernel_init=uniform, bias_init=bias_init, dtype=self.dtype, name="input")(x)
    kernel = Kernel((units, 1, units), uniform, name="recurrent")().astype(self.dtype)
    batch = x.shape[1]
    state = BlockState(jnp.zeros((batch, cells), self.dtype), jnp.zeros((batch, units), self.dtype))
    cell = memory_blocks(self.blocks, self.size, self.truncated)
    return recurrence(cell, inputs, weights={"recurrent": kernel}, state=state, mask=mask, unroll=self.time_unroll)


@functools.cache
def memory_blocks(blocks: int, size: int, truncated: bool) -> Cell:
  """The step of `MemoryBlocks`, all its units in one block of pre-activations."""
  cells = blocks * size

  def step(weights: Weights, state: BlockState, inputs: jax.Array):
    seen = lax.stop_gradient(state.units) if truncated else state.units
    net = (inputs + _times(seen, weights["recurrent"]))[:, 0]  # [B, U]
    gates = jax.nn.sigmoid(net[:, cells:])
    i, o = (jnp.repeat(each, size, axis=1) for each in jnp.split(gates, 2, axis=1))  # [B, cells]
    cell = state.cell + i * (4 * jax.nn.sigmoid(net[:, :cells]) - 2)
    shown = o * (2 * jax.nn.sigmoid(cell) - 1)
    return BlockState(cell, jnp.concatenate([shown, gates], axis=1)), {"recurrent": seen}

  def read(state: BlockState) -> jax.Array:
    return state.units[:, :cells]

  return Cell(("units",), step, read, (Product("recurrent", (0,)),), state=BlockState)
