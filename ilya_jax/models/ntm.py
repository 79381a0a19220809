"""The Neural Turing Machine: a controller (feed-forward or LSTM) that reads and writes a matrix of rows through soft heads.

Graves, Wayne, Danihelka 2014, https://arxiv.org/abs/1410.5401. Implemented: reading (eq. 2), erasing and adding (eqs. 3, 4; all
erases before all adds), addressing by content, interpolation, circular shift and sharpening (eqs. 5 to 9), one linear map of what
the controller shows for the parameters of all heads, an output that sees controller and reads.
Letters: B batch, T time, I inputs, K outputs, D width of a controller layer, L its layers, N rows, M columns of the memory,
R read heads, W write heads, H = R + W, S shifts, P numbers for the heads.

What the paper leaves open, and what is done here: strength softplus, gate and erase sigmoid, shift softmax, sharpening 1 +
softplus (both public implementations that were read); keys and adds tanh (`squash` identity: as they are); hidden units of the
feed-forward controller tanh or relu; head parameters and logits clipped to +-`clip` (Collier, Beel 2018,
https://arxiv.org/abs/1807.08518). `order` read_first: all heads look at the memory of the step before, which is read, then written
(both implementations); write_first: it is written, then read heads look at what it has become (Graves et al. 2016).
The first weightings are one-hot at row 0 or learned (softmax of random logits): were they uniform over a constant memory, no row
could ever be told from another. Memory begins constant or learned; first reads (tanh) and controller states are learned.
Matrices begin truncated normal with variance 1 / fan-in, biases 0, that of forget gates `forget_bias`. (Controller matrices uniform on
+-1/sqrt(width), tried before, let an LSTM controller do without the memory on short copies: configs/ntm.py.)
Controllers of several layers (priority sort) are stacked as the baseline of the paper is: each layer sees inputs and reads, and the
layer below; heads and outputs see all layers.

What the inputs contribute is computed for all steps at once; the loop backwards collects the gradients of pre-activations, and the
gradient of each matrix is one product after it (reverse mode only).
"""

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from ilya_jax.errors import UserError, check_positive, did_you_mean
from ilya_jax.models.addressing import Heads, address, read, write
from ilya_jax.models.lstm_lm import gate_bias_init, uniform_init
from ilya_jax.nn.linear import Linear, product_over_rows
from ilya_jax.nn.lstm import LstmState, lstm_step
from ilya_jax.nn.precision import at_least_float32
from ilya_jax.nn.varying import vary_alike
from ilya_jax.task import Counts

CONTROLLERS = ("lstm", "feedforward")
ORDERS = ("read_first", "write_first")
FIRST_MEMORY = 1e-6  # every number of a memory that begins constant
_ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu}


# The machine


class Machine(NamedTuple):
  """Sizes and choices, all that a step of the machine needs to know besides its weights (the letters L, D, R, W, N, M, S above).

  shifts: an odd number S of allowed shifts; 0: one scalar, the lower end of a window of width 1.
  """

  controller: str
  layers: int
  width: int
  read_heads: int
  write_heads: int
  rows: int
  columns: int
  shifts: int = 3
  order: str = "read_first"
  squash: str = "tanh"
  activation: str = "tanh"
  clip: float = 20.0

  @property
  def shown(self) -> int:
    """Width of what the controller shows, all layers."""
    return self.layers * self.width

  @property
  def head_sizes(self) -> tuple[int, ...]:
    """How the P numbers for the heads are divided: keys, strengths, gates, shifts, sharpenings, erases, adds."""
    heads, written = self.read_heads + self.write_heads, self.write_heads * self.columns
    return heads * self.columns, heads, heads, heads * (self.shifts or 1), heads, written, written


class State(NamedTuple):
  """hidden: an LstmState of [B, D] each per layer, () for a feed-forward controller. reads [B, R, M]. weights [B, R + W, N], read
  heads first. memory [B, N, M]."""

  hidden: tuple[LstmState, ...]
  reads: jax.Array
  weights: jax.Array
  memory: jax.Array


class Numbers(NamedTuple):
  """What stands for every layer of the controller and for the heads, each: matrices, pre-activations, or what is multiplied.

  controller: one per layer; matrices [R M + D (below) + D (own), 4, D], of a feed-forward controller [R M (+ D), D].
  heads: matrix [L D, P].
  """

  controller: tuple[jax.Array, ...]
  heads: jax.Array


class Shown(NamedTuple):
  """What a step shows: controller [B, L D]; reads [B, R, M]; weights [B, R + W, N]; erases and adds [B, W, M]."""

  controller: jax.Array
  reads: jax.Array
  weights: jax.Array
  erases: jax.Array
  adds: jax.Array


def heads_of(machine: Machine, numbers: jax.Array) -> tuple[Heads, jax.Array, jax.Array]:
  """numbers [B, P] as the controller gives them -> what the heads do: Heads (read heads first), erases and adds [B, W, M]."""
  if machine.clip:
    numbers = jnp.clip(numbers, -machine.clip, machine.clip)
  ends = [sum(machine.head_sizes[: k + 1]) for k in range(len(machine.head_sizes) - 1)]
  keys, strengths, gates, shifts, sharpenings, erases, adds = jnp.split(numbers, ends, axis=1)
  squash = jnp.tanh if machine.squash == "tanh" else lambda x: x
  batch, heads = numbers.shape[0], machine.read_heads + machine.write_heads
  shifts = shifts.reshape(batch, heads, -1)
  made = Heads(
    keys=squash(keys).reshape(batch, heads, -1),
    strengths=jax.nn.softplus(strengths),
    gates=jax.nn.sigmoid(gates),
    shifts=jax.nn.softmax(shifts, axis=-1) if machine.shifts else shifts,
    sharpenings=1 + jax.nn.softplus(sharpenings),
  )
  written = (batch, machine.write_heads, machine.columns)
  return made, jax.nn.sigmoid(erases).reshape(written), squash(adds).reshape(written)


def use_memory(
  machine: Machine, state: State, *, heads: Heads, erases: jax.Array, adds: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """One step of the heads: new reads [B, R, M], weights [B, R + W, N], memory [B, N, M], in the machine's order."""
  split = machine.read_heads
  if machine.order == "read_first":
    weights = address(heads, state.weights, state.memory)
    reads = read(weights[:, :split], state.memory)
    return reads, weights, write(state.memory, weights[:, split:], erases=erases, adds=adds)
  reading, writing = (Heads(*(leaf[:, part] for leaf in heads)) for part in (slice(0, split), slice(split, None)))
  written = address(writing, state.weights[:, split:], state.memory)
  memory = write(state.memory, written, erases=erases, adds=adds)
  weights = address(reading, state.weights[:, :split], memory)
  return read(weights, memory), jnp.concatenate([weights, written], axis=1), memory


def step(machine: Machine, matrices: Numbers, state: State, inputs: Numbers) -> tuple[State, tuple[Shown, Numbers]]:
  """One step: inputs are the pre-activations' parts from outside, biases included; also gives what the matrices multiplied."""
  batch = state.memory.shape[0]
  seen = [state.reads.reshape(batch, -1)]
  operands: list[jax.Array] = []
  layers: list[jax.Array] = []
  hidden: list[LstmState] = []
  for layer, (matrix, own) in enumerate(zip(matrices.controller, inputs.controller, strict=True)):
    below = [layers[-1]] if layer else []
    before = [state.hidden[layer].hidden] if machine.controller == "lstm" else []
    operands.append(jnp.concatenate([*seen, *below, *before], axis=1))
    net = own + _product(operands[-1], matrix, own.dtype)
    if machine.controller == "lstm":
      new, _ = lstm_step(state.hidden[layer], net)
      hidden.append(new)
      layers.append(new.hidden)
    else:
      layers.append(_ACTIVATIONS[machine.activation](net))
  shown = jnp.concatenate(layers, axis=1)
  heads, erases, adds = heads_of(machine, inputs.heads + _product(shown, matrices.heads, inputs.heads.dtype))
  reads, weights, memory = use_memory(machine, state, heads=heads, erases=erases, adds=adds)
  state = State(tuple(hidden), reads, weights, memory)
  return state, (Shown(shown, reads, weights, erases, adds), Numbers(tuple(operands), shown))


def _product(x: jax.Array, matrix: jax.Array, dtype: Any) -> jax.Array:
  """x [B, I] times matrix [I, ...] in the matrix's type, the result in `dtype`."""
  return jnp.tensordot(x.astype(matrix.dtype), matrix, 1).astype(dtype)


def run(machine: Machine, matrices: Numbers, inputs: Numbers, state: State, unroll: int = 1) -> Any:
  """All steps: inputs [T, B, ...] -> what the controller shows [T, B, L D] and the reads [T, B, R, M].

  The derivative is that of the plain loop up to rounding. unroll: steps written out per iteration, an execution choice.
  """
  return _run(machine, unroll, *vary_alike(matrices, inputs, state))


def trace(machine: Machine, matrices: Numbers, inputs: Numbers, state: State) -> Shown:
  """All steps: what each shows, [T, B, ...]."""
  return lax.scan(lambda state, now: step(machine, matrices, state, now), state, inputs)[1][0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _run(machine, unroll, matrices, inputs, state):
  return _loop(machine, unroll, matrices, inputs, state)[0]


def _loop(machine, unroll, matrices, inputs, state):
  def body(state, now):
    state, (shown, operands) = step(machine, matrices, state, now)
    return state, ((shown.controller, shown.reads), operands)

  return lax.scan(body, state, inputs, unroll=unroll)[1]


def _save(machine, unroll, matrices, inputs, state):
  def loop(inputs, state):
    return _loop(machine, unroll, matrices, inputs, state)

  shown, backward, operands = jax.vjp(loop, inputs, state, has_aux=True)
  return shown, (backward, operands, matrices)


def _backward(machine, unroll, saved, cotangents):
  backward, operands, matrices = saved
  d_inputs, d_state = backward(cotangents)

  def gradient(x, d_net, matrix):
    return product_over_rows(x.astype(matrix.dtype), d_net.astype(matrix.dtype), rows=2)

  return jax.tree.map(gradient, operands, d_inputs, matrices), d_inputs, d_state


_run.defvjp(_save, _backward)


class Ntm(nn.Module):
  """The machine over whole sequences, from learned first states; parameters outside it: `input_<layer>`, `head_bias`, `output`.

  first_weights: one_hot (row 0) or learned; first_memory: constant (1e-6) or learned, the same for all sequences.
  time_unroll: steps written out per iteration, an execution choice. dtype: of the products with matrices; the memory and all that
  is done with it are float32. Raises UserError on sizes and choices that make no sense.
  """

  machine: Machine
  outputs: int
  first_weights: str = "one_hot"
  first_memory: str = "constant"
  forget_bias: float = 1.0
  dtype: jnp.dtype = jnp.float32
  time_unroll: int = 1

  def __post_init__(self):
    _check(self)
    super().__post_init__()

  def setup(self):
    machine, normal = self.machine, nn.initializers.lecun_normal()
    lstm, reads = machine.controller == "lstm", machine.read_heads * machine.columns
    gates = (4, machine.width) if lstm else (machine.width,)
    bias_init = gate_bias_init(0.0, forget_bias=self.forget_bias) if lstm else nn.initializers.zeros
    self.inputs = [
      Linear(gates, kernel_init=normal, bias_init=bias_init, dtype=self.dtype, name=f"input_{k}")
      for k in range(machine.layers)
    ]
    widths = [reads + machine.width * ((k > 0) + lstm) for k in range(machine.layers)]

    def flat_normal(rng, shape, dtype=jnp.float32):  # of the matrix that a kernel of three axes is
      return normal(rng, (shape[0], math.prod(shape[1:])), dtype).reshape(shape)

    self.recurrent = [self.param(f"recurrent_{k}", flat_normal, (width, *gates)) for k, width in enumerate(widths)]
    numbers = sum(machine.head_sizes)
    self.head_kernel = self.param("head_kernel", normal, (machine.shown, numbers))
    self.head_bias = self.param("head_bias", nn.initializers.zeros, (numbers,))
    self.output = Linear((self.outputs,), kernel_init=normal, dtype=self.dtype)
    self.first = self._first_parameters()

  def _first_parameters(self) -> dict[str, jax.Array]:
    """Parameters of the state before a first step."""
    machine, heads = self.machine, self.machine.read_heads + self.machine.write_heads
    made = {"reads": self.param("first_reads", nn.initializers.normal(1.0), (machine.read_heads, machine.columns))}
    if machine.controller == "lstm":
      made["hidden"] = self.param("first_hidden", nn.initializers.zeros, (machine.layers, 2, machine.width))
    if self.first_weights == "learned":
      made["weights"] = self.param("first_weights_logits", nn.initializers.normal(1.0), (heads, machine.rows))
    if self.first_memory == "learned":
      around = uniform_init((machine.rows + machine.columns) ** -0.5)
      made["memory"] = self.param("first_memory_rows", around, (machine.rows, machine.columns))
    return made

  def first_state(self, batch: int) -> State:
    """The state before a first step."""
    machine, heads = self.machine, self.machine.read_heads + self.machine.write_heads
    reads = jnp.tanh(self.first["reads"])
    if self.first_weights == "learned":
      weights = jax.nn.softmax(self.first["weights"], axis=-1)
    else:
      weights = jnp.zeros((heads, machine.rows), reads.dtype).at[:, 0].set(1)
    constant = jnp.full((machine.rows, machine.columns), FIRST_MEMORY, reads.dtype)
    hidden = [LstmState(*both) for both in self.first.get("hidden", ())]
    state = State(tuple(hidden), reads, weights, self.first.get("memory", constant))
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (batch, *leaf.shape)), state)

  def __call__(self, inputs: jax.Array) -> jax.Array:
    """inputs [B, T, I] -> logits [B, T, K] in float32."""
    controller, reads = run(self.machine, *self._prepared(inputs), self.time_unroll)
    return self._logits(controller, reads)

  def trace(self, inputs: jax.Array) -> tuple[jax.Array, Shown]:
    """inputs [B, T, I] -> logits [B, T, K], and what each step shows, [T, B, ...]."""
    shown = trace(self.machine, *self._prepared(inputs))
    return self._logits(shown.controller, shown.reads), shown

  def _prepared(self, inputs: jax.Array) -> tuple[Numbers, Numbers, State]:
    """Matrices, inputs of every step [T, B, ...], first state."""
    batch, steps, _ = inputs.shape
    x = jnp.swapaxes(inputs, 0, 1)
    matrices = Numbers(tuple(self.recurrent), self.head_kernel)
    biases = jnp.broadcast_to(self.head_bias, (steps, batch, self.head_bias.size))
    nets = tuple(at_least_float32(layer(x)) for layer in self.inputs)
    return jax.tree.map(lambda leaf: leaf.astype(self.dtype), matrices), Numbers(nets, biases), self.first_state(batch)

  def _logits(self, controller: jax.Array, reads: jax.Array) -> jax.Array:
    """What every step shows [T, B, ...] -> logits [B, T, K]."""
    seen = jnp.concatenate([controller, reads.reshape(*reads.shape[:2], -1)], axis=-1)
    logits = at_least_float32(jnp.swapaxes(self.output(seen), 0, 1))
    return jnp.clip(logits, -self.machine.clip, self.machine.clip) if self.machine.clip else logits


def from_config(config: Any, *, outputs: int) -> Ntm:
  """The net of `config.model`, executed as `config.execution` says; raises UserError where sizes make no sense."""
  model = config.model
  machine = Machine(**{field: model[field] for field in Machine._fields})
  return Ntm(
    machine=machine,
    outputs=outputs,
    first_weights=model.first_weights,
    first_memory=model.first_memory,
    forget_bias=model.forget_bias,
    dtype=jnp.dtype(config.dtype),
    time_unroll=config.execution.time_unroll,
  )


def counts(config: Any, *, inputs: int, outputs: int, longest: int) -> Counts:
  """Size and training cost of the net of `config` on sequences of `longest` steps, by formula.

  n: the matrices. A step multiplies with each of them once, and compares, reads and writes N M numbers a head.
  """
  net = from_config(config, outputs=outputs)
  machine, lstm = net.machine, net.machine.controller == "lstm"
  reads, gates = machine.read_heads * machine.columns, (4 if lstm else 1) * machine.width
  seen = [inputs + reads + machine.width * ((k > 0) + lstm) for k in range(machine.layers)]
  numbers, heads = sum(machine.head_sizes), machine.read_heads + machine.write_heads
  matrices = gates * sum(seen) + machine.shown * numbers + outputs * (machine.shown + reads)
  biases = gates * machine.layers + numbers + outputs
  first = reads + 2 * machine.shown * lstm + heads * machine.rows * (net.first_weights == "learned")
  first += machine.rows * machine.columns * (net.first_memory == "learned")
  return Counts(
    n=matrices,
    n_total=matrices + biases + first,
    flops_per_unit=3.0 * 2 * longest * (matrices + 2 * heads * machine.rows * machine.columns),
    units_per_step=config.batch_size,
    unit="examples",
  )


def _check(net: Ntm) -> None:
  machine = net.machine
  check_positive(machine, "layers", "width", "read_heads", "write_heads", "rows", "columns")
  choices: dict[str, tuple[str, tuple[str, ...]]] = {
    "controller": (machine.controller, CONTROLLERS),
    "order": (machine.order, ORDERS),
    "squash": (machine.squash, ("tanh", "identity")),
    "activation": (machine.activation, tuple(_ACTIVATIONS)),
    "first_weights": (net.first_weights, ("one_hot", "learned")),
    "first_memory": (net.first_memory, ("constant", "learned")),
  }
  for field, (got, known) in choices.items():
    if got not in known:
      raise UserError(
        f"model.{field} = {got!r}{did_you_mean(got, known)}", f"one of {', '.join(known)}", f"--config.model.{field}"
      )
  if machine.shifts and (machine.shifts % 2 == 0 or not 3 <= machine.shifts <= machine.rows):
    got = f"model.shifts = {machine.shifts} with {machine.rows} rows"
    raise UserError(got, "an odd number from 3 to the rows, or 0 for a window", "--config.model.shifts")
  if machine.clip < 0:
    raise UserError(f"model.clip = {machine.clip}", "a positive number, or 0 for none", "--config.model.clip")
