"""Message passing networks against loops in NumPy and torch; invariances, padding, limits in which they coincide, counts."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ilya_jax.config import load_config
from ilya_jax.errors import UserError
from ilya_jax.models import mpnn
from ilya_jax.models.mpnn import GatedSum, MatrixMessages, SetToSet, from_config, pair_features, set_to_set

CONFIG = f"{Path(__file__).parents[2]}/configs/mpnn.py"
SIZES = {"features": 3, "labels": 4}
KINDS = {
  "ggnn": {"message": "ggnn", "edges": "bonds", "readout": "ggnn"},
  "ggnn_devices": {"message": "ggnn", "edges": "bonds", "virtual_edges": True, "master_width": 5, "towers": 2},
  "bins": {"message": "ggnn", "edges": "bins", "readout": "ggnn"},
  "edge_towers": {"message": "edge", "edges": "raw", "widths": (5, 4), "towers": 2},
  "pair": {"message": "pair", "edges": "raw", "widths": (5,), "readout": "ggnn"},
}


def made(outputs=2, dtype=None, **model):
  """A small network of configs/mpnn.py, and its config."""
  small = {"width": 8, "rounds": 2, "process_steps": 3, "readout_width": 6, "widths": (4,), **model}
  config = load_config(f"{CONFIG}:tiny", {f"model.{name}": value for name, value in small.items()})
  net = from_config(config, **SIZES, outputs=outputs)
  return net.clone(dtype=dtype or net.dtype), config


def molecules(rows=3, atoms=5, seed=0, dtype=np.float32):
  """Random molecules of 3 to `atoms` atoms, their bonds not symmetric, in the order of the network's arguments."""
  rng = np.random.default_rng(seed)
  sizes = np.array([atoms, 3, 4])[:rows]
  mask = np.arange(atoms) < sizes[:, None]
  bonds = rng.integers(0, 5, (rows, atoms, atoms)) * (rng.random((rows, atoms, atoms)) < 0.6)
  x = rng.normal(size=(rows, atoms, 3)) * mask[..., None]
  return x.astype(dtype), bonds.astype(np.int32), (2 * rng.normal(size=(rows, atoms, 3))).astype(dtype), mask


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def mlp(weights, x, c, p):
  """Hidden layers of one direction and tower."""
  k = 0
  while f"hidden_{k}" in weights:
    layer = weights[f"hidden_{k}"]
    x = np.maximum(x @ layer["kernel"][c, p] + layer["bias"][c, p], 0)
    k += 1
  return x


def message(net, weights, pair, h_v, h_w, c, p):
  """M(h_v, h_w, e), one pair, direction and tower; pair: (label, distance)."""
  label, distance = pair
  labels = net.labels + (len(mpnn.BIN_EDGES) + 1 if net.edges == "bins" else 0)
  if net.edges == "bins" and label == 0:
    label = 5 + int(np.floor(np.clip((distance - 2) / 0.5, -1, 8))) + 1
  if label == 0 and net.edges == "bonds" and not net.virtual_edges:
    return np.zeros_like(h_w)
  if net.message == "ggnn":
    return weights["kernel"][c, p, label if net.virtual_edges else label - 1].T @ h_w
  e = np.concatenate([[distance], np.eye(labels + 1)[label][1:]])
  if net.message == "pair":
    return mlp_out(weights, np.concatenate([h_v, h_w, e]), c, p)
  hidden = mlp(weights, e, c, p)
  matrix = np.einsum("k,kde->ed", hidden, weights["kernel"][c, p]) + weights["bias"][c, p, 0].T
  return matrix @ h_w / len(h_w)


def mlp_out(weights, x, c, p):
  return np.append(mlp(weights, x, c, p), 1.0) @ weights["output"]["kernel"][c, p]


def gru(weights, h, m, p=0):
  """The code's GRU with the tower's weights."""
  d = len(h)
  w, u, last = (weights[name]["kernel"][p] for name in ("from_messages", "gates", "candidate"))
  z, r = sigmoid(m @ w[:, :d] + h @ u[:, :d]), sigmoid(m @ w[:, d : 2 * d] + h @ u[:, d:])
  return (1 - z) * h + z * np.tanh(m @ w[:, 2 * d :] + (r * h) @ last)


def transcribed_states(net, weights, x, bonds, positions):
  """Equations 1 and 2 pair by pair, for one molecule without padding: h^T [N, width]."""
  n, p, d = len(x), net.towers, net.width // net.towers
  h = np.pad(x, ((0, 0), (0, net.width - x.shape[1])))
  master = np.zeros(net.master_width)
  for _ in range(net.rounds):
    new = np.zeros_like(h)
    for v in range(n):
      for t in range(p):
        own = slice(t * d, (t + 1) * d)
        total = weights["message_bias"][t].copy()  # [C, D]
        if net.master_width:
          total += master @ weights["from_master"]["kernel"].reshape(net.master_width, -1)[
            :, t * 2 * d : (t + 1) * 2 * d
          ].reshape(-1, 2, d).swapaxes(0, 1)
        for w in range(n):
          if w != v:
            distance = np.linalg.norm(positions[v] - positions[w])
            total[0] += message(net, weights["messages"], (bonds[v, w], distance), h[v, own], h[w, own], 0, t)
            total[1] += message(net, weights["messages"], (bonds[w, v], distance), h[v, own], h[w, own], 1, t)
        new[v, own] = gru(weights["update"], h[v, own], total.ravel(), t)
    if net.master_width:
      master = gru(weights["master_update"], master, h.sum(0) @ weights["to_master"]["kernel"][:, 0])
    h = new @ weights["mix"]["kernel"] if p > 1 else new
  return h


def dense(weights, name, x):
  return x @ weights[name]["kernel"] + weights[name]["bias"]


def transcribed_readout(net, weights, h, x):
  """The readout of one molecule."""
  both = np.concatenate([h, x], axis=1)
  if net.readout == "ggnn":
    gate = dense(weights, "gate", np.maximum(dense(weights, "gate_hidden", both), 0))
    return (sigmoid(gate) * dense(weights, "value", np.maximum(dense(weights, "value_hidden", h), 0))).sum(0)
  memories = dense(weights, "memories", both)
  d = memories.shape[1]
  cell, star = np.zeros(d), np.zeros(2 * d)
  for _ in range(net.process_steps):
    i, f, g, o = np.einsum("k,kgd->gd", star, weights["process"]["kernel"]) + weights["process"]["bias"]
    cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
    q = sigmoid(o) * np.tanh(cell)
    shares = np.exp(memories @ q)
    star = np.concatenate([q, shares / shares.sum() @ memories])
  return dense(weights, "output", np.maximum(dense(weights, "output_hidden", star), 0))


@pytest.mark.parametrize("kind", KINDS)
def test_networks_equal_their_equations_written_as_loops(kind):
  net, _ = made(dtype=jnp.float64, **KINDS[kind])
  batch = molecules(dtype=np.float64)
  x, bonds, positions, mask = batch
  with jax.enable_x64(True):
    shapes = jax.eval_shape(net.init, jax.random.key(0), *batch)["params"]
    rng = np.random.default_rng(1)
    weights = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape) * 0.5, shapes)
    found = np.asarray(jax.jit(net.apply)({"params": weights}, *batch))
  for row in range(len(x)):
    n = mask[row].sum()
    h = transcribed_states(net, weights, x[row, :n], bonds[row, :n, :n], positions[row, :n])
    np.testing.assert_allclose(found[row], transcribed_readout(net, weights["read"], h, x[row, :n]), rtol=1e-10)


@pytest.mark.parametrize("readout", ["ggnn", "set2set"])
def test_order_place_and_padding_change_nothing(readout):
  """Values and gradients of the weights, in float32."""
  net, _ = made(message="edge", edges="raw", readout=readout, towers=2)
  x, bonds, positions, mask = molecules()
  params = jax.jit(net.init)(jax.random.key(0), x, bonds, positions, mask)

  @jax.jit
  def value_and_gradient(params, *batch):
    def total(params):
      answers = net.apply(params, *batch)
      return jnp.sum(jnp.sin(answers)), answers

    (_, answers), gradient = jax.value_and_grad(total, has_aux=True)(params)
    return answers, gradient

  expected = value_and_gradient(params, x, bonds, positions, mask)
  rng = np.random.default_rng(2)
  order = rng.permutation(x.shape[1])
  turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
  more = [(0, 0), (0, 2)]
  noise = np.full_like(x, 7.0) * ~mask[..., None]
  changed = {
    "order": (x[:, order], bonds[:, order][:, :, order], positions[:, order], mask[:, order]),
    "place": (x, bonds, (positions @ turn + 3.0).astype(np.float32), mask),
    "padding": (
      np.pad(x, [*more, (0, 0)]), np.pad(bonds, [*more, (0, 2)]), np.pad(positions, [*more, (0, 0)]), np.pad(mask, more),
    ),
    "what lies beyond": (x + noise, np.where(mask[:, :, None] & mask[:, None], bonds, 3), positions + noise, mask),
  }  # fmt: skip
  for name, batch in changed.items():
    found = value_and_gradient(params, *batch)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
      np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4, err_msg=name)


def test_one_step_by_hand_on_a_path_of_three_and_a_lonely_atom():
  """With A = I and one-hot states a message is the sum of the neighbours' states; an atom without bonds gets nothing."""
  messages = MatrixMessages(towers=1, width=4)
  bonds = np.zeros((1, 4, 4), np.int32)
  bonds[0, [0, 1, 1, 2], [1, 0, 2, 1]] = 1
  features, joined = pair_features(jnp.asarray(bonds), jnp.zeros((1, 4, 4)), edges="bonds", labels=1)
  h = np.eye(4, dtype=np.float32)[None, :, None]  # [B, N, P, D]
  kernel = np.broadcast_to(np.eye(4, dtype=np.float32), (2, 1, 1, 4, 4))
  channels = channels_of(messages, {}, features, joined)
  found = messages.apply({"params": {"kernel": kernel}}, channels, h)  # [B, N, P, C, D]
  expected = [[0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
  for c in range(2):
    np.testing.assert_array_equal(found[0, :, 0, c], expected)


def channels_of(module, params, features, joined):
  return module.apply({"params": params}, features, joined, method="channels")


def test_ggnn_is_an_edge_network_that_looks_labels_up_and_sparse_where_the_virtual_matrix_is_zero():
  rng = np.random.default_rng(0)
  _, bonds, _, _ = molecules(rows=2)
  h = rng.normal(size=(2, 5, 1, 3)).astype(np.float32)
  kernel = rng.normal(size=(2, 1, 4, 3, 3)).astype(np.float32)
  apart = jnp.zeros(bonds.shape)
  features, joined = pair_features(jnp.asarray(bonds), apart, edges="bonds", labels=4)
  ggnn = MatrixMessages(towers=1, width=3)
  expected = ggnn.apply({"params": {"kernel": kernel}}, channels_of(ggnn, {}, features, joined), h)

  looked_up = {
    "kernel": np.broadcast_to(np.eye(4, dtype=np.float32), (2, 1, 4, 4)),
    "bias": np.zeros((2, 1, 4), np.float32),
  }
  params = {"hidden_0": looked_up, "kernel": 3 * kernel, "bias": np.zeros((2, 1, 1, 3, 3), np.float32)}
  edge = MatrixMessages(towers=1, width=3, widths=(4,))
  found = edge.apply({"params": params}, channels_of(edge, params, features, joined), h)
  np.testing.assert_allclose(found, expected, atol=1e-6)

  features, joined = pair_features(jnp.asarray(bonds), apart, edges="bonds", labels=4, virtual=True)
  wider = np.concatenate([np.zeros_like(kernel[:, :, :1]), kernel], axis=2)
  found = ggnn.apply({"params": {"kernel": wider}}, channels_of(ggnn, {}, features, joined), h)
  np.testing.assert_allclose(found, expected, atol=1e-6)


def test_bins_of_distance_include_their_left_end():
  distances = jnp.asarray([[[0.0, 1.99, 2.0, 2.49, 2.5, 5.99, 6.0, 40.0]]])
  bonds = jnp.zeros(distances.shape, jnp.int32).at[0, 0, 1].set(3)
  features, joined = pair_features(bonds, distances, edges="bins", labels=4)
  assert features.shape[-1] == 14 == mpnn.pair_width(edges="bins", labels=4, virtual=False)
  assert bool(joined.all())
  assert jnp.argmax(features, axis=-1).tolist() == [[[4, 2, 5, 5, 6, 12, 13, 13]]]
  np.testing.assert_array_equal(features.sum(-1), 1)


def test_the_sum_adds_over_molecules_and_set_to_set_does_not():
  rng = np.random.default_rng(0)
  h, x = rng.normal(size=(1, 7, 4)).astype(np.float32), rng.normal(size=(1, 7, 2)).astype(np.float32)
  parts = [np.arange(7)[None] < 7, np.arange(7)[None] < 3, np.arange(7)[None] >= 3]
  gaps = {}
  for name, module in (("sum", GatedSum(5, 1)), ("set", SetToSet(3, 4, 5, 1))):
    params = jax.jit(module.init)(jax.random.key(0), h, x, parts[0])
    apply = jax.jit(module.apply)
    whole, first, second = (np.asarray(apply(params, h, x, mask)) for mask in parts)
    gaps[name] = np.abs(whole - first - second).max()
  assert gaps["sum"] < 1e-5
  assert gaps["set"] > 1e-2


def test_set_to_set_is_that_of_torch_geometric():
  """There q* is the input of torch's LSTM, whose hidden state is the first half of q*: its two matrices add up in ours."""
  torch = pytest.importorskip("torch")
  n, d, steps = 6, 4, 5
  lstm = torch.nn.LSTM(2 * d, d)
  memories = np.random.default_rng(0).normal(size=(2, n, d)).astype(np.float32)
  x = torch.tensor(memories)
  star, state = torch.zeros(2, 2 * d), (torch.zeros(1, 2, d), torch.zeros(1, 2, d))
  with torch.no_grad():
    for _ in range(steps):
      q, state = lstm(star[None], state)
      attention = torch.softmax(torch.einsum("bnd,bd->bn", x, q[0]), dim=1)
      star = torch.cat([q[0], torch.einsum("bn,bnd->bd", attention, x)], dim=1)
  weight, recurrent, *biases = (value.detach().numpy() for value in lstm.parameters())
  merged = weight.copy()  # [4 D, 2 D]
  merged[:, :d] += recurrent
  bias = sum(biases)

  def gates(q_star):
    return (q_star @ merged.T + bias[None]).reshape(-1, 4, d)

  found = jax.jit(lambda m: set_to_set(gates, m, jnp.ones((2, n), bool), steps=steps))(memories)
  np.testing.assert_allclose(found, star.numpy(), atol=1e-5)


def test_messages_are_those_of_torch_geometric():
  """One direction of the edge network against NNConv, whose network gives a matrix for every edge."""
  torch = pytest.importorskip("torch")
  NNConv = pytest.importorskip("torch_geometric.nn").NNConv
  n, d, hidden = 7, 6, 8
  network = torch.nn.Sequential(torch.nn.Linear(5, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, d * d))
  rng = np.random.default_rng(0)
  bonds, apart = rng.integers(0, 5, (1, n, n)).astype(np.int32), rng.random((1, n, n)).astype(np.float32)
  h = rng.normal(size=(1, n, 1, d)).astype(np.float32)
  features, joined = pair_features(jnp.asarray(bonds), jnp.asarray(apart), edges="raw", labels=4)
  v, w = np.where(~np.eye(n, dtype=bool))
  convolution = NNConv(d, d, network, aggr="add", root_weight=False, bias=False)
  edges = torch.tensor(np.stack([w, v])), torch.tensor(np.asarray(features)[0, v, w])
  expected = convolution(torch.tensor(h[0, :, 0]), *edges).detach().numpy()

  weights = [value.detach().numpy() for value in network.parameters()]
  twice = [np.stack([leaf, leaf])[:, None] for leaf in (
    weights[0].T, weights[1], d * weights[2].reshape(d, d, hidden).transpose(2, 0, 1), d * weights[3].reshape(1, d, d))
  ]  # fmt: skip
  params = {"hidden_0": {"kernel": twice[0], "bias": twice[1]}, "kernel": twice[2], "bias": twice[3]}
  module = MatrixMessages(towers=1, width=d, widths=(hidden,))
  channels = channels_of(module, params, features, joined & ~jnp.eye(n, dtype=bool)[None])
  found = module.apply({"params": params}, channels, h)
  np.testing.assert_allclose(found[0, :, 0, 0], expected, atol=1e-5)


def test_counts_of_the_authors_defaults():
  config = load_config(CONFIG)
  net = from_config(config, features=13, labels=4, outputs=1)
  batch = (np.zeros((1, 3, 13), np.float32), np.zeros((1, 3, 3), np.int32), np.zeros((1, 3, 3), np.float32),
           np.ones((1, 3), bool))  # fmt: skip
  params = jax.eval_shape(net.init, jax.random.key(0), *batch)["params"]

  def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))

  assert count(params["messages"]) == 2 * 135_450
  assert count(params["update"]) == 22_500
  assert count(params["message_bias"]) == 100
  counted = mpnn.counts(config, features=13, labels=4, outputs=1, atoms=29)
  assert counted.n_total == count(params)


@pytest.mark.parametrize("kind", KINDS)
def test_counts_by_formula_are_those_of_the_tree(kind):
  net, config = made(**KINDS[kind])
  shapes = jax.eval_shape(net.init, jax.random.key(0), *molecules())
  counted = mpnn.counts(config, **SIZES, outputs=2, atoms=5)
  assert counted.n_total == sum(leaf.size for leaf in jax.tree.leaves(shapes))
  matrices = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(shapes) if path[-1].key == "kernel"]
  bias_rows = 2 * net.width if kind == "pair" else 0  # the last bias of the pair network stands in its kernel
  assert counted.n == sum(leaf.size for leaf in matrices) - bias_rows


@pytest.mark.parametrize("wrong", [
  {"message": "edges"}, {"readout": "sum"}, {"edges": "raw", "message": "ggnn"}, {"towers": 3}, {"width": 2},
  {"widths": ()}, {"virtual_edges": True}, {"rounds": 0},
])  # fmt: skip
def test_what_does_not_fit_together_is_refused(wrong):
  with pytest.raises(UserError):
    made(**wrong)
