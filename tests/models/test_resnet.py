"""ResNet: exact counts, shapes, shortcuts, derivatives, the pipelined list."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from ml_collections import ConfigDict

from ilya_jax.errors import UserError
from ilya_jax.models import resnet
from ilya_jax.models.resnet import IMAGENET, ResNet, Unit, count, from_config, identity
from ilya_jax.parallel import pipeline
from ilya_jax.parallel.layers import in_turn
from ilya_jax.task import Source
from ilya_jax.tasks.classify import make_layers

# The card's table, derived from the paper: depth -> parameters of the CIFAR nets with option A (or none).
CIFAR = {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018, 110: 1_727_962, 1202: 19_421_274}
# (depth, option) -> parameters of the ImageNet nets; those of option B are the well-known totals of torchvision's.
TABLE_1 = {
  (18, "A"): 11_515_688, (18, "B"): 11_689_512, (18, "C"): 12_043_816, (18, "none"): 11_515_688,
  (34, "A"): 21_623_848, (34, "B"): 21_797_672, (34, "C"): 22_716_840, (34, "none"): 21_623_848,
  (50, "B"): 25_557_032, (101, "B"): 44_549_160, (152, "B"): 60_192_808,
}  # fmt: skip
MULTIPLY_ADDS = {18: 1.8e9, 34: 3.6e9, 50: 3.8e9, 101: 7.6e9, 152: 11.3e9}  # table 1


def cifar(depth, **fields):
  return ResNet(units=((depth - 2) // 6,) * 3, **{"width": 16, "classes": 10, **fields})


def imagenet(depth, **fields):
  units, bottleneck = IMAGENET[depth]
  return ResNet(units=units, width=64, classes=1000, bottleneck=bottleneck, imagenet=True, **fields)


def shapes_of(model, side, channels):
  return jax.eval_shape(
    lambda key: model.init(key, jnp.zeros((1, side, side, channels)), train=False), jax.random.key(0)
  )


def sizes(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("depth", CIFAR)
@pytest.mark.parametrize("shortcut", ["A", "none"])
def test_counts_of_the_cifar_family_are_the_tables_and_those_of_the_closed_form(depth, shortcut):
  n, counted = (depth - 2) // 6, count(cifar(depth, shortcut=shortcut), side=32, channels=3)
  assert counted.total == CIFAR[depth]
  assert counted[:3] == (96_768 * n - 22_608, 448 * n + 32, 650)
  assert count(cifar(depth, shortcut="B"), side=32, channels=3).total - counted.total == 2_752


@pytest.mark.parametrize(("depth", "shortcut"), TABLE_1)
def test_counts_of_the_imagenet_family_are_the_tables(depth, shortcut):
  counted = count(imagenet(depth, shortcut=shortcut), side=224, channels=3)
  assert counted.total == TABLE_1[depth, shortcut]
  if shortcut != "C":
    assert counted.multiply_adds == pytest.approx(MULTIPLY_ADDS[depth], rel=0.025)


@pytest.mark.parametrize("shortcut", ["A", "B", "C", "none"])
def test_counts_are_those_of_the_parameters(shortcut):
  model = cifar(20, shortcut=shortcut)
  assert sizes(shapes_of(model, 32, 3)["params"]) == count(model, side=32, channels=3).total
  model = imagenet(18, shortcut=shortcut)
  assert sizes(shapes_of(model, 64, 3)["params"]) == count(model, side=64, channels=3).total


@pytest.mark.parametrize("stride_at", ["1x1", "3x3"])
def test_counts_of_bottlenecks_are_those_of_the_parameters_wherever_the_stride_is(stride_at):
  model = imagenet(50, shortcut="B", stride_at=stride_at)
  assert sizes(shapes_of(model, 64, 3)["params"]) == count(model, side=64, channels=3).total == TABLE_1[50, "B"]


def test_multiply_adds_are_those_of_the_compiled_program():
  model = cifar(20)
  variables = shapes_of(model, 32, 3)
  apply = functools.partial(model.apply, train=False)
  cost = jax.jit(apply).lower(variables, jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)).cost_analysis()
  # XLA leaves out the taps that fall on the padding, 1/16 to 1/4 of a side's, and counts norms.
  assert 0.85 < cost["flops"] / (2 * count(model, side=32, channels=3).multiply_adds) < 1.05


def trunk_shapes(model, side, channels):
  """Shapes of what each layer of the list gives."""
  variables = shapes_of(model, side, channels)
  x, found = jax.ShapeDtypeStruct((2, side, side, channels), jnp.float32), []
  for layer in resnet.layers(model):
    state = {"batch_stats": variables["batch_stats"][layer.name]} if layer.name in variables["batch_stats"] else {}
    apply = functools.partial(layer.apply, train=True)
    x, _ = jax.eval_shape(apply, variables["params"][layer.name], state, x, jax.random.key(0))
    found.append(x.shape[1:])
  return found


def test_shapes_halve_where_the_paper_says():
  assert [side for side, _ in itertools.groupby(trunk_shapes(cifar(20), 32, 3)[:-1])] == [
    (32, 32, 16), (16, 16, 32), (8, 8, 64),
  ]  # fmt: skip
  assert [side for side, _ in itertools.groupby(trunk_shapes(imagenet(34), 224, 3))] == [
    (56, 56, 64), (28, 28, 128), (14, 14, 256), (7, 7, 512), (1000,),
  ]  # fmt: skip
  assert trunk_shapes(imagenet(50, shortcut="B"), 224, 3)[-2] == (7, 7, 2048)


def test_option_a_takes_every_second_pixel_and_adds_zeros():
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4, 16)), jnp.float32)
  got = identity(x, features=32, stride=2)
  assert got.shape == (2, 2, 2, 32)
  np.testing.assert_array_equal(got[..., :16], x[:, ::2, ::2])
  assert (np.asarray(got[..., 16:]) == 0).all()


def zeroed_branches(params):
  """The parameters with the last convolution of every unit zero."""
  last = {
    name: max(own, key=lambda key: (key.startswith("conv"), key)) for name, own in params.items() if "unit" in name
  }
  return {
    name: {**own, last[name]: {"kernel": jnp.zeros_like(own[last[name]]["kernel"])}} if name in last else own
    for name, own in params.items()
  }


@pytest.mark.parametrize("bottleneck", [False, True])
def test_a_unit_without_its_branch_is_the_identity_on_what_is_not_negative(bottleneck):
  unit = Unit(features=8, stride=1, bottleneck=bottleneck, shortcut="A", stride_at="1x1", dtype=jnp.float32)
  x = jnp.abs(jnp.asarray(np.random.default_rng(1).normal(size=(2, 4, 4, 8)), jnp.float32))
  variables = unit.init(jax.random.key(0), x, train=False)
  params = zeroed_branches({"unit": variables["params"]})["unit"]
  for train in (False, True):
    apply = jax.jit(
      functools.partial(unit.apply, {**variables, "params": params}, train=train, mutable=["batch_stats"])
    )
    np.testing.assert_array_equal(apply(x)[0], x)
    np.testing.assert_array_equal(apply(x - 0.5)[0], jax.nn.relu(x - 0.5))  # after the addition


def test_a_plain_net_has_no_shortcut():
  x = jnp.asarray(np.random.default_rng(2).normal(size=(2, 8, 8, 3)), jnp.float32)
  plain, residual = cifar(8, shortcut="none", width=4), cifar(8, width=4)
  variables = jax.jit(functools.partial(residual.init, train=False))(jax.random.key(0), x)
  assert jax.tree.structure(shapes_of(plain, 8, 3)) == jax.tree.structure(variables)
  variables = {**variables, "params": zeroed_branches(variables["params"])}
  silent, heard = (jax.jit(functools.partial(model.apply, train=False))(variables, x) for model in (plain, residual))
  np.testing.assert_array_equal(silent, jnp.zeros_like(silent))  # nothing gets through
  assert jnp.abs(heard).max() > 0.01


def plain_source():
  return Source(None, {}, {"mean": np.zeros((1, 1, 1), np.float32), "std": 1.0})


@pytest.mark.parametrize(("bottleneck", "shortcut", "stride"), [(False, "A", 2), (False, "none", 1), (True, "B", 2)])
def test_derivatives_of_a_unit_are_those_of_differences(bottleneck, shortcut, stride):
  """In float64, along random directions; ReLUs that switch between the two points are few and short."""
  with jax.enable_x64(True):
    unit = Unit(8, stride, bottleneck, shortcut, "1x1", jnp.float64)
    rng = np.random.default_rng(7)
    x, weights = (
      jnp.asarray(rng.normal(size=(3, 4, 4, 4))),
      jnp.asarray(rng.normal(size=(3, 4 // stride, 4 // stride, 8))),
    )
    if stride == 1:
      x = jnp.concatenate([x, x[::-1]], -1)
    variables = unit.init(jax.random.key(0), x, train=False)
    variables = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), variables)

    @jax.jit
    def f(params, x):
      y, _ = unit.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
      return (y * weights).sum()

    point = (variables["params"], x)
    along = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), point)
    grads = jax.jit(jax.grad(f, (0, 1)))(*point)
    exact = sum(float((g * d).sum()) for g, d in zip(*map(jax.tree.leaves, (grads, along)), strict=True))
    step = 1e-6
    plus, minus = (f(*jax.tree.map(lambda p, d: p + sign * step * d, point, along)) for sign in (1, -1))  # noqa: B023
    assert exact == pytest.approx(float(plus - minus) / (2 * step), rel=1e-5)


@pytest.mark.parametrize(("shortcut", "counts"), [("A", (2, 1, 1)), pytest.param("B", (1, 3), marks=pytest.mark.slow)])
def test_the_pipelined_list_is_the_plain_one(shortcut, counts):
  """Loss, gradients and moving averages over micro-batches, with the batch statistics of each."""
  with jax.enable_x64(True):
    model = ResNet(units=(1, 1), width=4, classes=5, shortcut=shortcut, dtype=jnp.float64)
    rng = np.random.default_rng(8)
    batch = {"image": jnp.asarray(rng.normal(size=(12, 4, 4, 3))), "label": jnp.asarray(rng.integers(5, size=12))}
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), batch["image"])
    variables = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), dict(variables))
    params, state = variables.pop("params"), variables
    layers = make_layers(resnet.layers(model), source=plain_source(), pad=1, flip=True)
    stages, micro = len(counts), 3
    mesh = jax.make_mesh(
      (1, 1, 1, stages), ("data", "fsdp", "tensor", "stage"), axis_types=(AxisType.Auto,) * 4,
      devices=jax.devices()[:stages],
    )  # fmt: skip
    plan = pipeline.Plan(micro, counts)
    rng = jax.random.key(1)
    loss = functools.partial(pipeline.pipelined(layers, mesh=mesh, plan=plan), train=True)
    (value, (metrics, new)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, state, batch, rng)

    plain = jax.jit(jax.value_and_grad(functools.partial(in_turn(layers), train=True), has_aux=True))
    values, total, errors = [], None, 0.0
    for m in range(micro):
      part = jax.tree.map(lambda leaf: leaf[m::micro], batch)  # noqa: B023
      (one, (own, state)), gradient = plain(params, state, part, jax.random.fold_in(rng, m))
      values.append(float(one))
      errors += float(own["error"][0])
      total = gradient if total is None else jax.tree.map(jnp.add, total, gradient)
    assert float(value) == pytest.approx(np.mean(values), abs=1e-10)
    assert float(metrics["error"][0]) == errors
    wanted = (jax.tree.map(lambda leaf: leaf / micro, total), state)
    for one, other in zip(jax.tree.leaves((grads, new)), jax.tree.leaves(wanted), strict=True):
      np.testing.assert_allclose(one, other, atol=1e-10, rtol=0)


@pytest.mark.slow
def test_a_data_axis_beside_the_stages_keeps_the_statistics_of_the_micro_batch():
  with jax.enable_x64(True):
    model = ResNet(units=(1, 1), width=4, classes=5, dtype=jnp.float64)
    rng = np.random.default_rng(9)
    batch = {"image": jnp.asarray(rng.normal(size=(8, 4, 4, 3))), "label": jnp.asarray(rng.integers(5, size=8))}
    variables = jax.tree.map(
      lambda leaf: leaf.astype(jnp.float64), dict(model.init(jax.random.key(0), batch["image"], train=False))
    )
    params = variables.pop("params")
    layers = make_layers(resnet.layers(model), source=plain_source(), pad=0, flip=False)
    results = []
    for data, stages in ((1, 2), (4, 2)):
      mesh = jax.make_mesh(
        (data, 1, 1, stages), ("data", "fsdp", "tensor", "stage"), axis_types=(AxisType.Auto,) * 4,
        devices=jax.devices()[: data * stages],
      )  # fmt: skip
      loss = pipeline.pipelined(layers, mesh=mesh, plan=pipeline.Plan(2, (2, 2)))
      grad = jax.jit(jax.grad(functools.partial(loss, train=True), has_aux=True))
      results.append(jax.device_get(grad(params, variables, batch, jax.random.key(0))))
    for one, other in zip(*map(jax.tree.leaves, results), strict=True):
      np.testing.assert_allclose(one, other, atol=1e-10, rtol=0)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"depth": 21}, "6n"), ({"family": "imagenet", "depth": 20}, "18, 34"), ({"family": "svhn"}, "cifar or imagenet"),
    ({"shortcut": "D"}, "A, B, C"), ({"stride_at": "5x5"}, "1x1"), ({"width": 0}, "1 or more"),
  ],
)  # fmt: skip
def test_refusals(changes, message):
  model = {"family": "cifar", "depth": 20, "width": 16, "shortcut": "A", "stride_at": "1x1", **changes}
  with pytest.raises(UserError, match=message):
    from_config(ConfigDict({"model": model, "dtype": "float32"}), classes=10)
