"""Neural Turing Machines: steps in NumPy, a copy machine set by hand, gradients, the dead point, numbers of weights, torch's LSTM."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ilya_jax.config import load_config
from ilya_jax.errors import UserError
from ilya_jax.models import ntm, stacked_lstm
from ilya_jax.models.addressing import Heads
from ilya_jax.models.ntm import Machine, Ntm, State, heads_of, use_memory
from ilya_jax.models.stacked_lstm import StackedLstm

CONFIG = f"{Path(__file__).parents[2]}/configs/ntm.py"
LSTM = Machine("lstm", 1, 5, 1, 1, 6, 4)
MACHINES = {
  "lstm": LSTM,
  "two layers, two heads of each kind": LSTM._replace(layers=2, read_heads=2, write_heads=2),
  "feedforward, write first": LSTM._replace(controller="feedforward", order="write_first"),
  "lstm, write first": LSTM._replace(order="write_first", write_heads=2, squash="identity", shifts=5),
  "two feedforward layers, window": LSTM._replace(
    controller="feedforward", layers=2, activation="relu", shifts=0, clip=0.5
  ),
}


def quick(function, **options):
  """Compiled in less time, to run more slowly."""
  return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0}, **options)


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def softmax(x):
  raised = np.exp(x - x.max(-1, keepdims=True))
  return raised / raised.sum(-1, keepdims=True)


def softplus(x):
  return np.log1p(np.exp(x))


def made(machine, *, inputs=3, outputs=2, seed=0, batch=2, steps=5, **fields):
  """A net in float64 with its parameters (random, not as drawn), and inputs [B, T, I]."""
  net = Ntm(machine, outputs, dtype=jnp.float64, **fields)
  with jax.enable_x64(False):
    start = net.clone(dtype=jnp.float32).init
    shapes = jax.eval_shape(start, jax.random.key(0), jnp.zeros((batch, steps, inputs), jnp.float32))["params"]
  rng = np.random.default_rng(seed)
  params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.7), shapes)
  return net, params, jnp.asarray(rng.integers(0, 2, (batch, steps, inputs)).astype(np.float64))


def numpy_head(machine, numbers, h):
  """Key, strength, gate, shifts, sharpening of head h out of all numbers [P] (eqs. 5 to 9)."""
  if machine.clip:
    numbers = np.clip(numbers, -machine.clip, machine.clip)
  heads, m, s = machine.read_heads + machine.write_heads, machine.columns, machine.shifts or 1
  squash = np.tanh if machine.squash == "tanh" else lambda x: x
  at = heads * m
  key = squash(numbers[h * m : (h + 1) * m])
  strength, gate = softplus(numbers[at + h]), sigmoid(numbers[at + heads + h])
  at += 2 * heads
  shifts = numbers[at + h * s : at + (h + 1) * s]
  return key, strength, gate, softmax(shifts) if machine.shifts else shifts, 1 + softplus(numbers[at + heads * s + h])


def numpy_written(machine, numbers, w):
  """Erase and add vectors of write head w."""
  if machine.clip:
    numbers = np.clip(numbers, -machine.clip, machine.clip)
  squash = np.tanh if machine.squash == "tanh" else lambda x: x
  tail, m = numbers[-2 * machine.write_heads * machine.columns :], machine.columns
  half = machine.write_heads * m
  return sigmoid(tail[w * m : (w + 1) * m]), squash(tail[half + w * m : half + (w + 1) * m])


def numpy_address(head, previous, memory):
  key, strength, gate, shifts, sharpening = head
  content = softmax(strength * memory @ key / np.sqrt(key @ key + 1e-8) / np.sqrt((memory**2).sum(1) + 1e-8))
  gated = gate * content + (1 - gate) * previous
  if len(shifts) == 1:
    whole, part = int(np.floor(shifts[0])), shifts[0] - np.floor(shifts[0])
    moved = (1 - part) * np.roll(gated, whole) + part * np.roll(gated, whole + 1)
  else:
    moved = sum(share * np.roll(gated, k - len(shifts) // 2) for k, share in enumerate(shifts))
  powered = (moved + 1e-12) ** sharpening
  return powered / powered.sum()


def numpy_net(net, params, inputs):
  """Logits and weights of one sequence, [T, K] and [T, H, N]."""
  machine, first = net.machine, params
  lstm, split = machine.controller == "lstm", machine.read_heads
  heads = split + machine.write_heads
  hidden = [first["first_hidden"][k].copy() for k in range(machine.layers)] if lstm else []
  reads, memory = np.tanh(first["first_reads"]), np.full((machine.rows, machine.columns), 1e-6)
  weights = np.tile(np.eye(machine.rows)[0], (heads, 1))
  if net.first_memory == "learned":
    memory = first["first_memory_rows"].copy()
  if net.first_weights == "learned":
    weights = softmax(first["first_weights_logits"])
  logits, shown = [], []
  for x in inputs:
    layers = []
    for k in range(machine.layers):
      seen = [reads.ravel(), *layers[-1:], *([hidden[k][1]] if lstm else [])]
      net_input = np.tensordot(x, params[f"input_{k}"]["kernel"], 1) + params[f"input_{k}"]["bias"]
      net_input = net_input + np.tensordot(np.concatenate(seen), params[f"recurrent_{k}"], 1)
      if lstm:
        i, f, g, o = net_input
        cell = sigmoid(f) * hidden[k][0] + sigmoid(i) * np.tanh(g)
        hidden[k] = np.stack([cell, sigmoid(o) * np.tanh(cell)])
        layers.append(hidden[k][1])
      else:
        layers.append(np.tanh(net_input) if machine.activation == "tanh" else np.maximum(net_input, 0))
    numbers = np.concatenate(layers) @ params["head_kernel"] + params["head_bias"]
    asked, before = [numpy_head(machine, numbers, h) for h in range(heads)], memory
    written = [numpy_address(asked[h], weights[h], before) for h in range(split, heads)]
    kept, added = np.ones_like(memory), np.zeros_like(memory)
    for w, own in enumerate(written):
      erase, add = numpy_written(machine, numbers, w)
      kept, added = kept * (1 - np.outer(own, erase)), added + np.outer(own, add)
    memory = before * kept + added
    looked_at = before if machine.order == "read_first" else memory
    read_weights = [numpy_address(asked[h], weights[h], looked_at) for h in range(split)]
    weights = np.array(read_weights + written)
    reads = weights[:split] @ looked_at
    seen = np.concatenate([*layers, reads.ravel()])
    logit = seen @ params["output"]["kernel"] + params["output"]["bias"]
    logits.append(np.clip(logit, -machine.clip, machine.clip) if machine.clip else logit)
    shown.append(weights)
  return np.array(logits), np.array(shown)


@pytest.mark.parametrize("name", MACHINES)
def test_a_whole_sequence_equals_numpy_and_both_ways_of_running_agree(name):
  fields = {"first_weights": "learned", "first_memory": "learned"} if "two" in name else {}
  with jax.enable_x64(True):
    net, params, x = made(MACHINES[name], **fields)
    methods = ("trace", "__call__")
    both = quick(lambda p, x: [net.apply({"params": p}, x, method=method) for method in methods])
    (logits, shown), again = both(params, x)
    as_numpy = jax.tree.map(np.asarray, params)
    for b in range(2):
      expected, weights = numpy_net(net, as_numpy, np.asarray(x)[b])
      np.testing.assert_allclose(logits[b], expected, rtol=1e-9, atol=1e-12)
      np.testing.assert_allclose(shown.weights[:, b], weights, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(logits, again, rtol=1e-12)
    np.testing.assert_allclose(shown.weights.sum(-1), 1, rtol=1e-12)
    assert (np.asarray(shown.weights) >= 0).all()


@pytest.mark.parametrize("name", list(MACHINES)[1:3])
def test_gradients_equal_those_of_the_plain_loop_and_finite_differences(name):
  with jax.enable_x64(True):
    net, params, x = made(MACHINES[name], first_weights="learned", first_memory="learned", steps=3)

    def loss(arguments, method):
      logits = net.apply({"params": arguments[0]}, arguments[1], method=method)
      return jnp.sum(jnp.sin(logits if method == "__call__" else logits[0]))

    by_hand, plain = (quick(jax.value_and_grad(lambda a, m=method: loss(a, m))) for method in ("__call__", "trace"))
    _, gradient = by_hand((params, x))
    for own, other in zip(*map(jax.tree.leaves, (gradient, plain((params, x))[1])), strict=True):
      np.testing.assert_allclose(own, other, rtol=1e-9, atol=1e-11)
    rng, step = np.random.default_rng(2), 1e-6
    direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), gradient)
    ahead, behind = (
      by_hand(jax.tree.map(lambda a, d, s=s: a + s * d, (params, x), direction))[0] for s in (step, -step)
    )
    slope = sum(np.sum(a * d) for a, d in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True))
    np.testing.assert_allclose((ahead - behind) / (2 * step), slope, rtol=1e-6)


def forced(*, key, gate, move, add, rows, columns):
  """Heads of a machine with one read and one write head: (read, write) each."""
  keys = jnp.stack([jnp.asarray(part, jnp.float32) for part in key])[None]
  shifts = jnp.eye(3, dtype=jnp.float32)[jnp.array(move) + 1][None]
  heads = Heads(
    keys,
    jnp.full((1, 2), 60.0, jnp.float32),
    jnp.array([gate], jnp.float32),
    shifts,
    jnp.full((1, 2), 2.0, jnp.float32),
  )
  erase = jnp.full((1, 1, columns), 0.0 if add is None else 1.0, jnp.float32)
  added = jnp.zeros((1, 1, columns), jnp.float32) if add is None else jnp.asarray(add, jnp.float32)[None, None]
  return {"heads": heads, "erases": erase, "adds": added}


def copied(machine, vectors):
  """What a copy machine set by hand reads, and its memory: it writes a mark and the vectors row after row, finds the mark by its
  content, and reads on from there."""
  rows, columns = machine.rows, machine.columns
  mark = np.zeros(columns)
  mark[-1] = 1
  nothing = np.zeros(columns)
  weights = jnp.zeros((1, 2, rows), jnp.float32).at[:, :, 0].set(1)
  state = State((), jnp.zeros((1, 1, columns), jnp.float32), weights, jnp.full((1, rows, columns), 1e-6, jnp.float32))
  steps = [{"key": (nothing, nothing), "gate": (0, 0), "move": (0, 1), "add": x} for x in [mark, *vectors]]
  steps += [{"key": (mark, nothing), "gate": (1, 0), "move": (0, 0), "add": None}]
  steps += [{"key": (nothing, nothing), "gate": (0, 0), "move": (1, 0), "add": None} for _ in vectors]
  step = jax.jit(lambda state, now: use_memory(machine, state, **now))
  found = []
  for now in steps:
    reads, weights, memory = step(state, forced(rows=rows, columns=columns, **now))
    state = State((), reads, weights, memory)
    found.append(np.asarray(reads)[0, 0])
  return np.array(found[-len(vectors) :]), np.asarray(state.memory)[0]


@pytest.mark.parametrize("order", ["read_first", "write_first"])
def test_a_copy_machine_set_by_hand(order):
  machine = LSTM._replace(rows=8, columns=6, order=order)
  vectors = np.random.default_rng(0).integers(0, 2, (5, 6)).astype(np.float32)
  vectors[:, 4:] = [[1, 0]] * 5  # nothing like the mark
  reads, memory = copied(machine, vectors)
  np.testing.assert_allclose(reads, vectors, atol=1e-5)
  np.testing.assert_allclose(memory[2:7], vectors, atol=1e-5)
  np.testing.assert_allclose(memory[1], [0, 0, 0, 0, 0, 1], atol=1e-6)


def test_more_vectors_than_rows_overwrite_the_first():
  machine = LSTM._replace(rows=5, columns=6)
  vectors = np.random.default_rng(1).integers(0, 2, (5, 6)).astype(np.float32)
  vectors[:, 4:] = [[1, 0]] * 5
  reads, memory = copied(machine, vectors)
  np.testing.assert_allclose(memory[1], vectors[4], atol=1e-5)  # where the mark had stood
  assert np.abs(reads - vectors).max() > 0.5


def test_orders_differ():
  with jax.enable_x64(True):
    net, params, x = made(LSTM)
    other = net.clone(machine=LSTM._replace(order="write_first"))
    first, second = quick(lambda p, x: [each.apply({"params": p}, x) for each in (net, other)])(params, x)
    assert np.abs(first - second).max() > 1e-3


def test_constant_memory_under_uniform_weights_is_a_dead_point():
  """No row is ever told from another, and all gradients that could change this are zero."""
  with jax.enable_x64(True):
    net, params, x = made(LSTM, first_weights="learned")
    params = {**params, "first_weights_logits": jnp.zeros_like(params["first_weights_logits"])}

    tied = net.clone(first_weights="one_hot")

    def loss(params):
      logits, shown = net.apply({"params": params}, x, method="trace")
      return jnp.sum(jnp.sin(logits)), (shown.weights, tied.apply({"params": params}, x, method="trace")[1].weights)

    gradient, (weights, untied) = quick(jax.grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(weights, 1 / 6, rtol=1e-9)
    np.testing.assert_allclose(gradient["first_weights_logits"], 0, atol=1e-9)
    assert np.ptp(untied[-1], axis=-1).min() > 0.01


def size(net, inputs):
  shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 2, inputs), jnp.float32))
  return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize(("controller", "weights", "learned"), [("feedforward", 13_260, 20), ("lstm", 62_260, 220)])
@pytest.mark.parametrize("rows", [64, 128])
def test_weights_of_the_machine_on_copy(controller, weights, learned, rows):
  """Nine inputs, eight outputs, a hundred units, M = 20; the first read (and hidden states) apart; rows cost none but at first."""
  machine = Machine(controller, 1, 100, 1, 1, rows, 20)
  assert machine.head_sizes == (40, 2, 2, 6, 2, 20, 20)
  assert size(Ntm(machine, 8), 9) == weights + learned
  assert size(Ntm(machine, 8, first_weights="learned"), 9) == weights + learned + 2 * rows
  assert size(Ntm(machine, 8, first_memory="learned"), 9) == weights + learned + 20 * rows


@pytest.mark.parametrize(("width", "inputs", "outputs", "printed"), [
  (256, 10, 9, 1_352_969), (512, 8, 7, 5_312_007), (256, 8, 6, 1_344_518), (128, 1, 1, 331_905),
  (128, 10, 8, 348_424),  # printed as 384,424
])  # fmt: skip
def test_weights_of_the_stacked_lstm_are_the_printed_ones(width, inputs, outputs, printed):
  assert size(StackedLstm(3, width, outputs), inputs) == printed


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("first", ["one_hot constant", "learned learned"])
def test_counts_by_formula(name, first):
  weights, memory = first.split()
  changes = {f"model.{field}": value for field, value in MACHINES[name]._asdict().items()}
  changes |= {"model.first_weights": weights, "model.first_memory": memory}
  config = load_config(f"{CONFIG}:tiny", changes)
  net = ntm.from_config(config, outputs=2)
  counted = ntm.counts(config, inputs=3, outputs=2, longest=7)
  assert counted.n_total == size(net, 3)
  shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 2, 3), jnp.float32))["params"]
  matrices = sum(
    leaf.size
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    if path[-1].key == "kernel" or path[0].key.startswith(("recurrent", "head_kernel"))
  )
  heads = net.machine.read_heads + net.machine.write_heads
  assert counted.n == matrices
  assert counted.flops_per_unit == 6 * 7 * (matrices + 2 * heads * 6 * 4)


def test_stacked_lstm_is_torchs_with_inputs_to_every_layer():
  torch = pytest.importorskip("torch")
  net = StackedLstm(2, 4, 3)
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 6, 5)).astype(np.float32)
  shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.asarray(x))["params"]
  params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) * 0.5, shapes)
  below, shown = [], []
  for k in range(2):
    own, recurrent, first = params[f"input_{k}"], params[f"recurrent_{k}"], params["first_states"][k]
    seen = torch.tensor(np.concatenate([x, *below], axis=-1))
    layer = torch.nn.LSTM(seen.shape[-1], 4, batch_first=True)
    with torch.no_grad():
      for name, value in (("weight_ih_l0", own["kernel"].reshape(-1, 16).T), ("bias_ih_l0", own["bias"].reshape(16)),
                          ("weight_hh_l0", recurrent.reshape(4, 16).T), ("bias_hh_l0", np.zeros(16))):  # fmt: skip
        getattr(layer, name).copy_(torch.tensor(value))
      cell, hidden = (torch.tensor(np.tile(part, (1, 2, 1))) for part in first)
      below = [layer(seen, (hidden, cell))[0].numpy()]
    shown += below
  expected = np.concatenate(shown, axis=-1) @ params["output"]["kernel"] + params["output"]["bias"]
  np.testing.assert_allclose(quick(net.apply)({"params": params}, x), expected, rtol=1e-4, atol=1e-5)


def test_half_precision_products_leave_the_memory_in_float32():
  net = Ntm(LSTM, 2, dtype=jnp.bfloat16)
  x = jnp.ones((2, 3, 3), jnp.float32)
  plain = net.clone(dtype=jnp.float32)
  params = quick(plain.init)(jax.random.key(0), x)
  (logits, shown), full = quick(lambda p: (net.apply(p, x, method="trace"), plain.apply(p, x)))(params)
  assert logits.dtype == shown.weights.dtype == shown.reads.dtype == jnp.float32
  np.testing.assert_allclose(logits, full, atol=0.05)


def test_numbers_beyond_the_clip_are_cut():
  numbers = jnp.full((1, sum(LSTM.head_sizes)), 1e6, jnp.float32)
  heads, erases, adds = jax.jit(lambda x: heads_of(LSTM, x))(numbers)
  np.testing.assert_allclose(heads.strengths, 20.0, rtol=1e-6)
  np.testing.assert_allclose(heads.sharpenings, 21.0, rtol=1e-6)
  assert heads.keys.shape == (1, 2, 4)
  assert erases.shape == adds.shape == (1, 1, 4)
  for leaf in heads:
    assert np.isfinite(leaf).all()


@pytest.mark.parametrize("changes", [
  {"rows": 0}, {"columns": 0}, {"width": 0}, {"layers": 0}, {"read_heads": 0}, {"write_heads": 0}, {"controller": "lstn"},
  {"order": "both"}, {"squash": "relu"}, {"activation": "gelu"}, {"shifts": 4}, {"shifts": 1}, {"shifts": 7}, {"clip": -1.0},
])  # fmt: skip
def test_bad_machines_are_refused(changes):
  with pytest.raises(UserError):
    Ntm(LSTM._replace(**changes), 2)


@pytest.mark.parametrize("fields", [{"first_weights": "uniform"}, {"first_memory": "zero"}])
def test_bad_beginnings_are_refused(fields):
  with pytest.raises(UserError):
    Ntm(LSTM, 2, **fields)


def test_bad_stacks_are_refused():
  with pytest.raises(UserError):
    stacked_lstm.StackedLstm(0, 4, 2)
